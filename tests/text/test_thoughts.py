from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.text.thoughts import (
    EMPTY_RESPONSE,
    ERRORS,
    FORMATS,
    GENERIC,
    NO_RESPONSE_MARKER,
    NONE,
    SECOND_RESPONSE,
    SPECIFIC,
    SYSTEM,
    TRUNCATED,
    WRONG_ORDER,
    Parts,
    ThoughtFormat,
    ask,
    join,
    load_format,
    response_start,
    split,
    split_text,
)
from selftaught.types import Completion, Message, Prompt

THOUGHT, RESPONSE = GENERIC.thought, GENERIC.response
STRICT = ThoughtFormat(name="strict", thought=THOUGHT, response=RESPONSE, strict=True)
TAG = ThoughtFormat(name="tag", after="T", response="#", strict=True)
PIECES = st.lists(
    st.sampled_from([THOUGHT, RESPONSE, "#", "T", " ", "\n", "x", "Here is my ", "\ud800", "é"]), max_size=9
)


# --- asking ----------------------------------------------------------------------------------------------------------


def test_the_users_turn_is_put_behind_the_thought_prompt():
    prompt = Prompt.from_text("Why?", gold="so", meta={"category": "c"})
    asked = ask(GENERIC, prompt)
    assert len(asked.messages) == 1 and asked.messages[0].content.endswith("Request: Why?")
    assert THOUGHT in asked.text and RESPONSE in asked.text
    assert asked.meta == {"category": "c", "problem": "Why?"} and asked.gold == "so"
    assert asked.parents == (prompt.id,) and asked.id != prompt.id


def test_the_specific_form_asks_for_a_draft_and_its_evaluation():
    text = ask(SPECIFIC, Prompt.from_text("Why?")).text
    assert SPECIFIC.thought in text and SPECIFIC.response in text and "draft" in text


def test_the_system_form_leaves_the_users_turn_alone():
    asked = ask(SYSTEM, Prompt.from_text("Why?"))
    assert [(m.role, m.content == "Why?") for m in asked.messages] == [("system", False), ("user", True)]
    ruled = Prompt(messages=(Message(role="system", content="Be kind."), Message(role="user", content="Why?")))
    assert [m.role for m in ask(SYSTEM, ruled).messages] == ["system", "user"]
    assert ask(SYSTEM, ruled).messages[0].content.startswith("Be kind.\n\n")


def test_only_the_last_user_turn_of_a_conversation_changes():
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")]
    prompt = Prompt(messages=tuple(Message(role=role, content=text) for role, text in turns))
    asked = ask(TAG, prompt)
    assert [m.content for m in asked.messages] == ["Hi", "Hello", "Why?T"]
    assert asked.meta["problem"] == "user: Hi\n\nassistant: Hello\n\nuser: Why?"


def test_without_thoughts_the_prompt_reads_the_same():
    prompt = Prompt.from_text("Why?")
    assert ask(NONE, prompt).messages == prompt.messages


def test_a_prompt_without_user_turn():
    with pytest.raises(InputError, match="has no user turn to put a thought prompt around: add one"):
        ask(GENERIC, Prompt(messages=(Message(role="system", content="Be kind."),)))


# --- splitting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (f"{THOUGHT} a {RESPONSE} b", Parts(thought="a", response="b")),
        (f"a {RESPONSE} b", Parts(thought="a", response="b")),
        (f"Sure!\n{THOUGHT} a {RESPONSE} b", Parts(thought="Sure!\n a", response="b")),
        (f"{RESPONSE} b", Parts(response="b")),
        (f"{THOUGHT} a {RESPONSE} b {RESPONSE} c", Parts(thought="a", response=f"b {RESPONSE} c")),
        (f"{RESPONSE} x {THOUGHT} a {RESPONSE} b", Parts(thought=f"{RESPONSE} x  a", response="b")),
        ("", Parts(error=NO_RESPONSE_MARKER)),
        ("a b", Parts(error=NO_RESPONSE_MARKER)),
        (f"{THOUGHT} a", Parts(error=NO_RESPONSE_MARKER)),
        (f"{RESPONSE} b {THOUGHT} a", Parts(error=WRONG_ORDER)),
        (f"{THOUGHT} a {RESPONSE} \n", Parts(thought="a", error=EMPTY_RESPONSE)),
        ("Here is my response :", Parts(error=NO_RESPONSE_MARKER)),
    ],
)
def test_splitting(text, parts):
    assert split_text(GENERIC, text) == parts


