from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.text.rubrics import (
    BETTER,
    HELPFULNESS,
    INSTRUCTION_FOLLOWING,
    RUBRICS,
    Rubric,
    fill,
    load_rubric,
    question_of,
    read_score,
    read_winner,
)
from selftaught.types import Message, Prompt

POINTWISE = "Q {question} R {response}"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("[[7]]", (7.0, "")),
        ("[[ 7.5 ]]", (7.5, "")),
        ("First I thought [[2]], but [[9]]", (9.0, "")),
        ("[[0]] [[10]]", (10.0, "")),
        ("[[11]]", (None, "outside the scale")),
        ("[[-1]]", (None, "no verdict found")),
        ("[[seven]]", (None, "no verdict found")),
        ("7/10", (None, "no verdict found")),
        ("", (None, "no verdict found")),
        ("[[" + "9" * 400 + "]]", (None, "outside the scale")),
    ],
)
def test_scores(text, read):
    assert read_score(HELPFULNESS, text) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("[[A]]", ("first", "")),
        ("[[B]] it is", ("second", "")),
        ("[[C]]", ("tie", "")),
        ("[[A]] ... no, [[B]]", ("second", "")),
        ("[A]", (None, "no verdict found")),
        ("[[D]]", (None, "no verdict found")),
        ("[[a]]", (None, "no verdict found")),
    ],
)
def test_winners(text, read):
    assert read_winner(BETTER, text) == read


def test_a_rubric_without_ties_reads_none():
    assert read_winner(INSTRUCTION_FOLLOWING, "[[C]]") == (None, "no verdict found")
    loose = replace(INSTRUCTION_FOLLOWING, verdict=r"\[\[(\w)\]\]")
    assert read_winner(loose, "[[C]]") == (None, "unknown label")


def test_a_pattern_that_finds_no_number():
    loose = replace(HELPFULNESS, verdict=r"rated (\w+)")
    assert read_score(loose, "rated well") == (None, "no number")
    assert read_score(loose, "rated nan") == read_score(loose, "rated inf") == (None, "outside the scale")
    optional = replace(HELPFULNESS, verdict=r"rated(?: (\d))?")
    assert read_score(optional, "rated") == (None, "no verdict found")


@given(st.text(max_size=200))
def test_any_judgment(text):
    value, why = read_score(HELPFULNESS, text)
    assert (value is None) == bool(why) and (value is None or 0 <= value <= 10)
    winner, why = read_winner(BETTER, text)
    assert (winner is None) == bool(why)


def test_a_long_judgment_is_read_from_its_end():
    assert read_winner(BETTER, "[[A]]" + "x" * 10**6) == (None, "no verdict found")
    assert read_winner(BETTER, "[[" * 10**5 + "[[B]]") == ("second", "")


@given(st.text(alphabet="{}questionrsp ", max_size=30), st.text(alphabet="{}questionrsp ", max_size=30))
def test_texts_are_shown_as_they_are(question, response):
    rubric = Rubric(name="r", kind="pointwise", instruction=POINTWISE, verdict=r"(\d)")
    assert fill(rubric, question=question, response=response) == f"Q {question} R {response}"


def test_every_rubric_shows_what_it_judges_and_reads_what_it_asks_for():
    assert {r.kind for r in RUBRICS.values()} == {"pointwise", "pairwise"}
    for name, rubric in RUBRICS.items():
        assert rubric.name == name and load_rubric(name) is rubric
        texts = {"question": "QQ", "response": "RR"} if rubric.kind == "pointwise" else {
            "question": "QQ", "first": "FF", "second": "SS"
        }  # fmt: skip
        shown = fill(rubric, **texts)
        assert all(shown.count(text) == 1 for text in texts.values())


def test_the_question_is_the_bare_problem():
    turns = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))
    assert question_of(Prompt.from_text("x")) == "x"
    assert question_of(Prompt.from_text("think, then x", meta={"problem": "x"})) == "x"
    assert question_of(Prompt(messages=turns)) == "user: Hi\n\nassistant: Hello"


# --- a user's own ----------------------------------------------------------------------------------------------------


def test_a_rubric_from_yaml(tmp_path: Path):
    file = tmp_path / "brief.yaml"
    file.write_text("instruction: 'Q {question} R {response}'\nverdict: 'score=(\\d+)'\nscale: [1, 5]\n")
    rubric = load_rubric(str(file))
    assert (rubric.name, rubric.kind, rubric.scale) == ("brief", "pointwise", (1.0, 5.0))
    assert read_score(rubric, "score=5") == (5.0, "") and read_score(rubric, "score=0")[0] is None


def test_a_rubric_from_text(tmp_path: Path):
    file = tmp_path / "pick.txt"
    file.write_text("verdict: pick (\\w+)\n{question}\n1: {first}\n2: {second}\n")
    rubric = load_rubric(str(file))
    assert (rubric.kind, rubric.verdict) == ("pairwise", r"pick (\w+)")
    assert fill(rubric, question="q", first="a", second="b") == "q\n1: a\n2: b"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.yaml", "instruction: 'Q {question} R {response}'\n", "has no parser: give verdict"),
        ("r.txt", "Q {question} R {response}\n", "has no parser: let its first line be 'verdict: PATTERN'"),
        ("r.txt", "verdict:\nQ {question} R {response}\n", "has no parser: give verdict"),
        ("r.yaml", "instruction: 'Q {question}'\nverdict: '(x)'\n", "does not show {response}"),
        ("r.yaml", "instruction: '{question}{first}'\nverdict: '(x)'\n", "does not show {second}"),
        ("r.yaml", "instruction: '{question}{response}'\nverdict: '(x'\n", "is no regular expression"),
        ("r.yaml", "instruction: '{question}{response}'\nverdict: 'x'\n", "has 0 groups; give it exactly one"),
        ("r.yaml", "instruction: '{question}{response}'\nverdict: '(x)'\nscale: [5, 1]\n", "is empty"),
        ("r.yaml", "instruction: '{question}{response}'\nverdict: '(x)'\nlabels: [A, A]\n", "name the first"),
        ("r.yaml", "instruction: '{question}{response}'\nverdict: '(x)'\nparser: y\n", "unknown key 'parser'"),
        ("r.yaml", "- 1\n", "must hold keys and values"),
    ],
)
def test_rubrics_that_cannot_be_used(tmp_path: Path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        load_rubric(str(tmp_path / name))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_rubrics_that_are_not_there(tmp_path: Path):
    with pytest.raises(InputError, match="known are helpfulness, better, instruction_following; or give a"):
        load_rubric("kindness")
    with pytest.raises(InputError, match="give an existing file"):
        load_rubric(str(tmp_path / "r.txt"))
    (tmp_path / "r.txt").write_bytes(b"verdict: (x)\n\xff")
    with pytest.raises(InputError, match="byte 13 is not UTF-8"):
        load_rubric(str(tmp_path / "r.txt"))
