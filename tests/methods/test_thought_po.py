import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests import tiny

from selftaught.errors import InputError
from selftaught.methods import thought_po
from selftaught.methods.rounds import arm_settings
from selftaught.methods.thought_po import ARMS, METHOD, Config, _check_seed_model, measure, thought_format, train_round
from selftaught.models.load import model_key
from selftaught.recipes import thought_po as recipes
from selftaught.runs import run_method
from selftaught.scorers.judges import Judge
from selftaught.select.thought_pairs import ThoughtPairs
from selftaught.specs import Evaluation, ModelSpec, Phase, Sampling, Training
from selftaught.store.groups import Groups
from selftaught.store.stage import open_stage
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.thought_chains import ANSWER, THINK
from selftaught.text.thoughts import SPECIFIC, split
from selftaught.types import Pair, Report

SMOKE = recipes.smoke()
SUPERVISED = replace(SMOKE.seed_model.phases[0].training, max_steps=150)
TINY = replace(
    SMOKE,
    task=TaskSpec(name="thought_chains", options={"operations": [1, 2]}),
    seed_model=replace(SMOKE.seed_model, phases=(Phase(demonstrations=512, training=SUPERVISED),)),
    arms=("thought", "direct", "no_parse_rejects"),
    problems=48,
    training=replace(SMOKE.training, lr=2e-3, batch_size=4),
)


def config(**changes) -> Config:
    return replace(TINY, **changes)


# --- settings --------------------------------------------------------------------------------------------------------


def test_arms_are_settings_of_one_loop():
    forms = {arm: arm_settings(SMOKE, arm, ARMS).form for arm in ARMS}
    assert {arm: form for arm, form in forms.items() if form != "generic"} == {
        "thought_specific": "specific",
        "direct": "none",
    }
    assert arm_settings(SMOKE, "thought_judged_whole", ARMS).judged == "whole"
    assert arm_settings(SMOKE, "no_length_control", ARMS).length_control == "off"
    assert arm_settings(SMOKE, "no_parse_rejects", ARMS).unparsed_cap == 0.0
    assert {arm for arm in ARMS if arm_settings(SMOKE, arm, ARMS).loss_on != "full"} == {"response_only"}


def test_formats_are_the_tasks_own_where_it_has_some():
    chains, world = load_task(TaskSpec(name="chains")), load_task(TaskSpec(name="thought_chains"))
    assert thought_format(replace(SMOKE, form="specific"), chains) == SPECIFIC
    assert (thought_format(SMOKE, world), thought_format(replace(SMOKE, form="none"), world)) == (THINK, ANSWER)
    with pytest.raises(InputError, match="no thought format is called 'specific': known are generic, none"):
        thought_format(replace(SMOKE, form="specific"), world)


def test_the_paper():
    """Section 3: K = 8, T = 0.8, top-p 0.95, 5,000 instructions a round, 10 epochs, 1,500 prompts to choose by."""
    paper = recipes.paper()
    assert (paper.sampling.k, paper.sampling.temperature, paper.sampling.top_p) == (8, 0.8, 0.95)
    assert (paper.problems, paper.training.epochs, paper.dev_problems, paper.rounds) == (5000, 10, 1500, 4)
    assert paper.judge.in_pairs and paper.unparsed_cap == 0.1 and paper.form == "generic"


