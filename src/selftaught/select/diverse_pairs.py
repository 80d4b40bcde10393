"""DivPO's pairs (arXiv 2501.18101, section 3): the rarest of the good completions over the commonest of the bad ones.

Choices among equals are uniform, fixed by (seed, prompt id) and invariant to the order of the samples.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Literal

from selftaught.errors import InputError
from selftaught.select.diversity import Diversity
from selftaught.select.votes import pick
from selftaught.types import Completion, Demonstration, Group, Pair

_ROUNDING = 1e-9
Pools = tuple[list[Completion], list[Completion]]


def cut_values(rewards: Sequence[float], rho: float, pool: Literal["range", "quantile"]) -> tuple[float, float]:
    """Return the reward from which a completion is good and the one up to which it is bad.

    "range" takes rho of the distance between the extremes: max - rho (max - min) and min + rho (max - min).
    "quantile" takes the rank: the n-th best and the n-th worst, n = rho times their number, rounded up, at least 1.

    Worked (rewards 9, 8.8, 8.5, 4, 2 and rho 0.2): 9 - 0.2 * 7 = 7.6 and 2 + 0.2 * 7 = 3.4.

    >>> [round(cut, 9) for cut in cut_values([9, 8.8, 8.5, 4, 2], 0.2, "range")]
    [7.6, 3.4]
    >>> cut_values([9, 8.8, 8.5, 4, 2], 0.4, "quantile")
    (8.8, 4)
    """
    best, worst = max(rewards), min(rewards)
    if pool == "range":
        slack = rho * (best - worst)
        return best - slack, worst + slack
    rank = max(1, ceil(rho * len(rewards) - _ROUNDING))
    ordered = sorted(rewards)
    return ordered[-rank], ordered[rank - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiversePairs:
    """chosen = argmax D over the good completions, rejected = argmin D over the bad ones.

    Good are rewards within `rho` of the top, bad those within `rho` of the bottom, by `cut_values`; with `pool`
    "absolute", good from `threshold` on and bad below it. What would be both is good. `minimum` is a reward below which
    nothing is chosen: where every sample failed, the best of them is no example. Where no completion is bad and
    `allow_same_pool`, the least diverse of the good ones is rejected. `sides` says where D decides; on the other side
    the draw is uniform. `rejected_diversity` replaces the criterion for the rejected. Unscored completions are in no
    pool, and two completions of one text are never a pair.
    """

    diversity: Diversity
    rejected_diversity: Diversity | None = None
    scorer: str = "reward"
    rho: float = 0.3
    pool: Literal["range", "quantile", "absolute"] = "range"
    threshold: float = 0.5
    minimum: float | None = None
    allow_same_pool: bool = True
    sides: Literal["both", "chosen", "rejected"] = "both"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rho <= 0.5:
            raise InputError(f"rho={self.rho} is not within 0 to 0.5, where every completion is in a pool; try 0.3")

    def __call__(self, groups: Iterable[Group], dropped: Counter[str] | None = None) -> Iterator[Pair]:
        """Yield at most one pair per group, in order; count in `dropped` the others by reason."""
        dropped = Counter() if dropped is None else dropped
        for group in groups:
            pools = self.pools(group, dropped)
            pair = self._pair(group, pools, dropped) if pools else None
            if pair is not None:
                yield pair

    def pools(self, group: Group, dropped: Counter[str]) -> Pools | None:
        """Return the good and the bad completions, None (counted in `dropped`) where they give no pair."""
        rewards = _rewards(group, self.scorer)
        scored = [c for c in group.completions if c.id in rewards]
        if len(scored) < 2:
            dropped["fewer than two completions with a reward"] += 1
            return None
        good, bad = self._split(scored, rewards)
        if not good:
            dropped["no completion is good enough to be chosen"] += 1
        elif not bad and not self.allow_same_pool:
            dropped["no completion is bad enough to be rejected"] += 1
        elif len({_plain(c) for c in (*good, *bad)}) < 2:
            dropped["all texts are identical"] += 1
        else:
            return good, bad or good
        return None

    def _split(self, scored: Sequence[Completion], rewards: dict[str, float]) -> Pools:
        if self.pool == "absolute":
            high = low = self.threshold
        else:
            high, low = cut_values([rewards[c.id] for c in scored], self.rho, self.pool)
        # The cut of a share of a range is rounded: at rho 0.5 the two would otherwise miss what lies in the middle.
        slack = _ROUNDING * max(1.0, abs(high), abs(low))
        top = [c for c in scored if rewards[c.id] >= high - slack]
        taken = {c.id for c in top}
        bad = [c for c in scored if rewards[c.id] <= low + slack and c.id not in taken]
        return [c for c in top if self.minimum is None or rewards[c.id] >= self.minimum], bad

    def _pair(self, group: Group, pools: Pools, dropped: Counter[str]) -> Pair | None:
        good, bad = pools
        same = good is bad
        chosen, diversity_chosen = self._extreme(group, good, "chosen")
        rejected, diversity_rejected = self._extreme(group, bad, "rejected", chosen)
        if chosen is None or rejected is None:
            dropped["no two different texts with a diversity"] += 1
            return None
        if same and self.rejected_diversity is None and diversity_chosen <= diversity_rejected:
            dropped["all good, and the chosen not more diverse than the rejected"] += 1
            return None
        rewards = _rewards(group, self.scorer)
        meta = {
            "score_chosen": rewards[chosen.id],
            "score_rejected": rewards[rejected.id],
            "score_best": max(rewards.values()),
            "diversity_chosen": diversity_chosen,
            "diversity_rejected": diversity_rejected,
            "good": len(good),
            "bad": 0 if same else len(bad),
        }
        return Pair(prompt=group.prompt, chosen=chosen, rejected=rejected, meta=meta)

    def _extreme(
        self,
        group: Group,
        among: Sequence[Completion],
        side: Literal["chosen", "rejected"],
        unlike: Completion | None = None,
    ) -> tuple[Completion | None, float]:
        """Return the completion of `among` that this side takes, with its D: none without a D, nor `unlike`'s text."""
        criterion = self.diversity if side == "chosen" else self.rejected_diversity or self.diversity
        values = dict(zip((c.id for c in among), criterion(group, among), strict=True))
        broken = next((name for name, value in values.items() if value is not None and not isfinite(value)), None)
        if broken is not None:
            raise InputError(
                f"completion {broken} of prompt {group.id} has diversity {values[broken]}: mend the criterion"
            )
        known = {
            c.id: value
            for c in among
            if (value := values[c.id]) is not None and (unlike is None or _plain(c) != _plain(unlike))
        }
        if not known:
            return None, 0.0
        extreme = (max if side == "chosen" else min)(known.values())
        decides = self.sides in ("both", side)
        taken = pick(
            [c for c in among if c.id in known and (not decides or known[c.id] == extreme)], self.seed, group.id, side
        )
        return taken, known[taken.id]


