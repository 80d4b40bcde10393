import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests import tiny

from selftaught.errors import InputError
from selftaught.methods.rounds import arm_settings
from selftaught.methods.scpo import (
    ARMS,
    METHOD,
    Config,
    _check_seed_model,
    objective,
    selection,
    train_round,
)
from selftaught.models.load import model_key
from selftaught.recipes import scpo as recipes
from selftaught.select.pairs import (
    ConsistencyPairs,
    GoldPairs,
    MajorityDemonstrations,
    RewardPairs,
    SemiSupervisedPairs,
)
from selftaught.specs import SFT, ModelSpec, Preference, Sampling, Training
from selftaught.store.groups import Groups
from selftaught.store.stage import open_stage
from selftaught.tasks import TaskSpec, load_task
from selftaught.train.reference import reference_logps
from selftaught.types import Demonstration, Pair, Report

CONFIG = Config(task=TaskSpec(name="chains"), sampling=Sampling(k=8), tau=(0.5, 0.7))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "row_type", "rule"),
    [
        ("scpo", Pair, ConsistencyPairs(k=8, threshold=4.0, seed=3)),
        ("scpo_unweighted", Pair, ConsistencyPairs(k=8, threshold=4.0, weight="none", seed=3)),
        ("irpo_gold", Pair, GoldPairs(seed=3)),
        ("irpo_noisy_rm", Pair, RewardPairs(scorer="noisy_reward", seed=3)),
        ("lmsi", Demonstration, MajorityDemonstrations(k=8, threshold=4.0, seed=3)),
        (
            "scpo_semi",
            Pair,
            SemiSupervisedPairs(
                gold=GoldPairs(seed=3), consistency=ConsistencyPairs(k=8, threshold=4.0, seed=3), labelled=0.5, seed=3
            ),
        ),
    ],
)
def test_the_papers_rows_are_settings_of_one_loop(arm, row_type, rule):
    assert selection(arm_settings(CONFIG, arm, ARMS), 0, seed=3) == (row_type, rule)


def test_every_arm_is_tested_above_and_in_the_reproduction():
    assert set(ARMS) == {"scpo", "scpo_unweighted", "scpo_semi", "irpo_gold", "irpo_noisy_rm", "lmsi"}


def test_thresholds_are_shares_of_k_per_round_and_the_last_serves_later_rounds():
    thresholds = [selection(CONFIG, t, 0)[1].threshold for t in range(4)]
    assert thresholds == pytest.approx([4.0, 5.6, 5.6, 5.6])


def test_losses():
    assert objective(CONFIG) == Preference(loss="sigmoid", beta=0.5, nll_alpha=1.0)
    assert objective(arm_settings(CONFIG, "lmsi", ARMS)) == SFT()


def test_an_arm_may_have_a_learning_rate_of_its_own():
    config = replace(CONFIG, training=Training(lr=1e-3), arm_lr={"lmsi": 1e-2})
    assert arm_settings(config, "lmsi", ARMS).training.lr == 1e-2
    assert arm_settings(config, "scpo", ARMS).training.lr == 1e-3


