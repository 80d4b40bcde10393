import json
import pickle

import pytest
from tests.worlds import shared_data

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.gsm8k import GSM8K, read_rows


def problem(split, i):
    answer = f"First {i}+1 = <<{i}+1={i + 1}>>{i + 1}.\nThen double it.\n#### {2 * (i + 1):,}"
    return {"question": f"In {split} row {i}, what is twice the number after {i}?", "answer": answer}


@pytest.fixture
def data(tmp_path):
    for split, n in (("train", 50), ("test", 7)):
        rows = [problem(split, i) for i in range(n)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


def questions(prompts):
    return {prompt.meta["problem"] for prompt in prompts}


def test_splits_are_disjoint_and_cover_the_files(data):
    task = GSM8K(data=data, limit=15)
    shown = [d.prompt for d in task.demonstrations()]
    parts = [questions(p) for p in (task.train(), task.dev(), task.test(), shown)]
    assert [len(part) for part in parts] == [15, 10, 7, 25]
    assert len(set().union(*parts)) == 57
    assert questions(GSM8K(data=data).train()) == parts[0] | parts[3]


def test_orders_follow_seeds_and_pools_do_not(data):
    task = GSM8K(data=data, limit=15)
    assert task.train(seed=1) != task.train(seed=2)
    assert questions(task.train(seed=1)) == questions(task.train(seed=2))
    assert task.train(5, seed=1) + task.train(50, seed=1, start=5) == task.train(seed=1)


def test_prompts_and_solutions(data):
    task = GSM8K(data=data)
    shown = next(d for d in task.demonstrations() if "row 3," in d.prompt.text)
    assert shown.prompt.text == "Question: In train row 3, what is twice the number after 3?\nAnswer:"
    assert shown.completion.text == " First 3+1 = 4.\nThen double it.\n#### 8"
    assert shown.prompt.meta["solution"] == "First 3+1 = 4.\nThen double it."
    assert shown.prompt.gold == "8" and task.verify(shown.prompt, shown.completion.text) is True
    kept = next(d for d in GSM8K(data=data, annotations=True).demonstrations() if d.prompt.id == shown.prompt.id)
    assert "<<3+1=4>>4" in kept.completion.text
    instruct = GSM8K(data=data, style="instruct").train(1)[0].text
    assert "####" in instruct and instruct.endswith("?") and "\n\nProblem: " in instruct


def test_verdicts(data):
    task = GSM8K(data=data)
    prompt = task.test(1)[0]
    assert task.verify(prompt, "#### $2.00") is True
    assert task.verify(prompt, "#### 3") is False
    assert task.verify(prompt, "It is 2.") is False
    assert GSM8K(data=data, any_number=True).verify(prompt, "It is 2.") is True
    assert task.verify(task.parse_problem("How many legs have 3 cats?"), "#### 12") is None


def test_requests_for_new_problems(data):
    task = GSM8K(data=data, shots=3)
    asked = task.problem_prompts(task.train(), 20, seed=1)
    assert len({p.id for p in asked}) == 20 and all("#" not in p.text for p in asked)
    assert asked[0].text.count("Question: ") in (2, 3) and asked[0].text.endswith("\n\nQuestion:")
    bare = GSM8K(data=data, shots=0, new_problems=0.5)
    assert {p.text for p in bare.problem_prompts([], 3)} == {"Question:"}
    taught = [d for d in bare.demonstrations() if d.prompt.text == "Question:"]
    assert 5 < len(taught) < 35 and len({d.prompt.id for d in taught}) == len(taught)
    assert all(bare.parse_problem(d.completion.text) for d in taught)


def test_held_out_problems_are_not_new(data):
    task = GSM8K(data=data)
    for prompt in (*task.dev(), *task.test()):
        assert task.parse_problem(prompt.meta["problem"].upper()) is None
    new = task.parse_problem(" How many legs have 3 cats?\nAnswer: 12")
    assert new.text == "Question: How many legs have 3 cats?\nAnswer:" and new.gold is None and new.meta["generated"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "Q?", "answer": "I do not know"}', "line 51: the answer ends in"),
        ('{"question": "Q?"}', "line 51: 'answer' is missing"),
        ("{", "line 51: not JSON"),
    ],
)
def test_a_bad_row_is_named(data, line, message):
    with open(f"{data}/train.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=message):
        GSM8K(data=data).train()


def test_bad_places(tmp_path):
    for data, message in ((tmp_path, r"holds no test\.jsonl"), (tmp_path / "no" / "where", "does not exist")):
        with pytest.raises(InputError, match=message):
            load_task(TaskSpec(name="gsm8k", data=str(data))).train()


def test_it_crosses_processes(data):
    task = GSM8K(data=data, limit=5)
    task.train()
    assert len(pickle.dumps(task)) < 1000 and pickle.loads(pickle.dumps(task)) == task


def test_the_real_files():
    data = str(shared_data("gsm8k"))
    task = GSM8K(data=data, limit=1000)
    rows = [*read_rows(data, "train"), *read_rows(data, "test")]
    shown = task.demonstrations()
    assert len(rows) == len(shown) + len(task.train()) + len(task.dev()) + len(task.test())
    assert (len(task.dev()), len(task.train())) == (800, 1000)
    assert all(task.verify(d.prompt, d.completion.text) is True and "<<" not in d.completion.text for d in shown)
    assert sum(task.parse_problem(row.question) is None for row in rows) == len(task.dev()) + len(task.test())
