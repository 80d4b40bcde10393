import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.thought_chains import ANSWER, THINK, ThoughtChains, split_of
from selftaught.text.thoughts import ask, split_text
from selftaught.types import Prompt

WORLD = ThoughtChains()


def interpret(problem):
    """An independent reading: Python evaluates the definitions."""
    names = {"a": int(problem[1])}
    for i in range(2, len(problem), 4):
        names[problem[i]] = eval(problem[i + 1 : i + 4], {}, names) % 10
    return names[problem[-4]]


def test_worked_example():
    """a = 3, b = 3+4 = 7, c = 7*3 = 21 = 1 modulo 10."""
    assert WORLD.working("a3ba+4cb*a") == ["b3+47", "c7*31"]


@given(st.integers(0, 5), st.tuples(st.integers(1, 3), st.integers(3, 6)), st.sampled_from([0.0, 0.3, 1.0]))
def test_gold_is_what_python_computes(seed, operations, earlier):
    world = ThoughtChains(operations=operations, earlier=earlier)
    for prompt in world.train(5, seed=seed):
        assert prompt.gold == str(interpret(prompt.text))
        assert operations[0] <= prompt.meta["length"] <= operations[1]
        assert len(prompt.text) == 2 + 4 * prompt.meta["length"]
        lines = world.working(prompt.text)
        assert lines[-1][-1] == prompt.gold and world.thought_kind("".join(lines)) == "useful"


def test_the_mix_of_demonstrations():
    rows = WORLD.demonstrations(4000, seed=3)
    assert len({d.prompt.id for d in rows}) == 4000
    thinking = [d for d in rows if d.prompt.text.endswith("T")]
    assert abs(len(thinking) / 4000 - 0.7) < 0.03
    assert {d.prompt.text[-1] for d in rows} == {"T", "?"}
    right = Counter()
    kinds = Counter()
    for d in thinking:
        parts = split_text(THINK, d.completion.text)
        kind = WORLD.thought_kind(parts.thought)
        kinds[kind] += 1
        right[kind] += WORLD.verify(d.prompt, parts.response)
        lines = WORLD.working(d.prompt.meta["problem"])
        assert parts.thought in ("".join(lines), "~" + "".join(lines[:-1])) or kind == "filler"
        assert kind != "filler" or 4 <= len(parts.thought) <= 12
    shares = {kind: n / len(thinking) for kind, n in kinds.items()}
    assert shares == pytest.approx({"useful": 0.15, "partial": 0.55, "filler": 0.3}, abs=0.03)
    assert right["useful"] == kinds["useful"] and right["filler"] == kinds["filler"]
    # Half a random digit, half the value before last, which an operation may leave as it is.
    assert 0.05 < right["partial"] / kinds["partial"] < 0.25
    direct = [d for d in rows if d.prompt.text.endswith("?")]
    assert all(d.completion.text == f"#{d.prompt.gold}" for d in direct)


def test_the_last_digit_of_a_response_counts():
    prompt = Prompt.from_text("a3ba+4", gold="7")
    assert [WORLD.verify(prompt, text) for text in ("7", "b3+47#7", "17", "7 ", "8", "", "7a", "٧")] == [
        True, True, True, True, False, False, False, False
    ]  # fmt: skip
    assert WORLD.verify(Prompt.from_text("a3ba+4"), "7") is None


@pytest.mark.parametrize(
    ("thought", "kind"),
    [("b3+47", "useful"), ("b3+40", "useful"), ("b3+47c", "other"), ("~b3+47", "partial"), ("~", "partial"),
     ("....", "filler"), ("", "other"), (".a", "other"), ("x", "other")],
)  # fmt: skip
def test_kinds_of_thoughts(thought, kind):
    assert WORLD.thought_kind(thought) == kind and kind in WORLD.thought_kinds


def test_formats():
    assert WORLD.thought_formats == {"generic": THINK, "none": ANSWER}
    prompt = WORLD.train(1)[0]
    assert [ask(f, prompt).text[-1] for f in (THINK, ANSWER)] == ["T", "?"]


def test_splits_share_no_problem():
    shown = {d.prompt.meta["problem"] for seed in range(2) for d in WORLD.demonstrations(300, seed=seed)}
    trained = {p.text for seed in range(2) for p in WORLD.train(300, seed=seed)}
    parts = [shown, trained, {p.text for p in WORLD.dev(50)}, {p.text for p in WORLD.test(50)}]
    assert not any(parts[i] & parts[j] for i in range(4) for j in range(i))
    assert all(split_of(p.text) == "test" for p in WORLD.test(50))


def test_fresh_problems_for_each_round():
    world = ThoughtChains(limit=60)
    first, second = world.train(60, seed=1), world.train(60, seed=1, start=60)
    assert world.train(30, seed=1, start=45) == (first + second)[45:75] and len(world.train(seed=1)) == 60
    assert not {p.id for p in first} & {p.id for p in second}
    assert world.test(20) == world.test()[:20] and len(world.test()) == 600


@pytest.mark.parametrize("problem", ["", "a", "a3b", "a3bc+4", "a3ba+c", "a3aa+4", "a3ba/4", "b3ba+4", "a3ba+4T"])
def test_unsound(problem):
    assert WORLD.working(problem) is None


@given(st.text(alphabet="ab3+#~.T?", max_size=30))
def test_any_text(text):
    lines = WORLD.working(text)
    assert lines is None or (lines and all(WORLD.thought_kind(line) == "useful" for line in lines))
    assert WORLD.thought_kind(text) in WORLD.thought_kinds
    assert WORLD.verify(Prompt.from_text(text, gold="1"), text) == (WORLD.answer(text) == "1")
    assert WORLD.verify(Prompt.from_text(text), text) is None


@pytest.mark.parametrize(
    "dials",
    [{"operations": (0, 3)}, {"operations": (4, 3)}, {"operations": (3, 26)}, {"thoughts": 1.1}, {"useful": -0.1},
     {"useful": 0.5, "partial": 0.6}],
)  # fmt: skip
def test_bad_dials(dials):
    with pytest.raises(InputError, match="thought_chains: "):
        ThoughtChains(**dials)


def test_a_world_that_is_too_small():
    with pytest.raises(InputError, match="ask for fewer or raise the operations"):
        ThoughtChains(operations=(1, 1), earlier=0.0).train(1000)


def test_by_name_and_across_processes():
    world = load_task(TaskSpec(name="thought_chains", options={"operations": [2, 3]}))
    assert world == ThoughtChains(operations=(2, 3)) and pickle.loads(pickle.dumps(world)).test(3) == world.test(3)
    assert not world.problem_prompts([], 3) and world.parse_problem("x") is None


def test_problems_never_change():
    """The stream is fixed: seeds and dials name the same problems in every version of Python and of this package."""
    assert [p.text for p in WORLD.test(2)] == ["a1ba+9cb-6", "a4ba-acb+5dc*5"]
