import pickle
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.engines.fake import FakeGenerator
from selftaught.errors import InputError
from selftaught.scorers.judges import (
    UNDECIDED,
    Battles,
    Grades,
    Judge,
    OfResponses,
    ordered_pairs,
    pairwise_prompts,
    pointwise_prompts,
    read_scores,
    read_verdicts,
    responses,
)
from selftaught.scorers.verifier import Verifier
from selftaught.scorers.votes import Votes
from selftaught.select.elo import battle_matrix, bradley_terry
from selftaught.specs import ModelSpec, Sampling
from selftaught.tasks.chains import Chains
from selftaught.tasks.thought_chains import THINK, ThoughtChains
from selftaught.text.rubrics import BETTER, HELPFULNESS
from selftaught.text.thoughts import NONE, ask
from selftaught.types import Completion, Group, Message, Prompt

WORLD = ThoughtChains()


def group_of(texts, form=THINK, number=0, finish=None):
    prompt = ask(form, WORLD.train(number + 1)[number])
    ends = finish or ["stop"] * len(texts)
    rows = [
        Completion(prompt_id=prompt.id, k=k, text=t, finish=f, model=f"m{k}")
        for k, (t, f) in enumerate(zip(texts, ends, strict=True))
    ]
    return Group(prompt=prompt, completions=tuple(rows))


def judged(prompts, script, k=1):
    """Let a scripted model answer the judge prompts: groups of judgments."""
    prompts = list(prompts)
    answers = FakeGenerator(script)(prompts, Sampling(k=k, max_tokens=1000))
    return [Group(prompt=p, completions=tuple(a)) for p, a in zip(prompts, answers, strict=True)]


def by_length(prompt, first, second):
    return "first" if len(first) > len(second) else "second" if len(second) > len(first) else "tie"


def words(prompt, response):
    return len(response.split()) if response != "?" else None


def failing(prompt, response):
    raise ValueError("no")


def nonsense(*texts):
    return "much"


def here(function):
    return f"{function.__module__}:{function.__name__}"


# --- what a judge is shown -------------------------------------------------------------------------------------------


@given(st.lists(st.text(alphabet="ab#~. {}question", max_size=12), min_size=2, max_size=4))
def test_no_thought_reaches_a_judge(texts):
    secret = "SECRET"
    group = group_of([secret + text for text in texts])
    counts = Counter()
    shown = [*pointwise_prompts([group], counts, rubric=HELPFULNESS, form=THINK)]
    shown += pairwise_prompts([group], counts, rubric=BETTER, form=THINK)
    assert not any(secret in prompt.text for prompt in shown)
    # Nor does the prompt that asked for a thought.
    assert not any(group.prompt.text in prompt.text for prompt in shown)
    assert all(group.prompt.meta["problem"] in prompt.text for prompt in shown)


def test_a_judge_that_sees_the_whole():
    (prompt, _) = pointwise_prompts([group_of(["b1+12#2", "#1"])], Counter(), rubric=HELPFULNESS, form=NONE)
    assert "b1+12#2" in prompt.text


def test_responses_to_the_bare_question():
    group = group_of(["b1+12#2", "b1+12", "#3"], finish=["stop", "stop", "length"])
    bare, errors = responses(group, THINK)
    assert [c.text for c in bare.completions] == ["2"] and bare.id == group.id
    assert bare.prompt.text == group.prompt.meta["problem"] and bare.prompt.id == group.prompt.id
    assert list(errors.values()) == ["no response marker", "cut off before its end"]
    assert responses(group, NONE)[0].completions[0] == group.completions[0]
    blank = group_of(["", "x"], finish=["stop", "length"])
    assert responses(blank, None)[0].completions == blank.completions
    assert list(responses(blank, NONE)[1].values()) == ["empty response", "cut off before its end"]


def test_pointwise_prompts_lead_to_their_completions():
    groups = [group_of(["#1", "#1", "bad"]), group_of(["#2"], number=1)]
    counts = Counter()
    prompts = list(pointwise_prompts(groups, counts, rubric=HELPFULNESS, form=THINK))
    assert [p.parents for p in prompts] == [(g.id, c.id) for g in groups for c in g.completions if c.text != "bad"]
    assert len({p.id for p in prompts}) == 3, "equal responses are judged on their own"
    assert counts == {"no response marker": 1}


