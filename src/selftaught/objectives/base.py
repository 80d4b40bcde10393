"""What an objective is given and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A micro-batch: E examples with C completions each, S = E * C, M target tokens, N input tokens.

    Completions of one example lie side by side, so completion c of example e is e * C + c. Targets are (source, target
    id) pairs: the token at flat input index `sources[i]` predicts `targets[i]`, which belongs to completion `owner[i]`.

    `inputs` are the model's keyword arguments; `layout` says how packed inputs split into rows for attention, None
    for ordinary padded rows. `example_weights` and `target_count` are the host's copies, for counts that are known
    before the forward pass.
    """

    inputs: Mapping[str, Tensor]
    layout: Any
    sources: Tensor
    targets: Tensor
    owner: Tensor
    lengths: Tensor
    weights: Tensor
    reference: Tensor | None
    example_ids: tuple[str, ...]
    example_weights: tuple[float, ...]
    target_count: int

    @property
    def sequences(self) -> int:
        """How many completions the batch holds."""
        return self.lengths.shape[0]


@dataclass(frozen=True, slots=True)
class Term:
    """A sum over the micro-batch, to be divided once by the term's global count.

    `weight` is its factor in the loss; a term of weight 0 is only reported. `sum` is a scalar tensor.
    """

    sum: Tensor
    weight: float = 1.0


LogpsFn = Callable[[Batch], Tensor]
Baseline = Any


class Objective(Protocol):
    """A loss over batches. `model` maps a batch to the [M] float32 log-probabilities of its targets."""

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms, which are the metrics' names."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether batches must hold the reference's log-probs."""
        ...

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return what each term is divided by, from host data alone; the loop sums it over the global batch."""
        ...

    def prepare(self, model: LogpsFn, batches: Sequence[Batch]) -> Baseline | None:
        """Look at this rank's part of the global batch without gradients, before any of its forward passes."""
        ...

    def __call__(self, model: LogpsFn, batch: Batch, baseline: Baseline | None) -> dict[str, Term]:
        """Return the terms of one micro-batch by name."""
        ...
