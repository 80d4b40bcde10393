import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests import tiny

from selftaught import recipes
from selftaught.config import from_dict, override, to_dict
from selftaught.errors import InputError, NothingToTrainOn
from selftaught.evals.temperatures import kind_of
from selftaught.methods.adaptive_decoding import (
    HEADS,
    METHOD,
    Config,
    Ground,
    at_level,
    evaluation_sampling,
    known_arms,
    name_of,
    oracle_values,
    reward,
    temperatures,
)
from selftaught.models.decoding import open_spec
from selftaught.report.html import build_report
from selftaught.reproductions import get
from selftaught.runs import run_method
from selftaught.scorers.programmatic import ProgrammaticReward
from selftaught.scorers.reward_model import RewardModel
from selftaught.specs import Choice, EntropyTemperature, Evaluation, ModelSpec, Sampling
from selftaught.store.stage import open_stage
from selftaught.tasks import load_task
from selftaught.tasks.task import TaskSpec
from selftaught.types import Prompt

CONFIG = Config(task=TaskSpec(name="sums_and_lists"), choices=temperatures(0.0, 1.0))


# --- settings --------------------------------------------------------------------------------------------------------


def test_names_of_choices():
    choices = (Choice(temperature=0.25), Choice(top_p=0.9), Choice(temperature=1.5, top_k=40, min_p=0.1))
    assert [name_of(choice) for choice in choices] == ["0.25", "1_p0.9", "1.5_k40_min0.1"]
    config = replace(CONFIG, choices=choices, arms=("tok_fixed_1_p0.9",))
    assert {"seq_fixed_0.25", "tok_fixed_1.5_k40_min0.1", "seq_oracle", "tok_min_p"} <= set(known_arms(config))


def test_the_token_level_may_have_settings_of_its_own():
    token = {"task": {"name": "constrained_text"}, "choices": [{"temperature": 0.0}, {"temperature": 0.7}], "beta": 5.0}
    config = replace(CONFIG, token=token, arms=("seq_fixed_1", "tok_fixed_0.7"))
    sequence, text = at_level(config, "sequence"), at_level(config, "token")
    assert sequence is config and sequence.beta == CONFIG.beta
    assert (text.task.name, text.choices, text.beta) == ("constrained_text", temperatures(0.0, 0.7), 5.0)
    assert text.sampling == CONFIG.sampling and text.token == {}
    assert at_level(CONFIG, "token") is CONFIG
    assert from_dict(Config, to_dict(config)) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("separate",)}, "no arm is called 'separate'"),
        ({"arms": ("seq_fixed_0.7",)}, "no arm is called 'seq_fixed_0.7'"),
        ({"arms": ()}, "at least one round and one arm"),
        ({"choices": temperatures(0.5)}, r"choices=\['0.5'\]: a pair needs 2 answers, and a head 2 choices"),
        ({"choices": temperatures(0.5, 0.5)}, "each once"),
        ({"sampling": Sampling(k=1)}, "sampling.k=1"),
        ({"rounds": 2}, "--prompts"),
        ({"token": {"betta": 1.0}}, "unknown key 'betta': did you mean 'beta'"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)


def test_who_scores():
    assert reward(CONFIG) == ProgrammaticReward(task=CONFIG.task)
    assert reward(replace(CONFIG, reward="json:dumps")).function == "json:dumps"
    judged = replace(CONFIG, reward_model=ModelSpec(source="m"))
    assert reward(judged) == RewardModel(model=ModelSpec(source="m"), scorer="reward")


def test_the_measured_world():
    small = recipes.get("adaptive_decoding", "small")
    text = at_level(small, "token")
    assert small.min_accuracy == text.min_accuracy == 0.8
    assert small.loss == text.loss == "separate" and small.select == text.select == "argmax"
    # The baselines have the head's own choices, and as many settings of each other kind.
    assert len(small.min_p) == len(small.entropy) == len(small.choices) == len(text.choices) == 6
    assert set(get("adaptive_decoding").recipes["small"].arms) == set(known_arms(small))


def test_choices_from_the_command_line():
    config = override(CONFIG, ["--arms", "tok_latent,tok_fixed_1", "--beta", "2", "--evaluation.k", "3"])
    assert config.arms == ("tok_latent", "tok_fixed_1") and (config.beta, config.evaluation.k) == (2.0, 3)


def test_the_plan_counts_rows():
    small = recipes.get("adaptive_decoding", "small")
    works = {work.name: work for work in METHOD.plan(replace(small, arms=("seq_nll", "tok_separate", "tok_oracle")))}
    assert works["seq_nll 2: samples"].rows == 400 * 12 and works["tok_separate 1: samples"].rows == 200 * 16
    assert "tok_oracle 1: samples" not in works and "tok_oracle 1: evaluation" in works
    assert not any(name.endswith("reference") for name in works)


