"""Examples -> token rows -> micro-batches under a token budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from selftaught.errors import InputError
from selftaught.objectives.base import Batch
from selftaught.text.templates import encode_completion, encode_prompt
from selftaught.train.attention import Layout
from selftaught.types import Completion, Demonstration, Example, Pair

Ids = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An example as ids: its prompt, its completions in order (chosen before rejected), and what the loss needs."""

    id: str
    weight: float
    prompt: Ids
    completions: tuple[Ids, ...]
    completion_ids: tuple[str, ...]
    finished: tuple[bool, ...]
    retokenised: int

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens of all sequences, the prompt counted with each."""
        return sum(len(self.prompt) + len(c) for c in self.completions)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest completion, the last token included."""
        return len(self.prompt) + max(len(c) for c in self.completions)


def completions_of(example: Example) -> tuple[Completion, ...]:
    """Return the completions an example is about, chosen before rejected."""
    return (example.chosen, example.rejected) if isinstance(example, Pair) else (example.completion,)


def encode(tokenizer: Any, examples: Sequence[Example], template: str, fingerprint: str) -> list[Encoded]:
    """Return `examples` as ids.

    Raises:
        InputError: a prompt or a completion has no token; names the example.
    """
    return [_encode_one(tokenizer, example, template, fingerprint) for example in examples]


