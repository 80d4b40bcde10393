"""What to do with the logits of a step: the `Policy` protocol, and plain sampling.

A policy sees all running rows at once and answers with a `Draw`. Whatever it must remember per row lies in its
`PolicyState`, which follows the rows as they come and go. See docs/design/decoding.md for the policies of the methods.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from selftaught.engines.rows import Request
from selftaught.functional.sampling import draw

Embed = Callable[[Tensor], Tensor]
OptionCheck = Callable[[float], str | None]
"""Says what a request's option should have been, None where its value can be used."""


@dataclass(slots=True, kw_only=True)
class Draw:
    """What a policy decided for R rows.

    Attributes:
        tokens: [R] int64, the tokens drawn; -1 where a row draws none at this step (a latent thought).
        logprobs: [R] float32, nats, of the untempered distribution; not read where nothing was drawn.
        latents: name -> [R] float, kept with the completion; NaN where there is nothing to keep at this step.
        next_inputs: fed to the model in place of `tokens`: ids [R] or vectors [R, d].
        retract: [R] int64, how many of the last tokens, the one just drawn included, are taken back (0: none). Their
            cache stays unless `truncate` drops it.
        truncate: [R] int64, the length the row's cache is cut to before the next input is fed (-1: left alone).
        finished: [R] bool, rows that end here as if a stop token had been drawn.
    """

    tokens: Tensor
    logprobs: Tensor
    latents: dict[str, Tensor] = field(default_factory=dict)
    next_inputs: Tensor | None = None
    retract: Tensor | None = None
    truncate: Tensor | None = None
    finished: Tensor | None = None


class PolicyState(Protocol):
    """What a policy remembers of each running row."""

    def select(self, rows: Tensor) -> Any:
        """Return the state of these rows [n], in this order."""

    def join(self, other: Any) -> Any:
        """Return the state of these rows followed by those of `other`."""


class Policy(Protocol):
    """How rows decode. A policy may hold modules (a temperature head); they are called without gradients.

    Attributes:
        options: the names of the `Request.options` it understands, each with the check of its value.
    """

    options: Mapping[str, OptionCheck]

    def start(self, requests: Sequence[Request], embed: Embed) -> PolicyState:
        """Return the state of rows about to decode their first token.

        Args:
            requests: what each row is a sample of: its prompt's ids, its settings, its options.
            embed: ids [n] -> the input vectors [n, d] the model would look up, for policies that mix ids and vectors.
        """

    def __call__(self, logits: Tensor, hidden: Tensor, state: Any, u: Tensor) -> Draw:
        """Decide one step of R rows; may change `state` in place.

        Args:
            logits: [R, V] float32.
            hidden: [R, d] what the model's output layer read, after the final norm.
            state: what `start`, `select` and `join` made.
            u: [R, 2] float64 uniforms in [0, 1), a function of the row's seed and of how often it was asked.
        """


@dataclass(slots=True)
class SoftmaxState:
    """The distinct settings (temperature, top_k, top_p, min_p) of the running rows, and which of them each row has."""

    settings: tuple[tuple[float, int, float, float], ...]
    index: Tensor

    def select(self, rows: Tensor) -> "SoftmaxState":
        """Return the state of these rows."""
        return SoftmaxState(self.settings, self.index[rows])

    def join(self, other: "SoftmaxState") -> "SoftmaxState":
        """Return the state of these rows followed by those of `other`."""
        if self.settings == other.settings and len(self.settings) == 1:
            return SoftmaxState(self.settings, torch.cat([self.index, other.index]))
        settings = tuple(dict.fromkeys(_used(self) + _used(other)))
        return SoftmaxState(settings, torch.cat([_renumber(self, settings), _renumber(other, settings)]))


class SoftmaxPolicy:
    """Temperature, top-k, top-p and min-p in the order of transformers' `generate`; temperature 0 is greedy."""

    options: Mapping[str, OptionCheck] = MappingProxyType({})

    def start(self, requests: Sequence[Request], embed: Embed) -> SoftmaxState:
        """Return the rows' settings."""
        rows = [(s.temperature, s.top_k, s.top_p, s.min_p) for s in (request.sampling for request in requests)]
        settings = tuple(dict.fromkeys(rows))
        number = {s: i for i, s in enumerate(settings)}
        return SoftmaxState(settings, torch.tensor([number[r] for r in rows]))

    def __call__(self, logits: Tensor, hidden: Tensor, state: SoftmaxState, u: Tensor) -> Draw:
        """Draw one token per row by inversion of its cumulative distribution at u[:, 0]."""
        if len(state.settings) == 1:
            tokens, logprobs = draw(logits, u[:, 0], *state.settings[0])
            return Draw(tokens=tokens, logprobs=logprobs)
        tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        logprobs = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        for number, settings in enumerate(state.settings):
            rows = (state.index == number).nonzero().squeeze(-1).to(logits.device)
            if len(rows):
                tokens[rows], logprobs[rows] = draw(logits[rows], u[rows, 0], *settings)
        return Draw(tokens=tokens, logprobs=logprobs)


def _used(state: SoftmaxState) -> tuple:
    # Settings whose rows are gone are dropped, or a server's list would grow for ever.
    return tuple(state.settings[i] for i in state.index.unique().tolist())


def _renumber(state: SoftmaxState, settings: tuple) -> Tensor:
    number = {s: i for i, s in enumerate(settings)}
    return torch.tensor([number.get(s, -1) for s in state.settings])[state.index]
