import json
from collections import Counter
from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest
from tests import tiny

from selftaught.errors import InputError, NothingToTrainOn
from selftaught.methods import rip
from selftaught.methods.rip import ARMS, METHOD, Config, audit, choose_thresholds, prompt_filter, run, sample_pool
from selftaught.methods.rounds import arm_settings
from selftaught.recipes import rip as recipes
from selftaught.reproductions.rip import REPRODUCTION
from selftaught.scorers.programmatic import ProgrammaticReward
from selftaught.scorers.reward_model import RewardModel
from selftaught.select.prompt_measures import measure_groups
from selftaught.select.rip import KeepAll, Labelled, RandomSubset
from selftaught.specs import ModelSpec, Sampling, Training
from selftaught.store.manifest import read_manifest
from selftaught.store.stage import open_stage
from selftaught.tasks import TaskSpec, load_task
from selftaught.types import Prompt

SMOKE = recipes.smoke()
CONFIG = replace(
    SMOKE,
    arms=tuple(ARMS),
    problems=32,
    written=12,
    sampling=replace(SMOKE.sampling, k=6),
    evaluation=replace(SMOKE.evaluation, problems=8),
    training=replace(SMOKE.training, max_steps=1),
)


# --- settings --------------------------------------------------------------------------------------------------------


def test_the_papers_rows_are_settings_of_one_method():
    conditions = {arm: arm_settings(CONFIG, arm, ARMS).rule.measures for arm in ARMS}
    three = ("rejected_reward", "rejected_length", "gap")
    alone = {"jaccard", "perplexity", "ifd", *three}
    assert {arm: names for arm, names in conditions.items() if arm in alone} == {name: (name,) for name in alone}
    assert all(names == three for arm, names in conditions.items() if arm not in alone)
    assert arm_settings(CONFIG, "perplexity", ARMS).quantiles == {"perplexity": 0.75}
    assert arm_settings(replace(CONFIG, bounds={"gap": 1.0}), "jaccard", ARMS).rule.measures == ("jaccard",)
    assert arm_settings(CONFIG, "bottom25", ARMS).rule.ranking.rejected == "bottom"
    four = [(arm, s.seeds, s.filter) for arm in ARMS if (s := arm_settings(CONFIG, arm, ARMS)).source == "written"]
    assert four == [
        ("self_instruct", "pool", "none"),
        ("self_instruct_filtered", "pool", "rip"),
        ("self_rip_unfiltered", "kept", "none"),
        ("self_rip", "kept", "rip"),
    ]


def test_every_arm_is_in_the_reproduction_at_one_number_of_updates():
    assert set(REPRODUCTION.recipes["arms"].arms) == set(ARMS)
    for config in REPRODUCTION.recipes.values():
        assert config.training.max_steps
        assert {c.arm for c in METHOD.claims} | {c.baseline for c in METHOD.claims} <= {None, *config.arms}
    assert set(recipes.small().arms) >= {c.arm for c in METHOD.claims} | {c.baseline for c in METHOD.claims} - {None}


def test_the_paper():
    """Section 4: N = 64, T = 0.8, top-p 0.95, medians, beta 0.1, batch 64, 20,000 prompts, 8 examples, ROUGE-L 0.7."""
    paper = recipes.paper()
    assert (paper.sampling.k, paper.sampling.temperature, paper.sampling.top_p) == (64, 0.8, 0.95)
    assert paper.rule.asked == {"rejected_reward": 0.5, "rejected_length": 0.5, "gap": 0.5}
    assert (paper.beta, paper.training.batch_size, paper.problems, paper.written) == (0.1, 64, 20_000, 20_000)
    assert (paper.shots, paper.near_duplicate, paper.prompt_form, paper.dev_problems) == (8, 0.7, "tags", 470)
    assert (paper.length_unit, paper.rejected, paper.rounds) == ("chars", "worst", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": Sampling(k=1)}, r"sampling\.k=1: RIP compares the best with the worst of N"),
        ({"arms": ("rips",)}, "no arm is called 'rips'"),
        ({"quantiles": {"gaps": 0.5}}, "no measure is called 'gaps'"),
        ({"grid": (0.5,)}, "say how many with --dev_problems"),
        ({"written": 0}, "written=0"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)


def test_who_rewards():
    task = load_task(CONFIG.task)
    assert rip.reward(CONFIG, task) == ProgrammaticReward(task=task)
    model = ModelSpec(source="m")
    assert rip.reward(replace(CONFIG, reward_model=model), task) == RewardModel(model=model, scorer="reward")


def test_the_world_keeps_one_kind_unseen():
    small = recipes.small()
    world = load_task(small.task)
    assert small.unseen in world.kinds and len(world.kinds) == 5 and world.corruption == 0.6


# --- a run with every arm --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, rip.Outcome]:
    out = tmp_path_factory.mktemp("rip")
    with tiny.open_lab(out) as lab:
        return out, run(CONFIG, lab)


def rows(out: Path, verb: str, arm: str) -> list:
    return [row for path in tiny.stages_of(out, verb, arm, 1) for row in open_stage(path)]


def events(out: Path, name: str, arm: str) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name and line["arm"] == arm]


