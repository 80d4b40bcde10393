"""A key-value slab: fixed slots, a length per row, and a prompt's keys stored once for all its samples.

transformers' own caches give all rows one length and repeat the prompt for every sample. Here a row owns a slot of
`rows` for what it has decoded; its prompt lies in `blocks`, where up to LANES samples share it. Keys are stored after
RoPE, so a row may lie anywhere. Attention over both parts is plain matmul with one softmax; see `attention.py`.

Columns come in chunks of 32, 32, 64, 128, 256, 256, ...: a step computes a chunk only for the slots up to the last one
that has come so far, and `arrange` keeps long rows in the low slots.

Bits: a row's values do not depend on the rows beside it, because every shape they pass through is fixed (slots, lanes,
chunks), and what other rows make necessary beyond that is multiplied by exact zeros.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

FIRST_CHUNK, LARGEST_CHUNK = 32, 256
LANES = 8
# Columns that may be computed in vain, in units of all columns in use, before rows are moved.
REARRANGE_COST = 3

_owners = itertools.count(1)


def new_owner() -> int:
    """Return a number that no other prompt has."""
    return next(_owners)


@lru_cache
def chunks_for(columns: int) -> tuple[tuple[int, int], ...]:
    """Return the (start, size) of the chunks that hold at least this many columns, and at least one chunk."""
    chunks = [(0, FIRST_CHUNK)]
    while (end := sum(chunks[-1])) < columns:
        chunks.append((end, min(end, LARGEST_CHUNK)))
    return tuple(chunks)


def chunk_of(columns: np.ndarray) -> np.ndarray:
    """Return which chunk each column lies in."""
    starts = [start for start, _ in chunks_for(int(columns.max(initial=0)) + 1)]
    return np.searchsorted(starts, columns, side="right") - 1


def reach(chunk: np.ndarray) -> tuple[int, ...]:
    """Return for each chunk in use how many leading units must be computed, given the last chunk of every unit."""
    return tuple(int(np.flatnonzero(chunk >= c)[-1]) + 1 for c in range(int(chunk.max()) + 1))


class Store:
    """Keys and values of some units (slots or blocks), all layers.

    A layer's keys lie in one tensor [units * heads * columns, dim], chunk after chunk; a chunk is a contiguous
    [unit, head, size, dim]. Layers appear when they are first written.
    """

    def __init__(self) -> None:
        self.units = 0
        self.columns = FIRST_CHUNK
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._views: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def reserve(self, units: int, columns: int) -> None:
        """Make room for at least this many units and columns; what is stored stays."""
        columns = max(self.columns, sum(chunks_for(columns)[-1]))
        # Growing by half again keeps the copying linear in what is stored at the end.
        units = self.units if units <= self.units else max(units, self.units * 3 // 2)
        if (units, columns) == (self.units, self.columns):
            return
        grown = Store()
        grown.units, grown.columns = units, columns
        for layer in list(self.layers):
            grown.open(layer, *self.chunks(layer)[0])
            for new, old in zip(grown.chunks(layer), self.chunks(layer), strict=False):
                for x, y in zip(new, old, strict=True):
                    x[: self.units] = y
        self.units, self.columns, self.layers, self._views = units, columns, grown.layers, grown._views

    def open(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Make the layer's tensors, for keys and values like these [*, head, *, dim], where they do not exist yet."""
        if layer not in self.layers:
            # Zeros, not empty: a masked column is multiplied by an exact 0, which only a finite number survives.
            places = self.units * key.shape[1] * self.columns
            self.layers[layer] = (key.new_zeros(places, key.shape[3]), value.new_zeros(places, value.shape[3]))

    def heads(self, layer: int) -> int:
        """Return how many key heads the layer has."""
        return len(self.layers[layer][0]) // (self.units * self.columns)

    def chunks(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        """Return the layer's keys and values [unit, head, size, dim] chunk by chunk."""
        if layer not in self._views:
            keys, values = self.layers[layer]
            heads = self.heads(layer)
            self._views[layer] = [
                (self._view(keys, heads, start, size), self._view(values, heads, start, size))
                for start, size in chunks_for(self.columns)
            ]
        return self._views[layer]

    def _view(self, x: Tensor, heads: int, start: int, size: int) -> Tensor:
        return x.narrow(0, self.units * heads * start, self.units * heads * size).view(self.units, heads, size, -1)

    def places(self, unit: Tensor, column: Tensor, heads: int) -> Tensor:
        """Return where the keys of (unit, column) [n] lie: [n * heads] indices into a layer's tensors."""
        starts = torch.tensor([start for start, _ in chunks_for(self.columns)], device=unit.device)
        sizes = torch.tensor([size for _, size in chunks_for(self.columns)], device=unit.device)
        chunk = torch.searchsorted(starts, column, right=True) - 1
        start, size = starts[chunk].unsqueeze(1), sizes[chunk].unsqueeze(1)
        row = unit.unsqueeze(1) * heads + torch.arange(heads, device=unit.device)
        return (self.units * heads * start + row * size + column.unsqueeze(1) - start).flatten()

    def copy(self, source: np.ndarray, target: np.ndarray, chunk: np.ndarray) -> None:
        """Copy units `source` to units `target`, each up to its last chunk in use."""
        for layer in self.layers:
            for c, pair in enumerate(self.chunks(layer)):
                used = chunk >= c
                for x in pair if used.any() else ():
                    index = torch.from_numpy(np.stack([source[used], target[used]])).to(x.device)
                    x[index[1]] = x[index[0]]

    def fill(self, layer: int, units: Tensor, key: Tensor, value: Tensor) -> None:
        """Write keys and values [n, head, width, dim] into columns 0, 1, ... of these units."""
        self.open(layer, key, value)
        for (start, size), pair in zip(chunks_for(key.shape[2]), self.chunks(layer), strict=False):
            for x, source in zip(pair, (key, value), strict=True):
                part = source[:, :, start : start + size]
                x[units, :, : part.shape[2]] = part


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

    @property
    def own(self) -> np.ndarray:
        """Columns in use in each row's own slot [R]; the next key goes into the one after."""
        return self._lengths - self.shared

    def select(self, rows: Tensor) -> "SlabState":
        """Return these rows, all different, in this order; the slots of the others are free again."""
        index = rows.numpy()
        dropped = np.ones(len(self.slot), bool)
        dropped[index] = False
        self.slab.release(self.slot[dropped], self.block[dropped])
        return SlabState(self.slab, *(x[index] for x in self._arrays()))

    def join(self, other: "SlabState") -> "SlabState":
        """Return these rows followed by those of `other`."""
        pairs = zip(self._arrays(), other._arrays(), strict=True)
        return SlabState(self.slab, *(np.concatenate(pair) for pair in pairs))

    def fork(self, rows: Tensor, k: int) -> "SlabState":
        """Return k new rows for each of `rows`, with copies of their decoded part; these rows stay as they are."""
        index = np.repeat(rows.numpy(), k)
        slot = self.slab.take_slots(len(index))
        self.slab.rows.copy(self.slot[index], slot, chunk_of(self.own[index]))
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
        self._in_vain = 0

    def take_slots(self, n: int) -> np.ndarray:
        """Return n free slots, the lowest first."""
        free = np.flatnonzero(~self.used)[:n]
        if len(free) < n:
            raise RuntimeError(f"{n} rows need a slot and {len(free)} of {self.slots} are free: admit fewer rows")
        self.used[free] = True
        self.rows.reserve(self.slots, 1)
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

    def arrange(self, state: SlabState) -> None:
        """Move long rows into low slots and close gaps, once columns computed in vain have cost more than that does.

        `state` must hold all rows of the slab: another one would not hear that its rows were moved.
        """
        bounds, chunk = chunks_for(self.rows.columns), chunk_of(state.own)
        by_slot = np.zeros(self.width_for(int(state.slot.max()) + 1), np.int64)
        by_slot[state.slot] = chunk
        needed = int(np.array(bounds).sum(1)[chunk].sum())
        computed = sum(units * size for units, (_, size) in zip(reach(by_slot), bounds, strict=False))
        self._in_vain += computed - needed
        if self._in_vain > REARRANGE_COST * needed:
            self._in_vain = 0
            self._partition(state, chunk)

    def _partition(self, state: SlabState, chunk: np.ndarray) -> None:
        """Give the rows of each chunk a run of slots, longest rows first, and move those that lie outside their run."""
        target = state.slot.copy()
        start = 0
        for c in range(int(chunk.max()), -1, -1):
            rows = np.flatnonzero(chunk == c)
            run = np.arange(start, start + len(rows))
            stays = np.isin(state.slot[rows], run)
            target[rows[~stays]] = np.setdiff1d(run, state.slot[rows[stays]])
            start += len(rows)
        moves = target != state.slot
        self.rows.copy(state.slot[moves], target[moves], chunk[moves])
        moved = np.arange(self.slots)
        moved[state.slot] = target
        self.lane_slot = np.where(self.lane_slot < 0, -1, moved[self.lane_slot])
        self.used[state.slot] = False
        self.used[target] = True
        state.slot = target

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
        self.blocks.reserve(self.blocks.units, prompt.length)

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
        for layer in self.blocks.layers:
            for pair in self.blocks.chunks(layer):
                for x in pair:
                    x[new] = x[source]

    @staticmethod
    def _copy_prompts(store: Store, prompts: list[ParkedPrompt], units: np.ndarray) -> None:
        """Write the keys of prompts[i] into the first columns of units[i]."""
        batches = {id(p.batch): p.batch for p in prompts}
        for batch in batches.values():
            members = [i for i, p in enumerate(prompts) if p.batch is batch]
            width = max(prompts[i].length for i in members)
            for layer, pair in batch.layers.items():
                rows = torch.tensor([prompts[i].row for i in members], device=pair[0].device)
                target = torch.from_numpy(units[members]).to(pair[0].device)
                store.fill(layer, target, *(x[rows, :, :width] for x in pair))
