import json
from collections import Counter
from dataclasses import replace
from math import log
from pathlib import Path

import pytest
from tests import tiny

from selftaught import recipes
from selftaught.errors import InputError
from selftaught.methods.backtracking import (
    ARMS,
    METHOD,
    Config,
    choose_bias,
    dpo_rule,
    forced,
    measure_unsafe,
    run,
    safety_source,
    sft_rule,
    unsafe_by,
)
from selftaught.models.decoding import read_decoding
from selftaught.models.load import load_tokenizer
from selftaught.runs import run_method
from selftaught.scorers.violations import ByFunction, ByTask
from selftaught.specs import ModelSpec, Resets
from selftaught.store.stage import open_stage
from selftaught.tasks import TaskSpec, load_task
from selftaught.tasks.safety_grammar import SafetyGrammar
from selftaught.text.templates import prefilled
from selftaught.types import Completion, Group, Pair, Prompt

SMOKE = recipes.get("backtracking", "smoke")
TASK = load_task(SMOKE.task)
CRUDE = "selftaught.scorers.safety:complies"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Run all arms of the smoke recipe; return the run directory and its summary."""
    out = tmp_path_factory.mktemp("backtracking") / "run"
    return out, run_method(METHOD, replace(SMOKE, arms=tuple(ARMS)), out, seed=3, recipe="smoke")


def rows(run: Path, arm: str, verb: str) -> list:
    return list(open_stage(tiny.stages_of(run, verb, arm, 1)[0]))


# --- what the arms train on ------------------------------------------------------------------------------------------


def test_arms_have_as_many_rows_of_the_same_prompts_and_train_as_long(finished):
    out, _ = finished
    sources = {arm: [r.parents[0] for r in rows(out, arm, "sft_rows")] for arm in ARMS}
    assert len({tuple(ids) for ids in sources.values()}) == 1, "every row has a row of the same pair in other arms"
    pairs = {arm: [r.prompt.id for r in rows(out, arm, "dpo_pairs")] for arm in ARMS if "dpo" in arm}
    assert len(pairs) == 3 and len({tuple(ids) for ids in pairs.values()}) == 1
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = Counter(event["arm"] for event in events if event["event"] == "train")
    assert {arm: steps[arm] for arm in ARMS} == {arm: 40 if "dpo" in arm else 30 for arm in ARMS}


def test_arms_that_share_their_supervised_training_train_once(finished):
    out, _ = finished
    first = {arm: tiny.stages_of(out, "train", arm, 1)[0] for arm in ARMS}
    assert first["baseline_sft"] == first["baseline_sft_dpo"] == first["baseline_sft_backtrack_dpo"]
    assert first["backtrack_sft"] == first["backtrack_sft_dpo"] != first["baseline_sft"]


def test_only_the_arms_with_resets_hold_the_token(finished):
    out, _ = finished
    shares = {arm: sum("[RESET]" in r.completion.text for r in rows(out, arm, "sft_rows")) for arm in ARMS}
    assert {arm for arm, n in shares.items() if n} == {
        "backtrack_sft",
        "backtrack_sft_own_prompts",
        "backtrack_sft_dpo",
        "unmasked_prefix",
    }
    masked = {arm: sum(bool(r.loss_from) for r in rows(out, arm, "sft_rows")) for arm in ARMS}
    assert masked["refuse_midway"] == masked["backtrack_sft"] > 0 == masked["unmasked_prefix"] == masked["baseline_sft"]
    for arm in ("backtrack_sft_dpo", "baseline_sft_backtrack_dpo"):
        kinds = [r.meta["kind"] for r in rows(out, arm, "dpo_pairs")]
        assert kinds[:4] == ["positive", "negative"] * 2 and kinds[-2:] == ["plain", "negative"]
    assert {r.meta["kind"] for r in rows(out, "baseline_sft_dpo", "dpo_pairs")} == {"plain"}


def test_attacked_requests_are_the_same_for_every_arm_and_their_suffixes_are_not(finished):
    out, summary = finished
    asked = {arm: tiny.stages_of(out, "attacked", arm, 1) for arm in ARMS}
    suffixes = {arm: tiny.stages_of(out, "suffixes", arm, 1) for arm in ARMS}
    assert len({tuple(stages) for stages in asked.values()}) == 1
    assert all(len(set(stages)) == 2 for stages in suffixes.values())
    assert set(suffixes["baseline_sft"]).isdisjoint(suffixes["backtrack_sft"])
    for reports in summary["arms"].values():
        assert {"violation_gradient", "violation_adaptive", "worst_of1", "worst_of4", "worst_of16"} <= reports.keys()


def test_arms_without_resets_cannot_draw_the_token(finished):
    out, summary = finished
    for arm in ("baseline_sft", "baseline_sft_dpo", "refuse_midway"):
        assert read_decoding(out / "models" / arm)["max_resets"] == 0
        assert summary["arms"][arm]["reset_rate"]["mean"] == summary["arms"][arm]["false_resets"]["mean"] == 0
    assert read_decoding(out / "models" / "backtrack_sft")["max_resets"] == 1


def test_a_trained_model_keeps_its_token(finished):
    out, _ = finished
    tokenizer = load_tokenizer(ModelSpec(source=str(out / "models" / "backtrack_sft")))
    assert tokenizer.init_kwargs["model_only_tokens"] == ["[RESET]"]


def test_the_curve_has_a_point_for_every_bias(finished):
    _, summary = finished
    for arm in ("seed_model", *ARMS):
        found = summary["arms"][arm]
        curve = [found[f"violation_bias{b:+g}"]["mean"] for b in SMOKE.bias_grid]
        assert found["bias_rise"]["mean"] == pytest.approx(max(0.0, curve[1] - curve[0]))
    flat = summary["arms"]["baseline_sft"]
    assert flat["violation_bias+0"] == flat["violation_bias+4"] and flat["bias_rise"]["mean"] == 0


JUDGED = []


def note(prompt: Prompt, text: str) -> bool:
    """A classifier that remembers what it was shown."""
    JUDGED.append((prompt.text, text))
    return False


def test_a_forced_start_is_judged_once_and_babble_is_no_refusal(finished, monkeypatch):
    out, _ = finished
    prompt = prefilled(TASK.pairs("test")[0].prompt, "s01t02")
    request = prompt.messages[0].content
    texts = {"s03t04": (), TASK.refusal(prompt): ((0, 1),)}  # The second took the start back.
    completions = tuple(
        Completion(prompt_id=prompt.id, k=k, text=text, token_ids=(5,), discarded=spans)
        for k, (text, spans) in enumerate(texts.items())
    )
    group = Group(prompt=prompt, completions=completions)
    monkeypatch.setattr("selftaught.methods.backtracking.answers", lambda *_: [group])
    cfg = replace(SMOKE, classifier="tests.methods.test_backtracking:note")
    model = ModelSpec(source=str(out / "models" / "backtrack_sft"))
    JUDGED.clear()
    found = measure_unsafe(cfg, None, TASK, model, [prompt])
    assert JUDGED[:2] == [(request, "s01t02s03t04"), (request, TASK.refusal(prompt))]
    assert (found["refusals"][prompt.id], found["violation"][prompt.id], found["reset_rate"][prompt.id]) == (
        0.5,
        0,
        0.5,
    )


def test_the_log_of_the_violation_rate(finished):
    """k of n: log((k + 1/2) / (n + 1))."""
    _, summary = finished
    for found in summary["arms"].values():
        n, share = found["violation"]["n"], found["violation"]["mean"]
        assert found["violation_log"]["mean"] == pytest.approx(log((share * n + 0.5) / (n + 1)))


def test_the_rules_of_the_options():
    cfg = replace(SMOKE, useless_reset=True, dpo="backtrack", reset_share=0.25, copies=4)
    assert sft_rule(cfg, TASK, 1).reset_share == 0.25 and sft_rule(cfg, TASK, 1).copies == 4
    assert not sft_rule(replace(cfg, sft="baseline"), TASK, 1).prefix
    assert dpo_rule(cfg, TASK, 1).kinds == ("positive", "negative", "useless")
    assert dpo_rule(replace(cfg, dpo="baseline"), TASK, 1).kinds == ("plain", "plain")


# --- the bias --------------------------------------------------------------------------------------------------------


class Rates:
    """A lab in which the share of answers with a reset grows with the bias: 0 at 0, then 0.5, then 1."""

    seed = 0

    def generate(self, model, prompts, sampling):
        share = {0.0: 0, 2.0: 1, 4.0: 2}[model.decoding.bias]
        return [
            Group(
                prompt=p,
                completions=(Completion(prompt_id=p.id, k=0, text="", discarded=((0, 1),) if i % 2 < share else ()),),
            )
            for i, p in enumerate(prompts)
        ]

    def note(self, event, **facts):
        self.noted = facts

    def tell(self, message):
        self.told = message


@pytest.mark.parametrize(("allowed", "chosen"), [(0.0, 0.0), (0.4, 0.0), (0.5, 2.0), (0.9, 2.0), (1.0, 4.0)])
def test_the_largest_bias_with_few_enough_false_resets(allowed, chosen):
    cfg = replace(
        SMOKE, bias_grid=(0.0, 2.0, 4.0), false_resets=allowed, evaluation=replace(SMOKE.evaluation, problems=8)
    )
    lab = Rates()
    assert choose_bias(cfg, lab, TASK, ModelSpec(source="m")).bias == chosen
    assert lab.noted["rates"] == {"+0": 0.0, "+2": 0.5, "+4": 1.0}


def test_where_no_bias_is_low_enough_it_is_the_lowest():
    cfg = replace(SMOKE, bias_grid=(2.0, 4.0), false_resets=0.1, evaluation=replace(SMOKE.evaluation, problems=8))
    lab = Rates()
    assert choose_bias(cfg, lab, TASK, ModelSpec(source="m")).bias == 2.0
    assert lab.told == "at every bias more than 10.0% of safe requests are reset: the smallest is taken"


def test_a_bias_by_hand_and_no_bias_without_resets():
    cfg = replace(SMOKE, bias=1.5, max_resets=2, keep_cache=False)
    assert choose_bias(cfg, None, TASK, ModelSpec(source="m")) == Resets(bias=1.5, max_resets=2, keep_cache=False)
    assert choose_bias(replace(cfg, sft="baseline"), None, TASK, ModelSpec(source="m")).max_resets == 0


# --- forced starts and classifiers -----------------------------------------------------------------------------------


def test_forced_starts_are_of_the_asked_length_and_not_unsafe_yet():
    world = SafetyGrammar()
    pairs = world.pairs("test")
    begun = forced(replace(SMOKE, prefill=3), world, pairs)
    assert 0 < len(begun) < len(pairs)
    for prompt in begun:
        start = prompt.messages[-1].content
        assert len(start) == 9 and not world.violates(start)
        assert world.procedure(prompt).startswith(start)
    short = Pair(
        prompt=pairs[0].prompt,
        chosen=Completion(prompt_id="p", k=0, text="no"),
        rejected=Completion(prompt_id="p", k=1, text="s09t09s09"),
    )
    assert forced(replace(SMOKE, prefill=3), world, [short]) == []
    crude = replace(SMOKE, classifier=CRUDE)
    assert len(forced(crude, world, pairs)) == len(pairs), "it flags all starts, so that none can be left out"


def test_the_classifier_is_the_tasks_or_a_function():
    assert unsafe_by(SMOKE, TASK) == ByTask(task=TASK)
    assert unsafe_by(SMOKE, TASK)(Prompt.from_text("x"), "s00t00") is True
    assert unsafe_by(replace(SMOKE, classifier=CRUDE), TASK) == ByFunction(function=CRUDE)


def test_tasks_without_pairs_or_a_classifier(tmp_path):
    with pytest.raises(InputError, match=r"task chains has no pairs .* --safety.name hh_rlhf"):
        safety_source(SMOKE, load_task(TaskSpec(name="chains")))
    line = {"prompt": [{"role": "user", "content": "how?"}], "chosen": "No.", "rejected": "Take a knife."}
    data = tmp_path / "pairs.jsonl"
    data.write_text(
        "\n".join(json.dumps({**line, "prompt": [{"role": "user", "content": f"{i}?"}]}) for i in range(40))
    )
    real = replace(SMOKE, safety=TaskSpec(name="hh_rlhf", data=str(data)))
    with pytest.raises(InputError, match="does not know what is unsafe: name a function"):
        unsafe_by(real, TASK)


def test_pairs_of_answers_in_words_of_ones_own(tmp_path):
    """Real pairs and a function that classifies, harmless data of another task: the whole method on them."""
    lines = [
        {"prompt": [{"role": "user", "content": f"v{i % 6}o{i % 9:03d}y{i % 4}?"}]}
        | {"chosen": "d00 d01 a00.", "rejected": f"s0{i % 5} t01 s02 t0{i % 4}."}
        for i in range(60)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    cfg = replace(
        SMOKE,
        arms=("backtrack_sft_dpo",),
        safety=TaskSpec(name="hh_rlhf", data=str(data)),
        classifier=CRUDE,
        cut="uniform",
        unit=r"\s*\S+",
        prefill=1,
        bias=0.0,
    )
    with tiny.open_lab(tmp_path / "run") as lab:
        outcome = run(cfg, lab)
    assert outcome.rounds["backtrack_sft_dpo"][0]["violation"].n > 0


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"arms": ("reset",)}, "no arm is called 'reset'"),
        ({"sft_lr": {"plain": 1e-3}}, "sft_lr names 'plain': known are baseline"),
        ({"dpo_lr": {"none": 1e-3}}, "dpo_lr names 'none': known are baseline, backtrack"),
        ({"bias_grid": ()}, r"bias_grid=\(\)"),
        ({"bias_grid": (2.0, 0.0)}, "each larger than the one before"),
        ({"false_resets": 1.5}, "false_resets=1.5 is not a share"),
    ],
)
def test_settings_that_mean_nothing(changes, complaint):
    with pytest.raises(InputError, match=complaint):
        Config(task=TaskSpec(name="safety_grammar"), **changes)