def test_all_pairs_in_both_orders_or_those_given():
    group = group_of(["#1", "#2", "bad", "#3"])
    prompts = list(pairwise_prompts([group], Counter(), rubric=BETTER, form=THINK))
    a, b, _, c = (completion.id for completion in group.completions)
    assert [p.parents[1:] for p in prompts] == [(a, b), (a, c), (b, a), (b, c), (c, a), (c, b)]
    given_ = pairwise_prompts([group], Counter(), rubric=BETTER, form=THINK, pairs=((3, 0), (1, 2)))
    assert [p.parents[1:] for p in given_] == [(a, c), (c, a)]
    assert ordered_pairs(group.completions[:1]) == []


# --- what is read from its text --------------------------------------------------------------------------------------


def test_a_score_is_the_mean_of_what_could_be_read():
    group = group_of(["#1", "bad", "#2", "#3"])
    prompts = pointwise_prompts([group], Counter(), rubric=HELPFULNESS, form=THINK)
    answers = {"1": ["[[4]]", "[[5]]"], "2": ["[[8]]", "fine"], "3": ["[[99]]", "hm"]}

    def script(prompt, k):
        return next(found[k] for text, found in answers.items() if f"# Response\n{text}\n" in prompt.text)

    counts = Counter()
    judgments = judged(prompts, script, k=2)
    scores = list(read_scores([group], judgments, counts, rubric=HELPFULNESS, scorer="j", form=THINK))
    assert [s.value for s in scores] == [4.5, None, 8.0, None]
    assert [s.note for s in scores] == [
        "", "no response: no response marker", "1 of 2 judgments unread: no verdict found",
        "2 of 2 judgments unread: outside the scale",
    ]  # fmt: skip
    assert [s.completion_id for s in scores] == [c.id for c in group.completions]
    assert scores[0].parents == (group.completions[0].id, *(j.id for j in judgments[0].completions))
    assert sum(counts.values()) == 2


def test_judgments_of_other_completions_are_refused():
    group = group_of(["#1", "#2"])
    judgments = judged(pointwise_prompts([group], Counter(), rubric=HELPFULNESS, form=THINK), lambda prompt, k: "[[4]]")
    for other in (judgments[::-1], judgments[:1], []):
        with pytest.raises(InputError, match="has no judgment in its place"):
            list(read_scores([group], other, Counter(), rubric=HELPFULNESS, scorer="j", form=THINK))


def test_verdicts_keep_ties_and_unread_ones_apart():
    group = group_of(["#1", "#2"])
    answers = iter(["[[A]]", "[[C]]", "both", "cut " + "x" * 2000])
    judgments = judged(
        pairwise_prompts([group], Counter(), rubric=BETTER, form=THINK), lambda prompt, k: next(answers), k=2
    )
    counts = Counter()
    verdicts = list(read_verdicts(judgments, counts, rubric=BETTER, scorer="j"))
    assert [(v.winner, v.note) for v in verdicts] == [
        ("first", ""), ("tie", ""), (None, "no verdict found"), (None, "cut off before its verdict"),
    ]  # fmt: skip
    first, second = (c.id for c in group.completions)
    assert [(v.first, v.second) for v in verdicts] == [(first, second)] * 2 + [(second, first)] * 2
    assert {v.prompt_id for v in verdicts} == {group.id} and len({v.id for v in verdicts}) == 4
    texts = {j.id: j.text for g in judgments for j in g.completions}
    assert texts[verdicts[0].judge_completion_id] == "[[A]]"
    assert counts == {"unread: no verdict found": 1, "unread: cut off before its verdict": 1}


