import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.tasks.chains import NEW_PROBLEM, Chains, split_of
from selftaught.types import Prompt

DIALS = st.builds(
    Chains,
    modulus=st.integers(5, 97),
    lengths=st.tuples(st.integers(3, 6), st.integers(6, 9)),
    operations=st.sampled_from(["+", "+-", "+-*", "*"]),
    variable_operands=st.sampled_from([0.0, 0.5, 1.0]),
)


def interpret(problem, modulus):
    """An independent reading: Python evaluates the assignments."""
    names = {}
    *assignments, asked = problem.split(";")
    for assignment in assignments:
        exec(assignment, {}, names)
    return names[asked[0]] % modulus


def test_worked_example():
    """a = 7, b = 7*5 = 35 = 5, c = 5-8 = -3 = 7 modulo 10."""
    world, prompt = Chains(modulus=10), Prompt.from_text("a=7;b=a*5;c=b-8;c?")
    assert world.values(prompt.text) == {"a": 7, "b": 5, "c": 7}
    assert world.solution(prompt) == "b=7*5=5\nc=5-8=7\n#### 7"


@given(DIALS, st.integers(0, 5))
def test_gold_is_what_python_computes(world, seed):
    for prompt in world.train(5, seed=seed):
        assert prompt.gold == str(interpret(prompt.text, world.modulus))
        assert world.lengths[0] <= prompt.meta["length"] <= world.lengths[1]
        assert prompt.text.count(";") == prompt.meta["length"] + 1
        assert world.verify(prompt, world.solution(prompt)) is True
        assert all(right for _, _, right in world.verify_steps(prompt, world.solution(prompt)))
        assert world.verify(prompt, f"#### {int(prompt.gold) + 1}") is False
        assert world.verify(prompt, "no answer") is False


def test_splits_share_no_problem():
    world = Chains(lengths=(1, 2), new_problems=0.0)
    demonstrated = {d.prompt.text for seed in range(3) for d in world.demonstrations(300, seed=seed)}
    trained = {p.text for seed in range(3) for p in world.train(300, seed=seed)}
    parts = [demonstrated, trained, {p.text for p in world.dev(50)}, {p.text for p in world.test(50)}]
    assert not any(parts[i] & parts[j] for i in range(4) for j in range(i))


def test_fresh_problems_for_each_round():
    world = Chains(limit=100)
    first, second = world.train(100, seed=1), world.train(100, seed=1, start=100)
    assert not {p.id for p in first} & {p.id for p in second}
    assert world.train(30, seed=1, start=80) == (first + second)[80:110]
    assert len(world.train(seed=1)) == len(world.train(500, seed=1)) == 100
    assert world.train(10, seed=2) != world.train(10, seed=1)
    assert world.test(20) == world.test()[:20]


def test_the_mix_of_demonstrations():
    world = Chains(answer_only=0.6, new_problems=0.25)
    rows = world.demonstrations(2000, seed=3)
    kinds = Counter(
        "new" if d.prompt.messages[0].content == NEW_PROBLEM else "bare" if "\n" not in d.completion.text else "chain"
        for d in rows
    )
    assert len({d.prompt.id for d in rows}) == 2000
    assert abs(kinds["new"] / 2000 - 0.25) < 0.04 and abs(kinds["bare"] / 1500 - 0.6) < 0.05
    for d in rows:
        if d.prompt.text == NEW_PROBLEM:
            assert world.parse_problem(d.completion.text) is not None
        else:
            assert world.verify(d.prompt, d.completion.text)


def test_demonstration_lengths():
    world = Chains(lengths=(5, 6), demonstration_lengths=(2, 3), new_problems=0.0)
    assert {d.prompt.meta["length"] for d in world.demonstrations(50)} == {2, 3}
    assert {p.meta["length"] for p in world.train(50)} == {5, 6}


def test_step_labels():
    world, prompt = Chains(), Prompt.from_text("a=7;b=a*5;c=b-8;c?")
    text = "b=7*5=5\nc=5-8=3\n\n#### 7"
    assert [(text[a:b], right) for a, b, right in world.verify_steps(prompt, text)] == [
        ("b=7*5=5", True),
        ("c=5-8=3", False),
        ("#### 7", True),
    ]
    assert world.verify_steps(Prompt.from_text("c?"), text) is None


def test_new_problems():
    world = Chains()
    prompts = world.problem_prompts([], 3)
    assert [p.text for p in prompts] == [NEW_PROBLEM] * 3 and len({p.id for p in prompts}) == 3
    train, test = world.train(1)[0], world.test(1)[0]
    assert world.parse_problem(f" {train.text}\n").text == train.text
    assert world.parse_problem(train.text).gold is None and world.parse_problem(train.text).meta["generated"]
    assert world.parse_problem(test.text) is None and split_of(test.text) == "test"


def test_an_unsound_problem_is_left_to_the_votes():
    unsound = next(p for n in range(99) if (p := Chains().parse_problem(f"a={n};c=b+1;c?")))
    assert Chains().values(unsound.text) is None and Chains().verify(unsound, "#### 1") is None


@pytest.mark.parametrize(
    "problem", ["", "a=1;b?", "a=1;a=a+1;a?", "a=1;b=a+1a;b?", "a=1;b=c+1;b?", "a=1;b=a/2;b?", "a;a?"]
)
def test_unsound(problem):
    assert Chains().values(problem) is None


@given(st.text(alphabet="ab=;+-*?0123456789\n# ", max_size=60))
def test_any_text(text):
    world = Chains()
    world.values(text), world.parse_problem(text), world.verify(Prompt.from_text(text), text)
    spans = world.verify_steps(Prompt.from_text("a=7;b=a*5;b?"), text)
    assert "".join(text[a:b] for a, b, _ in spans) == "".join(line for line in text.split("\n") if line.strip())


@pytest.mark.parametrize(
    "dials",
    [
        *({"lengths": (0, 3)}, {"lengths": (4, 3)}, {"lengths": (3, 26)}, {"modulus": 1}, {"operations": "/"}),
        *({"operations": ""}, {"answer_only": 1.1}, {"new_problems": -0.1}, {"demonstration_lengths": (0, 1)}),
    ],
)
def test_bad_dials(dials):
    with pytest.raises(InputError, match="chains: "):
        Chains(**dials)


def test_a_world_that_is_too_small():
    with pytest.raises(InputError, match="ask for fewer or raise"):
        Chains(modulus=2, lengths=(1, 1), variable_operands=0.0).train(1000)


def test_a_world_crosses_processes():
    world = Chains(modulus=7)
    assert pickle.loads(pickle.dumps(world)).train(3) == world.train(3)


def test_problems_never_change():
    """The stream is fixed: seeds and dials name the same problems in every version of Python and of this package."""
    first, second = Chains().test(2)
    assert first.text == "a=6;b=a-4;c=b-9;d=c+6;e=d+4;f=e*3;g=f-4;g?"
    assert second.text == "a=5;b=a-8;c=b+5;d=c*b;d?"
