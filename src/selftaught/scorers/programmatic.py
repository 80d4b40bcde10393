"""A task's own reward: what can be computed of a completion without a model, alone or as a gate before a model's."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from selftaught.errors import InputError
from selftaught.scorers.base import Scorer
from selftaught.tasks import Task, TaskSpec, load_task
from selftaught.tasks.sources import call_for_numbers, code_of
from selftaught.types import Completion, Group, Prompt, Score

SCORER = "reward"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgrammaticReward:
    """The task's `reward(prompt, text)` or, where it has none, 1 for what it verifies as right and 0 for the rest.

    `function` ("module:function", called with the prompt and the text) replaces it. `bias` times the task's
    `popularity(prompt, text)`, in [0, 1], is added to a positive reward: a reward model that mildly prefers what is
    frequent anyway. None, with a note, where nothing can be said.
    """

    task: Task | TaskSpec
    function: str | None = None
    bias: float = 0.0
    code: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.function is not None:
            object.__setattr__(self, "code", code_of(self.function))

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""
        return SCORER

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Yield the rewards of each group's completions; InputError where the function returns no finite number."""
        task = load_task(self.task)
        if self.bias and not hasattr(task, "popularity"):
            raise InputError(f"task {task.name} says nothing of how frequent an answer is: set the reward's bias to 0")
        for group in groups:
            yield [self._score(task, group.prompt, c) for c in group.completions]

    def _score(self, task: Any, prompt: Prompt, completion: Completion) -> Score:
        if self.function is not None:
            where = f"completion {completion.id}"
            (value,) = call_for_numbers(self.function, prompt, completion.text, where=where)
        else:
            value = getattr(task, "reward", task.verify)(prompt, completion.text)
        if value is None:
            note = "no reward" if prompt.gold is not None else "no reward, and no gold answer"
            return Score(completion_id=completion.id, scorer=SCORER, value=None, note=note)
        bonus = self.bias * task.popularity(prompt, completion.text) if self.bias and value > 0 else 0.0
        return Score(completion_id=completion.id, scorer=SCORER, value=float(value) + bonus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """The rewards of `scorer`, but 0 where the task verifies a completion as wrong, as for keyword lists in DivPO."""

    scorer: Scorer
    task: Task | TaskSpec

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""
        return self.scorer.name

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Yield the rewards of each group's completions; `groups` must be re-iterable."""
        task = load_task(self.task)
        for group, rows in zip(groups, self.scorer(groups), strict=True):
            texts = {c.id: c.text for c in group.completions}
            wrong = {name for name, text in texts.items() if task.verify(group.prompt, text) is False}
            scores = (row for row in rows if isinstance(row, Score))
            yield [replace(s, value=0.0, note="not valid") if s.completion_id in wrong else s for s in scores]