def test_a_judge_that_says_nothing():
    """An empty text is one unread judgment; no judgment at all has a reason too, and makes no verdict."""
    group = group_of(["#1", "#2"])
    asked = list(pointwise_prompts([group], Counter(), rubric=HELPFULNESS, form=THINK))
    (empty,) = judged(asked[:1], lambda prompt, k: "")
    counts = Counter()
    rows = [empty, Group(prompt=asked[1], completions=())]
    scores = list(read_scores([group], rows, counts, rubric=HELPFULNESS, scorer="j", form=THINK))
    assert [(s.value, s.note) for s in scores] == [
        (None, "1 of 1 judgments unread: no verdict found"), (None, "the judge gave no answer"),
    ]  # fmt: skip
    assert sum(counts.values()) == 2
    first, second = pairwise_prompts([group], Counter(), rubric=BETTER, form=THINK)
    (silent,) = judged([first], lambda prompt, k: "")
    verdicts = list(read_verdicts([silent, Group(prompt=second, completions=())], Counter(), rubric=BETTER, scorer="j"))
    assert [(v.winner, v.note) for v in verdicts] == [(None, "no verdict found")]


# --- programs --------------------------------------------------------------------------------------------------------


def test_the_tasks_own_grading():
    prompt = WORLD.train(1)[0]
    wrong = str((int(prompt.gold) + 1) % 10)
    group = group_of([f"~#{prompt.gold}", f"#{wrong}", f"#0{prompt.gold}", "no"])
    scorer = OfResponses(scorer=Grades(judge=Judge(length_bias=0.1), task=WORLD), form=THINK)
    assert scorer.name == "judge/task"
    (scores,) = scorer([group])
    assert [s.value for s in scores] == pytest.approx([1.1, 0.1, 1.2, None])
    assert scores[3].note == "no response: no response marker"


def test_noise_belongs_to_the_text():
    group = group_of(["a#1", "b#1", "#2"])
    noisy = OfResponses(scorer=Grades(judge=Judge(noise=0.5), task=WORLD, seed=3), form=THINK)
    (first,), (second,) = noisy([group]), noisy([group])
    assert first == second and first[0].value == first[1].value
    plain = next(OfResponses(scorer=Grades(judge=Judge(), task=WORLD), form=THINK)([group]))
    assert all(a.value != b.value for a, b in zip(first, plain, strict=True))
    groups = [group_of([f"#{n}" for n in range(10)], number=i) for i in range(60)]
    wide = zip(
        (s for row in noisy(groups) for s in row),
        (s for row in OfResponses(scorer=Grades(judge=Judge(), task=WORLD), form=THINK)(groups) for s in row),
        strict=True,
    )
    errors = [a.value - b.value for a, b in wide]
    assert abs(sum(errors) / 600) < 0.06 and abs(sum(e * e for e in errors) / 600 - 0.25) < 0.05


def test_functions():
    group = group_of(["#one two", "#?", "#one two three"])
    grades = Grades(judge=Judge(function=here(words)))
    scores = next(OfResponses(scorer=grades, form=THINK)([group]))
    assert [s.value for s in scores] == [2.0, None, 3.0] and scores[1].note == UNDECIDED
    pairs = Battles(judge=Judge(function=here(by_length), pairwise=True), form=THINK)
    verdicts = next(pairs([group]))
    assert [v.winner for v in verdicts] == ["first", "second", "second", "second", "first", "first"]
    assert verdicts[0].scorer == f"judge/{here(by_length)}"


@pytest.mark.parametrize(
    ("function", "pairwise", "message"),
    [
        (failing, False, "failed on 'x' with ValueError: no; let it return None"),
        (nonsense, False, "returned 'much'; it must return a finite number, or None"),
        (nonsense, True, "returned 'much'; it must return 'first', 'second', 'tie' or None"),
    ],
)
def test_functions_that_misbehave(function, pairwise, message):
    group = group_of(["#x", "#y"])
    judge = Judge(function=here(function), pairwise=pairwise)
    with pytest.raises(InputError, match=message):
        if pairwise:
            list(Battles(judge=judge, form=THINK)([group]))
        else:
            list(OfResponses(scorer=Grades(judge=judge), form=THINK)([group]))


def test_a_task_that_cannot_decide():
    prompt = Prompt.from_text("no gold")
    rows = tuple(Completion(prompt_id=prompt.id, k=k, text=str(k)) for k in range(2))
    group = Group(prompt=prompt, completions=rows)
    assert [s.value for s in next(Grades(judge=Judge(), task=WORLD)([group]))] == [None, None]
    verdicts = next(Battles(judge=Judge(pairwise=True), task=WORLD)([group]))
    assert [(v.winner, v.note) for v in verdicts] == [(None, UNDECIDED)] * 2
    with pytest.raises(InputError, match="there is no task to grade: name one"):
        list(Grades(judge=Judge())([group]))


