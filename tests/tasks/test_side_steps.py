import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.side_steps import SideSteps, _parse, split_of
from selftaught.types import Prompt

PROBLEM = Prompt.from_text("a3ba+4cb*2db-adc+5?")
"""b = 7, c = 4, then a repeated name: not sound; `SOUND` is."""
SOUND = Prompt.from_text("a3ba+4cb*2db-aed+5?")


def test_values_by_hand():
    """a = 3, b = 3 + 4 = 7, c = 7 * 2 = 14 -> 4 (a side step), d = 7 - 3 = 4, e = 4 + 5 = 9."""
    assert SideSteps().values(SOUND.text) == {"a": 3, "b": 7, "c": 4, "d": 4, "e": 9}
    assert SideSteps().solution(SOUND) == "b3+47c7*24d7-34e4+59#9"
    assert [d.side for d in _parse(SOUND.text)] == [False, True, False, False]
    assert SideSteps().values(PROBLEM.text) is None and SideSteps().verify(PROBLEM, "#9") is None


def test_the_answer_may_be_right_above_a_wrong_step():
    lazy = "b3+47c7*27d7-34e4+59#9"
    assert SideSteps().verify(SOUND, lazy)
    assert [right for *_, right in SideSteps().verify_steps(SOUND, lazy)] == [True, False, True, True, True]


def test_lines_are_judged_by_what_was_written():
    """A wrong b is carried on correctly: only its own line is wrong, and the answer repeats the last value."""
    text = "b3+43c3*26d3-30e0+55#5"
    spans = SideSteps().verify_steps(SOUND, text)
    assert [(text[a:b], right) for a, b, right in spans] == [
        ("b3+43", False),
        ("c3*26", True),
        ("d3-30", True),
        ("e0+55", True),
        ("#5", True),
    ]
    assert not SideSteps().verify(SOUND, text)
    assert SideSteps().verify_steps(SOUND, text[:-1] + "9")[-1][2] is False
    assert SideSteps().verify_steps(SOUND, "b7+47" + text[5:])[0][2] is False  # an operand that nothing gave


@pytest.mark.parametrize("text", ["b3+47", "#9", "b3+47c7*24d7-34e4+59#9\n", "b3+47c7*24d7-34e4+59#99", "hello"])
def test_another_form_is_one_wrong_step(text):
    assert SideSteps().verify_steps(SOUND, text) == [(0, len(text), False)]


@given(st.text(alphabet="abcdef+-*0123456789#?\n ٣", max_size=40))
def test_any_text(text):
    world = SideSteps()
    world.values(text), world.answer(text), world.verify(Prompt.from_text(text), text)
    for prompt in (SOUND, Prompt.from_text(text)):
        spans = world.verify_steps(prompt, text)
        assert not spans or "".join(text[a:b] for a, b, _ in spans) == text


def test_problems():
    world = SideSteps()
    for prompt in world.train(200):
        definitions = _parse(prompt.text)
        assert len(definitions) == 5 and 1 <= sum(d.side for d in definitions) <= 2
        assert not definitions[-1].side and prompt.gold == str(world.values(prompt.text)["f"])
        assert all(right for *_, right in world.verify_steps(prompt, world.solution(prompt)))
    assert not any(re.search(r"\*[01]", p.text) for p in world.train(50))


def test_splits_share_no_problem_and_do_not_change():
    world = SideSteps()
    parts = [world.train(300), world.dev(), world.test(), [d.prompt for d in world.demonstrations(300)]]
    texts = [{p.text for p in part} for part in parts]
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert {split_of(p.text) for p in world.test()} == {"test"}
    assert world.train(5, seed=1) != world.train(5) and world.train(5, start=2)[:3] == world.train(5)[2:]


def test_lazy_lines_come_at_their_rates():
    world = SideSteps(lazy=0.4)
    seen = {True: [], False: []}
    right_above_wrong = 0
    for row in world.demonstrations(600):
        labels = [right for *_, right in world.verify_steps(row.prompt, row.completion.text)]
        right_above_wrong += world.verify(row.prompt, row.completion.text) and not all(labels)
        for definition, right in zip(_parse(row.prompt.text), labels, strict=False):
            seen[definition.side].append(not right)
    # A copied operand happens to be the result in a tenth of products, so slightly fewer lines are wrong than lazy.
    assert 0.33 < sum(seen[True]) / len(seen[True]) < 0.42
    assert 0.1 < sum(seen[False]) / len(seen[False]) < 0.25
    assert right_above_wrong > 60
    never = SideSteps(lazy=0.0, lazy_products=0.0, lazy_others=0.0)
    assert all(never.verify(d.prompt, d.completion.text) for d in never.demonstrations(50))


@pytest.mark.parametrize(
    "dials", [{"variables": 2}, {"variables": 27}, {"side_steps": (2, 1)}, {"side_steps": (1, 5)}, {"lazy": 1.1}]
)
def test_bad_dials(dials):
    with pytest.raises(InputError, match="side_steps: "):
        SideSteps(**dials)


def test_by_name_and_across_processes():
    world = load_task(TaskSpec(name="side_steps", limit=3, options={"lazy": 0.5}))
    assert world == SideSteps(lazy=0.5, limit=3) and len(world.train()) == 3
    assert pickle.loads(pickle.dumps(world)).train(3) == world.train(3)
    assert world.problem_prompts([], 3) == [] and world.parse_problem("a1ba+1?") is None


def test_a_world_that_is_too_small():
    with pytest.raises(InputError, match=r"only .* problems of 3 variables"):
        SideSteps(variables=3, side_steps=(0, 0), older_operands=0.0).test(100_000)


def test_problems_never_change():
    first, second = SideSteps().test(2)
    assert (first.text, second.text) == ("a2ba*3cb*9db*aed-9fe+4?", "a0ba-3ca-7da*5ed*7fe-a?")