def test_the_small_world():
    small = recipes.small()
    assert (small.problems, small.rounds, small.nll_alpha, small.beta) == (800, 3, 0.2, 0.1)
    assert arm_settings(small, "direct", ARMS).training.lr == 1e-4 and small.training.lr == 2e-4
    assert small.seed_model.phases[0].demonstrations == 8000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": Sampling(k=1)}, r"sampling\.k=1: one response has none to be compared with"),
        ({"rounds": 0}, "give at least one round and one arm"),
        ({"arms": ("thoughts",)}, "no arm is called 'thoughts': known are thought, "),
        ({"problems": 0}, "give 1 or more, or none for all there are"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        replace(SMOKE, **changes)


# --- the seed model --------------------------------------------------------------------------------------------------


def report(value: float) -> Report:
    return Report(name="x", mean=value, stderr=0.0, n=1)


@pytest.mark.parametrize(
    ("useful", "direct", "errors", "warnings"),
    [(0.7, 0.3, 0.0, 0), (0.4, 0.3, 0.0, 1), (math.nan, 0.3, 0.0, 1), (0.7, 0.3, 0.6, 1), (0.1, 0.3, 0.9, 2)],
)
def test_a_seed_model_with_nothing_to_find_is_warned_of(useful, direct, errors, warnings):
    said: list[str] = []
    rounds = {
        "seed_model": [{"accuracy": report(direct), "format_errors": report(0.0)}],
        "thought": [{"accuracy_useful": report(useful), "format_errors": report(errors)}],
        "direct": [{"accuracy": report(direct), "format_errors": report(0.0)}],
    }
    _check_seed_model(SimpleNamespace(warn=said.append), rounds)
    assert len(said) == warnings


def test_tasks_without_kinds_of_thoughts_are_not_checked_for_them():
    _check_seed_model(
        SimpleNamespace(warn=pytest.fail), {"seed_model": [{"accuracy": report(0.1), "format_errors": report(0.0)}]}
    )


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_counts_what_the_judge_reads():
    works = {work.name: work for work in METHOD.plan(recipes.paper())}
    assert works["thought 1: judgments"].rows == 5000 * 8 * 7
    assert works["thought 1: samples"].rows == 5000 * 8 and "direct 0: evaluation" in works
    assert "thought 1: judgments" not in {work.name for work in METHOD.plan(recipes.small())}
    pointwise = replace(recipes.paper(), judge=replace(recipes.paper().judge, rubric="helpfulness"))
    assert {w.name: w for w in METHOD.plan(pointwise)}["thought 1: judgments"].rows == 5000 * 8


# --- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("thought_po") / "run"
    return out, run_method(METHOD, config(), out, seed=0, recipe="smoke")


def events(out: Path, event: str, arm: str, number: int) -> list[dict]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [e for e in rows if (e["event"], e["arm"], e["round"]) == (event, arm, number)]


def selected(out: Path, arm: str, number: int) -> list[Pair]:
    places = tiny.stages_of(out, "pairs", arm, number) or tiny.stages_of(out, "select", arm, number)
    # Further instructions may have made no pair at all.
    return list([stage for stage in map(open_stage, places) if len(stage)][-1])


def test_every_arm_is_measured_before_and_after_every_round(run):
    _, summary = run
    assert {arm: len(rounds) for arm, rounds in summary["rounds"].items()} == {
        "seed_model": 1, "thought": 3, "direct": 3, "no_parse_rejects": 3
    }  # fmt: skip
    first = {arm: rounds[0] for arm, rounds in summary["rounds"].items()}
    assert first["direct"] == first["seed_model"] and first["thought"] == first["no_parse_rejects"]
    assert "share_useful" in first["thought"] and "share_useful" not in first["direct"]
    assert {c["text"] for c in summary["claims"]} == {c.text for c in METHOD.claims if c.round == -1}


def test_arms_train_on_equal_tokens(run):
    out, _ = run
    for number in (1, 2):
        (ours,), (direct,) = (events(out, "tokens", arm, number) for arm in ("thought", "direct"))
        assert ours["tokens"] == ours["wanted"] == direct["wanted"]
        # Less than one pair short.
        assert 0 <= direct["wanted"] - direct["tokens"] < 2 * (11 + 32)
        assert direct["pairs"] == len(selected(out, "direct", number))


def test_further_instructions_are_new_ones(run):
    out, _ = run
    seen: list[str] = []
    for number in (1, 2):
        pairs = selected(out, "direct", number)
        seen += [p.prompt.id for p in pairs]
        assert len({p.prompt.id for p in pairs}) == len(pairs)
    assert len(set(seen)) == len(seen)


def test_pairs_keep_the_thought_prompt_and_the_thought(run):
    out, _ = run
    task = load_task(TINY.task)
    pairs = selected(out, "thought", 1)
    assert pairs and all(p.prompt.text == p.prompt.meta["problem"] + "T" for p in pairs)
    for pair in pairs:
        chosen, rejected = split(THINK, pair.chosen), split(THINK, pair.rejected)
        assert pair.chosen.token_ids and not chosen.error
        assert task.verify(pair.prompt, chosen.response)
        assert rejected.error or not task.verify(pair.prompt, rejected.response)
    assert any(split(THINK, p.chosen).thought for p in pairs)


def test_the_judge_saw_responses_only(run):
    out, _ = run
    (scores,) = tiny.stages_of(out, "score", "thought", 1)[:1]
    groups = Groups(
        prompts=open_stage(tiny.stages_of(out, "prompts", "thought", 1)[0]),
        completions=(open_stage(tiny.stages_of(out, "generate", "thought", 1)[0]),),
        scores=(open_stage(scores),),
    )
    unparsed = [s for g in groups for s in g.scores if s.value is None]
    assert all(s.note.startswith("no response: ") for s in unparsed)
    for group in groups:
        texts = {}
        for c in group.completions:
            texts.setdefault(split(THINK, c).response, set()).add(group.scores_by("judge/task")[c.id].value)
        assert all(len(values) == 1 for values in texts.values()), "equal responses, equal scores, whatever the thought"


def test_each_round_starts_from_the_model_before_it(run):
    out, summary = run
    first, second = (selected(out, "thought", number) for number in (1, 2))
    assert {p.chosen.model for p in first} != {p.chosen.model for p in second}
    assert (out / "models" / "thought" / "config.json").exists()
    assert summary["rounds"]["thought"][0] != summary["rounds"]["thought"][2]


# --- single rounds, with the run's seed model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seed(run, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    with tiny.open_lab(tmp_path_factory.mktemp("seed")) as lab:
        return lab.seed_model(TINY.task, TINY.seed_model)


def one_round(cfg: Config, path: Path, seed: ModelSpec) -> list[Pair]:
    with tiny.open_lab(path) as lab, lab.scope(arm="a", round=1):
        trained = train_round(cfg, lab, load_task(cfg.task), seed, {}, seed, 0)
        assert model_key(trained) != model_key(seed)
    return selected(path, "a", 1)


@pytest.mark.parametrize("match_tokens", [True, False])
def test_a_loss_on_responses_only_trains_on_the_same_pairs_without_their_thoughts(tmp_path, seed, match_tokens):
    cfg = config(match_tokens=match_tokens, unparsed_cap=0.3, training=Training(lr=1e-3, max_steps=2))
    masked = one_round(arm_settings(cfg, "response_only", ARMS), tmp_path / "run", seed)
    (stage,) = tiny.stages_of(tmp_path / "run", "select", "a", 1)
    assert [replace(p, loss_from=(), id="") for p in masked] == list(open_stage(stage))[: len(masked)]
    assert any(max(p.loss_from, default=0) > 2 for p in masked)
    for pair in masked:
        for completion, begin in zip((pair.chosen, pair.rejected), pair.loss_from, strict=True):
            parts = split(THINK, completion)
            assert completion.text[begin:] == (completion.text if parts.error else parts.response)
    (scores,) = tiny.stages_of(tmp_path / "run", "logps", "a", 1)
    assert {s.span for s in open_stage(scores) if s.completion_id == masked[0].chosen.id} == {
        (masked[0].loss_from[0], len(masked[0].chosen.text))
    }


def test_a_judge_that_sees_thoughts_and_likes_length_is_hacked(tmp_path, seed):
    cfg = config(judge=Judge(length_bias=10.0), length_control="off", training=Training(lr=1e-4, max_steps=1))
    whole = one_round(arm_settings(cfg, "thought_judged_whole", ARMS), tmp_path / "whole", seed)
    bare = one_round(cfg, tmp_path / "bare", seed)

    def longer(pairs):
        return sum(len(p.chosen.text) - len(p.rejected.text) for p in pairs) / len(pairs)

    assert longer(whole) > 3 > longer(bare)


def test_a_pairwise_judge(tmp_path, seed):
    judge = Judge(pairwise=True, noise=0.1, position_bias=0.3)
    cfg = config(judge=judge, dev_problems=4, training=Training(lr=1e-4, epochs=2, batch_size=8))
    pairs = one_round(cfg, tmp_path / "run", seed)
    task = load_task(cfg.task)
    # Noise also tells equal responses apart, so that a wrong one may be chosen, but only over a wrong one.
    chosen, rejected = (
        [split(THINK, c) for c in side] for side in zip(*((p.chosen, p.rejected) for p in pairs), strict=True)
    )
    assert any(task.verify(p.prompt, parts.response) for p, parts in zip(pairs, chosen, strict=True))
    assert not any(task.verify(p.prompt, parts.response) for p, parts in zip(pairs, rejected, strict=True))
    with tiny.open_lab(tmp_path / "measured") as lab:
        reports, values = measure(cfg, lab, task, seed, seed)
        direct, _ = measure(arm_settings(cfg, "direct", ARMS), lab, task, seed, seed)
    assert direct["win_rate"].mean == pytest.approx(0.5, abs=0.1)
    assert set(values["win_rate"]) == {p.id for p in task.test(cfg.evaluation.problems)}
    assert reports["win_rate"].n + reports["win_rate"].unscored == cfg.evaluation.problems


def letters(prompt, response):
    return float(len(response))


def test_a_function_as_judge(tmp_path, seed):
    cfg = config(judge=Judge(function=f"{__name__}:letters"), evaluation=Evaluation(problems=4, k=1, max_tokens=32))
    with tiny.open_lab(tmp_path / "run") as lab:
        reports, _ = measure(cfg, lab, load_task(cfg.task), seed, seed)
    assert reports["judge_score"].mean == reports["response_chars"].mean and "accuracy_samples1" not in reports


def test_the_selector_is_what_the_settings_say(monkeypatch, tmp_path, seed):
    made = []
    monkeypatch.setattr(thought_po, "ThoughtPairs", lambda **fields: made.append(fields) or ThoughtPairs(**fields))
    for control in ("auto", "fixed", "off"):
        cfg = config(length_control=control, rho=0.3, match_tokens=False)
        with tiny.open_lab(tmp_path / "run") as lab, lab.scope(arm="a", round=1):
            thought_po.make_pairs(cfg, lab, load_task(cfg.task), seed, load_task(cfg.task).train(24))
    assert [fields["rho"] for fields in made] == [None, 0.3, 0.0]
    assert made[0]["scorer"] == "judge/task" and made[0]["form"] == THINK


def test_data_that_ends_leaves_fewer_tokens(tmp_path, seed, capsys):
    cfg = config(task=TaskSpec(name="thought_chains", options={"operations": [1, 2]}), problems=24)
    with tiny.open_lab(tmp_path / "run") as lab, lab.scope(arm="a", round=1):
        task = SimpleNamespace(
            train=lambda count, seed, start: load_task(cfg.task).train(count, seed=seed) if start == 0 else [],
            stop=(),
            thought_formats={"generic": THINK},
            verify=load_task(cfg.task).verify,
        )
        pairs = thought_po.make_pairs(cfg, lab, load_task(cfg.task), seed, load_task(cfg.task).train(24))
        matched = thought_po.match_tokens(cfg, lab, task, seed, 0, pairs, {0: 10**6})
    assert len(matched) == len(pairs) and "the first arm had 1000000: give more problems" in capsys.readouterr().err