def test_one_response_has_no_rival_and_equal_ones_tie():
    battles = Battles(judge=Judge(pairwise=True), task=WORLD, form=THINK)
    one, none, same = group_of(["#1", "bad"]), group_of(["bad"]), group_of(["a#1", "b#1"])
    assert list(battles([one, none])) == [[], []]
    assert [v.winner for v in next(battles([same]))] == ["tie", "tie"]
    assert bradley_terry(battle_matrix([c.id for c in same.completions], next(battles([same])))).tolist() == [0.0, 0.0]


def test_a_noisy_pairwise_judge_with_a_position_bias():
    """It prefers the first by sigmoid((difference + 1) / 1): 0.73 of equal pairs, and both orders cancel the bias."""
    groups = [group_of([f"#{n}" for n in range(10)], number=i) for i in range(30)]
    judge = Judge(pairwise=True, noise=1.0, position_bias=1.0)
    battles = Battles(judge=judge, task=WORLD, form=THINK, seed=1)
    first = even = right = 0
    for group, verdicts in zip(groups, battles(groups), strict=True):
        gold = next(c.id for c in group.completions if c.text.endswith(group.prompt.gold))
        for v in verdicts:
            if gold not in (v.first, v.second):
                even += 1
                first += v.winner == "first"
        strengths = bradley_terry(battle_matrix([c.id for c in group.completions], verdicts))
        right += group.completions[int(strengths.argmax())].id == gold
    assert abs(first / even - 0.731) < 0.03
    assert right > 15, "chance is 3"
    steady = Battles(judge=Judge(pairwise=True), task=WORLD, form=THINK)
    assert {v.winner for v in next(steady([groups[0]]))} == {"first", "second", "tie"}


def test_scores_of_responses_by_any_scorer():
    world = Chains()
    prompt = world.train(1)[0]
    asked = ask(replace(THINK, after=" think"), prompt)
    texts = [f"guess #### 1 #### {prompt.gold}", "bad"]
    form = replace(THINK, after=" think", response="guess")
    rows = tuple(Completion(prompt_id=asked.id, k=k, text=t) for k, t in enumerate(texts))
    group = Group(prompt=asked, completions=rows)
    right = OfResponses(scorer=Verifier(task=world), form=form, as_empty=True)
    assert [s.value for s in next(right([group]))] == [1.0, 0.0]
    assert [s.value for s in next(OfResponses(scorer=Votes(task=world, k=2), form=form)([group]))] == [1.0, None]
    unknown = replace(group, prompt=replace(asked, gold=None, messages=(Message(role="user", content="?"),), meta={}))
    assert [s.value for s in next(right([unknown]))] == [None, None], "without gold nothing is wrong"
    several = list(right([group, replace(group, completions=rows[1:]), group]))
    assert [[s.value for s in row] for row in several] == [[1.0, 0.0], [0.0], [1.0, 0.0]]


# --- the description -------------------------------------------------------------------------------------------------


def test_a_rubric_says_whether_a_model_judges_in_pairs():
    model = ModelSpec(source="m")
    assert Judge(model=model, rubric="better").in_pairs and not Judge(model=model, rubric="helpfulness").in_pairs
    assert Judge(pairwise=True).in_pairs and Judge(model=model, rubric="better").name == "judge/better"
    scorers = (Grades(judge=Judge(function=here(words))), Battles(judge=Judge(pairwise=True), task=WORLD))
    assert pickle.loads(pickle.dumps(scorers)) == scorers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rubric": "better"}, "a judging model needs both"),
        ({"model": ModelSpec(source="m")}, "a judging model needs both"),
        ({"model": ModelSpec(source="m"), "rubric": "better", "function": "a:b"}, "give one of them"),
        ({"noise": -1.0}, "give 0 or more"),
        ({"noise": float("nan")}, "give 0 or more"),
        ({"length_bias": float("nan")}, "give finite numbers"),
        ({"position_bias": float("inf")}, "give finite numbers"),
    ],
)
def test_judges_that_make_no_sense(fields, message):
    with pytest.raises(InputError, match=message):
        Judge(**fields)