def test_the_paper():
    """Section 3 and Appendix A: k = 8, T = 0.7, top-p 0.9, tau 0.5k then 0.7k, beta 0.5, alpha 1, 5e-6, 10 epochs."""
    paper = recipes.paper()
    assert (paper.sampling.k, paper.sampling.temperature, paper.sampling.top_p) == (8, 0.7, 0.9)
    assert (paper.hot.k, paper.hot.temperature, paper.hot_from_round) == (8, 1.2, 2)
    assert (paper.tau, paper.beta, paper.nll_alpha, paper.rounds) == ((0.5, 0.7), 0.5, 1.0, 2)
    assert (paper.training.lr, paper.training.epochs, paper.training.batch_size) == (5e-6, 10, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": Sampling(k=1)}, r"sampling\.k=1: one sample has nothing to agree with; give 2 or more"),
        ({"tau": ()}, "give a share of the k votes for each round"),
        ({"tau": (4,)}, "give a share of the k votes for each round"),
        ({"rounds": 0}, "give at least one round and one arm"),
        ({"arms": ()}, "give at least one round and one arm"),
        ({"arms": ("scpo", "scpo")}, "each arm once"),
        ({"arms": ("scop",)}, "no arm is called 'scop': known are scpo, "),
        ({"arm_lr": {"scop": 1.0}}, "no arm is called 'scop'"),
        ({"fresh_problems": True}, "say how many with --problems"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)


# --- the seed model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("greedy", "voted", "warned"),
    [(0.3, 0.5, False), (0.02, 0.5, True), (0.97, 1.0, True), (0.3, 0.31, True), (math.nan, math.nan, False)],
)
def test_a_seed_model_with_nothing_to_learn_is_warned_of(greedy, voted, warned):
    def report(value: float) -> Report:
        return Report(name="x", mean=value, stderr=0.0, n=1)

    warnings: list[str] = []
    lab = SimpleNamespace(warn=warnings.append)
    _check_seed_model(lab, {"accuracy": report(greedy), "accuracy_sc8": report(voted)}, 8)
    assert bool(warnings) == warned
    # With one sample there is no majority to compare with.
    _check_seed_model(lab, {"accuracy": report(0.5)}, 1)
    assert len(warnings) == warned


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_reads_the_data_only_where_the_configuration_does_not_say(tmp_path: Path):
    names = [work.name for work in METHOD.plan(recipes.paper())]
    assert names[0] == "seed model: evaluation" and "scpo 2: choice of epoch" in names
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(f'{{"prompt": "{i}?"}}' for i in range(50)))
    own = replace(recipes.own(), task=TaskSpec(name="user", data=str(rows)), rounds=1)
    samples = {work.name: work.rows for work in METHOD.plan(own)}
    assert samples["scpo 1: samples"] == 8 * 40  # a tenth is held out for test, a tenth for dev
    limited = replace(own, task=replace(own.task, limit=10))
    assert {work.name: work.rows for work in METHOD.plan(limited)}["scpo 1: samples"] == 8 * 10


# --- one round, with a model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(seed_model: Path) -> Config:
    return tiny.with_model(tiny.config(new_problems=0), seed_model)


def one_round(cfg: Config, out: Path, t: int = 0) -> Path:
    """Train round `t` of a configuration in a run directory of its own, which is returned."""
    with tiny.open_lab(out) as lab, lab.scope(arm="a", round=1):
        train_round(cfg, lab, load_task(cfg.task), cfg.model, t)
    return out


def rows(run: Path, verb: str, arm: str = "a", round: int = 1, number: int = 0) -> list:
    return list(open_stage(tiny.stages_of(run, verb, arm, round)[number]))


def test_pairs_prefer_the_majority_by_its_margin(tiny_run: Path):
    kept = rows(tiny_run, "select", "scpo", 1)
    assert kept
    for pair in kept:
        votes = pair.meta["votes_chosen"], pair.meta["votes_rejected"]
        assert votes[0] >= 2 and votes[0] > votes[1]
        assert pair.weight == (votes[0] - votes[1]) / 4
        assert 0 < pair.weight <= 1


def test_lmsi_imitates_the_samples_that_scpo_chooses(tiny_run: Path):
    demonstrations = rows(tiny_run, "select", "lmsi", 1)
    assert all(isinstance(row, Demonstration) for row in demonstrations)
    chosen = {row.prompt.id: row.completion.id for row in demonstrations}
    pairs = rows(tiny_run, "select", "scpo", 1)
    assert {pair.prompt.id: pair.chosen.id for pair in pairs}.items() <= chosen.items()


def test_generated_problems_are_new_and_join_the_others(tiny_run: Path):
    written = rows(tiny_run, "problems", "scpo", 1)
    asked, sampled = (open_stage(path) for path in tiny.stages_of(tiny_run, "generate", "scpo", 1)[:2])
    assert written and len(asked) == 6 and len(sampled) == 4 * (24 + len(written))
    assert all(row.parents[0] in {completion.id for completion in asked} for row in written)


def test_each_round_starts_from_the_last_and_takes_it_as_its_reference(tiny_run: Path, seed_model: Path):
    first, second = (tiny.stages_of(tiny_run, "train", "scpo", t)[0] for t in (1, 2))
    before, after = (ModelSpec(source=str(path / "files" / "model")) for path in (first, second))
    assert model_key(before) != model_key(after)
    pairs, settings = rows(tiny_run, "select", "scpo", 2), tiny.config().training
    stored = {s.completion_id: s.value for s in reference_logps(before, pairs, settings)}
    seed = {s.completion_id: s.value for s in reference_logps(ModelSpec(source=str(seed_model)), pairs, settings)}
    used = {s.completion_id: s.value for s in rows(tiny_run, "logps", "scpo", 2)}
    assert not (second / "files" / "reference").exists(), "it was computed again"
    assert used == pytest.approx(stored, abs=1e-5)
    assert used != pytest.approx(seed, abs=1e-2)


