"""Votes: how many samples of a prompt share an answer (ScPO, arXiv 2411.04109, section 2).

An answer is known by its key (`text.answers.canonical`), None where none could be read: it gets no vote.
Rows carry votes as `Score(scorer="votes", value=V, note=key)`. A completion with `k` below the number of base samples
votes; a hot sample (drawn later, at a higher temperature) has the base votes of its answer.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from selftaught.errors import InputError
from selftaught.types import Completion, Group, content_id

SCORER = "votes"
_ROUNDING = 1e-9


def count_votes(keys: Iterable[str | None]) -> Counter[str]:
    """Return V(key) for every answer among `keys`.

    >>> count_votes(["7", "7", None, "3"])
    Counter({'7': 2, '3': 1})
    """
    return Counter(key for key in keys if key is not None)


def leaders(counts: Counter[str]) -> tuple[str, ...]:
    """Return the answers with the most votes, sorted: one where the majority is clear, several in a tie.

    >>> leaders(Counter({"7": 2, "3": 2, "1": 1}))
    ('3', '7')
    """
    most = max(counts.values(), default=0)
    return tuple(sorted(key for key, votes in counts.items() if votes == most))


def reaches(votes: float, threshold: float) -> bool:
    """Say whether `votes` >= `threshold`, forgiving the rounding of a threshold written as a share times k."""
    return votes >= threshold - _ROUNDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """One prompt's samples with their votes.

    `base` holds the samples that voted; `votes` and `keys` are by completion id, hot samples included, and leave out
    samples without a readable answer, which `unread` holds.
    """

    base: tuple[Completion, ...]
    unread: tuple[Completion, ...]
    votes: dict[str, int]
    keys: dict[str, str]

    @property
    def counts(self) -> Counter[str]:
        """V of every answer among the base samples."""
        return count_votes(self.keys.get(c.id) for c in self.base)


def read_ballot(group: Group, k: int) -> Ballot:
    """Return the votes that the scorer "votes" gave to a group of `k` base samples.

    Raises InputError where the group has not been scored or has not `k` base samples.
    """
    scores = group.scores_by(SCORER)
    base = tuple(c for c in group.completions if c.k < k)
    if len(base) != k or k < 2:
        raise InputError(
            f"prompt {group.id} has {len(base)} sample(s) numbered below k={k}; "
            "a vote needs at least 2: generate again with k >= 2 and select with the same k"
        )
    missing = next((c for c in group.completions if c.id not in scores), None)
    if missing is not None:
        raise InputError(f"completion {missing.id} of prompt {group.id} has no score by {SCORER!r}: score it first")
    read = [c for c in group.completions if scores[c.id].value is not None]
    return Ballot(
        base=base,
        unread=tuple(c for c in group.completions if scores[c.id].value is None),
        votes={c.id: int(scores[c.id].value or 0) for c in read},
        keys={c.id: scores[c.id].note for c in read},
    )


def pick(candidates: Sequence[Completion], *key: object) -> Completion:
    """Return one of `candidates`, uniformly at random over `key` and whatever their order.

    They are sorted by text first, so that the choice does not depend on which sample came first either.
    """
    ordered = sorted(candidates, key=lambda c: (c.text, c.id))
    return ordered[int(content_id("pick", *map(str, key)), 16) % len(ordered)]
