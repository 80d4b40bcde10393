import pickle
from collections import Counter
from math import log

import pytest

from selftaught.errors import InputError
from selftaught.select.diverse_pairs import DiversePairs
from selftaught.select.diversity import (
    Custom,
    Frequency,
    Judged,
    JudgePrompts,
    Probability,
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


@pytest.mark.parametrize("frequency", [1, 2, 5, 9])
def test_rarer_words_are_more_diverse(frequency):
    group = group_of(*["common"] * 10, *["rare"] * frequency)
    values = Frequency()(group, group.completions)
    assert values[-1] > values[0]


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
