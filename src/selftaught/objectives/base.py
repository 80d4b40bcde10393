"""What an objective is given and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from selftaught.functional.nll import sequence_sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The T labelled steps of a micro-batch's completions.

    `owner` [M] is the step of each target, T where it has none; `labels` [T] are 1 where right, `example` [T] the
    example of each step, `reference` [T] the reference's log-probs summed over each. `right` and `examples` are the
    host's counts of right steps and of examples with steps.
    """

    owner: Tensor
    labels: Tensor
    example: Tensor
    lengths: Tensor
    reference: Tensor | None
    right: int
    examples: int

    @property
    def count(self) -> int:
        """How many steps there are."""
        return self.labels.shape[0]

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum of per-target `values` [M] over each step: [T]."""
        return sequence_sums(values, self.owner, self.count + 1)[: self.count]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A micro-batch: E examples with C completions each, S = E * C, M target tokens, N input tokens.

    Completions of one example lie side by side, so completion c of example e is e * C + c. Targets are (source, target
    id) pairs: the token at flat input index `sources[i]` predicts `targets[i]`, which belongs to completion `owner[i]`.

    `inputs` are the model's keyword arguments, `patch_lengths` [rows, P] (padded with 0) among them where the rows have
    them stored; `layout` says how packed inputs split into rows for attention, None
    for ordinary padded rows. `example_weights` and `target_count` are the host's copies, for counts that are known
    before the forward pass.

    Feedback also has `labels` [E], 1 where good (`example_labels` on the host), `steps`, and where an objective needs
    it, `mismatched`: prompts of this batch, each with the completion of another. Completions that were decoded by
    choices have `choices`: the index of each, [M] or [S], one per target or one per completion.
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
    labels: Tensor | None = None
    example_labels: tuple[bool, ...] = ()
    steps: Steps | None = None
    mismatched: "Batch | None" = None
    choices: Tensor | None = None

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a head says of the N decisions in a batch's completions, and a language model of what followed from them.

    `logps` [N, K] float32 are the log-probs of the K choices, `owner` [N] the completion of each decision, one or one
    per target. `text_logps` [N, K] are the log-probs of the text that the decision bears on under each choice, where an
    objective asks for them.
    """

    logps: Tensor
    owner: Tensor
    text_logps: Tensor | None = None


LogpsFn = Callable[[Batch], Tensor]
RewardsFn = Callable[[Batch], Tensor]
ChoicesFn = Callable[[Batch], Choices]
Reads = Literal["logps", "rewards", "choices"]
"""What an objective reads of a batch, and so what is trained: a language model, a reward model or a head."""
Baseline = Tensor
"""What `prepare` returned, added up over ranks."""


class Objective(Protocol):
    """A loss over batches.

    `model` maps a batch to what the objective `reads`: "logps", the [M] float32 log-probabilities of its targets,
    "rewards", the [S] float32 rewards of its completions, or "choices".
    """

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms, which are the metrics' names."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether batches must hold the reference's log-probs."""
        ...

    @property
    def needs_mismatched(self) -> bool:
        """Whether batches must hold prompts with completions of other prompts."""
        ...

    @property
    def reads(self) -> Reads:
        """What the model is asked for."""
        ...

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return what each term is divided by, from host data alone; the loop sums it over the global batch."""
        ...

    def prepare(self, model: Callable[[Batch], Any], batches: Sequence[Batch]) -> Baseline | None:
        """Look at this rank's part of the global batch without gradients, before any update is computed from it.

        Returns sums, which the loop adds up over ranks, or None where nothing is to be known beforehand. It makes the
        same passes for every batch, and returns zeros for none.
        """
        ...

    def __call__(self, model: Callable[[Batch], Any], batch: Batch, baseline: Baseline | None) -> dict[str, Term]:
        """Return the terms of one micro-batch by name."""
        ...
