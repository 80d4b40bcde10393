import json
from collections import Counter

from selftaught.tasks import TaskSpec
from selftaught.tasks.chains import Chains
from selftaught.tasks.generated import fresh_prompts
from selftaught.types import Completion, Group, Prompt


def wrote(*texts, finish="stop"):
    prompt = Prompt.from_text("<new>")
    completions = [Completion(prompt_id=prompt.id, k=k, text=text, finish=finish) for k, text in enumerate(texts)]
    return Group(prompt=prompt, completions=tuple(completions))


def test_chains_are_new_unless_equal():
    world = Chains()
    known, (a, b) = world.train(2), world.train(2, start=50)
    group = wrote(a.text, a.text, known[0].text, world.test(1)[0].text, "nothing", b.text)
    dropped = Counter()
    found = list(fresh_prompts([group, wrote(b.text[:-1], finish="length")], known, dropped, task=world))
    assert [p.text for p in found] == [a.text, b.text]
    assert found[1].parents == (group.completions[5].id,) and found[0].gold is None
    assert dropped == {"exact duplicate": 2, "no problem, or a held-out one": 3}


def test_word_problems_are_new_unless_near(tmp_path):
    rows = [{"prompt": f"Tom buys {i} red apples for {i} cents. How many cents does he pay?"} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    spec = TaskSpec(name="user", data=str(tmp_path / "rows.jsonl"))
    group = wrote("Tom buys 99 red apples for 9 cents. How many cents does he pay?", "Ann has 3 cats. How many legs?")
    dropped = Counter()
    known = [Prompt.from_text(rows[1]["prompt"])]
    assert [p.text for p in fresh_prompts([group], known, dropped, task=spec)] == ["Ann has 3 cats. How many legs?"]
    assert dropped == {"near duplicate": 1}
