import json
import pickle
from collections import Counter

import pytest

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.personas import KEYS, Personas
from selftaught.text.json_records import parse_record


def test_it_is_registered():
    task = load_task(TaskSpec(name="personas", options={"names": 9}))
    assert task == Personas(names=9) and pickle.loads(pickle.dumps(task)) == task


def test_demonstrations_are_skewed_and_some_are_broken():
    world = Personas(names=60, cities=60, occupations=40, malformed=0.1)
    rows = world.demonstrations(4000)
    valid = [r for r in rows if world.verify(r.prompt, r.completion.text)]
    assert 0.88 < len(valid) / len(rows) < 0.92
    names = Counter(parse_record(r.completion.text, KEYS)["first_name"] for r in valid)
    (top, count), *_ = names.most_common()
    assert top == world.vocabulary("first_name")[0].casefold()
    assert count > 3 * names[world.vocabulary("first_name")[4].casefold()]
    assert {tuple(r.prompt.meta["keys"]) for r in rows} == {tuple(p.meta["keys"]) for p in world.test()}
    assert len({r.prompt.id for r in rows}) == len(rows)


def test_every_kind_of_damage_occurs():
    texts = [r.completion.text for r in Personas(malformed=1.0).demonstrations(200)]
    assert not any(parse_record(text, KEYS) for text in texts)
    kinds = Counter("no brace" if "}" not in t else "missing" if t.count(":") == 2 else "repeated" for t in texts)
    assert min(kinds[kind] for kind in ("no brace", "missing", "repeated")) > 40


def test_demonstrations_follow_the_seed():
    world = Personas()
    assert world.demonstrations(20, seed=1) == world.demonstrations(20, seed=1)
    assert world.demonstrations(20, seed=1) != world.demonstrations(20, seed=2)


def test_splits_ask_the_same_but_are_sampled_apart():
    world = Personas()
    train = world.train(12) + world.train(12, start=12)
    splits = [world.test(), world.dev(), train]
    assert len(world.test()) == 6
    ids = [p.id for split in splits for p in split]
    assert len(set(ids)) == len(ids) == 36
    assert {p.text for p in train} == {p.text for p in world.test()}


def test_the_full_wording_has_paraphrases():
    prompts = Personas(wording="full").test()
    assert len({p.text for p in prompts}) == 18
    assert all(key in p.text for p in prompts for key in KEYS)


def test_verify():
    world = Personas(names=5)
    prompt = world.test()[0]
    known = {key: world.vocabulary(key)[0] for key in KEYS}
    assert world.verify(prompt, json.dumps(known))
    assert world.verify(prompt, json.dumps(dict(reversed(known.items()))).upper().replace("FIRST_NAME", "first_name"
        ).replace("CITY", "city").replace("OCCUPATION", "occupation"))  # fmt: skip
    strange = json.dumps(known | {"first_name": "Zebra"})
    assert not world.verify(prompt, strange)
    assert Personas(names=5, strict=False).verify(prompt, strange)
    assert not world.verify(prompt, "garbage")


def test_popularity_is_one_for_the_most_frequent_values():
    world = Personas(zipf=1.0)
    prompt = world.test()[0]
    top = {key: world.vocabulary(key)[0] for key in KEYS}
    assert world.popularity(prompt, json.dumps(top)) == 1.0
    second = top | {"city": world.vocabulary("city")[1]}
    assert world.popularity(prompt, json.dumps(second)) == pytest.approx(2.5 / 3)
    assert world.popularity(prompt, "garbage") == 0.0


def test_an_attribute_that_is_not_trained():
    world = Personas(hobbies=5, hobby_share=0.5)
    (prompt,) = world.transfer()
    rows = [r for r in world.demonstrations(200) if r.prompt.text == prompt.text]
    assert 70 < len(rows) < 130
    assert any(world.verify(prompt, r.completion.text) for r in rows)
    assert prompt.text not in {p.text for p in world.train(20)}
    assert Personas().transfer() == []


@pytest.mark.parametrize("options", [{"names": 0}, {"cities": 201}, {"hobbies": -1}, {"malformed": 1.5}])
def test_dials_that_make_no_sense(options):
    with pytest.raises(InputError, match="personas: "):
        Personas(**options)
