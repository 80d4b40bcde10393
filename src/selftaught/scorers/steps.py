"""Labels for the steps of a completion, by a program."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from selftaught.errors import InputError
from selftaught.tasks import Task, TaskSpec, load_task
from selftaught.text.equations import equations
from selftaught.text.steps import Segmentation
from selftaught.types import Completion, Group, Prompt, Score


class StepTask(Protocol):
    """A task that can tell right steps from wrong ones."""

    def verify_steps(self, prompt: Prompt, text: str) -> Sequence[tuple[int, int, bool | None]] | None:
        """Return (start, end, right) for every step, in characters; None where nothing can be said of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepVerifier:
    """1 for a right step, 0 for a wrong one, None for one that cannot be decided: one score per step, with its span.

    A completion of which the task can say nothing has one score without span, without value and with a note.
    """

    task: Task | TaskSpec

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""
        return "steps"

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Yield the step labels of each group's completions.

        Raises:
            InputError: the task has no step verifier.
        """
        task: Any = load_task(self.task)
        if not hasattr(task, "verify_steps"):
            raise InputError(
                f"task {task.name} cannot verify steps: take one that has verify_steps, or label equations"
            )
        for group in groups:
            yield [score for c in group.completions for score in self._scores(task, group.prompt, c)]

    def _scores(self, task: StepTask, prompt: Prompt, completion: Completion) -> Iterator[Score]:
        labels = task.verify_steps(prompt, completion.text)
        if not labels:
            note = "there is no step" if labels is not None else "the task cannot decide its steps"
            yield Score(completion_id=completion.id, scorer=self.name, value=None, note=note)
        for start, end, right in labels or ():
            yield _step_score(completion, (start, end), right, "undecided")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEquations:
    """Steps of free text by the equations in them: 1 where all hold, 0 where one does not, None where there is none.

    A right equation may still be the wrong one to write: these labels are about arithmetic alone.
    """

    segmentation: Segmentation = field(default_factory=Segmentation)

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""
        return "steps"

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Yield the step labels of each group's completions."""
        for group in groups:
            yield [score for c in group.completions for score in self._scores(c)]

    def _scores(self, completion: Completion) -> Iterator[Score]:
        spans = self.segmentation(completion.text)
        if not spans:
            yield Score(completion_id=completion.id, scorer=self.name, value=None, note="there is no step")
        for start, end in spans:
            found = list(equations(completion.text[start:end]))
            yield _step_score(completion, (start, end), all(found) if found else None, "no equation")


def _step_score(completion: Completion, span: tuple[int, int], right: bool | None, otherwise: str) -> Score:
    return Score(
        completion_id=completion.id,
        scorer="steps",
        value=None if right is None else float(right),
        span=span,
        note=otherwise if right is None else "",
    )
