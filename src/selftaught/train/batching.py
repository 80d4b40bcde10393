"""Examples -> token rows -> micro-batches under a token budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from selftaught.errors import InputError
from selftaught.objectives.base import Batch, Steps
from selftaught.text.steps import Span, check_spans, first_token, token_starts, token_steps
from selftaught.text.templates import encode_completion, encode_prompt
from selftaught.train.layout import Layout, make_layout
from selftaught.types import Completion, Demonstration, Example, Feedback, Pair

Ids = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An example as ids: its prompt, its completions in order (chosen before rejected), and what the loss needs.

    `context` counts the tokens at the start of each completion that are inputs and no targets, and `target_spans` are
    the characters of its text that are targets (None: all); both are empty where everything is a target.

    Feedback has a `label`; `steps` holds the number of each token's labelled step, from 1 to S and 0 outside of them,
    `step_labels` and `step_spans` (in characters of the text) are the steps' own.

    `choices` are the indices of each completion's choices, one or one per token; none for what was not decoded so.
    """

    id: str
    weight: float
    prompt: Ids
    completions: tuple[Ids, ...]
    completion_ids: tuple[str, ...]
    finished: tuple[bool, ...]
    retokenised: int
    context: tuple[int, ...] = ()
    target_spans: tuple[Span | None, ...] = ()
    label: bool | None = None
    steps: Ids | None = None
    step_labels: tuple[bool, ...] = ()
    step_spans: tuple[Span, ...] = ()
    choices: tuple[Ids, ...] = ()

    @property
    def first_targets(self) -> tuple[int, ...]:
        """The index of the first target among each completion's tokens."""
        return self.context or (0,) * len(self.completions)

    @property
    def target_counts(self) -> tuple[int, ...]:
        """How many targets each completion has."""
        return tuple(len(c) - first for c, first in zip(self.completions, self.first_targets, strict=True))

    @property
    def scored_spans(self) -> tuple[tuple[str, Span | None], ...]:
        """What the reference scores: id and characters (None: all) of each completion, then of each step."""
        wholes = zip(self.completion_ids, self.target_spans or (None,) * len(self.completion_ids), strict=True)
        return (*wholes, *((self.completion_ids[0], span) for span in self.step_spans))

    @property
    def completion_keys(self) -> tuple[str, ...]:
        """The names under which the reference keeps the log-prob of each completion's targets."""
        return tuple(reference_key(*scored) for scored in self.scored_spans[: len(self.completion_ids)])

    @property
    def step_keys(self) -> tuple[str, ...]:
        """The names under which the reference keeps the log-prob of each step."""
        return tuple(reference_key(self.completion_ids[0], span) for span in self.step_spans)

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens of all sequences, the prompt counted with each."""
        return sum(len(self.prompt) + len(c) for c in self.completions)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest completion, the last token included."""
        return len(self.prompt) + max(len(c) for c in self.completions)


def reference_key(completion_id: str, span: Span | None) -> str:
    """Return the name under which the reference keeps the log-prob of a completion or, given a span, of that part."""
    return completion_id if span is None else f"{completion_id}[{span[0]}:{span[1]}]"


def completions_of(example: Example) -> tuple[Completion, ...]:
    """Return the completions an example is about, chosen before rejected."""
    return (example.chosen, example.rejected) if isinstance(example, Pair) else (example.completion,)


def encode(tokenizer: Any, examples: Sequence[Example], template: str, fingerprint: str) -> list[Encoded]:
    """Return `examples` as ids.

    Raises:
        InputError: a prompt or a completion has no token, or no target behind its context; names the example.
    """
    return [_encode_one(tokenizer, example, template, fingerprint) for example in examples]


