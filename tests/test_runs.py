import json
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from tests import tiny
from tests.zygote import Zygote
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftaught import methods
from selftaught.config import from_dict
from selftaught.errors import InputError
from selftaught.evals.intervals import Interval
from selftaught.executor import Inline, Torchrun
from selftaught.lab import Lab
from selftaught.methods.method import Claim, Outcome
from selftaught.runs import claim_row, resume, run_method, summarise
from selftaught.specs import Lora, ModelSpec, Sampling
from selftaught.store.run import RunDirectory
from selftaught.store.stage import open_stage
from selftaught.tasks import TaskSpec, load_task
from selftaught.types import Completion, Report

SCPO = methods.get("scpo")


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()


def stage_rows(run: Path) -> dict[str, list]:
    """Return the rows of every stage by its name, which holds its key; floats of completions left out."""
    found = {}
    for manifest in sorted(run.glob("stages/*/.manifest.json")):
        if json.loads(manifest.read_text())["kind"] == "table":
            found[manifest.parent.name] = list(open_stage(manifest.parent))
    return found


def weights(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.glob("model*/**/*.safetensors"))}


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_the_summary_is_the_designs(tiny_run: Path):
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert list(summary) == [
        "method", "recipe", "seeds", "wall_seconds", "arms", "claims", "per_seed", "rounds", "tried", "versions"
    ]  # fmt: skip
    assert (summary["method"], summary["recipe"], summary["seeds"]) == ("scpo", "smoke", [0])
    assert list(summary["arms"]) == ["seed_model", "lmsi", "scpo"]
    for arm, reports in summary["arms"].items():
        assert {"accuracy", "accuracy_sc4", "vote_share", "somers_d"} <= reports.keys()
        assert reports["accuracy"].keys() == {"mean", "stderr", "n"}
        assert reports["accuracy"]["n"] == 12
        assert summary["per_seed"]["0"][arm]["accuracy"] == reports["accuracy"]["mean"]
        assert summary["rounds"][arm][-1]["accuracy"] == reports["accuracy"]["mean"]
    assert {arm: len(rounds) for arm, rounds in summary["rounds"].items()} == {"seed_model": 1, "lmsi": 2, "scpo": 2}
    assert [c["text"] for c in summary["claims"]] == ["ScPO beats the seed model", "ScPO beats LMSI"]
    for claim in summary["claims"]:
        assert claim.keys() == {"text", "arm", "baseline", "metric", "difference", "ci95", "over", "holds"}
        assert (claim["over"], claim["holds"]) == ("problems", None)
        ours, baseline = (summary["arms"][claim[side]]["accuracy"]["mean"] for side in ("arm", "baseline"))
        assert claim["difference"] == pytest.approx(ours - baseline)
        assert claim["ci95"][0] <= claim["difference"] <= claim["ci95"][1]
    assert summary["wall_seconds"] > 0 and "torch" in summary["versions"]


def test_the_configuration_is_written_whole_and_repeats_the_run(tiny_run: Path):
    settings = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert {key: settings[key] for key in ("method", "recipe", "seed", "processes")} == {
        "method": "scpo", "recipe": "smoke", "seed": 0, "processes": 1
    }  # fmt: skip
    assert from_dict(SCPO.config, settings["config"]) == tiny.config(arms=("lmsi", "scpo"))


def test_trained_models_open(tiny_run: Path):
    for arm in ("lmsi", "scpo"):
        AutoModelForCausalLM.from_pretrained(tiny_run / "models" / arm)
        assert AutoTokenizer.from_pretrained(tiny_run / "models" / arm).eos_token == "<eos>"
    assert len(set(weights(tiny_run).values())) == 2


def test_arms_share_what_they_do_alike(tiny_run: Path):
    for verb in ("generate", "problems", "score"):
        lmsi, scpo = (tiny.stages_of(tiny_run, verb, arm, 1) for arm in ("lmsi", "scpo"))
        # The last two generations and the last three scores measure the trained model.
        shared = {"generate": 2, "problems": 1, "score": 2}[verb]
        assert lmsi[:shared] == scpo[:shared]
        assert not set(lmsi[shared:]) & set(scpo[shared:])
    assert tiny.stages_of(tiny_run, "select", "lmsi", 1) != tiny.stages_of(tiny_run, "select", "scpo", 1)


def test_a_finished_run_is_read_not_run_again(tiny_run: Path, monkeypatch: pytest.MonkeyPatch):
    before = json.loads((tiny_run / "summary.json").read_text())
    monkeypatch.setattr(Inline, "run", lambda _, function, *rest: pytest.fail(f"{function} ran again"))
    assert resume(tiny_run) == before
    assert json.loads((tiny_run / "summary.json").read_text()) == before


def test_a_directory_holds_one_run(tiny_run: Path):
    with pytest.raises(
        InputError, match=r"holds a run with seed = 0, not 1; resume it as it is, or choose another dir"
    ):
        run_method(SCPO, tiny.config(arms=("lmsi", "scpo")), tiny_run, seed=1, recipe="smoke")
    with pytest.raises(InputError, match="holds a run with config"):
        run_method(SCPO, tiny.config(), tiny_run, seed=0, recipe="smoke")


