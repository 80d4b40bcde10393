"""Decoding with a temperature (or another way of drawing) per row and step: chosen by a head, or by the entropy.

Adaptive Decoding, arXiv 2411.09661; entropy-based dynamic temperature, arXiv 2403.14541.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.engines.policy import Draw, Embed, OptionCheck
from selftaught.engines.rows import Request
from selftaught.errors import InputError
from selftaught.functional.sampling import draw_each
from selftaught.models.adaptive_decoder import AdaptiveHead, choose, load_head
from selftaught.models.widths import SMALLEST, rows_agree
from selftaught.specs import Adaptive, Choice, EntropyTemperature, Sampling

BASE = 0.8
"""N in the paper's T0 * N ** (theta / entropy)."""
SMALLEST_ENTROPY = 1e-300


@dataclass(slots=True)
class AdaptiveState:
    """What each of R rows is drawn with.

    `setting` [R, 4] float64 holds temperature, top_k, top_p and min_p, those of the last choice or the request's own;
    `adaptive` [R] says whether the head chooses, `chosen` [R] which choice was made last, -1 before the first.
    `filtered` says whether any row might have a filter.
    """

    setting: Tensor
    adaptive: Tensor
    chosen: Tensor
    filtered: bool

    def select(self, rows: Tensor) -> "AdaptiveState":
        """Return the state of these rows."""
        rows = rows.to(self.chosen.device)
        return AdaptiveState(self.setting[rows], self.adaptive[rows], self.chosen[rows], self.filtered)

    def join(self, other: "AdaptiveState") -> "AdaptiveState":
        """Return the state of these rows followed by those of `other`."""
        return AdaptiveState(
            torch.cat([self.setting, other.setting]),
            torch.cat([self.adaptive, other.adaptive]),
            torch.cat([self.chosen, other.chosen]),
            self.filtered or other.filtered,
        )


def _of_adaptive(value: float) -> str | None:
    return None if value in (0, 1) else "0 (the request's own settings) or 1"


class AdaptivePolicy:
    """Draws every token as a head on the hidden states chooses, once per completion or once per token.

    The choice takes the place of the request's temperature and filters, and its index is kept in latents "choice". A
    request with the option `adaptive` 0 is drawn with its own settings, and keeps no choice.

    Args:
        head: in eval mode, on the model's device.
        select: the head's most likely choice, or one drawn from its distribution.
        explore: the probability with which a choice is drawn uniformly instead.

    Raises:
        InputError: `explore` is no probability.
    """

    options: Mapping[str, OptionCheck] = MappingProxyType(
        {"adaptive": lambda value: None if value in (0, 1) else "0 or 1"}
    )

    def __init__(
        self, head: AdaptiveHead, *, select: Literal["argmax", "sample"] = "argmax", explore: float = 0.0
    ) -> None:
        if not 0 <= explore <= 1:
            raise InputError(f"explore={explore} is no probability: give a number from 0 to 1")
        self.head, self.select, self.explore = head, select, explore
        self._device = next(head.parameters()).device
        self._choices = _settings(head.choices, self._device)
        self._filtered = _any_filter(self._choices)
        # A product with fewer rows may add up in another order, and a row's choice must not depend on the others.
        self._stable = rows_agree(head)

    @classmethod
    def open(cls, spec: Adaptive, device: str | torch.device = "cpu") -> "AdaptivePolicy":
        """Return the policy that `spec` describes, its head on `device`.

        Raises:
            InputError: there is no head in its directory.
        """
        return cls(load_head(spec.head, device), select=spec.select, explore=spec.explore)

    def start(self, requests: Sequence[Request], embed: Embed) -> AdaptiveState:
        """Return the state of rows for which nothing was chosen yet."""
        adaptive = torch.tensor([bool(r.options.get("adaptive", 1)) for r in requests])
        setting = _settings([r.sampling for r in requests], self._device)
        filtered = self._filtered or _any_filter(setting[~adaptive.to(self._device)])
        chosen = torch.full((len(requests),), -1, device=self._device)
        return AdaptiveState(setting, adaptive.to(self._device), chosen, filtered)

    def __call__(self, logits: Tensor, hidden: Tensor, state: AdaptiveState, u: Tensor) -> Draw:
        """Choose for the rows that ask for it by u[:, 1], and draw a token of every row by u[:, 0]."""
        asks = state.adaptive if self.head.per_token else state.adaptive & (state.chosen < 0)
        rows = asks.nonzero().squeeze(-1)
        kept = torch.full(asks.shape, torch.nan, device=asks.device)
        if len(rows):
            chosen = choose(self._logps(hidden[rows]), self.select, u[rows, 1], self.explore)
            state.chosen[rows] = chosen
            state.setting[rows] = self._choices[chosen]
            kept[rows] = chosen.float()
        tokens, logprobs = _draw(logits, u[:, 0], state.setting, state.filtered)
        return Draw(tokens=tokens, logprobs=logprobs, latents={"choice": kept})

    def _logps(self, hidden: Tensor) -> Tensor:
        padded = F.pad(hidden, (0, 0, 0, -len(hidden) % SMALLEST))
        parts = [padded] if self._stable else padded.split(SMALLEST)
        return torch.cat([self.head(part) for part in parts])[: len(hidden)]


