"""Bookkeeping of running rows: what each has drawn, its uniforms, and when it is done. One array entry per seat."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from selftaught.functional.philox import uniforms
from selftaught.specs import Sampling

UNIFORM_BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to sample from.

    Attributes:
        id: what events and `cancel` call it.
        prompt: token ids.
        seeds: one unsigned 64-bit seed per sample (`store.seeds.row_seed`).
        stream: report every token; else only `done`.
        options: settings of this request for the policy, of those it names.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    seeds: tuple[int, ...]
    stream: bool = False
    options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A finished sample. `token_ids` and `logprobs` hold everything drawn; `discarded` the spans taken back."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length"]
    discarded: tuple[tuple[int, int], ...] = ()
    latents: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happened to sample `sample` of a request: a token came, `count` tokens were taken back, or it is done."""

    kind: Literal["token", "retract", "done"]
    request: str
    sample: int
    token: int = -1
    logprob: float = 0.0
    count: int = 0
    output: Output | None = None


class Seats:
    """Per-row records in arrays indexed by seat. A row keeps its seat while other rows come and go."""

    def __init__(self, seats: int) -> None:
        self.free = np.ones(seats, bool)
        self.request: dict[int, Request] = {}
        self.sample = np.zeros(seats, np.int64)
        self.count = np.zeros(seats, np.int64)
        self.draws = np.zeros(seats, np.int64)
        self.limit = np.zeros(seats, np.int64)
        self.stop_set = np.zeros(seats, np.int64)
        self.stream = np.zeros(seats, bool)
        self.tokens = np.zeros((seats, 0), np.int32)
        self.logprobs = np.zeros((seats, 0), np.float32)
        self.latents: dict[str, np.ndarray] = {}
        self.discarded: dict[int, list[tuple[int, int]]] = {}
        self._seeds = torch.zeros(seats, dtype=torch.int64)
        self._uniforms = torch.zeros(seats, UNIFORM_BLOCK, 2, dtype=torch.float64)

    def take(self, rows: list[tuple[Request, int]], stop_sets: list[int], limits: list[int]) -> np.ndarray:
        """Seat samples (request, index), with the number of their stop set and the tokens they may draw."""
        seat = np.flatnonzero(self.free)[: len(rows)]
        self.free[seat] = False
        for s, (request, _) in zip(seat.tolist(), rows, strict=True):
            self.request[s] = request
        self.sample[seat] = [sample for _, sample in rows]
        self.limit[seat] = limits
        self.stream[seat] = [request.stream for request, _ in rows]
        self.stop_set[seat] = stop_sets
        self.count[seat] = self.draws[seat] = 0
        seeds = [request.seeds[sample] for request, sample in rows]
        self._seeds[seat] = torch.tensor([s - (s >> 63 << 64) for s in seeds], dtype=torch.int64)
        self._reserve(int(self.limit[seat].max(initial=1)))
        for values in self.latents.values():
            values[seat] = np.nan
        return seat

    def leave(self, seat: np.ndarray) -> None:
        """Free these seats."""
        self.free[seat] = True
        for s in seat.tolist():
            del self.request[s]
            self.discarded.pop(s, None)

    def next_uniforms(self, seat: np.ndarray) -> Tensor:
        """Return [R, 2] uniforms for the coming draw of these rows, and count the draw."""
        place = self.draws[seat] % UNIFORM_BLOCK
        used_up = torch.from_numpy(seat[place == 0])
        if len(used_up):
            first = torch.from_numpy(self.draws[seat[place == 0]]).unsqueeze(1)
            self._uniforms[used_up] = uniforms(self._seeds[used_up], first + torch.arange(UNIFORM_BLOCK))
        self.draws[seat] += 1
        return self._uniforms[torch.from_numpy(seat), torch.from_numpy(place)]

    def record(self, seat: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Append one token per seat."""
        place = self.count[seat]
        self.tokens[seat, place] = tokens
        self.logprobs[seat, place] = logprobs
        self.count[seat] = place + 1

    def record_latents(self, seat: np.ndarray, latents: dict[str, np.ndarray]) -> None:
        """Keep one value per name and seat, for the draw counted last."""
        place = self.draws[seat] - 1
        for name, values in latents.items():
            kept = self.latents.get(name, np.full((len(self.free), 0), np.nan, np.float32))
            missing = int(place.max()) + 1 - kept.shape[1]
            if missing > 0:
                kept = np.pad(kept, ((0, 0), (0, max(missing, UNIFORM_BLOCK))), constant_values=np.nan)
            kept[seat, place] = values
            self.latents[name] = kept

    def retract(self, seat: int, n: int) -> int:
        """Take back the last n tokens that still stand (fewer if there are fewer); return how many."""
        spans = self.discarded.setdefault(seat, [])
        end = start = int(self.count[seat])
        taken = 0
        while taken < n and start > 0:
            if spans and spans[-1][1] == start:
                start = spans.pop()[0]
            else:
                floor = spans[-1][1] if spans else 0
                step = min(n - taken, start - floor)
                start, taken = start - step, taken + step
        if start < end:
            spans.append((start, end))
        return taken

    def standing(self, seat: int) -> list[int]:
        """Return the tokens of a row that were not taken back."""
        ids = self.tokens[seat, : self.count[seat]].tolist()
        for start, end in reversed(self.discarded.get(seat, ())):
            del ids[start:end]
        return ids

    def output(self, seat: int, text: str, finish: Literal["stop", "length"]) -> Output:
        """Return the record of a finished row."""
        n = int(self.count[seat])
        latents = {name: v[seat][~np.isnan(v[seat])].tolist() for name, v in self.latents.items()}
        return Output(
            token_ids=tuple(self.tokens[seat, :n].tolist()),
            logprobs=tuple(self.logprobs[seat, :n].tolist()),
            text=text,
            finish=finish,
            discarded=tuple(self.discarded.get(seat, ())),
            latents={name: tuple(v) for name, v in latents.items() if v},
        )

    def _reserve(self, columns: int) -> None:
        missing = columns - self.tokens.shape[1]
        if missing > 0:
            self.tokens = np.pad(self.tokens, ((0, 0), (0, missing)))
            self.logprobs = np.pad(self.logprobs, ((0, 0), (0, missing)))