# --- baselines -------------------------------------------------------------------------------------------------------


def test_the_oracle_takes_the_best_of_each_kind():
    prompts = [Prompt.from_text("a", meta={"category": "a"}), Prompt.from_text("b", meta={"category": "b"})]
    a, b = (prompt.id for prompt in prompts)
    fixed = {
        "0": {"reward": {a: 1.0, b: 0.0}, "temperature": {a: 0.0, b: 0.0}},
        "1": {"reward": {a: 0.5, b: 0.25}, "temperature": {a: 1.0, b: 1.0}},
    }
    kinds = {prompt.id: kind_of(prompt) for prompt in prompts}
    ground = Ground(
        level="sequence",
        cfg=CONFIG,
        task=load_task(CONFIG.task),
        model=ModelSpec(source="m"),
        prompts=prompts,
        kinds=kinds,
        fixed=fixed,
    )
    assert oracle_values(ground) == {"reward": {a: 1.0, b: 0.25}, "temperature": {a: 0.0, b: 1.0}}
    drawn = replace(ground, cfg=replace(CONFIG, evaluation=Evaluation(k=5, max_tokens=7)))
    assert evaluation_sampling(drawn, Choice(temperature=0.0)) == Sampling(k=1, temperature=0.0, max_tokens=7)
    assert evaluation_sampling(drawn, Choice(temperature=0.3, top_p=0.5)) == Sampling(
        k=5, temperature=0.3, top_p=0.5, max_tokens=7
    )


# --- runs ------------------------------------------------------------------------------------------------------------


def events_of(out: Path, *kinds: str) -> list[dict]:
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in events if event["event"] in kinds]


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache) -> tuple[Config, Path, dict]:
    """Return the smoke recipe run with every kind of arm at both levels: configuration, directory, summary."""
    smoke = recipes.get("adaptive_decoding", "smoke")
    smaller = {"min_p": [{"min_p": 0.2}], "entropy": [{"kind": "entropy_temperature", "base": 1.0, "theta": 0.5}]}
    config = replace(
        smoke,
        rounds=2,
        min_p=(Choice(min_p=0.2),),
        entropy=(EntropyTemperature(base=1.0, theta=0.5), EntropyTemperature(base=0.5, theta=1.0)),
        token=dict(smoke.token) | smaller,
    )
    levels = {"seq": "0.3", "tok": "0.25"}
    arms = [f"{p}_{a}" for p, t in levels.items() for a in (*HEADS, f"fixed_{t}", "min_p", "entropy", "oracle")]
    config, out = replace(config, arms=tuple(arms)), tmp_path_factory.mktemp("adaptive") / "run"
    return config, out, run_method(METHOD, config, out, seed=0, recipe="smoke")


def test_every_arm_is_told_by_the_same_measures(run):
    config, _, summary = run
    assert list(summary["arms"]) == ["seed_model", *config.arms]
    wanted = set(get("adaptive_decoding").metrics)
    for arm, reports in summary["arms"].items():
        assert wanted <= reports.keys(), arm
        assert all(reports[name]["mean"] is not None for name in wanted), arm
    # 0.7 of a reward is 0.7 of the oracle's and so on: the three measures agree.
    for arm, r in summary["arms"].items():
        reward, over, of, lead = (r[n]["mean"] for n in ("reward", "over_best_fixed", "of_oracle", "oracle_lead"))
        assert reward - over == pytest.approx((reward / (1 + of)) / (1 + lead)), arm
    assert summary["arms"]["seq_oracle"]["of_oracle"]["mean"] == pytest.approx(0.0)
    assert summary["arms"]["tok_fixed_0.25"]["temperature"]["mean"] == pytest.approx(0.25)
    assert summary["arms"]["tok_oracle"]["oracle_lead"]["mean"] == pytest.approx(0.0), "one kind of prompt"


def test_choices_as_tokens_train_the_head_of_choices_by_themselves(run):
    """The language model is frozen, so the log-ratios of the text are 0: from the same pairs the same weights."""
    _, out, _ = run
    for prefix in ("seq", "tok"):
        stages = {loss: tiny.stages_of(out, "train", f"{prefix}_{loss}", 1)[0] for loss in HEADS}
        weights = {loss: (path / "files/model/head.safetensors").read_bytes() for loss, path in stages.items()}
        assert weights["separate"] == weights["token"] == weights["separate_sampled"]
        assert len(set(weights.values())) == 3


def test_sampled_selection_measures_the_same_head_otherwise(run):
    _, out, _ = run
    drawn = [tiny.stages_of(out, "generate", arm, 2)[-1] for arm in ("tok_nll", "tok_nll_sampled")]
    assert drawn[0] != drawn[1]


