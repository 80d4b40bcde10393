import os
import signal

import pytest

from selftaught.errors import InputError
from selftaught.scorers import equivalence
from selftaught.scorers.equivalence import Equivalence


@pytest.fixture(scope="module")
def checker():
    with Equivalence(deadline=20.0) as it:
        yield it


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("1/2", "0.50", True),
        ("7", "8", False),
        ("Paris", "paris.", True),
        ("Paris", "London", False),
        (r"\frac{\pi}{2}", r"2\pi/4", True),
        (r"2\sqrt 2", r"\sqrt{8}", True),
        ("x+1", "1+x", True),
        ("x+1", "x+2", False),
        ("(1,2)", "(2,1)", False),
        (r"\{1,2\}", r"\{2,1\}", True),
    ],
)
def test_right_and_wrong(checker, gold, answer, equal):
    assert checker(gold, answer) is equal


@pytest.mark.parametrize(
    "answer",
    [
        "}{",
        "\\frac{" * 50,
        "(" * 300,
        "\x00y",
        "x\x00\x00",
        "\ud800y",
        "",
        "y" * 5000,
        "\\",
        "\n\n",
        "]]>",
        "ready\nright",
    ],
)
def test_hostile_answers_are_not_right(checker, answer):
    assert checker("x", answer) is not True
    assert checker("x+1", "1+x") is True


def test_an_overrun_is_undecided_and_the_child_is_replaced():
    with Equivalence(deadline=0.5) as checker:
        assert checker("7", "9^{9^{9^{9}}}") is None
        assert checker._child is None
        checker.deadline = 20.0
        assert checker("7", "9^{9^{9^{9}}}") is None  # remembered: no second wait
        assert checker("x+1", "1+x") is True


def test_a_child_that_dies_is_replaced(checker):
    assert checker("y+1", "1+y") is True
    os.kill(checker._child.pid, signal.SIGKILL)
    checker._child.wait()
    assert checker("y+2", "2+y") is None
    assert checker("y+3", "3+y") is True


def test_fast_answers_start_no_child():
    with Equivalence() as checker:
        assert checker("1", "2") is False and checker._child is None


def test_without_math_verify(monkeypatch, tmp_path):
    (tmp_path / "child.py").write_text("raise ImportError")
    monkeypatch.setattr(equivalence, "_CHILD", tmp_path / "child.py")
    with pytest.raises(InputError, match="pip install"), Equivalence() as checker:
        checker("x", "y+z")
