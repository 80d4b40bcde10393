"""A key-value slab: fixed slots, a length per row, and a prompt's keys stored once for all its samples.

transformers' own caches give all rows one length and repeat the prompt for every sample. Here a row owns a slot of
`rows` [slot, head, column, dim] for what it has decoded; its prompt lies in `blocks` [block, head, column, dim], where
up to LANES samples share it. Keys are stored after RoPE, so a row may lie anywhere. Attention over both parts is plain
matmul with one softmax; see `attention.py`.

Bits: a sample's values do not depend on the rows beside it, because all shapes its numbers pass through are fixed
(slots, lanes) or change in ways that leave them alone (columns in steps of 32, all masked columns exact zeros).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

COLUMN_STEP = 32
LANES = 8

_owners = itertools.count(1)


def new_owner() -> int:
    """Return a number that no other prompt has."""
    return next(_owners)


def round_up(n: int, step: int = COLUMN_STEP) -> int:
    """Return the smallest multiple of `step` that is at least `n`, and at least one step."""
    return max(step, -(-n // step) * step)


class Store:
    """Keys and values [unit, head, column, dim] of every layer. Tensors appear when a layer is first written."""

    def __init__(self) -> None:
        self.units = 0
        self.columns = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, units: int, columns: int) -> None:
        """Make room for at least this many units and columns; what is stored stays."""
        if units <= self.units and columns <= self.columns:
            return
        # Growing by half again keeps the copying linear in what is stored at the end.
        self.units = units if units <= self.units or not self.units else max(units, self.units * 3 // 2)
        self.units = max(self.units, units)
        if columns > self.columns:
            self.columns = round_up(max(columns, self.columns * 3 // 2))
        for layer, pair in self.layers.items():
            self.layers[layer] = (self._grown(pair[0]), self._grown(pair[1]))

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer's tensors, made like `key` and `value` [*, head, *, dim] where they do not exist yet."""
        if index not in self.layers:
            self.layers[index] = (self._like(key), self._like(value))
        return self.layers[index]

    def _like(self, x: Tensor) -> Tensor:
        # Zeros, not empty: a masked column is multiplied by an exact 0, which only a finite number survives.
        return x.new_zeros(self.units, x.shape[1], self.columns, x.shape[3])

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self.units, old.shape[1], self.columns, old.shape[3])
        new[: old.shape[0], :, : old.shape[2]] = old
        return new


@dataclass(slots=True)
class PromptBatch:
    """Keys and values [n, head, width, dim] of prompts that were prefilled together, per layer."""

    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParkedPrompt:
    """One prefilled prompt that waits for samples. `owner` tells its blocks from those of other prompts."""

    batch: PromptBatch
    row: int
    length: int
    owner: int


class ParkedState:
    """Prefilled prompts, without slots. `fork` turns them into rows that decode."""

    def __init__(self, slab: "Slab", prompts: list[ParkedPrompt]) -> None:
        self.slab = slab
        self.prompts = prompts

    @property
    def lengths(self) -> Tensor:
        """Cached positions [R] int64."""
        return torch.tensor([p.length for p in self.prompts], dtype=torch.int64)

    def select(self, rows: Tensor) -> "ParkedState":
        """Return these prompts, in this order."""
        return ParkedState(self.slab, [self.prompts[i] for i in rows.tolist()])

    def join(self, other: "ParkedState") -> "ParkedState":
        """Return these prompts followed by those of `other`."""
        return ParkedState(self.slab, self.prompts + other.prompts)

    def truncate(self, rows: Tensor, lengths: Tensor) -> None:
        """Forget what lies past the first `lengths` positions of `rows`."""
        for i, n in zip(rows.tolist(), lengths.tolist(), strict=True):
            p = self.prompts[i]
            self.prompts[i] = ParkedPrompt(p.batch, p.row, min(n, p.length), new_owner())

    def fork(self, rows: Tensor, k: int) -> "SlabState":
        """Return k rows for each of `rows`, in slots of their own; these prompts stay and can be forked again."""
        prompts = [self.prompts[i] for i in rows.tolist() for _ in range(k)]
        return self.slab.admit(prompts)


