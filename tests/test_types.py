import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught import types
from selftaught.types import (
    Completion,
    Demonstration,
    Document,
    Feedback,
    Group,
    Message,
    Pair,
    Prompt,
    Report,
    Score,
    Verdict,
    completion_id,
    content_id,
    number_repeats,
)

PROMPT = Prompt.from_text("2+2?", gold="4")
RIGHT = Completion(prompt_id=PROMPT.id, k=0, text="4", model="m")
WRONG = Completion(prompt_id=PROMPT.id, k=1, text="5", model="m")
SCORE = Score(completion_id=RIGHT.id, scorer="votes", value=3.0)
ROWS = (
    Document(text="page", parents=("web",)),
    PROMPT,
    RIGHT,
    SCORE,
    Verdict(prompt_id=PROMPT.id, first=RIGHT.id, second=WRONG.id, winner="first", scorer="judge"),
    Demonstration(prompt=PROMPT, completion=RIGHT),
    Pair(prompt=PROMPT, chosen=RIGHT, rejected=WRONG, weight=0.5),
    Feedback(prompt=PROMPT, completion=RIGHT, label=True),
    Report(name="accuracy", mean=0.5, stderr=0.1, n=20),
)


def kind(row: object) -> str:
    return type(row).__name__


def test_ids_are_the_same_on_every_machine():
    # Stages made elsewhere or by an earlier version are found by these: a change here needs a new stage version.
    assert content_id("a", 1, None, ["é"]) == "273cf6beb36441b29d7d2047"
    assert PROMPT.id == "9deaf3cb28bdc6139c5bb607"
    assert completion_id("stage", PROMPT.id, 3) == "f1b4727ce28a2d7c89475eff"


def test_text_that_is_no_unicode_has_an_id():
    assert content_id("\ud800") != content_id("\ud801")


@pytest.mark.parametrize("row", ROWS, ids=kind)
def test_rows_are_frozen_have_ids_and_cross_processes(row):
    assert len(row.id) == 24 and int(row.id, 16) >= 0
    assert pickle.loads(pickle.dumps(row)) == row
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.id = "other"
    with pytest.raises((AttributeError, TypeError)):
        row.unknown = 1
    assert not hasattr(row, "__dict__")


@pytest.mark.parametrize("row", ROWS, ids=kind)
def test_a_given_id_is_kept(row):
    assert dataclasses.replace(row, id="mine").id == "mine"


@pytest.mark.parametrize(
    ("row", "parents"),
    [
        (RIGHT, (PROMPT.id,)),
        (SCORE, (RIGHT.id,)),
        (ROWS[4], (RIGHT.id, WRONG.id)),
        (ROWS[5], (PROMPT.id, RIGHT.id)),
        (ROWS[6], (PROMPT.id, RIGHT.id, WRONG.id)),
        (ROWS[7], (PROMPT.id, RIGHT.id)),
    ],
    ids=lambda value: kind(value) if not isinstance(value, tuple) else "",
)
def test_rows_name_what_they_were_made_of(row, parents):
    assert row.parents == parents


def test_what_a_prompts_id_is_made_of():
    assert Prompt.from_text("2+2?", gold="4", meta={"level": 1}).id == PROMPT.id
    others = [
        Prompt.from_text("2+2?"),
        Prompt.from_text("2+2?", gold="5"),
        Prompt.from_text("2+2?", gold="4", occurrence=1),
        Prompt(messages=(Message(role="system", content="2+2?"),), gold="4"),
        Prompt(messages=(Message(role="user", content="2+"), Message(role="user", content="2?")), gold="4"),
    ]
    assert len({PROMPT.id, *(other.id for other in others)}) == 6


def test_the_same_sample_of_another_stage_is_another_row():
    ids = {completion_id(stage, prompt, k) for stage in "ab" for prompt in "pq" for k in (0, 1)}
    assert len(ids) == 8


def test_labels_of_steps_have_ids_of_their_own():
    steps = [Score(completion_id="c", scorer="s", value=1.0, span=span) for span in (None, (0, 2), (2, 4))]
    assert len({step.id for step in steps}) == 3