@dataclass(frozen=True, slots=True, kw_only=True)
class BestDemonstrations:
    """What supervised fine-tuning imitates: one of the completions with the highest reward, at least `minimum`."""

    scorer: str = "reward"
    minimum: float | None = None
    seed: int = 0

    def __call__(self, groups: Iterable[Group], dropped: Counter[str] | None = None) -> Iterator[Demonstration]:
        """Yield at most one demonstration per group, in order."""
        dropped = Counter() if dropped is None else dropped
        for group in groups:
            rewards = _rewards(group, self.scorer)
            best = max(rewards.values(), default=None)
            if best is None or (self.minimum is not None and best < self.minimum):
                dropped["no completion is good enough to be imitated"] += 1
                continue
            taken = pick([c for c in group.completions if rewards.get(c.id) == best], self.seed, group.id, "chosen")
            yield Demonstration(prompt=group.prompt, completion=taken, meta={"score_chosen": best})


def _rewards(group: Group, scorer: str) -> dict[str, float]:
    """Return the rewards of a group's completions by id, those without one left out."""
    scores = group.scores_by(scorer)
    missing = next((c for c in group.completions if c.id not in scores), None)
    if missing is not None:
        raise InputError(f"completion {missing.id} of prompt {group.id} has no score by {scorer!r}: score it first")
    rewards = {c.id: value for c in group.completions if (value := scores[c.id].value) is not None}
    broken = next((name for name, value in rewards.items() if not isfinite(value)), None)
    if broken is not None:
        raise InputError(f"completion {broken} of prompt {group.id} has the reward {rewards[broken]}: mend the scorer")
    return rewards


def _plain(completion: Completion) -> str:
    return " ".join(completion.text.split())