def test_arms_share_the_draws_of_the_first_round(run):
    config, out, _ = run
    for prefix in ("seq", "tok"):
        mine = [f"{prefix}_{arm}" for arm in HEADS]
        assert len({tiny.stages_of(out, "generate", arm, 1)[0] for arm in mine}) == 1
    assert len({tiny.stages_of(out, "generate", arm, 2)[0] for arm in ("seq_separate", "seq_nll")}) == 2
    first = list(open_stage(tiny.stages_of(out, "generate", "seq_nll", 1)[0]))
    assert len(first) == 16 * 4 and {len(c.latents["choice"]) for c in first} == {1}
    assert {c.latents["choice"][0] for c in first} == set(range(len(config.choices)))
    tokens = list(open_stage(tiny.stages_of(out, "generate", "tok_nll", 1)[0]))
    assert all(len(c.latents["choice"]) == len(c.token_ids) for c in tokens)


def test_what_is_noted(run):
    config, out, _ = run
    fixed = events_of(out, "fixed_sequence_sums", "fixed_sequence_lists", "fixed_token_all")
    assert [(e["event"], e["arm"]) for e in fixed] == [
        ("fixed_sequence_sums", "seed_model"), ("fixed_sequence_lists", "seed_model"), ("fixed_token_all", "seed_model")
    ]  # fmt: skip
    assert {name_of(choice) for choice in config.choices} <= fixed[0].keys()
    for event in events_of(out, "chosen_sums", "chosen_all"):
        assert sum(v for k, v in event.items() if k not in ("event", "arm", "round")) == pytest.approx(1.0)
    pairs = events_of(out, "pairs")
    assert {(e["arm"], e["round"]) for e in pairs} == {
        (f"{p}_{a}", t) for p in ("seq", "tok") for a in HEADS for t in (1, 2)
    }
    assert {e["arm"][:3] for e in events_of(out, "places")} == {"tok"}
    assert [set(e) - {"event", "arm", "round"} for e in events_of(out, "entropy") if e["arm"] == "seq_entropy"] == [
        {"1_0.5"}, {"0.5_1"}
    ] * 2  # fmt: skip


def test_a_trained_head_opens_with_the_model_it_belongs_to(run):
    _, out, _ = run
    spec = open_spec(str(out / "models" / "tok_separate"))
    assert spec.decoding is not None and (Path(spec.source) / "config.json").exists()


def test_the_report_shows_temperatures(run):
    _, out, _ = run
    page = build_report(out).read_text(encoding="utf-8")
    assert 'id="temperatures"' in page and 'class="heat h' in page
    assert "Reward against temperature, sequence level, lists" in page


def small_config(task: TaskSpec, **changes) -> Config:
    return Config(
        task=task,
        arms=("tok_separate",),
        sampling=Sampling(k=4, max_tokens=6),
        choices=(Choice(temperature=0.0), Choice(temperature=1.0, top_p=0.9), Choice(temperature=2.0)),
        evaluation=Evaluation(problems=4, k=1, max_tokens=6),
        **changes,
    )


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"a{i}?", "category": "odd" if i % 2 else "even"}) for i in range(40)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_task_of_ones_own_with_a_verifier(rows, tmp_path, seed_model, monkeypatch):
    tmp_path.joinpath("mine.py").write_text("def long(prompt, text):\n    return len(text) > 3\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    task = TaskSpec(name="user", data=str(rows), verifier="mine:long")
    out = tmp_path / "run"
    summary = run_method(METHOD, small_config(task, model=ModelSpec(source=str(seed_model))), out, seed=0, recipe="own")
    reports = summary["arms"]["tok_separate"]
    assert 0 <= reports["reward"]["mean"] <= 1 and {"reward/odd", "reward/even"} <= reports.keys()
    assert {c.latents["choice"] != () for c in open_stage(tiny.stages_of(out, "generate", "tok_separate", 1)[0])} == {
        True
    }


def test_without_a_verdict_there_is_nothing_to_train_on(rows, tmp_path, seed_model):
    config = small_config(TaskSpec(name="user", data=str(rows)), model=ModelSpec(source=str(seed_model)))
    with pytest.raises(NothingToTrainOn, match="prompts with fewer than two scored completions"):
        run_method(METHOD, config, tmp_path / "run", seed=0, recipe="own")


def test_a_model_that_has_not_learnt_its_task_is_refused(tmp_path, cache):
    smoke = replace(recipes.get("adaptive_decoding", "smoke"), min_accuracy=0.8)
    with pytest.raises(InputError, match=r"greedily, below 80%: no temperature will mend that; train it longer"):
        run_method(METHOD, smoke, tmp_path / "run", seed=0, recipe="smoke", strict=True)


def test_an_arm_needs_settings_to_try(tmp_path, cache):
    smoke = replace(recipes.get("adaptive_decoding", "smoke"), arms=("seq_min_p",), min_p=())
    with pytest.raises(InputError, match=r"min_p=\(\) names no setting"):
        run_method(METHOD, smoke, tmp_path / "run", seed=0, recipe="smoke")
