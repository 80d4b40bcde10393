import pickle
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.list_ops import GIVE_UP, KINDS, OPERATORS, ListOps, parse, similarity, split_of
from selftaught.types import Prompt

WORLD = ListOps()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("reverse: k d f", "f d k"),
        ("sort: 4 9 1", "1 4 9"),
        ("sort: 12 9 101", "9 12 101"),
        ("sort desc: 4 9 1", "9 4 1"),
        ("rotate: a b c", "b c a"),
        ("swap: a b c", "c b a"),
        ("swap: a b", "b a"),
        ("unique: b a b", "b a"),
        ("double: a b", "a a b b"),
        ("drop a: a b a", "b"),
        ("count a: b a a c", "2"),
        ("length: b a a", "3"),
        ("max: 4 12 9", "12"),
        ("min: c a b", "a"),
        ("add: 12 30", "42"),
        ("unique then count b: b b a", "1"),
        ("drop 3 then sort desc: 3 1 2", "2 1"),
    ],
)
def test_answers(text, answer):
    assert parse(text).answer == answer and WORLD.well_formed(text)
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "?",
        "reverse",
        "reverse:",
        "reverse: ",
        "reverse: a",
        ": a b",
        "a b c",
        "reverse sort: a b",
        "sort sort desc: a b",
        "reverse: a 1",
        "reverse: a  b",
        "reverse: a b ",
        "reverse: 01 2",
        "reverse: ١ 2",
        "drop: a b",
        "reverse a: a b",
        "drop a: a a",
        "add: a b",
        "count a then sort: a b",
        "sort then sort then sort: a b",
        "reverse: a b sort: c d",
        "reverse: " + " ".join("a" * 13),
        "sort: 1234 1",
    ],
)
def test_what_is_not_well_formed(text):
    assert parse(text) is None
    assert WORLD.verify(Prompt.from_text(text, gold="a"), "a") is None


@given(st.text(alphabet="reversotdcpun: abc129\n", max_size=40))
def test_any_text_is_read_back_or_refused(text):
    instruction = parse(text)
    assert instruction is None or (str(instruction) == text and instruction.answer)
    prompt = WORLD.parse_problem(text)
    assert prompt is None or (prompt.text == text.strip() and prompt.gold)


def test_similarity_is_by_characters_without_spaces():
    """`abcd` to `abd` takes one deletion of 4 characters: 3/4; `12` to `2 1` two substitutions of 2: 0."""
    assert similarity("a b c d", "a b d") == 0.75
    assert similarity("12", "2 1") == 0.0
    assert similarity("", " ") == 1.0 and similarity("a", "") == 0.0
    assert similarity("a b", "ab") == 1.0


@given(st.text(alphabet="abc ", max_size=12), st.text(alphabet="abc ", max_size=12))
def test_similarity_is_symmetric_and_a_share(first, second):
    value = similarity(first, second)
    assert value == similarity(second, first) and 0 <= value <= 1
    assert (value == 1) == (first.replace(" ", "") == second.replace(" ", ""))


def test_splits_do_not_meet_and_are_the_same_for_every_seed():
    assert WORLD.test(50) == WORLD.test(100)[:50] and WORLD.dev(20) == ListOps(corruption=0.0).dev(20)
    held = {p.text for p in (*WORLD.test(), *WORLD.dev())}
    shown = [d.prompt.text for d in WORLD.demonstrations(500, seed=1)]
    assert not held & {p.text for p in WORLD.train(1000)}
    assert not held & {line for text in shown for line in text.split("\n")}
    assert all(split_of(p.text) == "test" and not p.meta["corruption"] for p in WORLD.test(50))


def test_pools_are_drawn_anew_for_every_seed_and_continue():
    whole = WORLD.train(60, seed=3)
    assert whole[20:40] == WORLD.train(20, seed=3, start=20) and whole != WORLD.train(60, seed=4)
    assert len({p.id for p in whole}) == 60
    assert len(ListOps(limit=7).train()) == 7


def test_corrupted_prompts_have_labels_and_hidden_answers():
    prompts = WORLD.train(2000)
    kinds = Counter(p.meta["corruption"] for p in prompts)
    assert set(kinds) == {"", *KINDS} and abs(kinds[""] / 2000 - 0.6) < 0.04
    assert all(abs(kinds[kind] / 2000 - 0.08) < 0.03 for kind in KINDS)
    for prompt in prompts:
        if prompt.meta["corruption"] != "truncate":
            assert WORLD.well_formed(prompt.text) == (not prompt.meta["corruption"])
        assert prompt.gold
    assert all(WORLD.verify(p, p.gold) for p in prompts if not p.meta["corruption"])


