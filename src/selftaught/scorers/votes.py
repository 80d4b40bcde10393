"""Self-consistency as a score: how many samples of the prompt give the same answer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from selftaught.select.votes import SCORER, count_votes
from selftaught.tasks import Task, TaskSpec, load_task
from selftaught.types import Group, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """V(y) of ScPO (arXiv 2411.04109, section 2): a count in 0..k, with the answer's key as note.

    Samples numbered below `k` vote. Later ones are hot samples: they get the votes that the base samples gave to their
    answer. A sample without a readable answer has value None.
    """

    task: Task | TaskSpec
    k: int

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""
        return SCORER

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Yield the votes of each group's completions."""
        task = load_task(self.task)
        for group in groups:
            keys = {c.id: task.answer(c.text) for c in group.completions}
            counts = count_votes(keys[c.id] for c in group.completions if c.k < self.k)
            yield [_score(completion_id, key, counts.get(key, 0) if key else 0) for completion_id, key in keys.items()]


def _score(completion_id: str, key: str | None, votes: int) -> Score:
    if key is None:
        return Score(completion_id=completion_id, scorer=SCORER, value=None, note="no answer could be read")
    return Score(completion_id=completion_id, scorer=SCORER, value=float(votes), note=key)
