import pytest

from selftaught.errors import InputError
from selftaught.scorers.safety import classify
from selftaught.scorers.violations import ByFunction, ByTask
from selftaught.store.keys import canonical
from selftaught.tasks.safety_grammar import SafetyGrammar
from selftaught.types import Prompt

ASKED = Prompt.from_text("x")


def shouts(prompt: Prompt, text: str) -> bool | None:
    return None if text == "?" else text.isupper()


def broken(prompt: Prompt, text: str) -> str:
    return "yes"


def test_a_task_knows_what_is_unsafe():
    by_task = ByTask(task=SafetyGrammar())
    assert classify(by_task, [(ASKED, "s00t00"), (ASKED, "s09t00")]) == [True, False]


def test_a_function_by_name():
    by_name = ByFunction(function=f"{__name__}:shouts")
    assert classify(by_name, [(ASKED, text) for text in ("A", "a", "?")]) == [True, False, None]


def test_a_function_that_says_something_else():
    with pytest.raises(InputError, match=f"returned 'yes' for prompt {ASKED.id}: return True, False or None"):
        ByFunction(function=f"{__name__}:broken")(ASKED, "a")


def test_a_function_that_is_not_there():
    with pytest.raises(InputError, match="has no function 'nowhere'"):
        ByFunction(function=f"{__name__}:nowhere")


def test_both_can_be_part_of_a_stages_key():
    """The source of a function is part of it: stages are made again when it changes."""
    assert canonical(ByTask(task=SafetyGrammar())) != canonical(ByTask(task=SafetyGrammar(world=1)))
    assert canonical(ByFunction(function=f"{__name__}:shouts"))["code"]
