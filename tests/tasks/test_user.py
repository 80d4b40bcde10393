import json

import pytest

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.user import UserTask, read_splits
from selftaught.types import Prompt


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "rows.jsonl", [{"prompt": f"What is {i} + 1?", "answer": i + 1} for i in range(100)])


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "mine_for_tests.py").write_text(
        "def last_word(text):\n    return text.split()[-1] if text.split() else None\n"
        "def polite(prompt, text):\n    return 'please' in text if text else None\n"
        "def number(text):\n    return 7\n"
        "def maybe(prompt, text):\n    return 'perhaps'\n"
        "def broken(*arguments):\n    raise ValueError('oh')\n"
        "constant = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_one_file_is_split(data):
    task = UserTask(data=data)
    parts = [{p.text for p in part} for part in (task.train(), task.dev(), task.test())]
    assert [len(part) for part in parts] == [80, 10, 10] and len(set().union(*parts)) == 100
    assert UserTask(data=data, limit=5).train(seed=1) != UserTask(data=data, limit=5).train(seed=2)
    assert len(UserTask(data=data, limit=5).train()) == 5
    assert task.train(3, seed=1, start=2) == task.train(seed=1)[2:5]


def test_repeated_prompts_stay_together(tmp_path):
    rows = [{"prompt": f"Q{i % 20}", "answer": str(i // 20)} for i in range(60)]
    splits = read_splits(write(tmp_path / "rows.jsonl", rows))
    parts = [{p.text for p in part} for part in splits.values()]
    assert not any(parts[i] & parts[j] for i in range(3) for j in range(i))
    assert len({p.id for part in splits.values() for p in part}) == 60


def test_a_directory_keeps_its_splits(tmp_path):
    for split, n in (("train", 30), ("test", 4)):
        write(tmp_path / f"{split}.jsonl", [{"prompt": f"{split} {i}"} for i in range(n)])
    task = UserTask(data=str(tmp_path))
    assert (len(task.train()), len(task.dev()), len(task.test())) == (27, 3, 4)
    assert all(p.text.startswith("test") for p in task.test())


def test_a_prompt_in_two_splits_is_refused(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.jsonl", [{"prompt": "the same"}])
    with pytest.raises(InputError, match="'the same' is in train and in test"):
        UserTask(data=str(tmp_path)).train()


def test_messages_and_completions(tmp_path):
    rows = [
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
        {"prompt": "Say yes", "completion": "yes"},
    ]
    task = UserTask(data=write(tmp_path / "rows.jsonl", rows))
    assert {len(p.messages) for p in task.train()} == {1, 2} and not task.test()
    assert [(d.prompt.text, d.completion.text) for d in task.demonstrations()] == [("Say yes", "yes")]


def test_answers_without_functions(data):
    task = UserTask(data=data)
    prompt = Prompt.from_text("Half of one?", gold="0.50")
    assert task.verify(prompt, r"so \boxed{\frac{1}{2}}") is True
    assert task.verify(prompt, "#### 1/2") is True
    assert task.verify(prompt, "#### 1/3") is False
    assert task.verify(prompt, "it is 1/2") is False
    assert UserTask(data=data, any_number=True).verify(prompt, "it is 1/2") is True
    assert task.verify(Prompt.from_text("q", gold="x+1"), r"\boxed{1+x}") is None
    assert task.verify(Prompt.from_text("q"), "#### 1") is None


def test_a_users_functions(data, functions):
    task = load_task(TaskSpec(name="user", data=data, answer="mine_for_tests:last_word"))
    assert task.answer("New York") == "York" and task.answer("") is None
    assert task.verify(Prompt.from_text("q", gold="York"), "New York") is True
    assert task.verify(Prompt.from_text("q", gold="Paris"), "New York") is False
    judged = load_task(TaskSpec(name="user", data=data, verifier="mine_for_tests:polite"))
    assert [judged.verify(Prompt.from_text("q"), t) for t in ("please", "now", "")] == [True, False, None]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine_for_tests", "write module:function"),
        ("mine_for_tests:none", "has no function 'none'"),
        ("mine_for_tests:constant", "has no function 'constant'"),
        ("no_such_module:f", "importing no_such_module failed"),
    ],
)
def test_functions_that_are_not_there(data, functions, name, message):
    with pytest.raises(InputError, match=message):
        load_task(TaskSpec(name="user", data=data, answer=name))


def test_functions_that_misbehave(data, functions):
    prompt = Prompt.from_text("q")
    with pytest.raises(InputError, match="failed on the completion 'text' with ValueError: oh"):
        UserTask(data=data, answer_function="mine_for_tests:broken").answer("text")
    with pytest.raises(InputError, match="returned 7; it must return text"):
        UserTask(data=data, answer_function="mine_for_tests:number").answer("text")
    with pytest.raises(InputError, match="must return True, False or None"):
        UserTask(data=data, verifier_function="mine_for_tests:maybe").verify(prompt, "text")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ('{"prompt": "a"}\n{"question": "b"}\n', "line 2: neither 'prompt' nor 'messages'"),
        ('{"prompt": "a"}\nnot json\n', "line 2: not JSON"),
        ('{"messages": []}\n', "line 1: 'messages' is an empty list"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        UserTask(data=str(tmp_path / "rows.jsonl")).train()


def test_bad_places(tmp_path):
    for path, message in ((tmp_path / "none.jsonl", "does not exist"), (tmp_path, r"holds no train\.jsonl")):
        with pytest.raises(InputError, match=message):
            UserTask(data=str(path)).train()


def test_new_problems(data):
    task = UserTask(data=data, shots=2)
    asked = task.problem_prompts(task.train(), 5)
    assert len({p.id for p in asked}) == 5 and "Q: What is" in asked[0].text
    assert task.parse_problem("Q: What is 5 plus 500?").text == "What is 5 plus 500?"
    assert task.parse_problem(task.test()[0].text) is None
