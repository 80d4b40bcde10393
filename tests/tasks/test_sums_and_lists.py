import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.sums_and_lists import CATEGORIES, LENGTH, SumsAndLists, _items, split_of
from selftaught.types import Prompt

WORLD = SumsAndLists()
SUM = Prompt.from_text("37+58=", gold="590")
LIST = Prompt.from_text("list birds:")


def words(count: int, category: str = "birds") -> list[str]:
    return _items(30)[category][:count]


def test_sums_by_hand():
    """37 + 58 = 95, in three digits 095, the last one first: 590."""
    assert WORLD._solution("37+58=") == "590"
    assert SumsAndLists(reverse=False)._solution("37+58=") == "095"
    assert WORLD._solution("99+99=") == "891"
    assert [WORLD.reward(SUM, text) for text in ("590", " 590 ", "095", "5 9 0", "5900", "")] == [1, 1, 0, 0, 0, 0]
    assert WORLD.verify(SUM, "590") is True and WORLD.verify(SUM, "591") is False


def test_lists_by_hand():
    """Three distinct birds, one of them twice, and a boat: 3 of 5. What follows the fifth word does not count."""
    a, b, c, d = words(4)
    (boat,) = words(1, "boats")
    assert WORLD.reward(LIST, f" {a} {b} {a} {c} {boat}") == 0.6
    assert WORLD.reward(LIST, f" {a} {a} {a} {a} {a}") == 0.2
    assert WORLD.reward(LIST, f" {a} {b} {a} {c} {boat} {d}") == 0.6
    assert WORLD.reward(LIST, " " + " ".join(words(5))) == 1.0
    assert WORLD.reward(LIST, "") == 0.0
    assert WORLD.verify(LIST, a) is None


@given(st.text(alphabet="ab 0123456789+=:\n٣", max_size=30))
def test_any_text(text):
    for prompt in (SUM, LIST):
        assert 0 <= WORLD.reward(prompt, text) <= 1
        WORLD.verify(prompt, text), WORLD.answer(text)
    assert WORLD.reward(Prompt.from_text(f"list {text}:"), text) in (None, 0.0)


def test_prompts():
    prompts = WORLD.train(200)
    assert [p.meta["category"] for p in prompts[:4]] == ["sums", "lists", "sums", "lists"]
    assert all(p.gold == WORLD._solution(p.text) for p in prompts[::2])
    assert {p.text for p in prompts[1::2]} == {f"list {category}:" for category in CATEGORIES}
    assert WORLD.train(5, seed=1) != WORLD.train(5) and WORLD.train(5, start=3)[:2] == WORLD.train(5)[3:]
    assert len(SumsAndLists(limit=7).train()) == 7


def test_splits_share_no_sum_and_no_row():
    parts = [WORLD.train(300), WORLD.dev(), WORLD.test(300), [d.prompt for d in WORLD.demonstrations(500)]]
    sums = [{p.text for p in part if p.gold} for part in parts]
    assert len(set.union(*sums)) == sum(map(len, sums))
    ids = [p.id for part in parts for p in part]
    assert len(set(ids)) == len(ids)
    assert {split_of(p.text) for p in WORLD.test(100) if p.gold} == {"test"}


def test_demonstrations_are_noisy_at_their_rates():
    """A tenth of the digits is drawn anew, a tenth of those rightly: 9% are wrong, and 1 - 0.91^3 = 25% of the sums."""
    world = SumsAndLists(digit_noise=0.1)
    rows = world.demonstrations(6000)
    sums = [world.reward(row.prompt, row.completion.text) for row in rows if row.prompt.gold]
    assert 0.57 < len(sums) / len(rows) < 0.63
    assert 0.72 < sum(sums) / len(sums) < 0.78
    strange = Counter()
    drawn = Counter()
    for row in rows:
        if row.prompt.gold is None:
            category = row.prompt.text[5:-1]
            own = set(_items(30)[category])
            parity = CATEGORIES.index(category) % 2
            found = row.completion.text.split()
            drawn[parity] += len(found)
            strange[parity] += sum(word not in own for word in found)
            assert len(found) == LENGTH
    # A foreign word comes from any of the ten categories, so in a tenth of cases from its own.
    assert 0.035 < strange[0] / drawn[0] < 0.055 and 0.2 < strange[1] / drawn[1] < 0.25
    clean = SumsAndLists(digit_noise=0.0, sums=1.0).demonstrations(50)
    assert all(clean_row.completion.text == clean_row.prompt.gold for clean_row in clean)


def test_words_belong_to_one_category():
    every = [word for category in CATEGORIES for word in _items(30)[category]]
    assert len(set(every)) == len(every) == 300


@pytest.mark.parametrize(
    "dials", [{"words": 4}, {"words": 101}, {"sums": 1.1}, {"digit_noise": -1.0}, {"foreign": (0, 2)}]
)
def test_bad_dials(dials):
    with pytest.raises(InputError, match="sums_and_lists: "):
        SumsAndLists(**dials)


def test_registered():
    spec = TaskSpec(name="sums_and_lists", options={"digit_noise": 0.1, "zipf": [1.0, 1.0]})
    assert load_task(spec) == SumsAndLists(digit_noise=0.1, zipf=(1.0, 1.0))
    assert pickle.loads(pickle.dumps(load_task(spec))) == load_task(spec)
    with pytest.raises(InputError, match="its own data"):
        load_task(TaskSpec(name="sums_and_lists", data="x"))