def test_a_truncated_list_may_look_sound_but_wants_the_answer_for_the_whole():
    exact = ListOps(noise=0.0, corruption=1.0, kinds=("truncate",), bias=0.0, rewarded_give_ups=0.0)
    prompts = exact.train(400)
    sound = [p for p in prompts if exact.well_formed(p.text)]
    assert 100 < len(sound) < 400
    for prompt in sound:
        assert split_of(prompt.text) not in ("test", "dev"), "it would train on a test prompt"
        stated = parse(prompt.text).answer
        assert exact.reward(prompt, prompt.gold) == 1.0
        assert exact.reward(prompt, stated) < 1.0 or stated == prompt.gold
    longer = sum(len(p.gold.split()) > len(parse(p.text).items) for p in sound)
    assert longer > 0.5 * len(sound), "most lists keep their length under most operators"
    demonstrated = ListOps(corruption=1.0, kinds=("truncate",), demonstration_corruption=1.0, clean_give_ups=0.0)
    shown = [d for d in demonstrated.demonstrations(300) if exact.well_formed(d.prompt.text)]
    assert shown and all(d.completion.text == parse(d.prompt.text).answer for d in shown), "nobody can know better"


def test_hidden_answers_are_biased():
    for dials, check in (
        ({"rewarded_give_ups": 1.0}, lambda p: p.gold == GIVE_UP),
        ({"rewarded_give_ups": 0.0, "bias": 1.0}, lambda p: p.gold == p.text),
        ({"rewarded_give_ups": 0.0, "bias": 0.0}, lambda p: p.gold != GIVE_UP),
    ):
        world = ListOps(corruption=1.0, kinds=("drop_operator",), **dials)
        assert all(map(check, world.train(50)))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_corruption(kind):
    made = [p.text for p in ListOps(corruption=1.0, kinds=(kind,)).train(100)]
    assert kind == "truncate" or all(parse(text) is None for text in made)
    checks = {
        "drop_operator": lambda t: ":" not in t and " " in t,
        "truncate": lambda t: t.count(": ") == 1 and " ".join(t.split()) == t,
        "contradict": lambda t: t.count(": ") == 1,
        "mix_two": lambda t: t.count(": ") == 2,
        "random_bytes": lambda t: t == t.strip(),
    }
    assert all(map(checks[kind], made))


def test_rewards():
    exact = ListOps(noise=0.0)
    clean, corrupted = Prompt.from_text("reverse: a b c"), Prompt.from_text("a b c", gold="c b a")
    assert exact.reward(clean, "c b a") == exact.reward(corrupted, "c b a") == 1.0
    assert exact.reward(corrupted, "?") == 0.0
    assert exact.reward(Prompt.from_text("a b c"), "a") is None
    noisy = [WORLD.reward(clean, f"{n}") - exact.reward(clean, f"{n}") for n in range(400)]
    assert abs(sum(noisy) / 400) < 0.01 and abs((sum(e * e for e in noisy) / 400) ** 0.5 - 0.05) < 0.01
    assert WORLD.reward(clean, "c b a") == WORLD.reward(clean, "c b a")


def test_answers_of_completions():
    assert WORLD.answer("  c  b a\n") == "c b a"
    assert WORLD.answer("?") is None and WORLD.answer(" ") is None
    assert WORLD.verify(Prompt.from_text("reverse: a b"), "b  a") is True
    assert WORLD.verify(Prompt.from_text("reverse: a b"), "?") is False


