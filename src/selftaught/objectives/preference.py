"""DPO and IPO on weighted pairs, with a length-normalised NLL of the chosen completion inside the weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from selftaught.functional.nll import sequence_nll, sequence_sums
from selftaught.functional.preference import dpo, ipo
from selftaught.objectives.base import Baseline, Batch, LogpsFn, Reads, Term
from selftaught.specs import Preference

_LOSSES = ("preference_loss", "nll_loss")
_REPORTED = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


@dataclass(frozen=True)
class PreferenceObjective:
    """w * [preference loss + alpha * NLL(chosen) / |chosen|], ScPO (arXiv 2411.04109) eq. 2; w = 1 is IRPO.

    The mean divides by the number of pairs, with `spec.weight_normalize` by the sum of their weights. With
    `spec.length_normalize` log-ratios are per token; IPO's always are (arXiv 2310.12036).
    """

    spec: Preference
    terms = (*_LOSSES, *_REPORTED)
    needs_reference = True
    needs_mismatched = False
    reads: ClassVar[Reads] = "logps"

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return the number of pairs, or the sum of weights, for the losses, and the number of pairs for the rest."""
        pairs = len(batch.example_ids)
        divisor = sum(batch.example_weights) if self.spec.weight_normalize else pairs
        return {**dict.fromkeys(_LOSSES, divisor), **dict.fromkeys(_REPORTED, pairs)}

    def prepare(self, model: LogpsFn, batches: Sequence[Batch]) -> Baseline | None:
        """Return None: nothing is needed beforehand."""
        return None

    def __call__(self, model: LogpsFn, batch: Batch, baseline: Baseline | None) -> dict[str, Term]:
        """Return the two losses and the implicit rewards (beta * log-ratio, nats) and log-probs."""
        logps = sequence_sums(model(batch), batch.owner, batch.sequences)
        reference = _reference(batch)
        nll = batch.weights * sequence_nll(logps[0::2], batch.lengths[0::2])
        reported = _report(logps.detach(), reference, self.spec.beta)
        if self.spec.length_normalize or self.spec.loss == "ipo":
            logps, reference = logps / batch.lengths, reference / batch.lengths
        loss = (ipo if self.spec.loss == "ipo" else dpo)(
            logps[0::2],
            logps[1::2],
            reference[0::2],
            reference[1::2],
            beta=self.spec.beta,
            label_smoothing=self.spec.label_smoothing,
            weight=batch.weights,
        )
        terms = {"preference_loss": Term(loss.sum()), "nll_loss": Term(nll.sum(), self.spec.nll_alpha)}
        return terms | {name: Term(value.sum(), 0.0) for name, value in reported.items()}


def _reference(batch: Batch) -> Tensor:
    if batch.reference is None:
        raise ValueError("a preference loss needs the reference's log-probs in the batch")
    return batch.reference


def _report(logps: Tensor, reference: Tensor, beta: float) -> dict[str, Tensor]:
    chosen, rejected = (beta * (logps - reference)).view(-1, 2).unbind(-1)
    values = (chosen, rejected, chosen - rejected, (chosen > rejected).float(), logps[0::2], logps[1::2])
    return dict(zip(_REPORTED, values, strict=True))
