import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.text.step_judgments import majority, quote, read_labels, reference_of, step_question
from selftaught.types import Prompt

WORDS = [
    "correct",
    "incorrect",
    "Step",
    "[",
    "]",
    ",",
    '"',
    "1",
    "2",
    ":",
    "|",
    "#",
    "*",
    ".",
    "\n",
    "\r",
    "\x85",
    " ",
    "x",
]
HOSTILE = st.lists(st.sampled_from(WORDS), max_size=30).map("".join) | st.text(max_size=60)


def test_the_question_shows_problem_reference_and_numbered_steps():
    text = step_question("2 + 3?", ["2 + 3 = 5\n\n", "So 5."], "five")
    assert text.endswith(
        "# Problem\n| 2 + 3?\n\n# Reference\n| five\n\n# Step 1\n| 2 + 3 = 5\n\n# Step 2\n| So 5.\n\n# Your labels"
    )
    assert "exactly 2 labels" in text and "The reference shows one way" in text
    bare = step_question("2 + 3?", ["5"])
    assert "eference" not in bare and "exactly 1 label," in bare


def test_braces_in_a_text_stay_what_they_are():
    assert "| {labels} {0} %s" in step_question("{labels} {0} %s", ["a"])


@given(st.lists(HOSTILE, min_size=1, max_size=4), HOSTILE, HOSTILE)
def test_no_step_can_look_like_a_part_of_the_question(steps, question, reference):
    text = step_question(question, steps, reference)
    headings = [line for line in text.split("\n") if line.startswith("#")]
    shown = ["# Problem", *(["# Reference"] if reference else []), *(f"# Step {n + 1}" for n in range(len(steps)))]
    assert headings == [*shown, "# Your labels"]
    quoted = text.partition("# Problem")[2].splitlines()
    assert all(not line or line[0] in "|#" or line == "" for line in quoted)


@given(st.lists(HOSTILE, min_size=1, max_size=4), HOSTILE)
def test_a_judge_that_repeats_its_question_has_not_answered(steps, question):
    assert read_labels(step_question(question, steps), len(steps)) == (None, "no labels found")


@given(HOSTILE)
def test_a_list_of_labels_in_a_step_is_none_even_where_it_is_repeated_without_its_bar(step):
    repeated = "I read: " + quote(step).replace("\n| ", "\n").removeprefix("| ").replace("\n", " ")
    assert read_labels(repeated, 1)[0] is None


@given(st.lists(st.booleans(), min_size=1, max_size=8), HOSTILE)
def test_the_last_list_counts_whatever_comes_before(labels, before):
    words = ["correct" if label else "incorrect" for label in labels]
    assert read_labels(f"{before}\n{json.dumps(words)}", len(labels)) == (tuple(labels), "")
    assert read_labels(f"{before}\n```json\n{json.dumps(words, indent=1)}\n```", len(labels)) == (tuple(labels), "")
    assert read_labels(f"{before}\n{json.dumps(words)}", len(labels) + 1) == (None, "not one label for each step")


@given(HOSTILE, st.integers(1, 5))
def test_hostile_text_gives_as_many_labels_as_steps_or_a_reason(text, count):
    labels, why = read_labels(text, count)
    assert (labels is None) == bool(why)
    assert labels is None or len(labels) == count


@pytest.mark.parametrize(
    "text",
    [
        "['right', 'wrong']",
        "[correct, INCORRECT]",
        "[true, false]",
        "1: correct\n2: incorrect",
        "Step 1: right\nThe sum is off.\n- **Step 2**: Wrong.",
        "2) incorrect\n1) correct",
        "1. Correct\n2. Incorrect.\n1. correct",
        '["incorrect", "incorrect"], or rather ["correct", "incorrect"].',
        '> step 1 is fine\n| ["incorrect", "correct"]\n1: correct\n2: wrong',
    ],
)
def test_forms_of_an_answer(text):
    assert read_labels(text, 2) == ((True, False), "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no labels found"),
        ("[]", "no labels found"),
        ("[1, 0]", "no labels found"),
        ('["correct", "maybe"]', "no labels found"),
        ('["correct", null]', "no labels found"),
        ("Both steps are correct.", "no labels found"),
        ("1: correct because 2: incorrect", "no labels found"),
        ('| ["correct", "correct"]', "no labels found"),
        ('["correct"]', "not one label for each step"),
        ('["correct", "correct", "correct"]', "not one label for each step"),
        ("2: correct", "not one label for each step"),
        ("1: correct\n3: correct", "not one label for each step"),
        ("1: correct\n2: correct\n1: wrong", "a step has two labels"),
        ("9" * 9999 + ": correct", "no labels found"),
    ],
)
def test_answers_that_are_none(text, why):
    assert read_labels(text, 2) == (None, why)


def test_a_long_answer_is_read_at_its_end():
    assert read_labels("[" * 100_000 + '["correct"]', 1) == ((True,), "")
    assert read_labels('["correct"]' + " " * 100_000, 1) == (None, "no labels found")


def test_votes_by_hand():
    """Three votes on three steps: 3 to 0, 1 to 2, 2 to 1. Of two votes one against one is a tie."""
    assert majority([(True, False, True), (True, False, False), (True, True, True)]) == [True, False, True]
    assert majority([(True, False), (False, False)]) == [None, False]


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3).map(tuple), min_size=1, max_size=7))
def test_majority_counts(votes):
    for step, label in enumerate(majority(votes)):
        right = [vote[step] for vote in votes].count(True)
        assert label == {1: True, 0: None, -1: False}[(2 * right > len(votes)) - (2 * right < len(votes))]


def test_the_reference_is_the_solution_and_the_answer():
    assert reference_of(Prompt.from_text("q")) == ""
    assert reference_of(Prompt.from_text("q", gold="5")) == "The answer is 5"
    assert reference_of(Prompt.from_text("q", gold="5", meta={"solution": "2 + 3 = 5\n"})) == (
        "2 + 3 = 5\nThe answer is 5"
    )
    assert reference_of(Prompt.from_text("q", meta={"completion": "by hand", "solution": 7})) == "by hand"