def test_what_cannot_be_resumed(tmp_path: Path):
    with pytest.raises(InputError, match="is not a run: it has no config"):
        resume(tmp_path / "none")
    (tmp_path / "config.yaml").write_text("method: scpo")
    with pytest.raises(InputError, match="lacks 'recipe': mend it, or start a new run with --config"):
        resume(tmp_path)


# --- summaries -------------------------------------------------------------------------------------------------------


def outcome_of(values: dict[str, dict[str, float | None]]) -> Outcome:
    outcome = Outcome()
    for arm, accuracy in values.items():
        scored = [v for v in accuracy.values() if v is not None]
        mean = sum(scored) / len(scored) if scored else math.nan
        report = Report(name="accuracy", mean=mean, stderr=math.nan, n=len(scored))
        outcome.add(arm, ModelSpec(source=arm), ({"accuracy": report}, {"accuracy": accuracy}))
    return outcome


def test_claims_are_over_the_problems_both_arms_have_an_answer_for():
    """Differences 1, 0 and 1 on the three problems that both have: mean 2/3; the fourth is undecided for one arm."""
    summary = summarise(
        SCPO,
        "small",
        7,
        outcome_of(
            {
                "seed_model": {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0},
                "scpo": {"a": 1.0, "b": 1.0, "c": 1.0, "d": None},
            }
        ),
        1.25,
    )
    (claim,) = summary["claims"]
    assert claim["difference"] == pytest.approx(2 / 3)
    assert (summary["seeds"], summary["wall_seconds"]) == ([7], 1.2)
    assert summary["arms"]["scpo"]["accuracy"] == {"mean": 1.0, "stderr": None, "n": 3}


def test_a_claim_of_one_run_weighs_problems_as_the_outcome_says():
    """Differences of 1 and 0 at weights 3 and 1 are 3/4; a problem without a weight counts once."""
    outcome = outcome_of({"seed_model": {"a": 0.0, "b": 0.0}, "scpo": {"a": 1.0, "b": 0.0}})
    outcome.weights = {"a": 3.0, "c": 5.0}
    (claim,) = summarise(SCPO, "small", 0, outcome, 1.0)["claims"]
    assert claim["difference"] == pytest.approx(3 / 4)


def test_without_answers_there_is_a_summary_without_claims():
    summary = summarise(SCPO, "own", 0, outcome_of({"seed_model": {"a": None}, "scpo": {"a": None}}), 1.0)
    assert summary["claims"] == []
    assert summary["arms"]["scpo"]["accuracy"]["mean"] is None
    json.dumps(summary, allow_nan=False)


def test_the_evidence_of_a_claim():
    plain = Claim(text="t", arm="a", baseline="b", metric="accuracy")
    interval = Interval(estimate=0.5, low=0.1, high=math.inf, over="seeds", n=3)
    assert claim_row(plain, interval, True) == {
        "text": "t", "arm": "a", "baseline": "b", "metric": "accuracy",
        "difference": 0.5, "ci95": [0.1, None], "over": "seeds", "holds": True,
    }  # fmt: skip
    share = replace(plain, gold="g", share=0.7)
    row = claim_row(share, replace(interval, estimate=math.nan), False)
    assert (row["gold"], row["share"], row["ratio"], row["holds"]) == ("g", 0.7, None, False)
    assert "difference" not in row


# --- variants of a run -----------------------------------------------------------------------------------------------


def test_an_epoch_chosen_on_dev_becomes_the_model(seed_model: Path, tmp_path: Path):
    config = tiny.config(rounds=1, new_problems=0, dev_problems=6)
    run_method(SCPO, tiny.with_model(config, seed_model), tmp_path / "run", seed=0, recipe="smoke")
    (trained,) = tiny.stages_of(tmp_path / "run", "train", "scpo", 1)
    kept = weights(tmp_path / "run")
    assert kept["model/model.safetensors"] in {
        file.read_bytes() for file in trained.glob("files/snapshots/epoch-*/model.safetensors")
    }
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").eos_token == "<eos>"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(line).get("name") == "dev/accuracy" for line in lines) == 2


def test_rounds_of_lora_go_on_from_each_other(seed_model: Path, tmp_path: Path):
    config = tiny.config(new_problems=0)
    config = replace(config, training=replace(config.training, lora=Lora(rank=2, alpha=4.0), lr=1e-2))
    run_method(SCPO, tiny.with_model(config, seed_model), tmp_path / "run", seed=0, recipe="smoke")
    first, second = (
        load_file(tiny.stages_of(tmp_path / "run", "train", "scpo", t)[0] / "files/model/adapter_model.safetensors")
        for t in (1, 2)
    )
    assert first.keys() == second.keys() and any((first[name] != second[name]).any() for name in first)
    # A new adapter's A is drawn and its B is 0: the second round's A is the first's, a little further.
    moved = max((first[name] - second[name]).abs().max() for name in first if "lora_A" in name)
    spread = max(first[name].abs().max() for name in first if "lora_A" in name)
    assert moved < spread / 2
    assert json.loads((tmp_path / "run/model/adapter_config.json").read_text())["r"] == 2
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


