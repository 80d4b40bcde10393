import pickle
from collections import Counter

import pytest

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.stories import STORY, TITLE, Stories, _topics, split_of, story_prompts
from selftaught.text.json_records import parse_keywords
from selftaught.types import Completion, Group, Prompt

WORLD = Stories(titles=100, topics=5, words=20)


def test_it_is_registered():
    task = load_task(TaskSpec(name="stories", options={"topics": 9}))
    assert task == Stories(topics=9) and pickle.loads(pickle.dumps(task)) == task


def test_splits_are_disjoint_and_titles_repeat_only_in_train():
    splits = {name: {p.text for p in getattr(WORLD, name)()} for name in ("test", "dev", "train")}
    splits["demonstrations"] = {r.prompt.text for r in WORLD.demonstrations(500)}
    names = list(splits)
    assert all(splits[a].isdisjoint(splits[b]) for i, a in enumerate(names) for b in names[:i])
    assert all(split_of(text.removeprefix(TITLE)) == "test" for text in splits["test"])
    assert len({p.id for p in WORLD.train(200)}) == 200


def test_demonstrations_are_lists_stories_and_some_damage():
    rows = WORLD.demonstrations(1000)
    lists = [r for r in rows if r.prompt.text.startswith(TITLE)]
    valid = [r for r in lists if WORLD.verify(r.prompt, r.completion.text)]
    assert 0.6 < len(lists) / len(rows) < 0.8 and 0.85 < len(valid) / len(lists) < 0.95
    story = next(r for r in rows if r.prompt.text.startswith(STORY))
    words = parse_keywords(story.prompt.text.removeprefix(STORY))
    assert words and all(word in story.completion.text for word in words)


def words_of_topic(topic: int) -> list[str]:
    return [word for word, t in _topics(WORLD).items() if t == topic]


def test_the_reward_by_hand():
    """Title of topic 0. Five words of topic 0: 1. Of topics 0, 1, 4, 2, 3 in a ring of five: (1 + .5 + .5) / 5."""
    own = words_of_topic(0)
    prompt = Prompt.from_text(f"{TITLE}the {own[0]} and the {own[1]}")
    assert WORLD.reward(prompt, ", ".join(own[2:7])) == 1.0
    mixed = [words_of_topic(t)[5] for t in (0, 1, 4, 2, 3)]
    assert WORLD.reward(prompt, ", ".join(mixed)) == pytest.approx(0.4)
    assert WORLD.reward(prompt, ", ".join(own[1:6])) == pytest.approx(0.9), "one of five repeats the title, at 0.5"
    assert WORLD.reward(prompt, ", ".join(own[2:8])) == 0.0
    assert WORLD.reward(prompt, "a, b, c, d, e") == 0.0
    assert WORLD.reward(Prompt.from_text(STORY + "a"), "x") is None


def test_stories_are_asked_for_valid_lists_in_turn():
    groups = []
    for name in "pq":
        prompt = Prompt.from_text(name)
        texts = [f"{name}, b, c, d, e", "broken", "a, b, c, d, e"]
        rows = tuple(Completion(prompt_id=prompt.id, k=i, text=t, model="m") for i, t in enumerate(texts))
        groups.append(Group(prompt=prompt, completions=rows))
    counts: Counter[str] = Counter()
    asked = list(story_prompts(groups, counts, most=3))
    assert [p.text for p in asked] == [STORY + t for t in ("p, b, c, d, e", "q, b, c, d, e", "a, b, c, d, e")]
    assert counts == {"not five keywords": 2}
    assert len({p.id for p in story_prompts(groups, counts, most=4)}) == 4


@pytest.mark.parametrize("options", [{"topics": 2}, {"words": 4}, {"topics": 90, "words": 90}, {"off_topic": 2.0}])
def test_dials_that_make_no_sense(options):
    with pytest.raises(InputError, match="stories: "):
        Stories(**options)