def test_a_second_response_marker_is_an_error_where_the_format_is_strict():
    text = f"{THOUGHT} a {RESPONSE} b {RESPONSE} c"
    assert split_text(STRICT, text).error == SECOND_RESPONSE and not split_text(STRICT, text).response
    assert split_text(TAG, "b3+47#7") == Parts(thought="b3+47", response="7")
    assert [split_text(TAG, t).error for t in ("b3+47", "#", "a#1#2")] == [
        NO_RESPONSE_MARKER,
        EMPTY_RESPONSE,
        SECOND_RESPONSE,
    ]


def test_without_markers_everything_is_the_response():
    assert split_text(NONE, f" {THOUGHT} a ") == Parts(response=f"{THOUGHT} a")
    assert split_text(NONE, " \n").error == EMPTY_RESPONSE


@pytest.mark.parametrize("finish", ["length", "error"])
def test_what_was_cut_off_is_an_error(finish):
    completion = Completion(prompt_id="p", k=0, text=f"{THOUGHT} a {RESPONSE} b", finish=finish)
    assert split(GENERIC, completion) == Parts(error=TRUNCATED)
    assert split(NONE, completion) == Parts(error=TRUNCATED)


@given(PIECES.map("".join), st.sampled_from([*FORMATS.values(), STRICT, TAG]))
def test_any_text_is_split_or_has_a_named_error(text, form):
    parts = split_text(form, text)
    assert (parts.error in ERRORS) if parts.error else (parts.response and parts.response in text)
    assert not (parts.error and parts.response)
    if form.strict:
        assert form.response not in parts.response


@given(PIECES.map("".join), st.sampled_from([*FORMATS.values(), STRICT, TAG]), st.sampled_from(["stop", "length"]))
def test_a_response_begins_behind_its_marker(text, form, finish):
    completion = Completion(prompt_id="p", k=0, text=text, finish=finish)
    begin, parts = response_start(form, completion), split(form, completion)
    if parts.error or not form.response:
        assert begin == 0
    else:
        assert text[:begin].endswith(form.response) and text[begin:].strip() == parts.response


@given(st.text(max_size=40), st.text(max_size=40), st.sampled_from([*FORMATS.values(), TAG]))
def test_round_trip(thought, response, form):
    try:
        text = join(form, thought, response)
    except InputError:
        marks = [m for m in (form.thought, form.response) if m]
        held = any(mark in part for mark in marks for part in (thought, response))
        assert held or not response.strip() or (thought and not form.response)
        return
    if form.response or response.strip():
        assert split_text(form, text) == Parts(thought=thought.strip(), response=response.strip())


def test_what_cannot_be_told_apart_again():
    with pytest.raises(InputError, match="must not be empty and neither may hold"):
        join(GENERIC, f"x {RESPONSE} y", "b")
    with pytest.raises(InputError, match="has no place for a thought"):
        join(NONE, "a", "b")


# --- formats ---------------------------------------------------------------------------------------------------------


def test_formats_by_name_and_from_files(tmp_path: Path):
    assert {name: load_format(name).name for name in FORMATS} == {
        n: n for n in ("generic", "specific", "system", "none")
    }
    file = tmp_path / "mine.yaml"
    file.write_text("after: ' (think)'\nthought: '<t>'\nresponse: '<r>'\n")
    assert load_format(str(file)) == ThoughtFormat(name="mine", after=" (think)", thought="<t>", response="<r>")
    with pytest.raises(InputError, match=r"known are tag; or give a \.yaml file"):
        load_format("generic", {"tag": TAG})


def test_formats_that_make_no_sense():
    with pytest.raises(InputError, match="give it a response marker"):
        ThoughtFormat(name="x", thought="<t>")
    with pytest.raises(InputError, match="give two"):
        ThoughtFormat(name="x", thought="<t>", response="<t>")
