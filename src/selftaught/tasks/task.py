"""What a task is: prompts in disjoint splits, demonstrations, an answer reader and a verifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from selftaught.types import Completion, Demonstration, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A task by name, with where its data lie and how its answers are read; `load_task` builds it.

    `data` is a file, a directory or a Hub id. `answer` and `verifier` name functions as "module:function". `limit`
    bounds the number of training prompts. `options` are the task's own dials; an unknown one is an error.
    """

    name: str
    data: str | None = None
    answer: str | None = None
    verifier: str | None = None
    limit: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A world or a data set. Implementations are frozen, picklable and import no torch.

    No problem is in two of `demonstrations`, `train`, `dev` and `test`, except where an implementation says so. `dev`
    and `test` are the same for every seed.
    """

    @property
    def name(self) -> str:
        """The name it is registered under."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings at which a completion ends, for models that write on without an end-of-turn token."""

    @property
    def near_duplicate(self) -> float | None:
        """ROUGE-L above which a generated problem repeats another; None where all problems resemble each other."""

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return up to `count` completions to train a seed model on; empty where the task has none."""

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return prompts `start` to `start + count` of the seed's order, so that each round can have fresh ones."""

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return the prompts on which checkpoints are chosen."""

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return the prompts on which results are measured."""

    def answer(self, text: str) -> str | None:
        """Return the vote key of a completion's final answer, None where there is none."""

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Say whether a completion is right; None where that cannot be decided here."""

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return `count` prompts that ask for a new problem, with examples from `seeds` where the task gives any."""

    def parse_problem(self, text: str) -> Prompt | None:
        """Return the prompt that a completion of a problem prompt states, None where it states none."""


def demonstrate(prompt: Prompt, text: str) -> Demonstration:
    """Return `text` as a demonstration for `prompt`."""
    return Demonstration(prompt=prompt, completion=Completion(prompt_id=prompt.id, k=0, text=text, model="gold"))
