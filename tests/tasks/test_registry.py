import pickle

import pytest

from selftaught.errors import InputError
from selftaught.tasks import TaskSpec, load_task, task_names
from selftaught.tasks.chains import Chains


def test_names():
    assert {"chains", "gsm8k", "user"} <= set(task_names())
    assert list(task_names()) == sorted(task_names())


def test_options_and_limit_reach_the_task():
    spec = TaskSpec(name="chains", limit=7, options={"modulus": 11, "lengths": [2, 3]})
    assert load_task(spec) == Chains(modulus=11, lengths=(2, 3), limit=7)
    assert load_task(Chains()) == Chains()
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TaskSpec(name="chain"), "unknown task 'chain': give one of chains, constrained_text, cute, gsm8k, "),
        (TaskSpec(name="chains", options={"modulo": 3}), "modulo"),
        (TaskSpec(name="chains", options={"modulus": "ten"}), "ten"),
        (TaskSpec(name="chains", options={"lengths": [0, 3]}), "lengths 0 to 3 are not within 1 to 25"),
        (TaskSpec(name="chains", data="rows.jsonl"), "task chains has its own data"),
        (TaskSpec(name="gsm8k", verifier="a:b"), "task gsm8k has its own verifier"),
        (TaskSpec(name="gsm8k", limit=0), "limit=0"),
        (TaskSpec(name="user"), "pass --data FILE.jsonl"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(InputError, match=message):
        load_task(spec)
