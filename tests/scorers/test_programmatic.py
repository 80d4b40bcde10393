import json
import pickle

import pytest

from selftaught.errors import InputError
from selftaught.scorers.programmatic import Gated, ProgrammaticReward
from selftaught.tasks.personas import KEYS, Personas
from selftaught.tasks.stories import Stories
from selftaught.tasks.task import TaskSpec
from selftaught.types import Completion, Group, Prompt

WORLD = Personas(zipf=1.0)
TOP = json.dumps({key: WORLD.vocabulary(key)[0] for key in KEYS})
RARE = json.dumps({key: WORLD.vocabulary(key)[9] for key in KEYS})


def rewards(scorer: ProgrammaticReward, prompt: Prompt, *texts: str) -> list:
    rows = tuple(Completion(prompt_id=prompt.id, k=i, text=t, model="m") for i, t in enumerate(texts))
    (scores,) = scorer([Group(prompt=prompt, completions=rows)])
    assert [s.completion_id for s in scores] == [c.id for c in rows]
    return scores


def test_validity_is_the_reward_of_a_task_that_verifies():
    values = [s.value for s in rewards(ProgrammaticReward(task=WORLD), WORLD.test()[0], TOP, RARE, "broken")]
    assert values == [1.0, 1.0, 0.0]


def test_all_invalid_and_equal_texts():
    prompt = WORLD.test()[0]
    assert [s.value for s in rewards(ProgrammaticReward(task=WORLD), prompt, "broken", "", "broken")] == [0.0] * 3
    assert [s.value for s in rewards(ProgrammaticReward(task=WORLD, bias=0.05), prompt, RARE, RARE)] == [1.005] * 2
    assert rewards(ProgrammaticReward(task=WORLD), prompt) == []


def test_a_graded_reward_prefers_what_is_frequent_but_only_of_the_valid():
    scorer = ProgrammaticReward(task=WORLD, bias=0.05)
    values = [s.value for s in rewards(scorer, WORLD.test()[0], TOP, RARE, "broken")]
    assert values == pytest.approx([1.05, 1.005, 0.0])


def test_a_tasks_own_reward():
    task = Stories()
    (score,) = rewards(ProgrammaticReward(task=task), task.test()[0], "none")
    assert score.value == 0.0


def test_unscored_says_why():
    task = Stories()
    (score,) = rewards(ProgrammaticReward(task=task), Prompt.from_text("story: a"), "once")
    assert (score.value, score.note) == (None, "no reward, and no gold answer")


def length(prompt, text):
    return None if text == "?" else len(text)


def broken(prompt, text):
    return float("nan")


def test_a_function_of_your_own():
    scorer = ProgrammaticReward(task=TaskSpec(name="personas"), function=f"{__name__}:length")
    assert [s.value for s in rewards(scorer, WORLD.test()[0], "abc", "?")] == [3.0, None]
    assert pickle.loads(pickle.dumps(scorer)) == scorer and scorer.code


def test_a_function_that_returns_no_number():
    with pytest.raises(InputError, match="returned nan for completion"):
        rewards(ProgrammaticReward(task=WORLD, function=f"{__name__}:broken"), WORLD.test()[0], "x")


def test_a_gate_gives_nothing_for_what_is_not_valid():
    inner = ProgrammaticReward(task=WORLD, function=f"{__name__}:length")
    scores = rewards(Gated(scorer=inner, task=WORLD), WORLD.test()[0], TOP, "broken")
    assert [(s.value, s.note) for s in scores] == [(float(len(TOP)), ""), (0.0, "not valid")]
    assert Gated(scorer=inner, task=WORLD).name == "reward"


def test_a_bias_needs_a_task_that_knows_what_is_frequent():
    with pytest.raises(InputError, match="task stories says nothing of how frequent"):
        rewards(ProgrammaticReward(task=Stories(), bias=0.1), Prompt.from_text("x"), "x")
