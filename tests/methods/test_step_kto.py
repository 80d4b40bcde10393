import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests import tiny

from selftaught import recipes
from selftaught.engines.fake import FakeGenerator
from selftaught.errors import InputError
from selftaught.lab import Lab
from selftaught.methods.rounds import arm_settings
from selftaught.methods.step_kto import (
    ARMS,
    METHOD,
    Config,
    label_steps,
    objective,
    selection,
    step_scorer,
    train_round,
)
from selftaught.models.load import model_key
from selftaught.runs import run_method
from selftaught.scorers.steps import StepEquations, StepVerifier
from selftaught.scorers.verifier import Verifier
from selftaught.select.feedback import FeedbackRows, RightDemonstrations
from selftaught.select.pairs import GoldPairs
from selftaught.specs import KTO, SFT, ModelSpec, Preference, Sampling, StepKTO, Training
from selftaught.store.groups import Groups
from selftaught.store.stage import open_stage
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.gsm8k import GSM8K
from selftaught.tasks.side_steps import SideSteps
from selftaught.text.steps import Segmentation
from selftaught.types import Completion, Demonstration, Feedback, Group, Pair, Prompt

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


def test_a_judge_is_asked_for_arms_that_look_at_steps():
    judged = replace(CONFIG, step_labels="judge")
    rules = {name: selection(arm_settings(judged, name, ARMS), seed=3)[1] for name in ARMS}
    assert rules["step_kto"] == rules["flattened_kto"] == ROWS
    assert rules["kto"] == rules["kto_beta1"] == replace(ROWS, steps=None)
    assert rules["rft"] == RightDemonstrations(rows=replace(ROWS, steps=None))


@pytest.mark.parametrize(
    ("labels", "task", "expected"),
    [
        ("task", SideSteps(), StepVerifier(task=SideSteps())),
        ("judge", SideSteps(), StepVerifier(task=SideSteps())),
        ("equations", SideSteps(), StepEquations()),
        ("judge", GSM8K(), StepEquations()),
    ],
)
def test_what_is_measured_is_labelled_by_a_program(labels, task, expected):
    assert step_scorer(replace(CONFIG, step_labels=labels), task) == expected


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
        ({"step_judge": ModelSpec(source="m")}, "m is never asked with step_labels=task: say --step_labels judge"),
        ({"step_judge_sampling": Sampling(k=3, temperature=0.0)}, "k=3 votes at temperature 0 are one vote"),
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


def test_the_plan_counts_the_judge():
    config = replace(recipes.get("step_kto", "paper"), arms=("kto", "step_kto"), rounds=1)
    judging = {work.name: work for work in METHOD.plan(config) if "judge" in work.name}
    assert judging.keys() == {"step_kto 1: judge of steps"}
    assert judging["step_kto 1: judge of steps"].rows == 4000 * 4 * 3
    assert all("judge" not in work.name for work in METHOD.plan(replace(config, step_labels="equations")))


# --- a judge of steps ------------------------------------------------------------------------------------------------

BY_JUDGE = replace(
    CONFIG,
    step_labels="judge",
    step_judge_sampling=Sampling(k=3, temperature=0.7, max_tokens=99),
    segmentation=Segmentation(separator=".{5}(?=.)", answer="#"),
)
TASK = load_task(CONFIG.task)


Script = Callable[[Prompt, int], str]


def script_the_judge(monkeypatch: pytest.MonkeyPatch, script: Script) -> list[tuple[ModelSpec, list[Prompt]]]:
    """Let a script answer for the judge; return what will be asked, and of which models."""
    asked, generate = [], Lab.generate

    def scripted(lab: Lab, model: ModelSpec, prompts, sampling: Sampling) -> Groups:
        if not next(iter(prompts)).text.startswith("Check a solution"):
            return generate(lab, model, prompts, sampling)
        asked.append((model, list(prompts)))
        answers = [c for row in FakeGenerator(script)(prompts, sampling) for c in row]
        return Groups(prompts=prompts, completions=(lab.stage("votes", Completion, answers),))

    monkeypatch.setattr(Lab, "generate", scripted)
    return asked


