import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.constrained_text import MARK, TOPICS, ConstrainedText
from selftaught.types import Prompt

RAIN = Prompt.from_text("write about rain:")
SMALL = ConstrainedText(sentences=2, words=2)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (" abe bo. adi du.", 1.0),
        (" abe bo. di bo.", 0.625),  # half of the sentences, three of four words
        (" abe bo. abe bo.", 0.75),  # both sentences, two of four words
        (" abe bo.", 0.5),  # one sentence of two and two words of four: a short text gains nothing
        (" abe", 0.375),
        (" abe bo. adi du. di du bo fe.", 1.0),  # nor does a long one
        (" abe bo fe du.", 0.5),  # words past the second of a sentence do not count
        ("", 0.0),
        (". . .", 0.0),
    ],
)
def test_rewards_by_hand(text, reward):
    assert SMALL.reward(RAIN, text) == reward


def test_verified_is_a_text_whose_sentences_all_begin_rightly():
    assert SMALL.verify(RAIN, " abe bo. adi bo.")
    assert not SMALL.verify(RAIN, " abe bo.") and not SMALL.verify(RAIN, " abe bo. bo abe.")


@given(st.text(alphabet="ab. \n٣", max_size=40))
def test_any_text(text):
    assert 0 <= SMALL.reward(RAIN, text) <= 1
    SMALL.verify(RAIN, text), SMALL.answer(text)


def test_demonstrations_keep_to_their_form_and_rates():
    world = ConstrainedText()
    rows = world.demonstrations(400)
    starts = []
    for row in rows:
        sentences = [sentence.split() for sentence in row.completion.text.split(".")[:-1]]
        assert [len(words) for words in sentences] == [world.words] * world.sentences
        starts += [words[0].startswith(MARK) for words in sentences]
        assert not any(word.startswith(MARK) for words in sentences for word in words[1:])
    assert 0.72 < sum(starts) / len(starts) < 0.78
    about = {topic: set() for topic in TOPICS}
    for row in rows:
        about[row.prompt.text[12:-1]] |= {w for s in row.completion.text.split(".")[:-1] for w in s.split()[1:]}
    assert all(about.values()) and sum(map(len, about.values())) == len(set.union(*about.values()))


def test_prompts_are_other_rows_in_every_split():
    world = ConstrainedText()
    parts = [world.train(200), world.dev(), world.test(), [d.prompt for d in world.demonstrations(200)]]
    ids = [p.id for part in parts for p in part]
    assert len(set(ids)) == len(ids)
    assert world.train(5, seed=1) != world.train(5) and world.train(5, start=2)[:3] == world.train(5)[2:]
    assert world.test(3) == world.test(9)[:3] and len(ConstrainedText(limit=7).train()) == 7


@pytest.mark.parametrize(
    "dials",
    [{"marked": 1.5}, {"sentences": 0}, {"words": 1}, {"openings": 0}, {"openings": 5000}, {"vocabulary": 5000}],
)
def test_bad_dials(dials):
    with pytest.raises(InputError, match="constrained_text: "):
        ConstrainedText(**dials)


def test_registered():
    spec = TaskSpec(name="constrained_text", options={"marked": 0.7})
    assert load_task(spec) == ConstrainedText(marked=0.7)
    assert pickle.loads(pickle.dumps(load_task(spec))) == load_task(spec)
    with pytest.raises(InputError, match="its own data"):
        load_task(TaskSpec(name="constrained_text", data="x"))
