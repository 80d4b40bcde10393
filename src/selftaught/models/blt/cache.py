"""What a Byte Latent Transformer remembers of the rows it decodes.

Nothing is a running value: everything is kept for each byte and each patch of a row, so that cutting a row back is a
matter of its length. Bytes and patches have columns of their own, because a row has far fewer patches; what is known of
a byte without the model's arithmetic (`Notes`) lies in numpy on the CPU, where a step decides what to compute.

Bits: a row attends by itself, or together with rows of equal extent, which changes none of its values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.models.blt.layers import Sight

FIRST_COLUMNS = 64


class Columns:
    """Tensors [slot, head, column, dim] by name, whose slots and columns grow together.

    They are written in inference mode, in which the many small calls of a step cost less than under `no_grad`.

    Args:
        slots: slots there are from the start.
        capacity: columns there are from the start.
    """

    def __init__(self, slots: int = 0, capacity: int = 0) -> None:
        self.slots = slots
        self.capacity = capacity
        self.tensors: dict[str, Tensor] = {}

    @torch.inference_mode()
    def reserve(self, columns: int, slots: int = 0) -> None:
        """Make room for at least these many columns and slots; what is stored stays."""
        if columns > self.capacity or slots > self.slots:
            # Growing by half again keeps the copying linear in what is stored at the end.
            if columns > self.capacity:
                self.capacity = max(columns, FIRST_COLUMNS, self.capacity * 3 // 2)
            if slots > self.slots:
                self.slots = max(slots, self.slots * 3 // 2)
            self.tensors = {name: self._room_for(x) for name, x in self.tensors.items()}

    def _room_for(self, x: Tensor) -> Tensor:
        # Zeros, not empty: on an accelerator masked columns are multiplied by 0, which only a finite number survives.
        room = x.new_zeros(self.slots, x.shape[1], self.capacity, x.shape[3])
        room[: len(x), :, : x.shape[2]] = x
        return room

    def write(self, name: str, spans: "Spans", new: Tensor) -> Tensor:
        """Put new [R, head, dim] where `spans` says, and return all of that tensor."""
        if name not in self.tensors:
            self.tensors[name] = self._room_for(new.new_zeros(0, new.shape[1], 0, new.shape[2]))
        stored = self.tensors[name]
        index = spans.index(new.shape[1], self.capacity, new.device)
        stored.view(-1, stored.shape[3]).index_copy_(0, index, new.reshape(-1, stored.shape[3]))
        return stored

    @torch.inference_mode()
    def copy(self, other: "Columns", source: np.ndarray, target: np.ndarray, columns: int) -> None:
        """Copy the first columns of the slots `source` of `other` to the slots `target`."""
        self.reserve(columns, int(target.max(initial=-1)) + 1)
        for name, x in other.tensors.items():
            if name not in self.tensors:
                self.tensors[name] = self._room_for(x[:0, :, :0])
            there, here = (torch.from_numpy(s).to(x.device) for s in (source, target))
            self.tensors[name][here, :, :columns] = x[there, :, :columns]


@dataclass(frozen=True)
class Spans:
    """Where R rows write their new columns, and from which columns on they see: all [R] int64.

    A row sees the columns `first` to `column`, the new one included.
    """

    slot: np.ndarray
    column: np.ndarray
    first: np.ndarray
    _index: dict[int, Tensor] = field(default_factory=dict)

    def index(self, heads: int, capacity: int, device: torch.device) -> Tensor:
        """Return where the heads of the new columns lie, [R * heads], in a tensor without its last dimension."""
        if heads not in self._index:
            place = (self.slot[:, None] * heads + np.arange(heads)) * capacity + self.column[:, None]
            self._index[heads] = torch.from_numpy(place.ravel()).to(device)
        return self._index[heads]

    @cached_property
    def runs(self) -> list[tuple[int, int, int, int, int]]:
        """Rows of equal extent in slots side by side: first row, row after, first slot, columns seen from and up to."""
        steps = (np.diff(self.slot) != 1) | (np.diff(self.first) != 0) | (np.diff(self.column) != 0)
        begins = np.concatenate([[0], np.flatnonzero(steps) + 1, [len(self.slot)]]).tolist()
        return [(a, b, int(self.slot[a]), int(self.first[a]), int(self.column[a]) + 1) for a, b in pairwise(begins)]

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
        """Return what queries [W, H, 1, D] read from keys and values [slot, G, column, D].

        Rows past R are not computed.
        """
        gqa = q.shape[1] != keys.shape[1]
        out = q.new_zeros(*q.shape[:3], values.shape[3])
        if q.device.type != "cpu":
            out[: len(self.slot)] = self._gathered(q[: len(self.slot)], keys, values, scale, gqa)
            return out
        for a, b, slot, first, end in self.runs:
            k, v = (x[slot : slot + b - a, :, first:end] for x in (keys, values))
            out[a:b] = F.scaled_dot_product_attention(q[a:b], k, v, scale=scale, enable_gqa=gqa)
        return out

    def _gathered(self, q: Tensor, keys: Tensor, values: Tensor, scale: float | None, gqa: bool) -> Tensor:
        """Attend to copies of what rows see: on an accelerator one large product beats many small ones."""
        slot, first, end = (torch.from_numpy(x).to(q.device) for x in (self.slot, self.first, self.column + 1))
        width = int((self.column + 1 - self.first).max())
        column = first[:, None] + torch.arange(width, device=q.device)
        seen = column < end[:, None]
        index = (slot[:, None], slice(None), column.clamp(max=keys.shape[2] - 1))
        k, v = (x[index].transpose(1, 2) for x in (keys, values))
        mask = seen[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=gqa)


class StepSight:
    """In the place of a `Sight`, for one new byte or patch per row: it is stored, and sees what its row has stored."""

    def __init__(self, columns: Columns, name: str, spans: Spans) -> None:
        self.columns = columns
        self.name = name
        self.spans = spans

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """Return what queries [W, H, 1, D] read, given the new keys and values [W, G, 1, D]; see `Spans`."""
        rows = len(self.spans.slot)
        keys = self.columns.write(f"{self.name}.keys", self.spans, k[:rows, :, 0])
        values = self.columns.write(f"{self.name}.values", self.spans, v[:rows, :, 0])
        return self.spans.attend(q, keys, values, scale)


class KeptSight:
    """In the place of a `Sight`, for whole prompts: it keeps the keys and values of each layer that asks."""

    def __init__(self, inner: Sight) -> None:
        self.inner = inner
        self.found: list[tuple[Tensor, Tensor]] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return what queries [B, H, N, D] read from keys and values [B, G, N, D]."""
        self.found.append((k, v))
        return self.inner.attend(q, k, v)

    def named(self, name: str) -> dict[str, Tensor]:
        """Return the layers' keys and values under the names that `StepSight`s of "name.0", "name.1", ... read."""
        pairs = enumerate(self.found)
        return {f"{name}.{i}.{kind}": x for i, pair in pairs for kind, x in zip(("keys", "values"), pair, strict=True)}