def test_every_arm_is_measured_and_trained_by_the_same_number_of_updates(whole):
    out, outcome = whole
    assert list(outcome.rounds) == ["seed_model", *ARMS]
    for arm, (reports,) in outcome.rounds.items():
        wanted = {"accuracy", "clean_reward", "auc_removed", "auc_unseen", "kept", "well_formed", "well_formed_kept"}
        assert wanted <= set(reports)
        assert not any(isnan(reports[name].mean) for name in wanted), arm
    assert all(len(events(out, "train", arm)) == 1 for arm in ARMS)


def test_arms_share_the_pool(whole):
    out, _ = whole
    assert len({(tiny.stages_of(out, verb, arm, 1)[0]) for verb in ("generate", "score") for arm in ARMS}) == 2


def test_random_has_the_size_of_rip(whole):
    out, _ = whole
    pairs = {arm: rows(out, "select", arm) for arm in ("rip", "random", "no_filter")}
    assert len(pairs["rip"]) == len(pairs["random"]) < len(pairs["no_filter"])
    assert {p.prompt.id for p in pairs["rip"]} != {p.prompt.id for p in pairs["random"]}


def test_pairs_are_those_of_the_thresholds(whole):
    out, _ = whole
    (noted,) = events(out, "thresholds", "rip")
    bounds = noted["bounds"][""]
    assert noted["samples"] == 6
    for pair in rows(out, "select", "rip"):
        assert pair.meta["score_rejected"] >= bounds["rejected_reward"]
        assert len(pair.rejected.text) >= bounds["rejected_length"]
        assert pair.meta["score_chosen"] - pair.meta["score_rejected"] <= bounds["gap"]


def test_the_oracle_keeps_clean_prompts_and_removes_all_others(whole):
    out, outcome = whole
    assert all(not pair.prompt.meta["corruption"] for pair in rows(out, "select", "oracle"))
    reports = outcome.rounds["oracle"][0]
    assert reports["auc_removed"].mean == reports["precision_removed"].mean == reports["well_formed_kept"].mean == 1.0
    assert outcome.rounds["no_filter"][0]["auc_removed"].mean == 0.5


def test_self_rip_writes_from_what_rip_keeps_and_filters_with_the_same_thresholds(whole):
    out, outcome = whole
    kept = {pair.prompt.text for pair in rows(out, "select", "rip")}
    lists = [
        prompt.text
        for path in tiny.stages_of(out, "prompts", "self_rip", 1)
        for prompt in open_stage(path)
        if prompt.text.endswith("\n")
    ]
    assert lists and all(set(text.splitlines()) <= kept for text in lists)
    assert events(out, "thresholds", "self_rip")[0]["bounds"] == events(out, "thresholds", "rip")[0]["bounds"]
    written = {prompt.id for prompt in rows(out, "written", "self_rip")}
    pairs = rows(out, "select", "self_rip")
    assert {pair.prompt.id for pair in pairs} <= written and all(pair.prompt.meta["generated"] for pair in pairs)
    assert {p.id for p in rows(out, "written", "self_rip_unfiltered")} == written
    assert {p.id for p in rows(out, "written", "self_instruct")} != written
    pool = outcome.rounds["seed_model"][0]["well_formed"].mean
    assert outcome.rounds["rip"][0]["well_formed"].mean == pool
    assert outcome.rounds["self_rip"][0]["auc_removed"] == outcome.rounds["rip"][0]["auc_removed"]


def test_the_chosen_completions_are_weighed_for_perplexity_and_ifd(whole):
    out, _ = whole
    scorers = Counter(score.scorer for score in rows(out, "score", "ifd"))
    assert {"reward", "nll", "nll_alone"} <= set(scorers)
    assert "nll_alone" not in {score.scorer for score in rows(out, "score", "perplexity")}


