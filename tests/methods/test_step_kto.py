import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests import tiny

from selftaught import recipes
from selftaught.errors import InputError
from selftaught.methods.rounds import arm_settings
from selftaught.methods.step_kto import ARMS, METHOD, Config, objective, selection, train_round
from selftaught.runs import run_method
from selftaught.select.feedback import FeedbackRows, RightDemonstrations
from selftaught.select.pairs import GoldPairs
from selftaught.specs import KTO, SFT, Preference, StepKTO, Training
from selftaught.store.stage import open_stage
from selftaught.tasks import TaskSpec, load_task
from selftaught.types import Completion, Demonstration, Feedback, Pair, Prompt

CONFIG = Config(task=TaskSpec(name="side_steps"))
ROWS = FeedbackRows(per_class=2, steps="steps", seed=3)


@pytest.mark.parametrize(
    ("arm", "row_type", "rule"),
    [
        ("step_kto", Feedback, ROWS),
        ("kto", Feedback, ROWS),
        ("process_only", Feedback, ROWS),
        ("flattened_kto", Feedback, ROWS),
        ("step_kto_noise20", Feedback, replace(ROWS, flip=0.2)),
        ("step_kto_first_error", Feedback, replace(ROWS, policy="first_error")),
        ("step_kto_propagate", Feedback, replace(ROWS, policy="propagate")),
        ("rft", Demonstration, RightDemonstrations(rows=ROWS)),
        ("irpo", Pair, GoldPairs(seed=3)),
    ],
)
def test_arms_train_on_the_same_choice_of_completions(arm, row_type, rule):
    assert selection(arm_settings(CONFIG, arm, ARMS), seed=3) == (row_type, rule)


def feedback(label: bool, *labels: bool) -> Feedback:
    prompt = Prompt.from_text("p")
    steps = tuple((i, i + 1, right) for i, right in enumerate(labels))
    completion = Completion(prompt_id=prompt.id, k=0, text="x" * 9)
    return Feedback(prompt=prompt, completion=completion, label=label, step_labels=steps)


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("step_kto", StepKTO(step_desirable_weight=4 / 6, step_undesirable_weight=2.0)),
        ("step_kto_gamma2", StepKTO(gamma=2.0, step_desirable_weight=4 / 6, step_undesirable_weight=2.0)),
        ("process_only", StepKTO(outcome=False, step_desirable_weight=4 / 6, step_undesirable_weight=2.0)),
        ("kto", KTO()),
        ("kto_beta1", KTO(beta=1.0)),
        ("flattened_kto", KTO(beta=0.3, desirable_weight=4 / 6, undesirable_weight=2.0, per_step=True)),
        ("rft", SFT()),
        ("irpo", Preference(beta=0.1, nll_alpha=1.0)),
    ],
)
def test_losses_with_weights_by_class(arm, expected):
    """One good and one bad completion; six right steps and two wrong ones: 4/6 and 4/2."""
    rows = [feedback(True, True, True, True, True, True), feedback(False, True, False, False)]
    assert objective(arm_settings(CONFIG, arm, ARMS), rows) == expected


def test_equal_class_weights():
    assert objective(replace(CONFIG, class_weights="equal"), [feedback(True, True)]) == StepKTO()


def test_every_arm_differs_in_what_it_is_named_for():
    assert {arm: ARMS[arm] for arm in ("step_kto_gamma05", "step_kto_noise10", "step_kto_noise30")} == {
        "step_kto_gamma05": {"gamma": 0.5},
        "step_kto_noise10": {"flip": 0.1},
        "step_kto_noise30": {"flip": 0.3},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("dpo",)}, "no arm is called 'dpo': known are step_kto, "),
        ({"rounds": 0}, "give at least one round"),
        ({"fresh_problems": True}, "say how many with --problems"),
        ({"training": Training(batch_size=1)}, "no mismatched completion to measure against; give 2 or more"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)


def test_the_measured_world():
    small = recipes.get("step_kto", "small")
    assert (small.beta, small.step_beta, small.gamma, small.training.lr) == (0.3, 1.0, 1.0, 3e-4)
    # At least 2,000 right solutions per cell over 5 seeds, where one in five is right.
    assert 5 * small.evaluation.problems * small.evaluation.k * 0.2 >= 2000


def test_the_plan_counts_rows():
    works = {work.name: work for work in METHOD.plan(replace(recipes.get("step_kto", "small"), arms=("kto", "rft")))}
    assert works["kto 1: samples"].rows == 360 * 8
    assert works["kto 2: training"].tokens > works["rft 2: training"].tokens


# --- a run, with a model ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Return a finished run of five kinds of arms, one round each."""
    out = tmp_path_factory.mktemp("step_kto") / "run"
    config = replace(
        recipes.get("step_kto", "smoke"), arms=("rft", "irpo", "kto", "step_kto", "flattened_kto"), rounds=1
    )
    run_method(METHOD, config, out, seed=0, recipe="smoke")
    return out


def rows_of(run: Path, arm: str) -> list:
    return list(open_stage(tiny.stages_of(run, "select", arm, 1)[0]))


def test_labels_are_those_of_the_programs(run):
    task = load_task(recipes.get("step_kto", "smoke").task)
    kept = rows_of(run, "step_kto")
    assert {row.label for row in kept} == {True, False}
    for row in kept:
        text = row.completion.text
        assert row.label == task.verify(row.prompt, text)
        assert list(row.step_labels) == task.verify_steps(row.prompt, text)


def test_arms_share_samples_rows_and_reference(run):
    assert tiny.stages_of(run, "select", "kto", 1) == tiny.stages_of(run, "select", "step_kto", 1)
    right = {(row.prompt.id, row.completion.id) for row in rows_of(run, "kto") if row.label}
    assert {(row.prompt.id, row.completion.id) for row in rows_of(run, "rft")} == right
    assert all(isinstance(row, Pair) for row in rows_of(run, "irpo"))


def test_metrics_of_training_and_of_steps(run):
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = {arm: {name for e in events if (e["event"], e["arm"]) == ("train", arm) for name in e} for arm in ARMS}
    assert {"kl", "step_kl", "step_conflicts", "step_rewards/rejected", "rewards/margins"} <= trained["step_kto"]
    assert "kl" in trained["kto"] and "step_kl" not in trained["kto"]
    summary = json.loads((run / "summary.json").read_text())
    for reports in summary["arms"].values():
        assert {"accuracy", "accuracy_sc2", "step_error_share", "step_accuracy", "steps", "length"} <= reports.keys()
        assert "greedy_step_error_share" in reports


def test_rounds_with_fresh_problems_share_none(run, tmp_path):
    config = recipes.get("step_kto", "smoke")
    prompts = []
    with tiny.open_lab(tmp_path) as lab:
        model = lab.seed_model(config.task, config.seed_model)
        for t in range(2):
            with lab.scope(arm="kto", round=t + 1):
                train_round(arm_settings(config, "kto", ARMS), lab, load_task(config.task), model, t)
            prompts.append({p.text for p in open_stage(tiny.stages_of(tmp_path, "prompts", "kto", t + 1)[0])})
    assert len(prompts[0] | prompts[1]) == 2 * config.problems


def test_a_round_without_problems_left_says_so(tmp_path):
    config = replace(CONFIG, task=TaskSpec(name="side_steps", limit=5), fresh_problems=True, problems=5)
    task = load_task(config.task)
    empty = type("Empty", (), {"train": lambda self, count, seed, start: task.train(0), "stop": ()})()
    with tiny.open_lab(tmp_path) as lab, pytest.raises(InputError, match="round 3 has no problem left"):
        train_round(config, lab, empty, None, 2)