def _encode_one(tokenizer: Any, example: Example, template: str, fingerprint: str) -> Encoded:
    prompt = encode_prompt(tokenizer, example.prompt, template)
    if not prompt:
        raise InputError(
            f"example {example.id}: its prompt has no token to predict the first target from: give it some text"
        )
    rows = completions_of(example)
    ids, again = zip(
        *(encode_completion(tokenizer, example.prompt, c, template, fingerprint) for c in rows), strict=True
    )
    for completion, tokens in zip(rows, ids, strict=True):
        if not tokens:
            raise InputError(f"example {example.id}: completion {completion.id} has no token: leave it out")
    return Encoded(
        id=example.id,
        weight=float(example.weight),
        prompt=np.asarray(prompt, dtype=np.int64),
        completions=tuple(np.asarray(i, dtype=np.int64) for i in ids),
        completion_ids=tuple(c.id for c in rows),
        finished=tuple(c.finish == "stop" for c in rows),
        retokenised=sum(again),
        choices=tuple(np.asarray(c.latents.get("choice", ()), dtype=np.float64) for c in rows),
        **(
            _feedback_fields(tokenizer, example, ids[0])
            if isinstance(example, Feedback)
            else _context_fields(tokenizer, example, ids)
        ),
    )


def _context_fields(tokenizer: Any, example: Demonstration | Pair, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    if not example.loss_from:
        return {}
    rows = completions_of(example)
    if len(example.loss_from) != len(rows):
        raise InputError(
            f"example {example.id}: loss_from={example.loss_from} must have {len(rows)} numbers, one for each "
            "completion: mend or empty it"
        )
    parts = list(zip(rows, ids, example.loss_from, strict=True))
    return {
        "context": tuple(_first_target(tokenizer, f"example {example.id}", *part) for part in parts),
        "target_spans": tuple((begin, len(c.text)) if begin else None for c, _, begin in parts),
    }


def _first_target(tokenizer: Any, name: str, completion: Completion, ids: Sequence[int], begin: int) -> int:
    if not begin:
        return 0
    where = f"{name}: loss_from={begin} of completion {completion.id}"
    if not 0 < begin <= len(completion.text):
        raise InputError(f"{where} lies outside of its {len(completion.text)} characters: mend or empty loss_from")
    first = first_token(tokenizer, ids, completion.text, begin)
    if first is None:
        raise InputError(f"{where} has no place in its tokens, which do not spell its text: empty loss_from")
    if first == len(ids):
        raise InputError(f"{where} leaves no target: lower it, or leave the example out")
    return first


def _feedback_fields(tokenizer: Any, example: Feedback, ids: Sequence[int]) -> dict[str, Any]:
    """Return label and steps; a step that has no token of its own, being part of a neighbour's, is left out."""
    if not example.step_labels:
        return {"label": example.label}
    text, spans = example.completion.text, [(start, end) for start, end, _ in example.step_labels]
    check_spans(spans, text, f"example {example.id}")
    starts = token_starts(tokenizer, ids, text)
    if starts is None:
        raise InputError(
            f"example {example.id}: the tokens of completion {example.completion.id} do not spell its text, so steps "
            "have no place in them: leave its step labels out"
        )
    numbers = np.asarray(token_steps(starts, text, spans), dtype=np.int64)
    kept, renumbered = np.unique(numbers, return_inverse=True)
    found = [int(number) - 1 for number in kept if number]
    return {
        "label": example.label,
        "steps": renumbered + (0 if kept[0] == 0 else 1),
        "step_labels": tuple(example.step_labels[h][2] for h in found),
        "step_spans": tuple(spans[h] for h in found),
    }


def as_steps(example: Encoded) -> list[Encoded]:
    """Return every labelled step as an example of its own: what precedes it belongs to its prompt."""
    completion, steps = example.completions[0], example.steps
    if steps is None:
        return []
    parts = []
    for number, (key, label) in enumerate(zip(example.step_keys, example.step_labels, strict=True), 1):
        places = np.flatnonzero(steps == number)
        first, last = int(places[0]), int(places[-1])
        parts.append(
            Encoded(
                id=f"{example.id}[{number}]",
                weight=example.weight,
                prompt=np.concatenate([example.prompt, completion[:first]]),
                completions=(completion[first : last + 1],),
                completion_ids=(key,),
                finished=(False,),
                retokenised=0,
                label=label,
            )
        )
    return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of input: `sources` are indices into `tokens`, `owner` counts the example's completions from 0.

    The last token of a completion is a target and never an input, its context an input and never a target. `parts` are
    the lengths of what attention treats apart: the prompt and each completion of a tree, or the whole row.
    """

    tokens: Ids
    positions: Ids
    segments: Ids
    sources: Ids
    targets: Ids
    owner: Ids
    parts: tuple[int, ...]


def tree_row(example: Encoded) -> Row:
    """Return the prompt followed by all completions, each of which continues from the prompt's last token."""
    prompt = len(example.prompt)
    lengths = [len(c) - 1 for c in example.completions]
    firsts = example.first_targets
    starts = prompt + np.cumsum([0, *lengths[:-1]])
    # Entry i is the place of the token that predicts the completion's token i.
    sources = [np.concatenate([[prompt - 1], np.arange(s, s + n)]) for s, n in zip(starts, lengths, strict=True)]
    return Row(
        tokens=np.concatenate([example.prompt, *(c[:-1] for c in example.completions)]),
        positions=np.concatenate([np.arange(prompt), *(np.arange(prompt, prompt + n) for n in lengths)]),
        segments=np.repeat(np.arange(len(lengths) + 1) if len(lengths) > 1 else [0, 0], [prompt, *lengths]),
        sources=np.concatenate([places[first:] for places, first in zip(sources, firsts, strict=True)]),
        targets=np.concatenate([c[first:] for c, first in zip(example.completions, firsts, strict=True)]),
        owner=np.repeat(np.arange(len(lengths)), example.target_counts),
        parts=(prompt, *lengths) if len(lengths) > 1 else (prompt + lengths[0],),
    )


def separate_rows(example: Encoded) -> list[Row]:
    """Return one ordinary row per completion, the prompt repeated in each."""
    rows = []
    for i, (completion, first) in enumerate(zip(example.completions, example.first_targets, strict=True)):
        tokens = np.concatenate([example.prompt, completion[:-1]])
        sources = np.arange(len(example.prompt) - 1 + first, len(tokens))
        rows.append(
            Row(
                tokens=tokens,
                positions=np.arange(len(tokens)),
                segments=np.zeros(len(tokens), dtype=np.int64),
                sources=sources,
                targets=completion[first:],
                owner=np.full(len(sources), i),
                parts=(len(tokens),),
            )
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An example with its rows and, for objectives that need them, the reference's summed log-probs.

    `mismatched` is its prompt with the completion of another example of the global batch.
    """

    example: Encoded
    rows: tuple[Row, ...]
    reference: tuple[float, ...] | None = None
    step_reference: tuple[float, ...] = ()
    mismatched: "Item | None" = None

    @property
    def width(self) -> int:
        """Tokens of its longest row."""
        return max(len(r.tokens) for r in self.rows)

    @property
    def tokens(self) -> int:
        """Tokens of all its rows."""
        return sum(len(r.tokens) for r in self.rows)


def make_items(examples: Sequence[Encoded], tree: bool) -> list[Item]:
    """Return the examples with their rows, as trees or separate."""
    return [Item(example=e, rows=(tree_row(e),) if tree else tuple(separate_rows(e))) for e in examples]


def with_reference(item: Item, reference: Mapping[str, float]) -> Item:
    """Return `item` with the reference log-probs of its completions and their labelled steps.

    Raises:
        InputError: there is none for a completion or a step; names it.
    """
    wholes, steps = item.example.completion_keys, item.example.step_keys
    missing = [name for name in (*wholes, *steps) if reference.get(name) is None]
    if missing:
        raise InputError(
            f"example {item.example.id}: completion {missing[0]} has no reference log-prob: compute the reference again"
        )
    own, parts = (tuple(reference[name] for name in names) for names in (wholes, steps))
    return replace(item, reference=own, step_reference=parts)


def micro_batches(items: Sequence[Item], budget: int, packed: bool) -> list[list[Item]]:
    """Return `items` sorted by width and cut into micro-batches of at most `budget` tokens (or of one item).

    Tokens are counted as they are computed: without padding where rows are packed, with it where they are not.
    """
    batches: list[list[Item]] = []
    used = 0
    for item in sorted(items, key=lambda i: (-i.width, i.example.id)):
        widest = batches[-1][0].width if batches else item.width
        if not batches or used + _cost(item, widest, packed) > budget:
            batches.append([])
            used, widest = 0, item.width
        batches[-1].append(item)
        used += _cost(item, widest, packed)
    return batches


def shares(items: Sequence[Item], world: int) -> list[list[Item]]:
    """Return `items` dealt to `world` ranks so that their token counts are close; every rank computes the same deal."""
    hands: list[list[Item]] = [[] for _ in range(world)]
    loads = [0] * world
    for item in sorted(items, key=lambda i: (-i.tokens, i.example.id)):
        rank = loads.index(min(loads))
        hands[rank].append(item)
        loads[rank] += item.tokens
    return hands


@dataclass(frozen=True, slots=True, kw_only=True)
class Batcher:
    """Makes this rank's micro-batches of a global batch.

    `in_step` says that all ranks must make the same number of passes through the model: FSDP2 ranks gather each other's
    shards in every one.
    """

    packed: bool
    pad_id: int
    device: torch.device
    rank: int = 0
    world: int = 1
    in_step: bool = False

    def split(self, items: Sequence[Item], budget: int) -> list[list[Item]]:
        """Return this rank's share of `items` as micro-batches of at most `budget` tokens."""
        return micro_batches(shares(items, self.world)[self.rank], budget, self.packed)

    def collate(self, items: Sequence[Item]) -> Batch:
        """Return `items` as one micro-batch on this rank's device."""
        return to_device(collate(items, packed=self.packed, pad_id=self.pad_id), self.device)

    def idle_passes(self, items: Sequence[Item], budget: int) -> int:
        """Return how many passes this rank must make beyond those of its own micro-batches."""
        if not self.in_step:
            return 0
        counts = [len(micro_batches(share, budget, self.packed)) for share in shares(items, self.world)]
        return max(counts) - counts[self.rank]


def _cost(item: Item, widest: int, packed: bool) -> int:
    return item.tokens if packed else widest * len(item.rows)


def collate(items: Sequence[Item], *, packed: bool, pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Return the micro-batch of `items`."""
    rows = [row for item in items for row in item.rows]
    widths = np.array([len(r.tokens) for r in rows])
    completions = len(items[0].example.completions)
    first_owner = np.concatenate([np.full(len(i.rows), n * completions) for n, i in enumerate(items)])
    starts = np.concatenate([[0], np.cumsum(widths)[:-1]]) if packed else np.arange(len(rows)) * widths.max()
    target_counts = [len(r.targets) for r in rows]
    owner = np.concatenate([r.owner for r in rows]) + np.repeat(first_owner, target_counts)
    sources = np.concatenate([r.sources for r in rows]) + np.repeat(starts, target_counts)
    build = _packed_inputs if packed else _padded_inputs
    inputs, layout = build(rows, widths, pad_id)
    lengths = np.array([n for i in items for n in i.example.target_counts], dtype=np.float32)
    weights = tuple(i.example.weight for i in items)
    reference = [value for item in items for value in item.reference or ()]
    told = items[0].example.label is not None
    choices = [c for i in items for c in i.example.choices]
    labels = tuple(bool(i.example.label) for i in items) if told else ()
    foreign = sorted((i.mismatched for i in items if i.mismatched), key=lambda i: -i.width)
    return Batch(
        inputs=inputs,
        layout=layout,
        sources=torch.from_numpy(sources),
        targets=torch.from_numpy(np.concatenate([r.targets for r in rows])),
        owner=torch.from_numpy(owner),
        lengths=torch.from_numpy(lengths),
        weights=torch.tensor(weights, dtype=torch.float32),
        reference=torch.tensor(reference, dtype=torch.float32) if reference else None,
        example_ids=tuple(i.example.id for i in items),
        example_weights=weights,
        target_count=len(sources),
        labels=torch.tensor(labels, dtype=torch.float32) if told else None,
        example_labels=labels,
        steps=_collate_steps(items) if told else None,
        mismatched=collate(foreign, packed=packed, pad_id=pad_id) if foreign else None,
        choices=torch.from_numpy(np.concatenate(choices).astype(np.int64)) if choices else None,
    )


def _collate_steps(items: Sequence[Item]) -> Steps:
    """Return the steps of examples of one completion each, whose targets thus lie in the order of the examples."""
    examples = [i.example for i in items]
    counts = [len(e.step_labels) for e in examples]
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    none = sum(counts)
    owner = np.concatenate(
        [
            np.full(len(e.completions[0]), none) if e.steps is None else np.where(e.steps > 0, e.steps - 1 + b, none)
            for e, b in zip(examples, before, strict=True)
        ]
    )
    labels = [label for e in examples for label in e.step_labels]
    reference = [value for i in items for value in i.step_reference]
    return Steps(
        owner=torch.from_numpy(owner.astype(np.int64)),
        labels=torch.tensor(labels, dtype=torch.float32),
        example=torch.from_numpy(np.repeat(np.arange(len(items)), counts)),
        lengths=torch.from_numpy(np.bincount(owner, minlength=none + 1)[:none].astype(np.float32)),
        reference=torch.tensor(reference, dtype=torch.float32) if len(reference) == none else None,
        right=sum(labels),
        examples=sum(count > 0 for count in counts),
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return `batch` with its tensors on `device`."""
    if device.type == "cpu":
        return batch
    layout = None if batch.layout is None else batch.layout.to(device)
    moved = {n: getattr(batch, n).to(device) for n in ("sources", "targets", "owner", "lengths", "weights")}
    reference = None if batch.reference is None else batch.reference.to(device)
    inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
    return replace(
        batch,
        inputs=inputs,
        layout=layout,
        reference=reference,
        labels=None if batch.labels is None else batch.labels.to(device),
        steps=None if batch.steps is None else _steps_to(batch.steps, device),
        mismatched=None if batch.mismatched is None else to_device(batch.mismatched, device),
        choices=None if batch.choices is None else batch.choices.to(device),
        **moved,
    )


def _steps_to(steps: Steps, device: torch.device) -> Steps:
    moved = {name: getattr(steps, name).to(device) for name in ("owner", "labels", "example", "lengths")}
    return replace(steps, reference=None if steps.reference is None else steps.reference.to(device), **moved)


def _places(widths: Ids, width: int) -> Ids:
    starts = np.repeat(np.arange(len(widths)) * width - np.concatenate([[0], np.cumsum(widths)[:-1]]), widths)
    return np.arange(int(widths.sum())) + starts


def _packed_inputs(rows: Sequence[Row], widths: Ids, pad_id: int) -> tuple[dict, Layout]:
    positions = np.concatenate([r.positions for r in rows])
    segments = np.concatenate([r.segments for r in rows])
    layout = make_layout([r.parts for r in rows], positions, segments)
    added = len(layout.place) - len(positions)
    tokens = np.concatenate([*(r.tokens for r in rows), np.full(added, pad_id)])
    positions = np.concatenate([positions, np.zeros(added, dtype=np.int64)])
    return {"input_ids": torch.from_numpy(tokens)[None], "position_ids": torch.from_numpy(positions)[None]}, layout


def _padded_inputs(rows: Sequence[Row], widths: Ids, pad_id: int) -> tuple[dict, None]:
    shape = (len(rows), int(widths.max()))
    places = _places(widths, shape[1])
    tokens = np.full(shape[0] * shape[1], pad_id, dtype=np.int64)
    tokens[places] = np.concatenate([r.tokens for r in rows])
    mask = np.zeros(shape[0] * shape[1], dtype=np.int64)
    mask[places] = 1
    return {
        "input_ids": torch.from_numpy(tokens).view(shape),
        "attention_mask": torch.from_numpy(mask).view(shape),
    }, None
