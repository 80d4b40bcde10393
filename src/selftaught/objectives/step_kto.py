"""Step-KTO: KTO of whole completions and of their steps, from one forward pass (arXiv 2501.10799)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from selftaught.functional.kto import kto, reference_point, step_means
from selftaught.objectives.base import Baseline, Batch, LogpsFn, Reads, Steps, Term
from selftaught.objectives.kto import (
    OUTCOME_TERMS,
    labels_of,
    mismatched_sums,
    outcome_counts,
    outcome_point,
    outcome_terms,
)
from selftaught.specs import StepKTO

STEP_TERMS = ("step_loss", "step_kl", "step_rewards/chosen", "step_rewards/rejected", "step_conflicts")


@dataclass(frozen=True)
class StepKTOObjective:
    """L = L_outcome + gamma L_step, where L_step averages lambda - v over a completion's labelled steps, then over all.

    A step's log-ratio is summed over its own tokens. A completion without labelled steps has no part in L_step.
    `step_conflicts` is the share of steps whose label differs from their completion's: there both levels pull the same
    tokens in opposite directions. With gamma 0 it is KTO, bit for bit.
    """

    spec: StepKTO
    terms = (*OUTCOME_TERMS, *STEP_TERMS)
    needs_reference = True
    reads: ClassVar[Reads] = "logps"

    @property
    def needs_mismatched(self) -> bool:
        """Whether z of the outcome enters, directly or through that of the steps."""
        return self.spec.outcome or self.spec.step_reference_point == "outcome"

    @property
    def _looks_at_steps(self) -> bool:
        return self.spec.gamma != 0 and self.spec.step_reference_point == "batch"

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return the outcome's counts, and for the steps those that their reduction, and their labels, ask for."""
        steps = _steps(batch)
        averaged = steps.count if self.spec.step_reduction == "batch" else steps.examples
        by_term = (averaged, steps.count, steps.right, steps.count - steps.right, steps.count)
        return {**outcome_counts(batch), **dict(zip(STEP_TERMS, by_term, strict=True))}

    def prepare(self, model: LogpsFn, batches: Sequence[Batch]) -> Baseline | None:
        """Return [mismatched sum, number, step sum, number of steps, completions with steps]."""
        if not self.needs_mismatched and not self._looks_at_steps:
            return None
        # Without the outcome no batch holds mismatched completions.
        outcome = mismatched_sums(model, batches, self.spec.length_normalize)
        total = torch.zeros((), dtype=torch.float64, device=outcome.device)
        for batch in batches if self._looks_at_steps else ():
            with torch.no_grad():
                total = total + self._ratios(_steps(batch), model(batch)).double().sum().to(total.device)
        found = [_steps(batch) for batch in batches]
        counts = total.new_tensor([sum(s.count for s in found), sum(s.examples for s in found)])
        return torch.cat([outcome.to(total.device), total[None], counts])

    def __call__(self, model: LogpsFn, batch: Batch, baseline: Baseline | None) -> dict[str, Term]:
        """Return both losses and what is reported of them; steps' rewards are step_beta * log-ratio, in nats."""
        token_logps, z = model(batch), outcome_point(baseline)
        terms = outcome_terms(self.spec, batch, token_logps, z)
        if not self.spec.outcome:
            terms["kto_loss"] = replace(terms["kto_loss"], weight=0.0)
        return terms | self._step_terms(batch, token_logps, self._step_point(baseline, z))

    def _step_point(self, baseline: Baseline | None, z: Tensor) -> Tensor:
        if baseline is None or self.spec.step_reference_point == "zero":
            return torch.zeros(())
        _, _, total, steps, completions = baseline
        if self.spec.step_reference_point == "outcome":
            return z * (completions / steps.clamp(min=1)).float()
        return reference_point(total, steps).float()

    def _ratios(self, steps: Steps, token_logps: Tensor) -> Tensor:
        if steps.reference is None:
            raise ValueError("Step-KTO needs the reference's log-probs of every step in the batch")
        ratios = steps.sums(token_logps) - steps.reference
        return ratios / steps.lengths if self.spec.length_normalize else ratios

    def _step_terms(self, batch: Batch, token_logps: Tensor, z: Tensor) -> dict[str, Term]:
        spec, steps = self.spec, _steps(batch)
        ratios, right = self._ratios(steps, token_logps), steps.labels
        losses = kto(
            ratios,
            right,
            z,
            beta=spec.step_beta,
            desirable_weight=spec.step_desirable_weight,
            undesirable_weight=spec.step_undesirable_weight,
            weight=batch.weights[steps.example],
        )
        mean = spec.step_reduction == "mean"
        loss = step_means(losses, steps.example, len(batch.example_labels)) if mean else losses
        rewards = spec.step_beta * ratios.detach()
        sums = (
            ratios.new_tensor(steps.count) * z,
            (rewards * right).sum(),
            (rewards * (1 - right)).sum(),
            (right != labels_of(batch)[steps.example]).float().sum(),
        )
        reported = {name: Term(value, 0.0) for name, value in zip(STEP_TERMS[1:], sums, strict=True)}
        return {"step_loss": Term(loss.sum(), spec.gamma), **reported}


def _steps(batch: Batch) -> Steps:
    if batch.steps is None:
        raise ValueError("Step-KTO needs steps in the batch: train it on Feedback rows")
    return batch.steps