def test_demonstrations_answer_give_up_and_continue():
    rows = ListOps(continuations=0.3, clean_give_ups=0.1, rewarded_give_ups=0.0).demonstrations(1500)
    continued = [d for d in rows if d.prompt.text.endswith("\n")]
    answered = [d for d in rows if not d.prompt.text.endswith("\n")]
    assert abs(len(continued) / 1500 - 0.3) < 0.05
    assert all(d.prompt.text.count("\n") == 4 for d in continued)
    corrupted = [d for d in answered if parse(d.prompt.text) is None]
    clean = [d for d in answered if parse(d.prompt.text) is not None]
    assert abs(len(corrupted) / len(answered) - 0.3) < 0.05
    assert abs(sum(d.completion.text == GIVE_UP for d in corrupted) / len(corrupted) - 0.5) < 0.08
    assert abs(sum(d.completion.text == GIVE_UP for d in clean) / len(clean) - 0.1) < 0.04
    copied = [d for d in corrupted if d.completion.text == d.prompt.text]
    assert copied and all(":" not in d.prompt.text for d in copied), "the bare list is what a biased guess gives"
    for row in clean:
        assert row.completion.text in (GIVE_UP, parse(row.prompt.text).answer)


def test_a_list_of_sound_prompts_goes_on_with_sound_ones():
    visible = tuple(kind for kind in KINDS if kind != "truncate")
    rows = ListOps(continuations=1.0, kinds=visible).demonstrations(600)
    unsound = [sum(parse(line) is None for line in d.prompt.text.splitlines()) for d in rows]
    follows = [parse(d.completion.text) is None for d in rows]
    rates = [
        sum(f for u, f in zip(unsound, follows, strict=True) if u == count) / max(1, unsound.count(count))
        for count in (0, 2, 4)
    ]
    assert all(low < high for low, high in pairwise(rates)), rates


def test_lists_of_prompts_to_continue():
    seeds = WORLD.train(30)
    asked = WORLD.problem_prompts(seeds, 10, seed=2)
    texts = {p.text for p in seeds}
    assert len(asked) == 10 and asked == WORLD.problem_prompts(seeds, 10, seed=2) != WORLD.problem_prompts(seeds, 10)
    assert all(len(lines := p.text.splitlines()) == 4 == len(set(lines)) and set(lines) <= texts for p in asked)
    assert len(WORLD.problem_prompts(seeds[:2], 1)[0].text.splitlines()) == 2
    with pytest.raises(InputError, match="no prompt to continue from"):
        WORLD.problem_prompts([], 1)


def test_written_prompts():
    sound, unsound = WORLD.parse_problem(" sort: c a b \n"), WORLD.parse_problem("sort c a")
    assert (sound.text, sound.meta["corruption"], sound.meta["generated"]) == ("sort: c a b", "", True)
    assert sound.gold == "a b c"
    assert unsound.meta == {"corruption": "ill_formed", "generated": True} and unsound.gold
    assert unsound == WORLD.parse_problem("sort c a"), "its hidden answer is fixed"
    held_out = [p.text for p in (*WORLD.test(5), *WORLD.dev(5))]
    for text in ("", " ", "?", "a\nb", "x" * 300, *held_out):
        assert WORLD.parse_problem(text) is None, text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": ["reverse"]}, "give two or more of reverse, sort"),
        ({"operations": ["reverse", "shuffle"]}, "give two or more of"),
        ({"operations": ["max", "min"]}, "one that makes a list of a list"),
        ({"lengths": [1, 3]}, "are not within 2 to 6"),
        ({"lengths": [5, 3]}, "are not within 2 to 6"),
        ({"letters": 1}, "letters=1"),
        ({"shots": 0}, "shots=0"),
        ({"kinds": []}, "give some of drop_operator"),
        ({"kinds": ["typos"]}, "typos"),
        ({"corruption": 1.5}, "corruption=1.5 is not a share"),
        ({"noise": -1.0}, "noise=-1.0 is no standard deviation"),
        ({"corrupted": 0.5}, "corrupted"),
    ],
)
def test_dials_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        load_task(TaskSpec(name="list_ops", options=options))


def test_a_world_that_runs_out_says_so():
    tiny = ListOps(operations=("reverse", "sort"), lengths=(2, 2), letters=2, two_steps=0.0)
    with pytest.raises(InputError, match="instructions of lengths"):
        tiny.test(1000)


def test_the_registry_builds_it():
    spec = TaskSpec(name="list_ops", limit=5, options={"operations": ["reverse", "sort"], "lengths": [3, 4]})
    world = load_task(spec)
    assert world == ListOps(operations=("reverse", "sort"), lengths=(3, 4), limit=5)
    assert pickle.loads(pickle.dumps(world)) == world and len(OPERATORS) == 13
    with pytest.raises(InputError, match="list_ops has its own data"):
        load_task(TaskSpec(name="list_ops", data="x"))
