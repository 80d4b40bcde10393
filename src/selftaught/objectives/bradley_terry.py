"""Reward models on weighted pairs, by the likelihood of Bradley and Terry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from selftaught.functional.bradley_terry import bradley_terry
from selftaught.objectives.base import Baseline, Batch, Reads, RewardsFn, Term
from selftaught.specs import BradleyTerry

_REPORTED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


@dataclass(frozen=True)
class BradleyTerryObjective:
    """w * -log sigmoid(r(chosen) - r(rejected)), InstructGPT (arXiv 2203.02155) eq. 1 with a weight per pair.

    The mean divides by the number of pairs, with `spec.weight_normalize` by the sum of their weights.
    """

    spec: BradleyTerry
    terms = ("bradley_terry_loss", *_REPORTED)
    needs_reference = False
    needs_mismatched = False
    reads: ClassVar[Reads] = "rewards"

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return the number of pairs, or for the loss the sum of weights."""
        pairs = len(batch.example_ids)
        divisor = sum(batch.example_weights) if self.spec.weight_normalize else pairs
        return {"bradley_terry_loss": divisor, **dict.fromkeys(_REPORTED, pairs)}

    def prepare(self, model: RewardsFn, batches: Sequence[Batch]) -> Baseline | None:
        """Return None: nothing is needed beforehand."""
        return None

    def __call__(self, model: RewardsFn, batch: Batch, baseline: Baseline | None) -> dict[str, Term]:
        """Return the loss, the rewards, by how much chosen ones lead, and how often they do."""
        chosen, rejected = model(batch).view(-1, 2).unbind(-1)
        loss = bradley_terry(chosen, rejected, weight=batch.weights)
        chosen, rejected = chosen.detach(), rejected.detach()
        values = (chosen, rejected, chosen - rejected, (chosen > rejected).float())
        reported = {name: Term(value.sum(), 0.0) for name, value in zip(_REPORTED, values, strict=True)}
        return {"bradley_terry_loss": Term(loss.sum()), **reported}
