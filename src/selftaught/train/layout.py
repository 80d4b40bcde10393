"""Where packed tokens lie when attention splits them into rows: groups of similar rows, padded inside a group only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.functional.tree import PADDING, tree_mask

# Parts are padded to multiples of this: vector units handle scores of an odd width up to twice as slowly, and for each
# shape that a CPU matmul meets, a kernel of about a megabyte is compiled and kept.
STEP = 32

# A group of rows has at least this many scores per head, so that starting its matmuls costs little beside them.
GROUP_SCORES = 2**17


@dataclass(frozen=True, slots=True)
class Group:
    """`rows` rows of width T = sum(parts): the prompt, padded, then each completion, padded.

    Rows of a single branch have one part. `segments` and `positions` are [rows, T], as in `functional.tree`.
    """

    first_place: int
    rows: int
    parts: tuple[int, ...]
    segments: Tensor
    positions: Tensor

    @property
    def width(self) -> int:
        """Places of one row."""
        return sum(self.parts)


@dataclass(slots=True)
class Layout:
    """How N packed tokens and padding fill P places, group after group, row after row.

    `token` [P] holds the token in each place (token 0 for padding), `place` [N] the place of each token, `padding` the
    places without one. `base` and `size` [P] give each place's group: its first place and how many it has. The last
    tokens may be fillers, which lie in padding: nothing attends to them, and they predict nothing.
    """

    groups: tuple[Group, ...]
    token: Tensor
    place: Tensor
    padding: Tensor
    base: Tensor
    size: Tensor
    _cache: dict[Any, Any] = field(default_factory=dict)

    def index(self, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return row numbers from [N * heads, D] into places (heads outermost in a group), back, and of padding."""
        if heads not in self._cache:
            head = torch.arange(heads, device=self.token.device)
            # Place p of head h is row base * heads + h * size + (p - base).
            row = (self.base * (heads - 1) + torch.arange(len(self.base), device=head.device))[:, None] + self.size[
                :, None
            ] * head
            into = torch.empty(row.numel(), dtype=torch.int64, device=head.device)
            into[row.flatten()] = (self.token[:, None] * heads + head).flatten()
            self._cache[heads] = (into, row[self.place].flatten(), row[self.padding].flatten())
        return self._cache[heads]

    def bias(self, group: int, part: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return what to add to the scores of a part's queries: 0 where attention is allowed, else minus infinity.

        [rows or 1, T_part, T_keys]; the keys are the prompt's and, for a completion, its own after them.
        """
        key = (group, part, window, dtype)
        if key not in self._cache:
            allowed = self._allowed(self.groups[group], part, window)
            self._cache[key] = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
                ~allowed, -torch.inf
            )
        return self._cache[key]

    def _allowed(self, group: Group, part: int, window: int | None) -> Tensor:
        starts = np.cumsum([0, *group.parts])
        queries = slice(int(starts[part]), int(starts[part + 1]))
        if part == 0 and (window is None or window >= group.parts[0]):
            # Padding comes last, so a causal mask is enough, and one serves all rows.
            return torch.ones(1, group.parts[0], group.parts[0], dtype=torch.bool, device=group.segments.device).tril()
        prompt = slice(0, group.parts[0])
        spans = (prompt, queries) if part else (prompt,)
        segments = torch.cat([group.segments[:, s] for s in spans], 1)
        positions = torch.cat([group.positions[:, s] for s in spans], 1)
        return tree_mask(segments, positions, window)[:, -group.parts[part] :]

    def to(self, device: torch.device) -> "Layout":
        """Return this layout on `device`."""
        groups = tuple(
            Group(g.first_place, g.rows, g.parts, g.segments.to(device), g.positions.to(device)) for g in self.groups
        )
        moved = [t.to(device) for t in (self.token, self.place, self.padding, self.base, self.size)]
        return Layout(groups, *moved)  # type: ignore[arg-type]


def fillers(count: int) -> int:
    """Return how many to add to `count` so that few different counts occur: at most 3%, or 7."""
    return -count % max(8, 2 ** (count.bit_length() - 6))


def make_layout(parts: Sequence[Sequence[int]], positions: np.ndarray, segments: np.ndarray) -> Layout:
    """Return the layout of rows whose parts (prompt, completions) have these lengths, in the order of the tokens.

    Rows are grouped as they come, so they should be sorted by width. `positions` and `segments` are per token. The
    layout's fillers are the tokens beyond these.
    """
    lengths = np.asarray(parts)
    starts = np.concatenate([[0], np.cumsum(lengths.sum(1))])
    groups, places, first = [], [], 0
    for begin, end in _group_bounds(lengths):
        padded = -(-lengths[begin:end].max(0) // STEP) * STEP
        inside = _places(lengths[begin:end], padded)
        tokens = slice(int(starts[begin]), int(starts[end]))
        shape = (end - begin, int(padded.sum()))
        fields = []
        for values, fill in ((segments, PADDING), (positions, 0)):
            full = np.full(shape[0] * shape[1], fill, dtype=np.int64)
            full[inside] = values[tokens]
            fields.append(torch.from_numpy(full.reshape(shape)))
        groups.append(Group(first, shape[0], tuple(int(n) for n in padded), *fields))
        places.append(inside + first)
        first += shape[0] * shape[1]
    return _assemble(tuple(groups), np.concatenate(places), first)


def _assemble(groups: tuple[Group, ...], place: np.ndarray, total: int) -> Layout:
    empty = np.ones(total, dtype=bool)
    empty[place] = False
    padding = np.flatnonzero(empty)
    added = fillers(len(place))
    if added <= len(padding):
        place, padding = np.concatenate([place, padding[:added]]), padding[added:]
    token = np.zeros(total, dtype=np.int64)
    token[place] = np.arange(len(place))
    sizes = [g.rows * g.width for g in groups]
    base, size = np.repeat([g.first_place for g in groups], sizes), np.repeat(sizes, sizes)
    tensors = [torch.from_numpy(x) for x in (token, place, padding, base, size)]
    return Layout(groups, *tensors)  # type: ignore[arg-type]


def _group_bounds(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Return runs of 1, 2, 4, ... rows (so that few shapes occur) with about GROUP_SCORES scores or more."""
    bounds, begin = [], 0
    while begin < len(lengths):
        wanted = GROUP_SCORES / int(lengths[begin].sum()) ** 2
        rows = min(2 ** max(0, math.ceil(math.log2(wanted))), 2 ** ((len(lengths) - begin).bit_length() - 1))
        bounds.append((begin, begin + rows))
        begin += rows
    return bounds


def _places(lengths: np.ndarray, padded: np.ndarray) -> np.ndarray:
    """Return the place within its group of each token of rows with these part lengths, parts padded to `padded`."""
    rows = len(lengths)
    part_starts = np.concatenate([[0], np.cumsum(padded)[:-1]])
    first = (np.arange(rows)[:, None] * padded.sum() + part_starts).flatten()
    counts = lengths.flatten()
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.arange(counts.sum()) + np.repeat(first - before, counts)
