import json

import pytest

from selftaught.scorers.verifier import Verifier
from selftaught.tasks import TaskSpec
from selftaught.tasks.chains import Chains
from selftaught.types import Completion, Group, Prompt


def group(prompt, *texts):
    return Group(
        prompt=prompt,
        completions=tuple(Completion(prompt_id=prompt.id, k=k, text=text) for k, text in enumerate(texts)),
    )


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "q", "answer": "x+1"}) + "\n")
    return TaskSpec(name="user", data=str(tmp_path / "rows.jsonl"))


def test_chains():
    prompt = Prompt.from_text("a=1;b=a+1;b?")
    (scores,) = Verifier(task=Chains())([group(prompt, "#### 2", "#### 3", "?")])
    assert [s.value for s in scores] == [1.0, 0.0, 0.0]


def test_what_the_task_cannot_decide_goes_to_mathematics(spec):
    asked = group(Prompt.from_text("q", gold="x+1"), r"\boxed{1+x}", r"\boxed{x-1}", r"\boxed{}}{", "nothing")
    (scores,) = Verifier(task=spec)([asked])
    assert [(s.value, s.note) for s in scores] == [(1.0, ""), (0.0, ""), (0.0, ""), (0.0, "")]
    (scores,) = Verifier(task=spec, equivalence=0)([asked])
    assert [(s.value, s.note) for s in scores][:2] == [(None, "undecided")] * 2


def test_no_gold_is_no_verdict(spec):
    (scores,) = Verifier(task=spec)([group(Prompt.from_text("q"), "#### 1")])
    assert (scores[0].value, scores[0].note) == (None, "no gold answer")
