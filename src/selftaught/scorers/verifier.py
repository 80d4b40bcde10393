"""Exact verification against gold answers."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from selftaught.scorers.equivalence import Equivalence
from selftaught.tasks import Task, TaskSpec, load_task
from selftaught.types import Completion, Group, Prompt, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """1 for a right completion, 0 for a wrong one or one without an answer, None for one that cannot be decided.

    The task decides first. Where it cannot and there are a gold answer and an answer, `equivalence` asks math-verify
    in a child process with a deadline in seconds per answer; 0 leaves it out.
    """

    task: Task | TaskSpec
    equivalence: float = 5.0

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""
        return "verifier"

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Yield the verdicts on each group's completions."""
        task = load_task(self.task)
        with Equivalence(self.equivalence) if self.equivalence else nullcontext() as checker:
            for group in groups:
                yield [self._score(task, group.prompt, c, checker) for c in group.completions]

    def _score(self, task: Task, prompt: Prompt, completion: Completion, checker: Equivalence | None) -> Score:
        right = task.verify(prompt, completion.text)
        if right is None and checker is not None and prompt.gold is not None:
            answer = task.answer(completion.text)
            right = None if answer is None else checker(prompt.gold, answer)
        if right is not None:
            return Score(completion_id=completion.id, scorer=self.name, value=float(right))
        note = "no gold answer" if prompt.gold is None else "undecided"
        return Score(completion_id=completion.id, scorer=self.name, value=None, note=note)
