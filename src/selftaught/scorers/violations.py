"""What says that an answer is unsafe, as data: a task that knows, or a function by name."""

from dataclasses import dataclass, field
from typing import Any

from selftaught.errors import InputError
from selftaught.tasks.sources import code_of, load_function
from selftaught.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ByTask:
    """The task's own `violates(text)`."""

    task: Any

    def __call__(self, prompt: Prompt, text: str) -> bool | None:
        """Say whether an answer is unsafe, whatever was asked."""
        found: bool | None = self.task.violates(text)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ByFunction:
    """The function that "module:function" names: (prompt, answer) -> True where it is unsafe, False, None for unknown.

    `code` identifies its source, so that stages are made again when it changes.
    """

    function: str
    code: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", code_of(self.function))

    def __call__(self, prompt: Prompt, text: str) -> bool | None:
        """Ask the function.

        Raises:
            InputError: it returns something else.
        """
        said = load_function(self.function)(prompt, text)
        if said is not None and not isinstance(said, bool):
            raise InputError(
                f"{self.function} returned {said!r:.60} for prompt {prompt.id}: return True, False or None"
            )
        return said
