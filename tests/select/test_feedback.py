from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.select.feedback import FeedbackRows, RightDemonstrations, class_weights, follow
from selftaught.types import Completion, Group, Prompt, Score

LABELS = st.lists(st.sampled_from([True, False, None]), max_size=8)


def group(*samples, name: str = "p") -> Group:
    """Return a group of (text, verdict, step labels); the steps are the text's letters."""
    prompt = Prompt.from_text(name)
    completions, scores = [], []
    for k, (text, verdict, *labels) in enumerate(samples):
        completion = Completion(prompt_id=prompt.id, k=k, text=text, model=str(k))
        completions.append(completion)
        scores.append(Score(completion_id=completion.id, scorer="verifier", value=verdict))
        for i, label in enumerate(labels[0] if labels else ()):
            value = None if label is None else float(label)
            scores.append(Score(completion_id=completion.id, scorer="steps", value=value, span=(i, i + 1)))
    return Group(prompt=prompt, completions=tuple(completions), scores=tuple(scores))


def kept(rows, groups):
    return [(row.completion.text, row.label) for row in rows(groups)]


def test_at_most_so_many_of_each_class_and_each_text_once():
    one = group(*((text, 1.0) for text in "aabcd"), *((text, 0.0) for text in "xyz"), ("u", None))
    dropped: Counter[str] = Counter()
    rows = list(FeedbackRows(per_class=2)([one], dropped))
    assert [row.label for row in rows] == [True, True, False, False]
    assert len({row.completion.text for row in rows}) == 4
    assert dropped == {"the same text again": 1, "not decided": 1}
    assert kept(FeedbackRows(per_class=9), [one]) == [(t, t in "abcd") for t in "abcdxyz"]
    assert kept(FeedbackRows(), [group(("a", 1.0))]) == [("a", True)]


def test_the_choice_depends_on_seed_and_texts_not_on_the_order_of_samples():
    samples = [(text, 1.0) for text in "abcdefgh"]
    forwards, backwards = ({t for t, _ in kept(FeedbackRows(), [group(*s)])} for s in (samples, samples[::-1]))
    assert forwards == backwards
    assert any({t for t, _ in kept(FeedbackRows(seed=s), [group(*samples)])} != forwards for s in range(1, 9))


def test_balanced_rows_are_as_many_right_as_wrong():
    groups = [group(("a", 1.0), ("b", 1.0), ("c", 0.0), name=str(i)) for i in range(6)]
    dropped: Counter[str] = Counter()
    rows = list(FeedbackRows(balanced=True)(groups, dropped))
    assert Counter(row.label for row in rows) == {True: 6, False: 6}
    assert dropped == {"more of its class than of the other": 6}
    assert not list(FeedbackRows(balanced=True)([group(("a", 1.0))]))
    with pytest.raises(TypeError, match="one-shot"):
        list(FeedbackRows(balanced=True)(iter(groups)))


def labels_of(*labels, **options) -> tuple:
    rows = FeedbackRows(steps="steps", **options)
    (row,) = rows([group(("abcdef"[: len(labels)], 1.0, labels))])
    return row.step_labels


def test_step_labels():
    assert labels_of(1, 0, None, 1) == ((0, 1, True), (1, 2, False), (3, 4, True))
    assert labels_of(1, 0, None, 1, policy="first_error") == ((0, 1, True), (1, 2, False))
    assert labels_of(1, 0, None, 1, policy="propagate") == ((0, 1, True), (1, 2, False), (3, 4, False))
    assert labels_of(0.6, 0.4, threshold=0.7) == ((0, 1, False), (1, 2, False))


@given(LABELS)
def test_policies(labels):
    assert follow(labels, "independent") == labels
    masked, wrong = follow(labels, "first_error"), follow(labels, "propagate")
    assert masked.count(False) == min(1, labels.count(False))
    if False in labels:
        first = labels.index(False)
        assert masked[: first + 1] == wrong[: first + 1] == labels[: first + 1]
        assert set(masked[first + 1 :]) <= {None} and set(wrong[first + 1 :]) <= {None, False}


def test_flips_belong_to_the_step_and_come_at_their_rate():
    labels = (1, 0, 1, 1, 0, 1)
    assert labels_of(*labels, flip=1.0) == tuple((i, i + 1, not label) for i, label in enumerate(labels))
    assert labels_of(*labels, flip=0.4) == labels_of(*labels, flip=0.4)
    groups = [group(("abcdef", 1.0, labels), name=str(i)) for i in range(300)]
    rows = FeedbackRows(steps="steps", flip=0.2)(groups)
    flipped = sum(label != labels[start] for row in rows for start, _, label in row.step_labels)
    assert 0.15 < flipped / 1800 < 0.25


