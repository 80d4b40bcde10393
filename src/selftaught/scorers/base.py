"""What a scorer is."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from selftaught.types import Group, Score, Verdict


class Scorer(Protocol):
    """A frozen, picklable description, called on groups.

    It yields one list per group, in order, with a row for every completion (or pair of them). A completion that it
    cannot score gets a row with value None and a note that says why.
    """

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score] | list[Verdict]]:
        """Score the groups, one after the other."""
