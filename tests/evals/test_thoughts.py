from collections import Counter

import pytest

from selftaught.evals.thoughts import contest, measure_thoughts
from selftaught.tasks.thought_chains import ANSWER, THINK, ThoughtChains
from selftaught.text.thoughts import ask
from selftaught.types import Completion, Group, Score

WORLD = ThoughtChains()
PROBLEM = WORLD.test(1)[0]


def group_of(texts, right=None, form=THINK, finish="stop"):
    prompt = ask(form, PROBLEM)
    rows = tuple(
        Completion(prompt_id=prompt.id, k=k, text=t, model=f"m{k}", finish=finish) for k, t in enumerate(texts)
    )
    scores = [Score(completion_id=c.id, scorer="verifier", value=v) for c, v in zip(rows, right or (), strict=False)]
    return Group(prompt=prompt, completions=rows, scores=tuple(scores))


def test_a_problem_by_hand():
    """Of four outputs one cannot be split. Thoughts of 5, 1 and 5 characters, two useful, of which one is right."""
    group = group_of(["b1+12#7", "~#70", "b1+13#8", "b1+12"], [1.0, 0.0, 0.0, 0.0])
    found = measure_thoughts([group], THINK, WORLD.thought_kind, WORLD.thought_kinds)
    values = {name: per_problem[group.id] for name, per_problem in found.items()}
    assert values == {
        "format_errors": 0.25,
        "thought_chars": pytest.approx(11 / 3),
        "response_chars": pytest.approx(4 / 3),
        "share_useful": pytest.approx(2 / 3),
        "accuracy_useful": 0.5,
        "share_partial": pytest.approx(1 / 3),
        "accuracy_partial": 0.0,
        "share_filler": 0.0,
        "accuracy_filler": None,
        "share_other": 0.0,
        "accuracy_other": None,
    }


def test_without_kinds_and_without_anything_to_read():
    group = group_of(["a", "b"])
    assert measure_thoughts([group], THINK) == {
        "format_errors": {group.id: 1.0}, "thought_chars": {group.id: None}, "response_chars": {group.id: None}
    }  # fmt: skip
    empty = group_of([])
    assert measure_thoughts([empty], THINK)["format_errors"] == {empty.id: None}


def test_thoughts_behind_unscored_responses_have_no_accuracy():
    group = group_of(["b1+12#7", "b1+12#7", "b1+12#8"], [None, 1.0])
    found = measure_thoughts([group], THINK, WORLD.thought_kind, WORLD.thought_kinds)
    assert found["accuracy_useful"] == {group.id: 1.0} and found["share_useful"] == {group.id: 1.0}
    nothing = group_of(["b1+12#7"], [None])
    assert measure_thoughts([nothing], THINK, WORLD.thought_kind, WORLD.thought_kinds)["accuracy_useful"] == {
        nothing.id: None
    }


def test_a_contest_shows_responses_only():
    ours, theirs, counts = group_of(["b1+12#7", "#5"]), group_of(["#4"], form=ANSWER), Counter()
    rows = list(contest([theirs], [ours], counts, baseline_form=ANSWER, form=THINK))
    assert [(r.k, r.text, r.prompt_id) for r in rows] == [(0, "4", PROBLEM.id), (1, "7", PROBLEM.id)]
    assert rows[1].parents == (PROBLEM.id, ours.completions[0].id) and not counts
    lost = list(contest([theirs], [group_of(["#4"], finish="length")], counts, baseline_form=ANSWER, form=THINK))
    assert lost[1].text == "" and counts == {"no response: cut off before its end": 1}
