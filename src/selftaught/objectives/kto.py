"""KTO on completions that are good or bad, no pairs needed (arXiv 2402.01306)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from selftaught.functional.kto import kto, reference_point
from selftaught.functional.nll import sequence_sums
from selftaught.objectives.base import Baseline, Batch, LogpsFn, Reads, Term
from selftaught.specs import KTO, StepKTO

OUTCOME_TERMS = ("kto_loss", "kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")


@dataclass(frozen=True)
class KTOObjective:
    """The mean over completions of weight * [lambda - v], with z the mean log-ratio of mismatched completions.

    z is over the global batch, without gradient, at least 0; it is 0 where all rows of a batch have the same prompt
    (or there is one row), for then no completion is foreign to another row's prompt.
    """

    spec: KTO
    terms = OUTCOME_TERMS
    needs_reference = True
    needs_mismatched = True
    reads: ClassVar[Reads] = "logps"

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return the number of completions for the loss, of good and of bad ones for what is reported of them."""
        return outcome_counts(batch)

    def prepare(self, model: LogpsFn, batches: Sequence[Batch]) -> Baseline | None:
        """Return [sum of log-ratios, number] of the mismatched completions."""
        return mismatched_sums(model, batches, self.spec.length_normalize)

    def __call__(self, model: LogpsFn, batch: Batch, baseline: Baseline | None) -> dict[str, Term]:
        """Return the loss, z ("kl"), and rewards (beta * log-ratio, nats) and log-probs by label."""
        return outcome_terms(self.spec, batch, model(batch), outcome_point(baseline))


def outcome_counts(batch: Batch) -> dict[str, float]:
    """Return what each of `OUTCOME_TERMS` is divided by."""
    rows = len(batch.example_labels)
    good = sum(batch.example_labels)
    bad = rows - good
    return dict(zip(OUTCOME_TERMS, (rows, rows, good, bad, good, bad), strict=True))


@torch.no_grad()
def mismatched_sums(model: LogpsFn, batches: Sequence[Batch], length_normalize: bool) -> Tensor:
    """Return [sum of log-ratios in nats, number] of the batches' mismatched completions, float64."""
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        if batch.mismatched is not None:
            logps = sequence_sums(model(batch.mismatched), batch.mismatched.owner, batch.mismatched.sequences)
            ratios = log_ratios(batch.mismatched, logps, length_normalize)
            sums = sums.to(ratios.device) + torch.stack([ratios.double().sum(), sums.new_tensor(len(ratios))])
    return sums


def outcome_point(baseline: Baseline | None) -> Tensor:
    """Return z from what `mismatched_sums` returned, 0 without."""
    return torch.zeros(()) if baseline is None else reference_point(baseline[0], baseline[1]).float()


def labels_of(batch: Batch) -> Tensor:
    """Return the batch's labels [E]; ValueError where it holds none."""
    if batch.labels is None:
        raise ValueError("KTO needs labels in the batch: train it on Feedback rows")
    return batch.labels


def log_ratios(batch: Batch, logps: Tensor, length_normalize: bool) -> Tensor:
    """Return log pi - log pi_ref of the batch's completions, [S], in nats (per token with `length_normalize`).

    Raises:
        ValueError: the batch holds no reference.
    """
    if batch.reference is None:
        raise ValueError("KTO needs the reference's log-probs in the batch")
    ratios = logps - batch.reference
    return ratios / batch.lengths if length_normalize else ratios


def outcome_terms(spec: KTO | StepKTO, batch: Batch, token_logps: Tensor, z: Tensor) -> dict[str, Term]:
    """Return `OUTCOME_TERMS` of a micro-batch at the reference point `z`."""
    logps = sequence_sums(token_logps, batch.owner, batch.sequences)
    ratios, good = log_ratios(batch, logps, spec.length_normalize), labels_of(batch)
    loss = kto(
        ratios,
        good,
        z,
        beta=spec.beta,
        desirable_weight=spec.desirable_weight,
        undesirable_weight=spec.undesirable_weight,
        weight=batch.weights,
    )
    rewards, detached = spec.beta * ratios.detach(), logps.detach()
    sums = (
        ratios.new_tensor(len(ratios)) * z,
        (rewards * good).sum(),
        (rewards * (1 - good)).sum(),
        (detached * good).sum(),
        (detached * (1 - good)).sum(),
    )
    reported = {name: Term(value, 0.0) for name, value in zip(OUTCOME_TERMS[1:], sums, strict=True)}
    return {"kto_loss": Term(loss.sum()), **reported}