@dataclass(slots=True)
class Notes:
    """What is known of each byte of each slot, [slot, column].

    Attributes:
        ids: the bytes.
        place: their places in their documents.
        seen: how many earlier bytes the entropy model sees at each.
        score: s_i, nats; 0 where the rule of the patches asks for none.
        begin: where the patch begins that is open once the byte is read: the next byte's place where none is.
        closed: how many patches are complete once the byte is read.
    """

    ids: np.ndarray
    place: np.ndarray
    seen: np.ndarray
    score: np.ndarray
    begin: np.ndarray
    closed: np.ndarray

    @classmethod
    def for_slots(cls, slots: int) -> "Notes":
        """Return notes without a column."""
        kinds = {f.name: np.float32 if f.name == "score" else np.int64 for f in fields(cls)}
        return cls(**{name: np.zeros((slots, 0), kind) for name, kind in kinds.items()})

    def reserve(self, columns: int) -> None:
        """Make room for at least this many columns."""
        known = self.ids.shape[1]
        if columns > known:
            more = max(columns - known, FIRST_COLUMNS, known // 2)
            for f in fields(self):
                setattr(self, f.name, np.pad(getattr(self, f.name), ((0, 0), (0, more))))

    def copy(self, other: "Notes", source: np.ndarray, target: np.ndarray, columns: int) -> None:
        """Copy the first columns of the slots `source` of `other` to the slots `target`."""
        self.reserve(columns)
        for f in fields(self):
            getattr(self, f.name)[target, :columns] = getattr(other, f.name)[source, :columns]

    def at(self, name: str, slot: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Return a note on byte `column` [R] of each slot; 0 for a column of -1, before a row's first byte."""
        return np.where(column < 0, 0, getattr(self, name)[slot, np.maximum(column, 0)])


class Cache:
    """The rows of one model: notes on their bytes, and columns for their bytes and for their patches."""

    def __init__(self, slots: int) -> None:
        self.used = np.zeros(slots, bool)
        self.notes = Notes.for_slots(slots)
        self.bytes = Columns()
        self.patches = Columns()

    @classmethod
    def of_prompts(cls, notes: Notes, of_bytes: dict[str, Tensor], of_patches: dict[str, Tensor]) -> "Cache":
        """Return a cache that holds prompts that were read together, one per slot."""
        cache = cls(0)
        cache.notes = notes
        cache.used = np.ones(len(notes.ids), bool)
        for columns, tensors in ((cache.bytes, of_bytes), (cache.patches, of_patches)):
            columns.tensors = tensors
            columns.slots, _, columns.capacity, _ = next(iter(tensors.values())).shape
        return cache

    def reserve(self, lengths: np.ndarray) -> None:
        """Make room for one byte and one patch more in rows of these lengths."""
        columns = int(lengths.max(initial=0)) + 1
        self.notes.reserve(columns)
        self.bytes.reserve(columns)

    def take(self, n: int) -> np.ndarray:
        """Return n free slots, the lowest first."""
        free = np.flatnonzero(~self.used)[:n]
        if len(free) < n:
            raise RuntimeError(f"{n} rows need a slot and {len(free)} of {len(self.used)} are free: admit fewer rows")
        self.used[free] = True
        return free

    def admit(self, other: "Cache", slot: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Copy rows of `other` (this cache or one of prompts), of these lengths, to slots of their own; return them."""
        target = self.take(len(slot))
        columns, patches = (int(x.max(initial=0)) for x in (lengths, other.notes.at("closed", slot, lengths - 1)))
        self.notes.copy(other.notes, slot, target, columns)
        self.bytes.copy(other.bytes, slot, target, columns)
        self.patches.copy(other.patches, slot, target, patches)
        return target


class BltState:
    """Rows of a cache. Those of prompts just read lie in a cache of their own; `fork` brings them into `home`."""

    def __init__(self, home: Cache, cache: Cache, slot: np.ndarray, lengths: np.ndarray) -> None:
        self.home = home
        self.cache = cache
        self.slot = slot
        self._lengths = lengths

    @property
    def lengths(self) -> Tensor:
        """Bytes cached per row [R] int64."""
        return torch.from_numpy(self._lengths)

    def select(self, rows: Tensor) -> "BltState":
        """Return these rows, all different, in this order; the slots of the others are free again."""
        index = rows.numpy()
        dropped = np.ones(len(self.slot), bool)
        dropped[index] = False
        self.cache.used[self.slot[dropped]] = False
        return BltState(self.home, self.cache, self.slot[index], self._lengths[index])

    def fork(self, rows: Tensor, k: int) -> "BltState":
        """Return k new rows for each of `rows`; these rows stay as they are."""
        index = np.repeat(rows.numpy(), k)
        slot = self.home.admit(self.cache, self.slot[index], self._lengths[index])
        return BltState(self.home, self.home, slot, self._lengths[index])

    def join(self, other: "BltState") -> "BltState":
        """Return these rows followed by those of `other`."""
        one, two = (x.brought_home() for x in (self, other))
        joined: Sequence[np.ndarray] = [
            np.concatenate(pair) for pair in ((one.slot, two.slot), (one._lengths, two._lengths))
        ]
        return BltState(self.home, self.home, *joined)

    def truncate(self, rows: Tensor, lengths: Tensor) -> None:
        """Forget what lies past the first `lengths` bytes of `rows`; nothing moves, columns are written again."""
        index = rows.numpy()
        self._lengths[index] = np.minimum(self._lengths[index], lengths.numpy())

    def brought_home(self) -> "BltState":
        """Return these rows, copied where they lie in a cache of prompts."""
        return self if self.cache is self.home else self.fork(torch.arange(len(self.slot)), 1)

    def advance(self) -> None:
        """Count one more byte in every row."""
        self._lengths += 1