@dataclass(slots=True)
class EntropyState:
    """The settings of each of R rows, [R, 4] float64 on the CPU: temperature, top_k, top_p and min_p.

    `adaptive` [R] says whether the entropy sets the temperature.
    """

    setting: Tensor
    adaptive: Tensor

    def select(self, rows: Tensor) -> "EntropyState":
        """Return the state of these rows."""
        return EntropyState(self.setting[rows], self.adaptive[rows])

    def join(self, other: "EntropyState") -> "EntropyState":
        """Return the state of these rows followed by those of `other`."""
        return EntropyState(torch.cat([self.setting, other.setting]), torch.cat([self.adaptive, other.adaptive]))


class EntropyTemperaturePolicy:
    """Draws every token at base * 0.8 ** (theta / H), H the entropy (nats) of its distribution: arXiv 2403.14541.

    The less there is to choose from, the closer to greedy. The temperature takes the place of the request's, except
    where that is 0: such a request stays greedy. Filters are the request's. Latents "temperature" hold one per token. A
    request with the option `adaptive` 0 is drawn at its own temperature.

    Raises:
        InputError: base or theta is negative.
    """

    options: Mapping[str, OptionCheck] = MappingProxyType({"adaptive": _of_adaptive})

    def __init__(self, spec: EntropyTemperature) -> None:
        if not (spec.base >= 0 and spec.theta >= 0):
            raise InputError(f"base={spec.base}, theta={spec.theta} of EntropyTemperature: give numbers of at least 0")
        self.spec = spec

    def start(self, requests: Sequence[Request], embed: Embed) -> EntropyState:
        """Return the rows' settings."""
        adaptive = torch.tensor([bool(r.options.get("adaptive", 1)) for r in requests])
        return EntropyState(_settings([r.sampling for r in requests], torch.device("cpu")), adaptive)

    def __call__(self, logits: Tensor, hidden: Tensor, state: EntropyState, u: Tensor) -> Draw:
        """Draw one token per row at the temperature of its own entropy."""
        setting, adaptive = state.setting.to(logits.device, copy=True), state.adaptive.to(logits.device)
        logps = logits.log_softmax(-1)
        entropy = -(logps.exp() * logps.clamp(min=torch.finfo(logps.dtype).min)).sum(-1).double()
        # A row with one possible token is greedy: 0.8 to the power of a huge number is 0.
        temperature = self.spec.base * BASE ** (self.spec.theta / entropy.clamp(min=SMALLEST_ENTROPY))
        setting[:, 0] = torch.where((setting[:, 0] == 0) | ~adaptive, setting[:, 0], temperature)
        tokens, logprobs = _draw(logits, u[:, 0], setting, _any_filter(setting))
        return Draw(tokens=tokens, logprobs=logprobs, latents={"temperature": setting[:, 0].float()})


def _settings(rows: Sequence[Choice | Sampling], device: torch.device) -> Tensor:
    """Return [n, 4] float64: temperature, top_k, top_p and min_p."""
    values = [(r.temperature, r.top_k, r.top_p, r.min_p) for r in rows]
    return torch.tensor(values, dtype=torch.float64, device=device).view(-1, 4)


def _any_filter(setting: Tensor) -> bool:
    off = torch.tensor([0.0, 1.0, 0.0], dtype=setting.dtype, device=setting.device)
    return bool((setting[:, 1:] != off).any())


def _draw(logits: Tensor, u: Tensor, setting: Tensor, filtered: bool) -> tuple[Tensor, Tensor]:
    """Draw one token per row; rows are taken apart only where their filters differ."""
    if not filtered:
        return draw_each(logits, u, setting[:, 0])
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    kinds, kind = setting[:, 1:].unique(dim=0, return_inverse=True)
    for number, (top_k, top_p, min_p) in enumerate(kinds.tolist()):
        rows = (kind == number).nonzero().squeeze(-1)
        tokens[rows], logprobs[rows] = draw_each(logits[rows], u[rows], setting[rows, 0], int(top_k), top_p, min_p)
    return tokens, logprobs
