import pickle
from collections import Counter
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.select.diverse_pairs import DiversePairs
from selftaught.select.diversity import (
    WINDOW,
    Custom,
    Frequency,
    Judged,
    JudgePrompts,
    Probability,
    Scored,
    WindowFrequency,
    judge_prompt,
    judge_scorer,
    judged_scores,
    parse_choice,
    units_of,
)
from selftaught.types import Completion, Group, Prompt, Score


def group_of(*texts: str, rewards=(), logprobs=(), name: str = "p") -> Group:
    prompt = Prompt.from_text(name)
    completions = tuple(
        Completion(prompt_id=prompt.id, k=i, text=t, model=f"m{i}", logprobs=logprobs[i] if logprobs else None)
        for i, t in enumerate(texts)
    )
    scores = tuple(
        Score(completion_id=c.id, scorer="reward", value=r) for c, r in zip(completions, rewards, strict=False)
    )
    return Group(prompt=prompt, completions=completions, scores=scores)


def test_probability_is_the_negative_log_likelihood():
    group = group_of("a", "b", logprobs=((-1.0, -2.0), (-2.0,)))
    assert Probability()(group, group.completions) == [3.0, 2.0]
    assert Probability(length_normalize=True)(group, group.completions) == [1.5, 2.0]


def test_probability_needs_logprobs():
    group = group_of("a")
    with pytest.raises(InputError, match=f"completion {group.completions[0].id} of prompt .* has no logprobs"):
        Probability()(group, group.completions)


def test_word_frequency_by_hand():
    """ "a" is in all three, "b" in one, "c" in two: (1/3 + 1)/2 and (1/3 + 1/2)/2; in logs (0 + log 3)/2."""
    group = group_of("a b", "a c", "C a!")
    assert Frequency()(group, group.completions) == pytest.approx([2 / 3, 5 / 12, 5 / 12])
    by_log = Frequency(transform="log")(group, group.completions)
    assert by_log == pytest.approx([log(3) / 2, log(1.5) / 2, log(1.5) / 2])


def test_the_scope_of_the_counts():
    group = group_of("a", "a", "b")
    part = [group.completions[0], group.completions[2]]
    assert Frequency()(group, part) == [0.5, 1.0]
    assert Frequency(scope="subset")(group, part) == [1.0, 1.0]


def test_a_completion_without_words_is_least_diverse():
    group = group_of("", "a", "...")
    assert Frequency()(group, group.completions) == [0.0, 1.0, 0.0]


def test_attribute_values_count_in_broken_records_too():
    keys = ("name", "city")
    group = group_of('{"name": "Ada", "city": "Oslo"}', '{"name": "ada"', '{"name": "Bo", "city": "Oslo"}')
    assert Frequency(attributes=keys)(group, group.completions) == pytest.approx([0.5, 0.5, 0.75])
    assert units_of('{"name": "Ada"', keys) == {("name", "ada")}
    one = Frequency(attributes=keys, one_attribute=True)(group, group.completions)
    assert one in ([0.5, 0.5, 1.0], [0.5, 0.0, 0.5])


def test_identical_texts_and_a_single_one_are_equally_diverse():
    same, single = group_of("a b", "a b", "a b"), group_of("a b")
    assert Frequency()(same, same.completions) == pytest.approx([1 / 3] * 3)
    assert Frequency(transform="log")(same, same.completions) == [0.0] * 3
    assert Frequency()(single, single.completions) == [1.0]
    assert Frequency(transform="log")(single, single.completions) == [0.0]
    assert window_values([single, same], 2) == [[1.0], [1 / 4] * 3]


@pytest.mark.parametrize("frequency", [1, 2, 5, 9])
def test_rarer_words_are_more_diverse(frequency):
    group = group_of(*["common"] * 10, *["rare"] * frequency)
    values = Frequency()(group, group.completions)
    assert values[-1] > values[0]


# --- a running window ------------------------------------------------------------------------------------------------

TEXTS = st.lists(st.text("ab c", max_size=6), max_size=4)


def window_values(groups: list[Group], window: int, earlier=(), **words) -> list[list[float | None]]:
    scorer = WindowFrequency(words=Frequency(**words), window=window)
    return [[score.value for score in scores] for scores in scorer(groups, earlier)]


