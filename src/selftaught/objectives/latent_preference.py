"""Latent Preference Optimization: a head that chooses how text is decoded, trained on pairs (arXiv 2411.09661)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from selftaught.functional.latent_preference import choice_nll, choice_preference, joint_preference, latent_ratios
from selftaught.functional.nll import sequence_sums
from selftaught.objectives.base import Baseline, Batch, Choices, ChoicesFn, Reads, Term
from selftaught.specs import LatentPreference

_LOSS = "latent_preference_loss"
_REPORTED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
_ENTROPY = "choice_entropy"


@dataclass(frozen=True)
class LatentPreferenceObjective:
    """The mean over pairs of weight * loss, where a completion's score is the sum or the mean over its decisions.

    "separate" scores the log-prob of the choices that were drawn, "latent" the log-ratio of the text summed over
    choices against a uniform head, "nll" the first for chosen completions alone. "token" adds the text's log-ratio at
    the choice that was drawn, which is 0 because the language model is frozen: it is "separate".

    Reported are the scores times beta, how often the chosen one leads, and the mean entropy of the head (nats), which
    falls to 0 where it collapses to one choice.
    """

    spec: LatentPreference
    terms = (_LOSS, *_REPORTED, _ENTROPY)
    needs_reference = False
    needs_mismatched = False
    reads: ClassVar[Reads] = "choices"

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return the number of pairs, and of decisions for the entropy."""
        pairs = len(batch.example_ids)
        return {**dict.fromkeys((_LOSS, *_REPORTED), pairs), _ENTROPY: len(_drawn(batch))}

    def prepare(self, model: ChoicesFn, batches: Sequence[Batch]) -> Baseline | None:
        """Return None: nothing is needed beforehand."""
        return None

    def __call__(self, model: ChoicesFn, batch: Batch, baseline: Baseline | None) -> dict[str, Term]:
        """Return the loss and what is reported."""
        found = model(batch)
        scores = self._scores(found, batch)
        chosen, rejected = scores[0::2], scores[1::2]
        if self.spec.loss == "nll":
            loss = choice_nll(chosen, weight=batch.weights)
        elif self.spec.loss == "token":
            frozen = torch.zeros_like(chosen)
            loss = joint_preference(chosen, rejected, frozen, frozen, beta=self.spec.beta, weight=batch.weights)
        else:
            loss = choice_preference(chosen, rejected, beta=self.spec.beta, weight=batch.weights)
        chosen, rejected = self.spec.beta * chosen.detach(), self.spec.beta * rejected.detach()
        values = (chosen, rejected, chosen - rejected, (chosen > rejected).float())
        reported = {name: Term(value.sum(), 0.0) for name, value in zip(_REPORTED, values, strict=True)}
        logps = found.logps.detach()
        return {_LOSS: Term(loss.sum()), **reported, _ENTROPY: Term(-(logps.exp() * logps).sum(), 0.0)}

    def _scores(self, found: Choices, batch: Batch) -> Tensor:
        """Return the score of each completion, [S] in nats."""
        if self.spec.loss != "latent":
            drawn = found.logps.gather(-1, _drawn(batch).unsqueeze(-1)).squeeze(-1)
            scores = sequence_sums(drawn, found.owner, batch.sequences)
        elif found.text_logps is None:
            raise ValueError('LatentPreference(loss="latent") needs the log-probs of the text under every choice')
        else:
            scores = latent_ratios(found.logps, found.text_logps, found.owner, sequences=batch.sequences)
        if not self.spec.length_normalize:
            return scores
        return scores / sequence_sums(torch.ones_like(found.logps[:, 0]), found.owner, batch.sequences)


def _drawn(batch: Batch) -> Tensor:
    if batch.choices is None:
        raise ValueError('LatentPreference needs choices in the batch: train it on pairs with latents["choice"]')
    return batch.choices
