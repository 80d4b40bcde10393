import pickle
from collections import Counter
from dataclasses import replace

import pytest

from selftaught.engines.fake import FakeGenerator
from selftaught.errors import InputError
from selftaught.scorers.step_judge import StepQuestions, step_scores
from selftaught.select.feedback import FeedbackRows
from selftaught.specs import Sampling
from selftaught.text.steps import Segmentation
from selftaught.types import Group, Prompt, Score

SEGMENTATION = Segmentation()
RULE = FeedbackRows(per_class=2, steps="steps", seed=3)
QUESTIONS = StepQuestions(rule=RULE, segmentation=SEGMENTATION)
RIGHT = "2 + 3 = 5\n\nSo twice that is 10.\n\n#### 10"
WRONG = "2 + 3 = 6\n\n#### 12"


def sampled(*rows: tuple[str, float | None], name: str = "2 + 3, twice?", **fields) -> Group:
    """Return a group of (text, verdict)."""
    prompt = Prompt.from_text(name, **fields)
    (completions,) = FakeGenerator(lambda _, k: rows[k][0], name)([prompt], Sampling(k=len(rows), max_tokens=999))
    scores = tuple(
        Score(completion_id=c.id, scorer="verifier", value=v) for c, (_, v) in zip(completions, rows, strict=True)
    )
    return Group(prompt=prompt, completions=tuple(completions), scores=scores)


def judged(groups: list[Group], *votes: str, max_tokens: int = 999) -> tuple[list[Score], Counter[str]]:
    """Return the scores that a judge's votes on every question make."""
    asked = list(QUESTIONS(groups, Counter()))
    answers = FakeGenerator(lambda _, k: votes[k])(asked, Sampling(k=len(votes), max_tokens=max_tokens))
    counts: Counter[str] = Counter()
    rows = [Group(prompt=p, completions=tuple(a)) for p, a in zip(asked, answers, strict=True)]
    return list(step_scores(groups, rows, counts, segmentation=SEGMENTATION)), counts


def test_a_question_holds_problem_reference_and_steps_and_nothing_of_the_verdict():
    group = sampled((RIGHT, 1.0), (WRONG, 0.0), gold="10", meta={"problem": "Twice 2 + 3?", "solution": "5 * 2 = 10"})
    first, second = QUESTIONS([group], Counter())
    assert "# Problem\n| Twice 2 + 3?\n\n# Reference\n| 5 * 2 = 10\n| The answer is 10\n\n# Step 1\n" in first.text
    assert "# Step 3\n| #### 10" in first.text and "# Step 3" not in second.text
    assert [p.parents for p in (first, second)] == [(group.id, c.id) for c in group.completions]
    assert first.gold is None and not first.meta
    turned = replace(group, scores=tuple(replace(s, value=1 - (s.value or 0)) for s in group.scores))
    assert list(QUESTIONS([turned], Counter())) == [first, second]
    assert pickle.loads(pickle.dumps(QUESTIONS)) == QUESTIONS


def test_only_what_becomes_a_row_is_asked_and_each_text_once():
    group = sampled(*((f"right {i}", 1.0) for i in range(5)), ("wrong", 0.0), ("wrong", 0.0), ("undecided", None))
    asked = [p.parents[1] for p in QUESTIONS([group], Counter())]
    assert asked == [row.completion.id for row in replace(RULE, steps=None)([group])]
    assert len(asked) == 3


def test_equal_questions_are_two_prompts():
    groups = [sampled((RIGHT, 1.0), name=name, meta={"problem": "one"}) for name in "pq"]
    assert len({p.id for p in QUESTIONS(groups, Counter())}) == 2


def test_a_completion_without_a_step_is_counted():
    counts: Counter[str] = Counter()
    assert list(QUESTIONS([sampled(("", 0.0))], counts)) == []
    assert counts == {"there is no step": 1}


def test_what_was_not_verified_is_named():
    group = replace(sampled((RIGHT, 1.0)), scores=())
    with pytest.raises(InputError, match="has no score by 'verifier': score it first"):
        list(QUESTIONS([group], Counter()))


def test_votes_make_labels_and_ties_make_none():
    """Two votes on three steps: right and right, right and wrong, wrong and wrong."""
    group = sampled((RIGHT, 1.0))
    scores, counts = judged([group], "[correct, correct, wrong]", "1: correct\n2: wrong\n3: wrong")
    assert [(s.value, s.note) for s in scores] == [(1.0, ""), (None, "the votes are tied"), (0.0, "")]
    assert "".join(RIGHT[s.span[0] : s.span[1]] for s in scores if s.span) == RIGHT
    assert {s.scorer for s in scores} == {"steps"} and len({s.id for s in scores}) == 3
    assert all(s.parents[0] == group.completions[0].id and len(s.parents) == 3 for s in scores)
    assert counts == {"unscored: the votes are tied": 1}
    (row,) = RULE([replace(group, scores=(*group.scores, *scores))])
    assert [label for *_, label in row.step_labels] == [True, False]


def test_a_vote_that_cannot_be_read_is_no_vote():
    scores, counts = judged([sampled((RIGHT, 1.0))], "fine", "[correct, correct]", "[correct, wrong, correct]")
    assert [s.value for s in scores] == [1.0, 0.0, 1.0]
    assert {s.note for s in scores} == {"2 of 3 votes unread: no labels found"} and not counts


def test_a_solution_without_a_vote_is_unscored_and_keeps_its_outcome():
    groups = [sampled((RIGHT, 1.0), (WRONG, 0.0)), sampled((RIGHT, 0.0), name="other")]
    scores, counts = judged(groups, "[correct, wrong]", "[correct, wrong]")
    assert [(s.value, s.span is None) for s in scores] == [(None, True), (1.0, False), (0.0, False), (None, True)]
    assert scores[0].note == "2 of 2 votes unread: not one label for each step"
    assert counts == {"unscored: not one label for each step": 2}
    whole = [
        replace(g, scores=(*g.scores, *(s for s in scores if s.completion_id in {c.id for c in g.completions})))
        for g in groups
    ]
    assert [(row.label, len(row.step_labels)) for row in RULE(whole)] == [(True, 0), (False, 2), (False, 0)]


def test_a_vote_that_was_cut_off():
    (score,), counts = judged([sampled((RIGHT, 1.0))], "Step 1 adds two numbers", max_tokens=9)
    assert score.note == "1 of 1 votes unread: cut off before its verdict"
    assert counts == {"unscored: cut off before its verdict": 1}


def test_a_judge_that_says_nothing():
    (score,), counts = judged([sampled((RIGHT, 1.0))], "")
    assert (score.value, score.span, score.note) == (None, None, "1 of 1 votes unread: no labels found")
    group = sampled((RIGHT, 1.0))
    silent = [Group(prompt=prompt, completions=()) for prompt in QUESTIONS([group], Counter())]
    (score,) = step_scores([group], silent, counts, segmentation=SEGMENTATION)
    assert (score.value, score.span, score.note) == (None, None, "the judge gave no answer")
    assert counts == {"unscored: no labels found": 1, "unscored: the judge gave no answer": 1}