def test_hot_samples_do_not_vote_and_are_never_chosen(config: Config, tmp_path: Path):
    hot = Sampling(k=4, temperature=5.0, max_tokens=8)
    run = one_round(replace(config, hot=hot, hot_from_round=1), tmp_path)
    base, extra = tiny.stages_of(run, "generate", "a", 1)
    assert {c.k for c in open_stage(base)} == {0, 1, 2, 3}
    assert {c.k for c in open_stage(extra)} == {4, 5, 6, 7}
    votes = tiny.stages_of(run, "score", "a", 1)[0]
    groups = Groups(
        prompts=open_stage(tiny.stages_of(run, "prompts", "a", 1)[0]),
        completions=(open_stage(base), open_stage(extra)),
        scores=(open_stage(votes),),
    )
    for group in groups:
        scores = group.scores_by("votes")
        keys = {c.id: scores[c.id].note for c in group.completions if scores[c.id].value is not None}
        for completion in group.completions:
            if completion.id in keys:
                voters = [c for c in group.completions if c.k < 4 and keys.get(c.id) == keys[completion.id]]
                assert scores[completion.id].value == len(voters)
    pairs = rows(run, "select")
    assert all(pair.chosen.k < 4 for pair in pairs)
    assert any(pair.rejected.k >= 4 for pair in pairs)


def test_hot_samples_wait_for_their_round(config: Config, tmp_path: Path):
    run = one_round(replace(config, hot=Sampling(k=4), hot_from_round=2), tmp_path)
    assert len(tiny.stages_of(run, "generate", "a", 1)) == 1


def test_semi_supervised_with_every_label_is_irpo(config: Config, tmp_path: Path):
    gold = one_round(arm_settings(config, "irpo_gold", ARMS), tmp_path / "gold")
    semi = one_round(replace(config, labelled=1.0), tmp_path / "semi")
    assert rows(gold, "select") == rows(semi, "select")
    assert {pair.weight for pair in rows(gold, "select")} == {1.0}
    task = load_task(config.task)
    for pair in rows(gold, "select"):
        assert task.verify(pair.prompt, pair.chosen.text) and not task.verify(pair.prompt, pair.rejected.text)


def test_rounds_with_fresh_problems_share_none(config: Config, tmp_path: Path):
    fresh = replace(config, fresh_problems=True, training=replace(config.training, max_steps=1))
    first, second = (one_round(fresh, tmp_path / str(t), t) for t in (0, 1))
    assert not {p.text for p in rows(first, "prompts")} & {p.text for p in rows(second, "prompts")}


def test_a_round_without_problems_left_says_so(config: Config, tmp_path: Path):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(f'{{"prompt": "a={i};a?"}}' for i in range(3)))
    used_up = replace(config, task=TaskSpec(name="user", data=str(data)), fresh_problems=True, problems=3)
    with pytest.raises(
        InputError, match="round 2 has no problem left: lower --rounds or --problems, or give more data"
    ):
        one_round(used_up, tmp_path / "run", t=1)


def test_measures_of_a_round(tiny_run: Path):
    events = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    mine = [e for e in events if e["arm"] == "scpo" and e["round"] == 1]
    reports = {e["name"]: e for e in mine if e["event"] == "report"}
    assert {"train/vote_share", "train/somers_d", "train/accuracy_sc4", "accuracy", "accuracy_sc4"} <= set(reports)
    (order,) = [e for e in mine if e["event"] == "order"]
    assert order["right"] + order["tie"] + order["wrong"] == pytest.approx(1.0)
    (pairs,) = [e for e in mine if e["event"] == "pairs"]
    kept = rows(tiny_run, "select", "scpo", 1)
    task = load_task(tiny.TASK)
    sides = [(task.verify(p.prompt, p.chosen.text), task.verify(p.prompt, p.rejected.text)) for p in kept]
    # What the model wrote itself may be no sound problem, which nothing can be right about.
    margin = [chosen - rejected for chosen, rejected in sides if chosen is not None]
    assert pairs["kept"] == len(kept)
    assert pairs["margin"] == pytest.approx(sum(margin) / len(margin))