class SlabState:
    """Rows that decode: each has a slot and, where prompts are shared, a lane of its prompt's block."""

    def __init__(self, slab: "Slab", slot: np.ndarray, block: np.ndarray, lengths: np.ndarray, shared: np.ndarray):
        self.slab = slab
        self.slot = slot
        self.block = block
        self._lengths = lengths
        self.shared = shared

    @property
    def lengths(self) -> Tensor:
        """Cached positions [R] int64."""
        return torch.from_numpy(self._lengths)

    def select(self, rows: Tensor) -> "SlabState":
        """Return these rows, all different, in this order; the slots of the others are free again."""
        index = rows.numpy()
        dropped = np.ones(len(self.slot), bool)
        dropped[index] = False
        self.slab.release(self.slot[dropped], self.block[dropped])
        kept = SlabState(self.slab, self.slot[index], self.block[index], self._lengths[index], self.shared[index])
        self.slab.compact(kept)
        return kept

    def join(self, other: "SlabState") -> "SlabState":
        """Return these rows followed by those of `other`."""
        pairs = zip(self._arrays(), other._arrays(), strict=True)
        return SlabState(self.slab, *(np.concatenate(pair) for pair in pairs))

    def fork(self, rows: Tensor, k: int) -> "SlabState":
        """Return k new rows for each of `rows`, with copies of their decoded part; these rows stay as they are."""
        index = np.repeat(rows.numpy(), k)
        slot = self.slab.take_slots(len(index))
        self.slab.copy_rows(self.slot[index], slot)
        block = self.slab.take_lanes(self.block[index], slot) if self.slab.share else self.block[index]
        return SlabState(self.slab, slot, block, self._lengths[index], self.shared[index])

    def truncate(self, rows: Tensor, lengths: Tensor) -> None:
        """Forget what lies past the first `lengths` positions of `rows`; nothing moves, columns are written again."""
        index = rows.numpy()
        self._lengths[index] = np.minimum(self._lengths[index], lengths.numpy())
        self.shared[index] = np.minimum(self.shared[index], self._lengths[index])

    def advance(self) -> None:
        """Count one more position in every row."""
        self._lengths += 1

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.slot, self.block, self._lengths, self.shared


