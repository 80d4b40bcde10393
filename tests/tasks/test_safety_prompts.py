import json
import pickle

import pytest
from tests.worlds import shared_data

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.safety_prompts import SafetyPrompts

REFUSAL, HELP = "I'm sorry, but I can't help with that.", "Of course: open the lid first."


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": f"How do I open jar {i}?", "label": "safe" if i % 2 else "unsafe"} for i in range(60)]
    rows[0]["type"] = "jars"
    (tmp_path / "xstest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": f"Behaviour {i}", "semantic_category": "noise"} for i in range(3)]
    (tmp_path / "harmbench_standard.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


def test_prompts_say_what_should_become_of_them(data):
    prompts = SafetyPrompts(data=data, set="xstest").test()
    assert [p.meta["label"] for p in prompts[:2]] == ["unsafe", "safe"]
    assert prompts[0].meta["kind"] == "jars" and "kind" not in prompts[1].meta
    behaviours = load_task(TaskSpec(name="safety_prompts", data=data, options={"set": "harmbench_standard"})).test()
    assert [dict(p.meta) for p in behaviours] == [{"label": "unsafe", "kind": "noise"}] * 3
    assert SafetyPrompts(data=f"{data}/xstest.jsonl").test() == prompts


def test_the_dev_share_is_fixed_by_the_text(data):
    task = SafetyPrompts(data=data, set="xstest", dev_share=0.3)
    dev, test = ({p.text for p in prompts} for prompts in (task.dev(), task.test()))
    assert 5 < len(dev) < 35 and dev.isdisjoint(test) and len(dev | test) == 60
    more = SafetyPrompts(data=data, set="xstest", dev_share=0.5)
    assert dev < {p.text for p in more.dev()}
    assert SafetyPrompts(data=data, set="xstest").dev() == [] and task.train() == [] == task.demonstrations()


def test_verdicts(data):
    task = SafetyPrompts(data=data, set="xstest")
    unsafe, safe = task.test(2)
    assert [task.verify(unsafe, text) for text in (REFUSAL, HELP, " ")] == [True, False, True]
    assert [task.verify(safe, text) for text in (REFUSAL, HELP, "")] == [False, True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "?", "label": "maybe"}', "line 61: 'label' = 'maybe'; write safe"),
        ('{"prompt": " "}', "line 61: 'prompt' is empty"),
        ('{"text": "?"}', "line 61: 'prompt' is missing"),
        ('{"prompt": ["?"]}', "line 61: 'prompt' = "),
    ],
)
def test_a_bad_row_is_named(data, line, message):
    with open(f"{data}/xstest.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=message):
        SafetyPrompts(data=data, set="xstest").test()


def test_bad_places_and_shares(data):
    with pytest.raises(InputError, match=r"holds no advbench\.jsonl"):
        SafetyPrompts(data=data).test()
    with pytest.raises(InputError, match="needs the prompts"):
        load_task(TaskSpec(name="safety_prompts"))
    with pytest.raises(InputError, match="dev_share=1"):
        SafetyPrompts(data=data, dev_share=1.0)
    with pytest.raises(InputError, match="set"):
        load_task(TaskSpec(name="safety_prompts", data=data, options={"set": "everything"}))


def test_it_crosses_processes(data):
    task = SafetyPrompts(data=data)
    assert pickle.loads(pickle.dumps(task)) == task


@pytest.mark.parametrize(
    ("name", "prompts", "safe"), [("advbench", 520, 0), ("harmbench_standard", 200, 0), ("xstest", 393, 222)]
)
def test_the_real_files(name, prompts, safe):
    found = SafetyPrompts(data=str(shared_data("safety_prompts")), set=name).test()
    assert len(found) == len({p.id for p in found}) == prompts
    assert sum(p.meta["label"] == "safe" for p in found) == safe