def naive(groups: list[Group], window: int, transform: str) -> list[list[float]]:
    """Count again for every prompt, in every text of the window."""
    found = []
    for last in range(len(groups)):
        texts = [c.text.split() for g in groups[max(0, last + 1 - window) : last + 1] for c in g.completions]
        values = []
        for words in (set(c.text.split()) for c in groups[last].completions):
            counts = [sum(word in text for text in texts) for word in words]
            parts = [1 / n if transform == "inverse" else log(len(texts) / n) for n in counts]
            values.append(sum(parts) / len(parts) if parts else 0.0)
        found.append(values)
    return found


def test_a_window_by_hand():
    """Prompts "a b", "a" / "b", "c" / "c", window 2. Second: f(b) = 2, f(c) = 1. Third: "a" is gone, f(c) = 2."""
    groups = [group_of("a b", "a", name="p"), group_of("b", "c", name="q"), group_of("c", name="r")]
    assert window_values(groups, 2) == [[pytest.approx((1 / 2 + 1) / 2), 1 / 2], [1 / 2, 1.0], [1 / 2]]
    assert window_values(groups, 9)[2] == [1 / 2] and window_values(groups, 1)[2] == [1.0]


@given(st.lists(TEXTS, max_size=6), st.integers(1, 7), st.sampled_from(["inverse", "log"]), st.integers(0, 6))
def test_a_window_is_what_counting_again_gives_however_the_groups_are_cut(rows, window, transform, cut):
    groups = [group_of(*texts, name=str(i)) for i, texts in enumerate(rows)]
    whole = window_values(groups, window, transform=transform)
    assert [pytest.approx(values) for values in naive(groups, window, transform)] == whole
    assert (
        window_values(groups[cut:], window, [groups[: cut // 2], groups[cut // 2 : cut]], transform=transform)
        == (whole[cut:])
    )


def test_a_window_holds_a_prompt():
    with pytest.raises(InputError, match="window=0 holds no prompt"):
        WindowFrequency(words=Frequency(), window=0)


def test_a_window_of_one_prompt_is_the_pool():
    groups = [group_of("a b", "a c", "c", name="p"), group_of("a", "", name="q")]
    assert window_values(groups, 1) == [Frequency()(g, g.completions) for g in groups]


def test_a_window_over_records_may_compare_one_attribute():
    keys = ("name", "city")
    record = '{"name": "Ada", "city": "%s"}'
    groups = [group_of(record % city, name=name) for name, city in (("p", "Oslo"), ("q", "Bonn"))]
    assert window_values(groups, 2, attributes=keys)[1] == [0.75]
    assert window_values(groups, 2, attributes=keys, one_attribute=True)[1] in ([0.5], [1.0])


def test_pairs_by_the_window():
    """ "x" is as rare as "y" in its own prompt, but the prompt before has said it."""
    groups = [group_of("x", "x", name="p"), group_of("x", "y", "z", rewards=(1, 1, 0), name="q")]
    scorer = WindowFrequency(words=Frequency(), window=2)
    scores = [*groups[1].scores, *list(scorer(groups))[1]]
    scored = Group(prompt=groups[1].prompt, completions=groups[1].completions, scores=tuple(scores))
    rule = DiversePairs(diversity=Scored(scorer=WINDOW))
    assert [pair.chosen.text for pair in rule([scored])] == ["y"]
    with pytest.raises(InputError, match=f"has no score by '{WINDOW}': score it first"):
        list(rule([groups[1]]))


# --- your own --------------------------------------------------------------------------------------------------------


def longest(group, among):
    return [len(c.text) for c in among]


def no_number(group, among):
    return ["x"] * len(among)


def too_few(group, among):
    return [1.0]


def test_a_criterion_of_your_own():
    group = group_of("a", "bbb")
    criterion = Custom(function=f"{__name__}:longest")
    assert criterion(group, group.completions) == [1.0, 3.0]
    assert pickle.loads(pickle.dumps(criterion)) == criterion


@pytest.mark.parametrize(("name", "words"), [("no_number", "failed on prompt"), ("too_few", "must return a number")])
def test_a_criterion_that_is_broken(name, words):
    group = group_of("a", "b")
    with pytest.raises(InputError, match=words):
        Custom(function=f"{__name__}:{name}")(group, group.completions)


# --- the judge -------------------------------------------------------------------------------------------------------


def test_a_judge_sees_each_text_once_in_a_shuffled_order():
    group = group_of("a", "b", "c", "a", "d")
    prompt = judge_prompt(group, group.completions, "most", seed=0)
    assert prompt == judge_prompt(group, group.completions[::-1], "most", seed=0)
    texts = {c.id: c.text for c in group.completions}
    shown = [texts[name] for name in prompt.meta["order"]]
    assert sorted(shown) == ["a", "b", "c", "d"]
    assert [f"[{n}]\n{t}" in prompt.text for n, t in enumerate(shown, 1)] == [True] * 4
    orders = {tuple(judge_prompt(group, group.completions, "most", seed=s).meta["order"]) for s in range(9)}
    assert len(orders) > 3


@pytest.mark.parametrize("text", ["", "2", "[[0]]", "[[4]]", "[[1]] [[2]]", "[[two]]", "[[99999999999]]", "[[-1]]"])
def test_an_answer_that_names_no_text(text):
    assert parse_choice(text, 3) is None


def judged(group: Group, *answers: str) -> tuple[dict[str, list[float | None]], Counter]:
    rule = DiversePairs(diversity=Judged(side="most"), rejected_diversity=Judged(side="least"), minimum=0.5)
    asked = list(JudgePrompts(rule=rule)([group], Counter()))
    assert [p.meta["side"] for p in asked] == ["most", "least"]
    answered = [
        Group(prompt=p, completions=(Completion(prompt_id=p.id, k=0, text=a),))
        for p, a in zip(asked, answers, strict=True)
    ]
    counts: Counter[str] = Counter()
    rows = list(judged_scores([group], answered, counts, fallback=Frequency()))
    whole = Group(prompt=group.prompt, completions=group.completions, scores=(*group.scores, *rows))
    (pair,) = rule([whole], Counter())
    picks = [answered[0].prompt.meta["order"][0], answered[1].prompt.meta["order"][1]]
    return {"pair": [pair.chosen.id, pair.rejected.id], "picks": picks}, counts


def test_the_judges_choices_make_the_pair():
    group = group_of("a", "b", "x", "y", rewards=(1, 1, 0, 0))
    found, counts = judged(group, "[[1]]", "I say [[2]].")
    assert found["pair"] == found["picks"] and not counts


def test_an_unreadable_judge_gives_way_to_word_frequency():
    group = group_of("a b", "a c", "x z", "x a", rewards=(1, 1, 0, 0))
    found, counts = judged(group, "both", "")
    rejected = next(c for c in group.completions if c.id == found["pair"][1])
    assert rejected.text == "x a"
    assert sum(counts.values()) == 2


def test_a_judge_that_says_nothing_gives_way_too():
    group = group_of("a b", "a c", "x", rewards=(1, 1, 0))
    (asked,) = JudgePrompts(rule=DiversePairs(diversity=Judged(side="most"), minimum=0.5))([group], Counter())
    counts: Counter[str] = Counter()
    rows = list(judged_scores([group], [Group(prompt=asked, completions=())], counts, fallback=Frequency()))
    assert {row.completion_id for row in rows} == {c.id for c in group.completions[:2]}
    assert {row.note for row in rows} == {"word frequency"} and counts.total() == 1


def test_nothing_is_asked_where_there_is_no_choice():
    group = group_of("a", "b", rewards=(1, 0))
    assert list(JudgePrompts(rule=DiversePairs(diversity=Judged(side="most")))([group], Counter())) == []
    assert Judged(side="most")(group, group.completions) == [0.0, 0.0]


def test_the_same_question_of_two_prompts_is_two_prompts():
    groups = [group_of("a", "b", rewards=(1, 1), name=name) for name in "pq"]
    asked = list(JudgePrompts(rule=DiversePairs(diversity=Judged(side="most")))(groups, Counter()))
    assert len({p.id for p in asked}) == 4


def test_scores_say_which_side_they_are_of():
    assert judge_scorer("most") != judge_scorer("least")