def test_the_text_of_a_conversation():
    turns = (Message(role="system", content="Be brief."), Message(role="user", content="2+2?"))
    assert Prompt(messages=turns).text == "Be brief.\n2+2?"


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_repeated_prompts_keep_ids_of_their_own(texts):
    prompts = [Prompt.from_text(text) for text in texts]
    numbered = list(number_repeats(prompts))
    assert [p.text for p in numbered] == texts
    assert len({p.id for p in numbered}) == len(texts)
    assert [p.occurrence for p in numbered] == [texts[:i].count(text) for i, text in enumerate(texts)]
    assert list(number_repeats(numbered)) == numbered


def test_the_first_of_repeated_prompts_keeps_the_id_it_has_alone():
    first, second = number_repeats([PROMPT, PROMPT])
    assert first.id == PROMPT.id != second.id


def test_scores_of_a_group_by_scorer_leave_out_steps():
    step = Score(completion_id=RIGHT.id, scorer="votes", value=0.0, span=(0, 1))
    other = Score(completion_id=RIGHT.id, scorer="verifier", value=1.0)
    group = Group(prompt=PROMPT, completions=(RIGHT, WRONG), scores=(step, SCORE, other))
    assert group.scores_by("votes") == {RIGHT.id: SCORE}
    assert group.id == PROMPT.id


def test_columns_are_the_ecosystems():
    steps = ((0, 3, True), (3, 6, False))
    feedback = Feedback(prompt=PROMPT, completion=dataclasses.replace(RIGHT, text="a=1b=2"), label=False)
    assert ROWS[5].columns() == {"prompt": "2+2?", "completion": "4"}
    assert ROWS[6].columns() == {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    assert feedback.columns() == {"prompt": "2+2?", "completion": "a=1b=2", "label": False}
    labelled = dataclasses.replace(feedback, step_labels=steps).columns()
    assert (labelled["completions"], labelled["labels"]) == (["a=1", "b=2"], [True, False])


def test_every_row_is_keyword_only():
    for name in ("Document", "Prompt", "Completion", "Score", "Verdict", "Pair", "Demonstration", "Feedback", "Report"):
        with pytest.raises(TypeError):
            getattr(types, name)("x")


# --- the part of a completion that is context only -------------------------------------------------------------------


MASKED = (
    Demonstration(prompt=PROMPT, completion=RIGHT, loss_from=(1,)),
    Pair(prompt=PROMPT, chosen=RIGHT, rejected=WRONG, weight=0.5, loss_from=(1, 0)),
)


def test_rows_without_a_mask_are_what_they_were_before_there_were_masks():
    """Stages made earlier are found by ids and, where rows are given, by their reprs."""
    demonstration, pair = ROWS[5], ROWS[6]
    assert (demonstration.id, content_id(repr(demonstration))) == (
        "ea1a7138f91e1482429bdc68",
        "9322dd7d82b12681592344c1",
    )
    assert (pair.id, content_id(repr(pair))) == ("ea7bf7d28375dda618d652e3", "f2d90354e2554d621394bb22")


@pytest.mark.parametrize(("row", "whole"), [(MASKED[0], ROWS[5]), (MASKED[1], ROWS[6])], ids=kind)
def test_a_mask_is_part_of_a_row(row, whole):
    assert row.id != whole.id and row != whole and row.parents == whole.parents
    assert f"loss_from={row.loss_from}" in repr(row) and "loss_from" not in repr(whole)
    assert row.columns() == whole.columns() | {"loss_from": list(row.loss_from)}
    assert dataclasses.replace(row, loss_from=(), id="") == whole
    assert pickle.loads(pickle.dumps(row)) == row


def test_no_character_of_context_is_no_mask():
    same = Pair(prompt=PROMPT, chosen=RIGHT, rejected=WRONG, weight=0.5, loss_from=(0, 0))
    assert same == ROWS[6] and same.loss_from == ()


def test_masks_at_other_places_are_other_rows():
    masks = [(), (1, 0), (0, 1), (1, 1), (2, 1)]
    rows = [Pair(prompt=PROMPT, chosen=RIGHT, rejected=WRONG, loss_from=mask) for mask in masks]
    assert len({row.id for row in rows}) == len({repr(row) for row in rows}) == len(masks)


def test_patch_lengths_are_no_part_of_a_documents_id_and_show_only_where_stored():
    bare, stored = Document(text="ab"), Document(text="ab", patch_lengths=(1, 2))
    assert bare.id == stored.id
    # Stages of given rows are keyed by this text, which must stay what it was before there were patches.
    assert repr(bare) == f"Document(text='ab', meta={{}}, parents=(), id='{bare.id}')"
    assert "patch_lengths=(1, 2)" in repr(stored)
