import pytest

from selftaught.errors import InputError
from selftaught.scorers.steps import StepEquations, StepVerifier
from selftaught.tasks import TaskSpec
from selftaught.tasks.chains import Chains
from selftaught.tasks.user import UserTask
from selftaught.text.steps import Segmentation
from selftaught.types import Completion, Group, Prompt


def group(prompt: Prompt, *texts: str) -> Group:
    completions = (Completion(prompt_id=prompt.id, k=k, text=text) for k, text in enumerate(texts))
    return Group(prompt=prompt, completions=tuple(completions))


def test_every_step_has_a_score_with_its_span():
    asked = group(Prompt.from_text("a=7;b=a*5;b?"), "b=7*5=5\n#### 6", "", "#### 5")
    (scores,) = StepVerifier(task=TaskSpec(name="chains"))([asked])
    assert [(s.completion_id == asked.completions[0].id, s.value, s.span, s.note) for s in scores] == [
        (True, 1.0, (0, 7), ""),
        (True, 0.0, (8, 14), ""),
        (False, None, None, "there is no step"),
        (False, 1.0, (0, 6), ""),
    ]
    assert {s.scorer for s in scores} == {"steps"} and len({s.id for s in scores}) == 4


def test_an_unsound_problem_has_no_labels():
    (scores,) = StepVerifier(task=Chains())([group(Prompt.from_text("c?"), "c=1")])
    assert [(s.value, s.span, s.note) for s in scores] == [(None, None, "the task cannot decide its steps")]


def test_a_task_without_step_verifier_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "answer": "1"}\n')
    with pytest.raises(InputError, match="task user cannot verify steps"):
        list(StepVerifier(task=UserTask(data=str(tmp_path / "rows.jsonl")))([]))


def test_equations_label_the_steps_of_free_text():
    text = "She has 2 + 3 = 5.\n\nThen 5 * 4 = 21.\n\nSo she is rich.\n\n#### 21"
    asked = group(Prompt.from_text("q"), text, "")
    (scores,) = StepEquations()([asked])
    assert [(s.value, s.note) for s in scores] == [
        (1.0, ""),
        (0.0, ""),
        (None, "no equation"),
        (None, "no equation"),
        (None, "there is no step"),
    ]
    assert "".join(text[s.span[0] : s.span[1]] for s in scores if s.span) == text
    (scores,) = StepEquations(segmentation=Segmentation(answer_step="attached"))([asked])
    assert len(scores) == 4
