"""Pairs for Latent Preference Optimization (arXiv 2411.09661): completions with the choices that they were decoded by.

A choice is an index into a list of ways to draw a token; `Completion.latents["choice"]` has one per completion or one
per token. Whatever is drawn here is fixed by (seed, prompt id) and invariant to the order of the samples.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Literal

from selftaught.errors import InputError
from selftaught.types import Completion, Group, Pair, content_id

LATENT = "choice"
EQUAL_SCORES = "pairs of equal scores"
EQUAL_CHOICES = "pairs of the same choice"
TOO_FEW = "prompts with fewer than two scored completions"
Level = Literal["sequence", "token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPairs:
    """Completions of a prompt in pairs, the higher score chosen over the lower one.

    `rule` "best_worst" pairs the best with the worst and, up to `most` pairs, the next best with the next worst;
    "random" draws `most` of all pairs; "all" takes all of them. Ties are broken at random. Pairs of equal scores are
    dropped and, where a completion has one choice (`level` "sequence"), pairs of the same choice too: they have no
    gradient. `dropped` counts both, of the pairs that the rule looked at.
    """

    level: Level
    scorer: str = "reward"
    rule: Literal["best_worst", "random", "all"] = "best_worst"
    most: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.most < 1:
            raise InputError(f"most={self.most} pairs of a prompt leave nothing to train on; give 1 or more")

    def __call__(self, groups: Iterable[Group], dropped: Counter[str] | None = None) -> Iterator[Pair]:
        """Yield the pairs of every group, in order.

        Raises:
            InputError: a completion has no score, a score that is no number, or not the choices of this level.
        """
        dropped = Counter() if dropped is None else dropped
        for group in groups:
            scores = self._scores(group)
            scored = (c for c in group.completions if c.id in scores)
            ranked = sorted(scored, key=lambda c: (-scores[c.id], self._lot(group, c)))
            if len(ranked) < 2:
                dropped[TOO_FEW] += 1
            for chosen, rejected in self._candidates(group, ranked):
                if scores[chosen.id] == scores[rejected.id]:
                    dropped[EQUAL_SCORES] += 1
                elif self.level == "sequence" and chosen.latents[LATENT] == rejected.latents[LATENT]:
                    dropped[EQUAL_CHOICES] += 1
                else:
                    meta = {"score_chosen": scores[chosen.id], "score_rejected": scores[rejected.id]}
                    yield Pair(prompt=group.prompt, chosen=chosen, rejected=rejected, meta=meta)

    def _scores(self, group: Group) -> dict[str, float]:
        """Return the scores of the completions that have one, by completion id."""
        found = group.scores_by(self.scorer)
        scores = {}
        for completion in group.completions:
            name = f"completion {completion.id} of prompt {group.id}"
            if completion.id not in found:
                raise InputError(f"{name} has no score by {self.scorer!r}: score it first")
            value = found[completion.id].value
            if value is not None and not isfinite(value):
                raise InputError(f"{name} has the score {value} by {self.scorer!r}: mend the scorer")
            self._check_choices(name, completion)
            if value is not None:
                scores[completion.id] = value
        return scores

    def _check_choices(self, name: str, completion: Completion) -> None:
        choices = completion.latents.get(LATENT, ())
        wanted = 1 if self.level == "sequence" else len(completion.token_ids or ())
        if len(choices) != wanted:
            raise InputError(
                f"{name} has {len(choices)} choices and not {wanted}, as the {self.level} level asks for: sample it "
                "with a head of that level"
            )

    def _candidates(self, group: Group, ranked: Sequence[Completion]) -> list[tuple[Completion, Completion]]:
        """Return the pairs that the rule looks at, better (or equal) first."""
        if self.rule == "best_worst":
            return list(zip(ranked, reversed(ranked), strict=True))[: min(self.most, len(ranked) // 2)]
        pairs = list(combinations(ranked, 2))
        if self.rule == "random":
            pairs = sorted(pairs, key=lambda pair: self._lot(group, *pair))[: self.most]
        return pairs

    def _lot(self, group: Group, *completions: Completion) -> str:
        # By sample number and not by id: equal draws give equal pairs, whatever made them.
        return content_id("latent pair", self.seed, group.id, [c.k for c in completions])
