"""Supervised fine-tuning: negative log-likelihood of completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from selftaught.functional.nll import sequence_nll, sequence_sums
from selftaught.objectives.base import Baseline, Batch, LogpsFn, Reads, Term
from selftaught.specs import SFT


@dataclass(frozen=True)
class SFTObjective:
    """Token mean over the global batch, or with `spec.per_sequence` the mean over completions of their token means.

    A completion's weight multiplies its tokens; the mean divides by the count, not by the sum of weights.
    """

    spec: SFT
    terms = ("nll_loss",)
    needs_reference = False
    needs_mismatched = False
    reads: ClassVar[Reads] = "logps"

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return the number of target tokens, or of completions."""
        return {"nll_loss": batch.sequences if self.spec.per_sequence else batch.target_count}

    def prepare(self, model: LogpsFn, batches: Sequence[Batch]) -> Baseline | None:
        """Return None: nothing is needed beforehand."""
        return None

    def __call__(self, model: LogpsFn, batch: Batch, baseline: Baseline | None) -> dict[str, Term]:
        """Return the summed NLL."""
        sums = sequence_sums(model(batch), batch.owner, batch.sequences)
        nll = sequence_nll(sums, batch.lengths) if self.spec.per_sequence else -sums
        return {"nll_loss": Term((batch.weights * nll).sum())}
