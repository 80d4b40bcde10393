import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.text.problems import ask_for_problem, parse_problem


def test_requests():
    assert ask_for_problem([], "plain") == "Question:"
    instruct = ask_for_problem(["How many?", "How far?"], "instruct")
    assert instruct.startswith("Q: How many?\n\nQ: How far?\n\n") and instruct.endswith("\n\nQ:")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (" Ann has 3 cats. How many legs?", "Ann has 3 cats. How many legs?"),
        ("Q: Ann has 3 cats.\nHow many legs?\nA: 12", "Ann has 3 cats. How many legs?"),
        ("\nQuestion: Ann has 3 cats. How many?\n\nQuestion: Bob", "Ann has 3 cats. How many?"),
        ("How many?", None),
        ("", None),
        ("word " * 1000, None),
    ],
)
def test_parse_problem(text, problem):
    assert parse_problem(text) == problem


@given(st.text())
def test_any_text(text):
    problem = parse_problem(text)
    assert problem is None or "\n" not in problem