def test_the_unseen_kind_has_no_say_in_the_thresholds(whole, tmp_path):
    _, outcome = whole
    task = load_task(CONFIG.task)
    with tiny.open_lab(tmp_path) as lab, lab.scope(arm="a", round=1):
        pool = sample_pool(CONFIG, lab, task, outcome.models["seed_model"])
        measured = measure_groups(pool, CONFIG.rule.ranking)
        seen = [row for row in measured if row.meta["corruption"] != CONFIG.unseen]
        found = choose_thresholds(CONFIG, lab, task, outcome.models["seed_model"], pool, measured)
        assert found == CONFIG.rule.fit(seen) and found.prompts == len(seen) < len(measured)
        sizes = {
            arm: prompt_filter(arm_settings(CONFIG, arm, ARMS), lab, found, measured)
            for arm in ("rip", "random", "no_filter", "oracle")
        }
        kept = sum(not ruling.failed for ruling in found(measured).values())
        assert sizes == {
            "rip": found,
            "random": RandomSubset(count=kept, seed=0),
            "no_filter": KeepAll(),
            "oracle": Labelled(),
        }
        reports = audit(CONFIG, task, measured, found, pool, None)
        kinds = Counter(row.meta["corruption"] for row in measured)
        assert reports["auc_unseen"].n == kinds[""] + kinds[CONFIG.unseen]


def test_thresholds_can_be_searched_by_the_dev_reward(whole, tmp_path):
    _, outcome = whole
    cfg = replace(CONFIG, quantiles={"gap": 0.5}, grid=(0.5,), dev_problems=4)
    task = load_task(cfg.task)
    with tiny.open_lab(tmp_path) as lab, lab.scope(arm="a", round=1):
        pool = sample_pool(cfg, lab, task, outcome.models["seed_model"])
        measured = measure_groups(pool, cfg.rule.ranking)
        found = choose_thresholds(cfg, lab, task, outcome.models["seed_model"], pool, measured)
    assert found.measures == ("gap",)
    tried = events(tmp_path, "quantiles", "a")
    assert {json.dumps(t["quantiles"]) for t in tried} == {"{}", '{"gap": 0.5}'}
    trained_on = [open_stage(path) for path in tiny.stages_of(tmp_path, "select", "a", 1)]
    assert all(pair.prompt.meta["corruption"] != cfg.unseen for pairs in trained_on for pair in pairs)


def test_another_model_may_filter(whole, tmp_path):
    _, outcome = whole
    strong, weak = outcome.models["no_filter"], outcome.models["seed_model"]
    cfg = replace(
        CONFIG, model=strong, filter_model=weak, arms=("rip",), evaluation=replace(CONFIG.evaluation, problems=4)
    )
    with tiny.open_lab(tmp_path) as lab:
        run(cfg, lab)
    kept = {prompt.id for prompt in rows(tmp_path, "kept", "rip")}
    pairs = rows(tmp_path, "select", "rip")
    assert pairs and {pair.prompt.id for pair in pairs} <= kept
    pool, own = (open_stage(path) for path in tiny.stages_of(tmp_path, "generate", "rip", 1)[:2])
    assert len(own) == 6 * len(kept) < len(pool)
    assert {pair.chosen.id for pair in pairs} <= {completion.id for completion in own}


def test_no_prompt_to_write_from_is_said(whole, tmp_path):
    _, outcome = whole
    cfg = replace(
        CONFIG, bounds={"rejected_reward": 99.0}, quantiles={}, arms=("self_rip",), model=outcome.models["seed_model"]
    )
    with tiny.open_lab(tmp_path) as lab, pytest.raises(NothingToTrainOn, match="keeps no prompt of the pool"):
        run(cfg, lab)


def test_a_task_without_labels_is_run_too(whole, tmp_path):
    """A user's prompts, with a function that gives the reward."""
    _, outcome = whole
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"reverse: {a} {b} c"}) + "\n" for a in "abdefgh" for b in "abdefgh"))
    cfg = Config(
        task=TaskSpec(name="user", data=str(data)),
        model=outcome.models["seed_model"],
        problems=24,
        sampling=Sampling(k=6, max_tokens=12),
        reward_function="tests.methods.test_rip:longer_is_better",
        quantiles={"rejected_reward": 0.3},
        training=Training(lr=1e-4, max_steps=1, batch_size=8),
        evaluation=replace(CONFIG.evaluation, problems=4),
    )
    with tiny.open_lab(tmp_path / "run") as lab:
        reports = run(cfg, lab).rounds["rip"][0]
    assert "auc_removed" not in reports and "well_formed" not in reports
    assert reports["clean_reward"].n == 4 and reports["accuracy"].unscored == 4


def longer_is_better(prompt: Prompt, text: str) -> float:
    return len(text) + 0.01 * sum(map(ord, text))


def test_the_loss_is_plain_dpo(whole):
    out, _ = whole
    (trained,) = tiny.stages_of(out, "train", "rip", 1)
    objective = read_manifest(trained)["params"]["objective"]
    assert (objective["loss"], objective["beta"], objective["nll_alpha"]) == ("sigmoid", 0.1, 0.0)