class Slab:
    """The storage behind all states of one model.

    Args:
        slots: rows that can decode at once.
        share: store a prompt once for up to LANES samples; False copies it into every row.
        widths: numbers of slots a step may compute, rising, the last one `slots`.
    """

    def __init__(self, slots: int, share: bool, widths: Sequence[int]) -> None:
        self.slots = slots
        self.share = share
        self.widths = tuple(widths)
        self.rows = Store()
        self.blocks = Store()
        self.used = np.zeros(slots, bool)
        self.lane_slot = np.full((0, LANES), -1)
        self.block_owner = np.zeros(0, np.int64)

    def take_slots(self, n: int) -> np.ndarray:
        """Return n free slots, the lowest first."""
        free = np.flatnonzero(~self.used)[:n]
        if len(free) < n:
            raise RuntimeError(f"{n} rows need a slot and {len(free)} of {self.slots} are free: admit fewer rows")
        self.used[free] = True
        self.rows.reserve(self.slots, COLUMN_STEP)
        return free

    def admit(self, prompts: list[ParkedPrompt]) -> SlabState:
        """Give every entry of `prompts` (repeated for several samples) a slot and its prompt's keys."""
        slot = self.take_slots(len(prompts))
        lengths = np.array([p.length for p in prompts], np.int64)
        if not self.share:
            self.rows.reserve(self.slots, int(lengths.max(initial=0)))
            self._copy_prompts(self.rows, prompts, slot)
            return SlabState(self, slot, np.full(len(slot), -1), lengths, np.zeros_like(lengths))
        block = np.empty(len(slot), np.int64)
        start = 0
        for _, group in itertools.groupby(prompts, key=lambda p: p.owner):
            members = list(group)
            rows = slice(start, start + len(members))
            block[rows] = self._lanes_for(members[0], slot[rows])
            start += len(members)
        return SlabState(self, slot, block, lengths, lengths.copy())

    def release(self, slot: np.ndarray, block: np.ndarray) -> None:
        """Free these slots and their lanes; a block without rows is free again."""
        self.used[slot] = False
        if self.share and len(slot):
            touched = np.unique(block)
            gone = np.isin(self.lane_slot[touched], slot)
            self.lane_slot[touched] = np.where(gone, -1, self.lane_slot[touched])
            empty = touched[(self.lane_slot[touched] < 0).all(1)]
            self.block_owner[empty] = 0

    def copy_rows(self, source: np.ndarray, target: np.ndarray) -> None:
        """Copy the decoded part of the source slots to the target slots."""
        for pair in self.rows.layers.values():
            for x in pair:
                index = torch.from_numpy(np.stack([source, target])).to(x.device)
                x[index[1]] = x[index[0]]

    def compact(self, state: SlabState) -> None:
        """Move the rows of `state` into the low slots where that lets a step compute fewer of them."""
        live = len(state.slot)
        width = self.width_for(live)
        high = state.slot >= width
        # Rows of another state would not hear that they were moved.
        if not high.any() or live != int(self.used.sum()):
            return
        source = state.slot[high]
        target = np.flatnonzero(~self.used[:width])[: len(source)]
        self.copy_rows(source, target)
        moved = np.arange(self.slots)
        moved[source] = target
        self.lane_slot = np.where(self.lane_slot < 0, -1, moved[self.lane_slot])
        state.slot[high] = target
        self.used[source], self.used[target] = False, True

    def width_for(self, slots: int) -> int:
        """Return the smallest allowed width that holds this many slots."""
        return next(w for w in self.widths if w >= slots)

    def take_lanes(self, blocks: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Give each new row a lane in the block it shares, or in a copy of it where that is full."""
        result = np.empty(len(slot), np.int64)
        for block in np.unique(blocks).tolist():
            where = np.flatnonzero(blocks == block)
            result[where] = self._spread(int(self.block_owner[block]), slot[where], partial(self._copy_block, block))
        return result

    def _lanes_for(self, prompt: ParkedPrompt, slot: np.ndarray) -> np.ndarray:
        self.blocks.reserve(self.blocks.units, round_up(prompt.length))

        def fill(new: list[int]) -> None:
            self._copy_prompts(self.blocks, [prompt] * len(new), np.array(new))

        return self._spread(prompt.owner, slot, fill)

    def _spread(self, owner: int, slot: np.ndarray, fill: Callable[[list[int]], None]) -> np.ndarray:
        """Put rows into vacant lanes of the owner's blocks, then into new blocks, which `fill` writes."""
        vacant = [
            (b, i) for b in np.flatnonzero(self.block_owner == owner) for i in np.flatnonzero(self.lane_slot[b] < 0)
        ]
        new = self._take_blocks(-(-max(0, len(slot) - len(vacant)) // LANES), owner)
        if new:
            fill(new)
        places = (vacant + [(b, i) for b in new for i in range(LANES)])[: len(slot)]
        block, lane = np.array(places, np.int64).T
        self.lane_slot[block, lane] = slot
        return block

    def _take_blocks(self, n: int, owner: int) -> list[int]:
        free = np.flatnonzero(self.block_owner == 0)[:n]
        missing = n - len(free)
        if missing > 0:
            units = len(self.block_owner)
            self.block_owner = np.concatenate([self.block_owner, np.zeros(missing, np.int64)])
            self.lane_slot = np.concatenate([self.lane_slot, np.full((missing, LANES), -1)])
            free = np.concatenate([free, np.arange(units, units + missing)])
            self.blocks.reserve(units + missing, self.blocks.columns)
        self.block_owner[free] = owner
        return free.tolist()

    def _copy_block(self, source: int, new: list[int]) -> None:
        for pair in self.blocks.layers.values():
            for x in pair:
                x[new] = x[source]

    @staticmethod
    def _copy_prompts(store: Store, prompts: list[ParkedPrompt], units: np.ndarray) -> None:
        """Write the keys of prompts[i] into columns 0, 1, ... of units[i]."""
        batches = {id(p.batch): p.batch for p in prompts}
        for batch in batches.values():
            members = [i for i, p in enumerate(prompts) if p.batch is batch]
            width = max(prompts[i].length for i in members)
            for layer, pair in batch.layers.items():
                for x, source in zip(store.layer(layer, *pair), pair, strict=True):
                    rows = torch.tensor([prompts[i].row for i in members], device=x.device)
                    target = torch.from_numpy(units[members]).to(x.device)
                    x[target, :, :width] = source[rows, :, :width]