def _encode_one(tokenizer: Any, example: Example, template: str, fingerprint: str) -> Encoded:
    prompt = encode_prompt(tokenizer, example.prompt, template)
    if not prompt:
        raise InputError(
            f"example {example.id}: its prompt has no token, so nothing can predict the first target: give the prompt some text"
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
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of input: `sources` are indices into `tokens`, `owner` counts the example's completions from 0.

    The last token of a completion is a target and never an input.
    """

    tokens: Ids
    positions: Ids
    segments: Ids
    sources: Ids
    targets: Ids
    owner: Ids


def tree_row(example: Encoded) -> Row:
    """Return the prompt followed by all completions, each of which continues from the prompt's last token."""
    prompt = len(example.prompt)
    lengths = [len(c) - 1 for c in example.completions]
    starts = prompt + np.cumsum([0, *lengths[:-1]])
    spans = [np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]
    return Row(
        tokens=np.concatenate([example.prompt, *(c[:-1] for c in example.completions)]),
        positions=np.concatenate([np.arange(prompt), *(np.arange(prompt, prompt + n) for n in lengths)]),
        segments=np.repeat(np.arange(len(lengths) + 1), [prompt, *lengths]),
        sources=np.concatenate([part for span in spans for part in ([prompt - 1], span)]),
        targets=np.concatenate(example.completions),
        owner=np.repeat(np.arange(len(lengths)), [n + 1 for n in lengths]),
    )


def separate_rows(example: Encoded) -> list[Row]:
    """Return one ordinary row per completion, the prompt repeated in each."""
    rows = []
    for i, completion in enumerate(example.completions):
        tokens = np.concatenate([example.prompt, completion[:-1]])
        sources = np.arange(len(example.prompt) - 1, len(tokens))
        zeros = np.zeros(len(tokens), dtype=np.int64)
        owner = np.full(len(completion), i)
        positions = np.arange(len(tokens))
        rows.append(
            Row(tokens=tokens, positions=positions, segments=zeros, sources=sources, targets=completion, owner=owner)
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An example with its rows and, for objectives that need it, the reference's summed log-probs."""

    example: Encoded
    rows: tuple[Row, ...]
    reference: tuple[float, ...] | None = None

    @property
    def width(self) -> int:
        """Tokens of its longest row."""
        return max(len(r.tokens) for r in self.rows)

    @property
    def tokens(self) -> int:
        """Tokens of all its rows."""
        return sum(len(r.tokens) for r in self.rows)


def make_items(examples: Sequence[Encoded], tree: bool, reference: Mapping[str, float] | None) -> list[Item]:
    """Return the examples' rows, as trees or separate.

    Raises:
        InputError: a completion has no reference log-prob; names it.
    """
    items = []
    for example in examples:
        rows = (tree_row(example),) if tree else tuple(separate_rows(example))
        values = None
        if reference is not None:
            missing = [c for c in example.completion_ids if c not in reference]
            if missing:
                raise InputError(
                    f"example {example.id}: completion {missing[0]} has no reference log-prob: score the examples again"
                )
            values = tuple(reference[c] for c in example.completion_ids)
        items.append(Item(example=example, rows=rows, reference=values))
    return items


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


def _cost(item: Item, widest: int, packed: bool) -> int:
    return item.tokens if packed else widest * len(item.rows)


def collate(items: Sequence[Item], *, packed: bool, pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Return the micro-batch of `items`."""
    rows = [row for item in items for row in item.rows]
    widths = np.array([len(r.tokens) for r in rows])
    completions = len(items[0].example.completions)
    first_owner = np.concatenate([np.full(len(i.rows), n * completions) for n, i in enumerate(items)])
    places = _places(widths, int(widths.max()))
    starts = np.concatenate([[0], np.cumsum(widths)[:-1]]) if packed else np.arange(len(rows)) * widths.max()
    target_counts = [len(r.targets) for r in rows]
    owner = np.concatenate([r.owner for r in rows]) + np.repeat(first_owner, target_counts)
    sources = np.concatenate([r.sources for r in rows]) + np.repeat(starts, target_counts)
    build = _packed_inputs if packed else _padded_inputs
    inputs, layout = build(rows, widths, places, pad_id)
    lengths = np.array([len(c) for i in items for c in i.example.completions], dtype=np.float32)
    weights = tuple(i.example.weight for i in items)
    has_reference = items[0].reference is not None
    return Batch(
        inputs=inputs,
        layout=layout,
        sources=torch.from_numpy(sources),
        targets=torch.from_numpy(np.concatenate([r.targets for r in rows])),
        owner=torch.from_numpy(owner),
        lengths=torch.from_numpy(lengths),
        weights=torch.tensor(weights, dtype=torch.float32),
        reference=torch.tensor([v for i in items for v in i.reference], dtype=torch.float32) if has_reference else None,
        example_ids=tuple(i.example.id for i in items),
        example_weights=weights,
        target_count=len(sources),
    )


_LAYOUT_TENSORS = ("token", "place", "padding", "positions", "segments")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return `batch` with its tensors on `device`."""
    if device.type == "cpu":
        return batch
    layout = batch.layout
    if layout is not None:
        layout = replace(
            layout, **{n: getattr(layout, n).to(device) for n in ("pad", "unpad", "positions", "segments")}
        )
    moved = {n: getattr(batch, n).to(device) for n in ("sources", "targets", "owner", "lengths", "weights")}
    reference = None if batch.reference is None else batch.reference.to(device)
    inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
    return replace(batch, inputs=inputs, layout=layout, reference=reference, **moved)


def _places(widths: Ids, width: int) -> Ids:
    starts = np.repeat(np.arange(len(widths)) * width - np.concatenate([[0], np.cumsum(widths)[:-1]]), widths)
    return np.arange(int(widths.sum())) + starts


def _packed_inputs(rows: Sequence[Row], widths: Ids, places: Ids, pad_id: int) -> tuple[dict, Layout]:
    width = int(widths.max())

    def padded(values: Ids, fill: int) -> torch.Tensor:
        full = np.full(len(rows) * width, fill, dtype=np.int64)
        full[places] = values
        return torch.from_numpy(full)

    positions = np.concatenate([r.positions for r in rows])
    segments = np.concatenate([r.segments for r in rows])
    layout = Layout(
        rows=len(rows),
        width=width,
        token=padded(np.arange(len(places)), 0),
        place=torch.from_numpy(places),
        padding=torch.from_numpy(np.flatnonzero(np.bincount(places, minlength=len(rows) * width) == 0)),
        positions=padded(positions, 0).view(len(rows), width),
        segments=padded(segments, -1).view(len(rows), width),
        is_tree=bool(segments.max() > 1),
    )
    tokens = torch.from_numpy(np.concatenate([r.tokens for r in rows]))[None]
    return {"input_ids": tokens, "position_ids": torch.from_numpy(positions)[None]}, layout


def _padded_inputs(rows: Sequence[Row], widths: Ids, places: Ids, pad_id: int) -> tuple[dict, None]:
    shape = (len(rows), int(widths.max()))
    tokens = np.full(shape[0] * shape[1], pad_id, dtype=np.int64)
    tokens[places] = np.concatenate([r.tokens for r in rows])
    mask = np.zeros(shape[0] * shape[1], dtype=np.int64)
    mask[places] = 1
    return {
        "input_ids": torch.from_numpy(tokens).view(shape),
        "attention_mask": torch.from_numpy(mask).view(shape),
    }, None
