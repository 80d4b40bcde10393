"""Preference pairs and demonstrations from samples of one prompt: by votes, by gold answers, by rewards.

A selector is a frozen description called on groups. It yields examples and adds to `dropped`, where one is given, how
many prompts it left out and why. Choices among equals are uniform, fixed by (seed, prompt id) and invariant to the
order of the samples. `groups` must be re-iterable: the cap on unread rejects is set over all prompts.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal, NamedTuple

from selftaught.errors import InputError, NothingToTrainOn
from selftaught.select.votes import Ballot, leaders, pick, reaches, read_ballot
from selftaught.types import Completion, Demonstration, Group, Pair, Prompt, content_id, content_share

Tally = Counter[str]
_UNREAD_REMEDY = "look at the completions: raise max_tokens, name another --answer, or start from a model that answers"


class _Vote(NamedTuple):
    """The winning side of a prompt: its samples, their votes and answer."""

    ballot: Ballot
    winners: list[Completion]
    votes: int
    answer: str


def _winning_side(group: Group, k: int, threshold: float, dropped: Tally) -> _Vote | None:
    ballot = read_ballot(group, k)
    top = leaders(ballot.counts)
    if not top:
        dropped["no answer could be read"] += 1
        return None
    votes = ballot.counts[top[0]]
    if not reaches(votes, threshold):
        dropped["fewer votes than the threshold"] += 1
        return None
    if len(top) > 1:
        dropped["tie for the most votes"] += 1
        return None
    return _Vote(ballot, [c for c in ballot.base if ballot.keys.get(c.id) == top[0]], votes, top[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyPairs:
    """ScPO's pairs (arXiv 2411.04109, section 2, equation 1): chosen = argmax V, rejected = argmin V.

    `k` base samples vote; `threshold` (tau) is in votes. The weight is (V(chosen) - V(rejected)) / k, in (0, 1], or 1
    with `weight="none"`. A sample without a readable answer has V = 0 and may be rejected; such pairs are kept up to
    the share `unread_cap` of all pairs, chosen by a hash of the prompt; past it the least-voted answer takes the place.
    """

    k: int
    threshold: float
    weight: Literal["margin", "none"] = "margin"
    unread_rejects: bool = True
    unread_cap: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        _check_votes(self.k, self.threshold)

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Pair]:
        """Yield at most one pair per group, in order."""
        dropped = Counter() if dropped is None else dropped
        allowed = self._allowed_unread(groups) if self.unread_rejects else frozenset()
        for group in _insist_on_some(groups, dropped, "no answer could be read", _UNREAD_REMEDY):
            vote = _winning_side(group, self.k, self.threshold, dropped)
            if vote is None:
                continue
            losers = self._losers(group, vote, group.id in allowed)
            if losers:
                yield self._pair(group, vote, losers)
            elif vote.ballot.unread and self.unread_rejects:
                dropped["only unread rejects, over their cap"] += 1
            else:
                dropped["all answers agree"] += 1

    def _losers(self, group: Group, vote: _Vote, unread: bool) -> list[Completion]:
        """Return the samples with the fewest votes, fewer than the winners'."""
        ballot = vote.ballot
        votes = {c.id: ballot.votes.get(c.id, 0) for c in group.completions if unread or c.id in ballot.votes}
        least = min(votes.values(), default=vote.votes)
        return [c for c in group.completions if votes.get(c.id) == least] if least < vote.votes else []

    def _pair(self, group: Group, vote: _Vote, losers: list[Completion]) -> Pair:
        chosen = pick(vote.winners, self.seed, group.id, "chosen")
        rejected = pick(losers, self.seed, group.id, "rejected")
        votes_rejected = vote.ballot.votes.get(rejected.id, 0)
        meta = {
            "votes_chosen": vote.votes,
            "votes_rejected": votes_rejected,
            "k": self.k,
            "answer_chosen": vote.answer,
            "answer_rejected": vote.ballot.keys.get(rejected.id),
        }
        weight = (vote.votes - votes_rejected) / self.k if self.weight == "margin" else 1.0
        return Pair(prompt=group.prompt, chosen=chosen, rejected=rejected, weight=weight, meta=meta)

    def _allowed_unread(self, groups: Iterable[Group]) -> frozenset[str]:
        """Return the prompts that may reject an unread sample, so many that they stay under the cap."""
        _check_reiterable(groups)
        certain, wanting = 0, []
        for group in groups:
            vote = _winning_side(group, self.k, self.threshold, Counter())
            if vote is None:
                continue
            readable = bool(self._losers(group, vote, False))
            certain += readable
            losers = self._losers(group, vote, True)
            if losers and pick(losers, self.seed, group.id, "rejected").id not in vote.ballot.votes:
                wanting.append((content_id("unread", self.seed, group.id), group.id, readable))
        allowed: list[str] = []
        for _, prompt_id, readable in sorted(wanting):
            # A prompt with a readable reject counts among the pairs whether it is allowed or not.
            if len(allowed) + 1 <= self.unread_cap * (certain + (not readable)):
                allowed.append(prompt_id)
                certain += not readable
        return frozenset(allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class MajorityDemonstrations:
    """LMSI's training data (arXiv 2210.11610), as ScPO's baseline uses it: one sample of the majority answer."""

    k: int
    threshold: float
    seed: int = 0

    def __post_init__(self) -> None:
        _check_votes(self.k, self.threshold)

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Demonstration]:
        """Yield at most one demonstration per group, the sample that `ConsistencyPairs` chooses at this seed."""
        dropped = Counter() if dropped is None else dropped
        for group in _insist_on_some(groups, dropped, "no answer could be read", _UNREAD_REMEDY):
            vote = _winning_side(group, self.k, self.threshold, dropped)
            if vote is not None:
                chosen = pick(vote.winners, self.seed, group.id, "chosen")
                meta = {"votes_chosen": vote.votes, "k": self.k, "answer_chosen": vote.answer}
                yield Demonstration(prompt=group.prompt, completion=chosen, meta=meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldPairs:
    """IRPO's pairs (arXiv 2404.19733): a right sample over a wrong one, weight 1.

    `scorer` gives 1 to a right and 0 to a wrong sample; an undecided one (None) is neither.
    """

    scorer: str = "verifier"
    seed: int = 0

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Pair]:
        """Yield at most one pair per group, in order."""
        dropped = Counter() if dropped is None else dropped
        for group in _insist_on_some(groups, dropped, "no sample was verified", "give the prompts gold answers"):
            values = _values(group, self.scorer)
            right = [c for c in group.completions if values[c.id] == 1]
            wrong = [c for c in group.completions if values[c.id] == 0]
            if right and wrong:
                yield _unit_pair(group, right, wrong, self.seed, values)
            elif not right and not wrong:
                dropped["no sample was verified"] += 1
            else:
                dropped["no wrong sample" if right else "no right sample"] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardPairs:
    """The sample with the highest reward over the one with the lowest, weight 1. Equal rewards or texts are no pair."""

    scorer: str
    seed: int = 0

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Pair]:
        """Yield at most one pair per group, in order."""
        dropped = Counter() if dropped is None else dropped
        for group in _insist_on_some(groups, dropped, "no sample has a reward", "read the scores' notes"):
            values = _values(group, self.scorer)
            rewards = [value for value in values.values() if value is not None]
            if not rewards:
                dropped["no sample has a reward"] += 1
            elif max(rewards) == min(rewards):
                dropped["all rewards are equal"] += 1
            else:
                best = [c for c in group.completions if values[c.id] == max(rewards)]
                worst = [c for c in group.completions if values[c.id] == min(rewards)]
                pair = _unit_pair(group, best, worst, self.seed, values)
                # A reward model's rounding is enough to tell equal texts apart.
                if pair.chosen.text != pair.rejected.text:
                    yield pair
                else:
                    dropped["chosen and rejected are the same text"] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SemiSupervisedPairs:
    """ScPO with some labels (section 2, "semi-supervised"): gold pairs for labelled prompts, votes for the others.

    A prompt is labelled where it has a gold answer and falls, by a hash, into the share `labelled` of those that do. A
    labelled prompt without both a right and a wrong sample is dropped. All prompts labelled: exactly `GoldPairs`.
    """

    gold: GoldPairs
    consistency: ConsistencyPairs
    labelled: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.labelled <= 1:
            raise InputError(f"labelled={self.labelled} is not a share of the prompts; give 0 to 1")

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Pair]:
        """Yield the labelled prompts' pairs, then the others'."""
        _check_reiterable(groups)
        kept = False
        for pair in self.gold(_Part(groups, self.is_labelled), dropped):
            kept = True
            yield pair
        try:
            yield from self.consistency(_Part(groups, lambda prompt: not self.is_labelled(prompt)), dropped)
        except NothingToTrainOn:
            if not kept:
                raise

    def is_labelled(self, prompt: Prompt) -> bool:
        """Say whether the prompt's gold answer is used."""
        drawn = content_share("labelled", self.seed, prompt.id)
        return prompt.gold is not None and drawn < self.labelled


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteWeighted:
    """The pairs of another selector, each with ScPO's weight (section 2, equation 1): (V(chosen) - V(rejected)) / k.

    Pairs whose chosen side has no more votes than the rejected are dropped. `then` yields pairs in the groups' order.
    """

    k: int
    then: Callable[..., Iterator[Pair]]

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Pair]:
        """Yield the weighted pairs in order.

        Raises:
            InputError: a group has no votes, or a pair is not of the groups that are left.
        """
        _check_reiterable(groups)
        dropped = Counter() if dropped is None else dropped
        stream, group = iter(groups), None
        for pair in self.then(groups, dropped):
            while group is None or group.id != pair.prompt.id:
                group = next(stream, None)
                if group is None:
                    raise InputError(f"pair {pair.id} is not in the order of the groups: give a selector that keeps it")
            votes = read_ballot(group, self.k).votes
            margin = votes.get(pair.chosen.id, 0) - votes.get(pair.rejected.id, 0)
            if margin > 0:
                yield replace(pair, weight=margin / self.k)
            else:
                dropped["the chosen has no more votes than the rejected"] += 1