def test_a_run_on_data_without_answers(seed_model: Path, tmp_path: Path):
    data = tmp_path / "problems.jsonl"
    problems = load_task(tiny.TASK).train(40)
    data.write_text("\n".join(json.dumps({"prompt": p.text}) for p in problems))
    config = tiny.config(task=TaskSpec(name="user", data=str(data)), rounds=1, new_problems=0, tau=(0.25,))
    summary = run_method(SCPO, tiny.with_model(config, seed_model), tmp_path / "run", seed=0, recipe="own")
    assert summary["arms"]["scpo"]["accuracy"]["mean"] is None
    assert summary["arms"]["scpo"]["vote_share"]["mean"] > 0
    assert summary["claims"] == []


def test_several_processes_write_the_same_completions(seed_model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("selftaught.lab.COMPLETIONS_PER_SHARD", 16)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model, prompts = ModelSpec(source=str(seed_model)), load_task(tiny.TASK).train(12)
    stages = []
    for name, executor in (("inline", Inline()), ("torchrun", Torchrun(2))):
        with RunDirectory(tmp_path / name) as run:
            groups = Lab(run=run, executor=executor).generate(model, prompts, Sampling(k=4, max_tokens=8))
        stages.append(groups.completions[0])
    inline, torchrun = stages
    assert inline.key == torchrun.key and len(inline.manifest["shards"]) == 3

    def facts(completion: Completion) -> tuple:
        return completion.id, completion.text, completion.token_ids, completion.finish, completion.k

    assert list(map(facts, inline)) == list(map(facts, torchrun))
    assert len({facts(c)[1] for c in inline}) > 1


# --- stopped and continued -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_config(tmp_path_factory.mktemp("configuration") / "tiny.yaml", tiny.config())


@pytest.fixture(scope="module")
def uninterrupted(zygote: Zygote, configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("uninterrupted")
    run = zygote.run(
        ["run", "scpo", "--config", configuration, "--out", place / "run"], SELFTAUGHT_CACHE=place / "cache"
    )
    assert run.code == 0, run.output
    return place


def test_a_run_killed_again_and_again_ends_in_the_same_rows_and_weights(
    zygote: Zygote, configuration: Path, uninterrupted: Path, tmp_path: Path
):
    command = ["run", "scpo", "--config", configuration, "--out", tmp_path / "run"]
    for count in (2, 5, 9, 14, 21, 30):
        killed = zygote.run(command, SELFTAUGHT_CACHE=tmp_path / "cache", KILL_AT=count)
        assert killed.code == -signal.SIGKILL, killed.output
    for seconds in (0.3, 0.6):
        # Anywhere at all: in the middle of sampling, training or writing.
        child = zygote.start(command, SELFTAUGHT_CACHE=tmp_path / "cache")
        time.sleep(seconds)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    finished = zygote.run(["resume", tmp_path / "run"], SELFTAUGHT_CACHE=tmp_path / "cache")
    assert finished.code == 0, finished.output
    before, after = stage_rows(uninterrupted / "run"), stage_rows(tmp_path / "run")
    assert before.keys() == after.keys()
    for name, rows in before.items():
        assert after[name] == rows, name
    assert stage_rows(uninterrupted / "cache") == stage_rows(tmp_path / "cache")
    assert weights(uninterrupted / "run") == weights(tmp_path / "run") != {}
    summaries = [json.loads((place / "run" / "summary.json").read_text()) for place in (uninterrupted, tmp_path)]
    assert summaries[0]["rounds"] == summaries[1]["rounds"]
    trained = [
        [e for e in RunDirectory(p / "run").read_metrics() if e["event"] == "train"] for p in (uninterrupted, tmp_path)
    ]
    assert [(e["step"], e["loss"]) for e in trained[0]] == [(e["step"], e["loss"]) for e in trained[1]]
    assert not list(tmp_path.glob("run/stages/**/.*.part")) and not list(tmp_path.glob("run/stages/*/.partial"))


def test_ctrl_c_says_how_to_continue_and_a_second_process_is_refused(
    zygote: Zygote, configuration: Path, uninterrupted: Path, tmp_path: Path
):
    out = tmp_path / "run"
    command, cache = ["run", "scpo", "--config", configuration, "--out", out], uninterrupted / "cache"
    child = zygote.start(command, SELFTAUGHT_CACHE=cache)
    deadline = time.monotonic() + 60
    while not (out / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    second = zygote.run(command, SELFTAUGHT_CACHE=cache)
    assert second.code == 2
    assert str(child.pid) in second.output and str(out) in second.output
    assert len(second.output.splitlines()) == 1
    os.kill(child.pid, signal.SIGINT)
    assert child.wait() == 130, child.output
    assert child.output.splitlines()[-1] == f"selftaught: interrupted: continue with selftaught resume {out}"
    assert "Traceback" not in child.output
    finished = zygote.run(["resume", out], SELFTAUGHT_CACHE=cache)
    assert finished.code == 0, finished.output
    assert weights(out) == weights(uninterrupted / "run")
