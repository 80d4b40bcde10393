"""Encoded examples -> token rows -> micro-batches under a token budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from selftaught.errors import InputError
from selftaught.objectives.base import Batch, Steps
from selftaught.train.encoding import Encoded, Ids
from selftaught.train.layout import Layout, make_layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of input: `sources` are indices into `tokens`, `owner` counts the example's completions from 0.

    The last token of a completion is a target and never an input, its context an input and never a target. `parts` are
    the lengths of what attention treats apart: the prompt and each completion of a tree, or the whole row.
    `patch_lengths` are those of its tokens and of the last target, which is the token still to come.
    """

    tokens: Ids
    positions: Ids
    segments: Ids
    sources: Ids
    targets: Ids
    owner: Ids
    parts: tuple[int, ...]
    patch_lengths: Ids | None = None


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
        patch_lengths=example.patch_lengths,
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
                patch_lengths=example.patch_lengths,
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
    patches = [torch.from_numpy(r.patch_lengths) for r in rows if r.patch_lengths is not None]
    return {
        "input_ids": torch.from_numpy(tokens).view(shape),
        "attention_mask": torch.from_numpy(mask).view(shape),
        **({"patch_lengths": pad_sequence(patches, batch_first=True)} if patches else {}),
    }, None