def judged(out: Path, **changes) -> tuple[list[Group], list[dict]]:
    """Return the labelled groups, three completions for each of two problems, and what was noted."""
    problems = TASK.train(2)
    texts = [TASK.solution(prompt, seed) for prompt in problems for seed in range(3)]
    completions = [Completion(prompt_id=problems[i // 3].id, k=i % 3, text=text) for i, text in enumerate(texts)]
    with tiny.open_lab(out, strict=True) as lab:
        groups = Groups(prompts=lab.table(problems), completions=(lab.stage("texts", Completion, completions),))
        groups = lab.score(groups, Verifier(task=TASK))
        labelled = list(label_steps(replace(BY_JUDGE, **changes), lab, TASK, groups, ModelSpec(source="m")))
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return labelled, [e for e in events if e["event"] == "step_judge"]


def test_a_judges_votes_become_the_labels_that_are_trained_on(tmp_path, monkeypatch):
    """Of three votes on six steps one says that all are right, two that the second is wrong: two to one against it."""
    votes = [["correct"] * 6, *[["correct", "incorrect", *["correct"] * 4]] * 2]
    asked = script_the_judge(monkeypatch, lambda _, k: json.dumps(votes[k]))
    groups, noted = judged(tmp_path)
    ((model, prompts),) = asked
    assert model == ModelSpec(source="m")
    kept = list(selection(BY_JUDGE, 0)[1](groups))
    assert [p.parents[1] for p in prompts] == [row.completion.id for row in kept]
    for row in kept:
        spans = [(start, min(start + 5, 27)) for start in range(0, 27, 5)]
        assert row.step_labels == tuple((*span, i != 1) for i, span in enumerate(spans))
    assert [(e["asked"], e["unread"]) for e in noted] == [(len(kept), 0)]


def test_nobody_is_asked_for_an_arm_that_looks_at_no_step(tmp_path, monkeypatch):
    asked = script_the_judge(monkeypatch, lambda *_: "")
    groups, noted = judged(tmp_path, objective="kto")
    assert not asked and not noted
    assert {s.scorer for g in groups for s in g.scores} == {"verifier"}


def test_a_judge_that_is_seldom_read_is_warned_of(tmp_path, monkeypatch):
    first: list[str] = []

    def once(prompt: Prompt, k: int) -> str:
        first.append(prompt.id)
        return json.dumps(["correct"] * 6) if prompt.id == first[0] else "yes"

    script_the_judge(monkeypatch, once)
    with pytest.raises(InputError, match=r"labels of [23] of [34] solutions could not be read, and these steps train"):
        judged(tmp_path)


@pytest.fixture(scope="module")
def judged_config() -> Config:
    """The smoke recipe with a seed model that can read a judge's question."""
    smoke = recipes.get("step_kto", "smoke")
    return replace(
        smoke,
        seed_model=replace(smoke.seed_model, scratch=replace(smoke.seed_model.scratch, context=2048)),
        arms=("kto", "step_kto"),
        rounds=2,
        step_labels="judge",
        step_judge_sampling=Sampling(k=2, max_tokens=99),
        segmentation=BY_JUDGE.segmentation,
    )


def test_a_run_with_a_judge_is_measured_by_the_tasks_labels(judged_config, tmp_path, cache, monkeypatch):
    asked = script_the_judge(monkeypatch, lambda p, _: json.dumps(["incorrect"] * p.text.count("# Step")))
    run_method(METHOD, judged_config, tmp_path / "run", seed=0, recipe="smoke")
    assert len(asked) == 2, "once a round, for one of two arms"
    seed_model = next(iter(open_stage(tiny.stages_of(tmp_path / "run", "generate", "seed_model", 0)[0]))).model
    assert {model_key(model) for model, _ in asked} == {seed_model}
    rows = rows_of(tmp_path / "run", "step_kto")
    assert all(row.step_labels and not any(label for *_, label in row.step_labels) for row in rows)
    measured = tiny.stages_of(tmp_path / "run", "score", "step_kto", 2)[-1]
    assert {(s.scorer, s.span == (0, 5)) for s in open_stage(measured)} == {("steps", False)}, (
        "broken texts are one step"
    )


def test_a_run_in_which_the_seed_model_judges_but_cannot(judged_config, tmp_path, cache):
    config = replace(judged_config, arms=("step_kto",), step_judge_sampling=Sampling(k=2, max_tokens=4))
    with pytest.raises(InputError, match=r"labels of (\d+) of \1 solutions could not be read"):
        run_method(METHOD, config, tmp_path / "run", seed=0, recipe="smoke")
    scores = list(open_stage(tiny.stages_of(tmp_path / "run", "judge", "step_kto", 1)[0]))
    assert scores and all(s.value is None and s.span is None and "2 of 2 votes unread" in s.note for s in scores)


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