def test_blanks_between_steps_belong_to_the_step_before():
    one = group(("a\n\nb ", 1.0))
    spans = [
        Score(completion_id=one.completions[0].id, scorer="steps", value=1.0, span=span) for span in ((3, 4), (0, 1))
    ]
    (row,) = FeedbackRows(steps="steps")([replace(one, scores=(*one.scores, *spans))])
    assert row.step_labels == ((0, 3, True), (3, 5, True))


def test_a_completion_of_which_nothing_is_known_keeps_its_outcome():
    one = group(("ab", 1.0))
    note = Score(completion_id=one.completions[0].id, scorer="steps", value=None, note="the task cannot decide")
    (row,) = FeedbackRows(steps="steps")([replace(one, scores=(*one.scores, note))])
    assert row.label and row.step_labels == ()


def test_what_was_not_scored_is_named():
    one = group(("ab", 1.0))
    with pytest.raises(InputError, match=r"no score by 'steps': score it first"):
        list(FeedbackRows(steps="steps")([one]))
    with pytest.raises(InputError, match=r"no score by 'reward': score it first"):
        list(FeedbackRows(scorer="reward")([one]))
    overlap = Score(completion_id=one.completions[0].id, scorer="steps", value=1.0, span=(0, 3))
    with pytest.raises(InputError, match=r"step \[0, 3\) of 2 characters"):
        list(FeedbackRows(steps="steps")([replace(one, scores=(*one.scores, overlap))]))


@pytest.mark.parametrize("options", [{"per_class": 0}, {"flip": 1.5}])
def test_bad_settings(options):
    with pytest.raises(InputError, match="per_class="):
        FeedbackRows(**options)


def test_a_threshold_that_is_no_number():
    with pytest.raises(InputError, match="threshold=nan divides no scores"):
        FeedbackRows(threshold=float("nan"))


@pytest.mark.parametrize("balanced", [False, True])
def test_what_becomes_a_row_is_known_before_its_steps_are_scored(balanced):
    groups = [group(*((text, float(text < "c")) for text in "abcdef"), name=str(i)) for i in range(4)]
    dropped: Counter[str] = Counter()
    chosen = list(FeedbackRows(balanced=balanced, steps="steps").choose(groups, dropped))
    assert [g.id for g, _ in chosen] == [g.id for g in groups]
    rows = FeedbackRows(balanced=balanced)(groups)
    assert [row for _, rows in chosen for row in rows] == [(row.completion, row.label) for row in rows]
    assert not dropped


def test_demonstrations_are_the_right_rows():
    groups = [group(*((text, float(text < "d")) for text in "abcdef"), name=str(i)) for i in range(5)]
    rows = FeedbackRows(per_class=2, seed=4)
    shown = [(d.prompt.id, d.completion.text) for d in RightDemonstrations(rows=rows)(groups)]
    assert shown == [(row.prompt.id, row.completion.text) for row in rows(groups) if row.label]


def test_class_weights_balance_within_limits():
    assert class_weights(10, 10) == (1.0, 1.0) and class_weights(0, 5) == class_weights(5, 0) == (1.0, 1.0)
    good, bad = class_weights(24, 16)
    assert good * 24 == pytest.approx(bad * 16)
    assert class_weights(90, 10) == (pytest.approx(5 / 9), 2.0) and class_weights(1, 999) == (
        2.0,
        pytest.approx(0.5, abs=1e-3),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_neither_right_nor_wrong(value):
    with pytest.raises(InputError, match=f"has the score {value} by 'verifier': mend the scorer"):
        kept(FeedbackRows(), [group(("ab", value))])
    with pytest.raises(InputError, match=f"has the score {value} by 'steps': mend the scorer"):
        kept(FeedbackRows(steps="steps"), [group(("ab", 1.0, (1, value)))])


def test_one_class_or_none():
    dropped: Counter[str] = Counter()
    assert kept(FeedbackRows(), [group(("a", 0.0), ("b", 0.0))]) == [("a", False), ("b", False)]
    assert not list(FeedbackRows()([group(("a", None), ("b", None)), group(name="empty")], dropped))
    assert dropped == {"not decided": 2}
    assert not list(RightDemonstrations(rows=FeedbackRows())([group(("a", 0.0))]))


def test_text_between_steps_has_no_label():
    one = group(("a = 1, so b = 2!", 1.0))
    spans = [Score(completion_id=one.completions[0].id, scorer="steps", value=0.0, span=s) for s in ((0, 5), (10, 15))]
    (row,) = FeedbackRows(steps="steps")([replace(one, scores=(*one.scores, *spans))])
    assert row.step_labels == ((0, 5, False), (10, 15, False))