@dataclass(frozen=True, slots=True)
class _Part:
    """The groups whose prompts fulfil a condition, as re-iterable as the whole."""

    groups: Iterable[Group]
    condition: Callable[[Prompt], bool]

    def __iter__(self) -> Iterator[Group]:
        return (group for group in self.groups if self.condition(group.prompt))


Selector = ConsistencyPairs | MajorityDemonstrations | GoldPairs | RewardPairs | SemiSupervisedPairs


def _unit_pair(
    group: Group, better: list[Completion], worse: list[Completion], seed: int, values: dict[str, float | None]
) -> Pair:
    chosen = pick(better, seed, group.id, "chosen")
    rejected = pick(worse, seed, group.id, "rejected")
    meta = {"score_chosen": values[chosen.id], "score_rejected": values[rejected.id]}
    return Pair(prompt=group.prompt, chosen=chosen, rejected=rejected, meta=meta)


def _values(group: Group, scorer: str) -> dict[str, float | None]:
    if len(group.completions) < 2:
        raise InputError(
            f"prompt {group.id} has {len(group.completions)} completion(s); a pair needs 2: generate with k >= 2"
        )
    scores = group.scores_by(scorer)
    missing = next((c for c in group.completions if c.id not in scores), None)
    if missing is not None:
        raise InputError(f"completion {missing.id} of prompt {group.id} has no score by {scorer!r}: score it first")
    values = {c.id: scores[c.id].value for c in group.completions}
    broken = next((name for name, value in values.items() if value is not None and not isfinite(value)), None)
    if broken is not None:
        raise InputError(f"completion {broken} of prompt {group.id} has the score {values[broken]}: mend the scorer")
    return values


def _insist_on_some(groups: Iterable[Group], dropped: Tally, reason: str, remedy: str) -> Iterator[Group]:
    """Yield `groups`; after the last, raise NothingToTrainOn where every one of them was dropped for `reason`."""
    before, seen = dropped[reason], 0
    for group in groups:
        seen += 1
        yield group
    if seen and dropped[reason] - before == seen:
        raise NothingToTrainOn(f"{seen} of {seen} prompts: {reason}; {remedy}")


def _check_votes(k: int, threshold: float) -> None:
    if k < 2:
        raise InputError(f"k={k}: votes need at least 2 samples per prompt, set k >= 2")
    if not 0 <= threshold <= k:
        raise InputError(f"threshold={threshold} votes is outside 0..k={k}: give votes, not a share (0.5 * k, say)")


def _check_reiterable(groups: Iterable[Group]) -> None:
    if iter(groups) is groups:
        raise TypeError("groups is a one-shot iterator; this selector reads it twice: pass a list or a Groups view")
