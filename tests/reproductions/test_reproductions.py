import dataclasses
import json
from math import sqrt
from pathlib import Path

import pytest
from tests import tiny

from selftaught import methods, reproductions
from selftaught.errors import InputError
from selftaught.methods.method import Claim, Method
from selftaught.reproductions import Reproduction, combine, reproduce
from selftaught.runs import run_settings
from selftaught.store.run import RunDirectory

ACCURACY = {
    "seed_model": (0.2, 0.2, 0.2),
    "lmsi": (0.2, 0.3, 0.7),
    "gold": (0.6, 0.7, 0.8),
    "ours": (0.5, 0.6, 0.7),
}
CLAIMS = (
    Claim(text="beats the seed", arm="ours", baseline="seed_model", metric="accuracy"),
    Claim(text="beats LMSI", arm="ours", baseline="lmsi", metric="accuracy"),
    Claim(text="70% of gold", arm="ours", baseline="seed_model", metric="accuracy", gold="gold", share=0.7),
    Claim(text="90% of gold", arm="ours", baseline="seed_model", metric="accuracy", gold="gold", share=0.9),
)
METHOD = Method(
    name="made_up", title="", paper="", claim="", config=dict, run=print, equations={}, plan=lambda _: [], claims=CLAIMS
)
REPRODUCTION = Reproduction(method="made_up", metrics=("accuracy",), recipes={"small": None}, tried=4)


def summary(seed: int, accuracy: dict[str, float]) -> dict:
    """Return the summary of one seed, with a metric that only some seeds could measure."""
    return {
        "method": "made_up",
        "recipe": "small",
        "seeds": [seed],
        "wall_seconds": 10.0 + seed,
        "arms": {
            arm: {"accuracy": {"mean": a, "stderr": 0.01, "n": 500}, "other": {"mean": 1.0, "stderr": None, "n": 1}}
            for arm, a in accuracy.items()
        },
        "claims": [],
        "per_seed": {str(seed): {arm: {"accuracy": a, "other": 1.0} for arm, a in accuracy.items()}},
        "rounds": {
            arm: [{"accuracy": a - 0.1, "somers_d": None if seed else 0.5}, {"accuracy": a}]
            for arm, a in accuracy.items()
        },
        "tried": 0,
        "versions": {"torch": "2"},
    }


def combined(accuracy: dict[str, tuple[float, ...]] = ACCURACY) -> dict:
    seeds = range(len(accuracy["ours"]))
    summaries = [summary(seed, {arm: values[seed] for arm, values in accuracy.items()}) for seed in seeds]
    return combine(METHOD, REPRODUCTION, summaries)


def test_differences_are_paired_by_seed():
    """Ours minus seed model: 0.3, 0.4, 0.5; mean 0.4, sd 0.1, t(0.975, 2) = 4.3027: 0.4 +- 4.3027 x 0.1 / sqrt(3).

    Ours minus LMSI: 0.3, 0.3, 0.0; mean 0.2, sd 0.17321: 0.2 +- 4.3027 x 0.1.
    """
    over_seed, over_lmsi, *_ = combined()["claims"]
    assert over_seed["difference"] == pytest.approx(0.4)
    assert over_seed["ci95"] == pytest.approx([0.15159, 0.64841], abs=1e-5)
    assert (over_seed["over"], over_seed["holds"]) == ("seeds", True)
    assert over_lmsi["difference"] == pytest.approx(0.2)
    assert over_lmsi["ci95"] == pytest.approx([-0.23027, 0.63027], abs=1e-5)
    assert over_lmsi["holds"] is False


def test_a_share_of_a_gain_is_a_ratio_of_means():
    """Gains 0.3, 0.4, 0.5 and gold gains 0.4, 0.5, 0.6: 0.4 / 0.5 = 0.8; no draw of seeds leaves [0.75, 0.8334]."""
    seventy, ninety = combined()["claims"][2:]
    assert seventy["ratio"] == pytest.approx(0.8)
    assert (seventy["gold"], seventy["share"], seventy["holds"]) == ("gold", 0.7, True)
    assert 0.75 - 1e-9 <= seventy["ci95"][0] < 0.8 < seventy["ci95"][1] <= 0.5 / 0.6 + 1e-9
    assert (ninety["ratio"], ninety["holds"]) == (seventy["ratio"], False)


@pytest.mark.parametrize(
    ("claim", "kind", "estimate", "holds"),
    [
        # Differences 0.3, 0.3, 0.0: the interval's lower end is -0.230.
        (Claim(text="", arm="ours", baseline="lmsi", metric="accuracy", margin=-0.24), "difference", 0.2, True),
        (Claim(text="", arm="ours", baseline="lmsi", metric="accuracy", margin=-0.22), "difference", 0.2, False),
        # 0.5, 0.6, 0.7: 0.6 +- 0.248, so above 0.35.
        (Claim(text="", arm="ours", baseline=None, metric="accuracy", margin=0.35), "value", 0.6, True),
        (Claim(text="", arm="ours", baseline=None, metric="accuracy", margin=0.36), "value", 0.6, False),
        # 0.2 each minus 0.5, 0.6, 0.7: -0.4 +- 0.248.
        (Claim(text="", arm="seed_model", baseline="ours", metric="accuracy", lower_is_better=True), None, -0.4, True),
        (Claim(text="", arm="ours", baseline="seed_model", metric="accuracy", lower_is_better=True), None, 0.4, False),
        (Claim(text="", arm="ours", baseline=None, metric="accuracy", round=0), "value", 0.5, True),
    ],
)
def test_a_margin_a_direction_and_a_round(claim, kind, estimate, holds):
    method = dataclasses.replace(METHOD, claims=(claim,))
    summaries = [summary(seed, {arm: values[seed] for arm, values in ACCURACY.items()}) for seed in range(3)]
    (row,) = combine(method, REPRODUCTION, summaries)["claims"]
    assert row[kind or "difference"] == pytest.approx(estimate)
    assert row["holds"] is holds


def test_where_gold_brings_nothing_no_share_of_it_is_reached():
    claims = combined(ACCURACY | {"gold": (0.2, 0.1, 0.2)})["claims"]
    assert (claims[2]["ratio"], claims[2]["ci95"], claims[2]["holds"]) == (None, [None, None], False)
    assert claims[0]["holds"] is True


def test_means_and_spreads_are_over_seeds():
    result = combined()
    ours = result["arms"]["ours"]["accuracy"]
    assert ours["mean"] == pytest.approx(0.6)
    assert ours["stderr"] == pytest.approx(0.1 / sqrt(3))
    assert ours["n"] == 1500
    assert result["arms"]["ours"].keys() == {"accuracy"}
    assert result["per_seed"]["2"]["ours"] == {"accuracy": 0.7}
    first, last = result["rounds"]["ours"]
    assert last == pytest.approx({"accuracy": 0.6})
    # One seed could not measure it, so that there is no mean over the same seeds.
    assert first == pytest.approx({"accuracy": 0.5})


def test_the_result_has_the_shape_of_a_summary():
    result = combined()
    assert result.keys() == {
        "method", "recipe", "seeds", "wall_seconds", "wall_seconds_per_seed", "arms", "claims", "per_seed", "rounds",
        "tried", "versions",
    }  # fmt: skip
    assert (result["method"], result["recipe"], result["seeds"], result["tried"]) == ("made_up", "small", [0, 1, 2], 4)
    assert (result["wall_seconds"], result["wall_seconds_per_seed"]) == (33.0, [10.0, 11.0, 12.0])
    json.dumps(result, allow_nan=False)


def test_seeds_are_run_in_directories_of_their_own_and_the_result_is_written(tmp_path: Path, monkeypatch):
    calls, read = [], []

    def run(method, config, out, *, seed, recipe, strict):
        calls.append((method.name, out, seed, recipe, strict))
        read.append(config.task.data)
        arms = ("seed_model", *config.arms)
        one = summary(seed, {arm: 0.2 + 0.1 * i + 0.01 * seed for i, arm in enumerate(arms)})
        for reports in one["arms"].values():
            reports["accuracy_sc8"] = reports["accuracy"]
        for reports in one["per_seed"][str(seed)].values():
            reports["accuracy_sc8"] = reports["accuracy"]
        return one

    monkeypatch.setattr(reproductions, "run_method", run)
    result = reproduce("scpo", recipe="small", seeds=range(3), out=tmp_path / "results", runs=tmp_path / "runs")
    assert calls == [("scpo", tmp_path / "runs" / "scpo-small" / f"seed-{s}", s, "small", True) for s in range(3)]
    assert json.loads((tmp_path / "results" / "scpo.json").read_text()) == result
    assert len(result["claims"]) == len(methods.get("scpo").claims)
    other = reproduce("scpo", recipe="small", seeds=range(3), out=tmp_path, runs=tmp_path, data=str(tmp_path / "runs"))
    assert read == [None] * 3 + [str(tmp_path / "runs")] * 3
    assert "data" not in result and other["data"] == str(tmp_path / "runs")
    (tmp_path / "runs").mkdir()
    found = reproduce("scpo", recipe="small", seeds=range(3), out=tmp_path, runs=tmp_path, data=str(tmp_path / "runs"))
    assert found["data"] == "runs", "a result names no directories of the machine it was made on"


def test_a_finished_seed_is_read_and_one_with_other_settings_is_not(tmp_path: Path, monkeypatch):
    method, config = methods.get("scpo"), reproductions.get("scpo").recipes["small"]
    for seed, arms in ((0, config.arms), (1, config.arms), (2, config.arms[:1])):
        run = RunDirectory(tmp_path / "scpo-small" / f"seed-{seed}")
        run.path.mkdir(parents=True)
        run.write_config(run_settings(method, dataclasses.replace(config, arms=arms), seed=seed, recipe="small"))
        run.write_summary(summary(seed, dict.fromkeys(("seed_model", *config.arms), 0.5)))

    def run_again(method, config, out, **_):
        raise InputError(f"ran {out.name}")

    monkeypatch.setattr(reproductions, "run_method", run_again)
    with pytest.raises(InputError, match="ran seed-2"):
        reproduce("scpo", recipe="small", seeds=range(3), out=tmp_path / "results", runs=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "scop"}, "no method is called 'scop': did you mean 'scpo'"),
        ({"recipe": "smoke"}, "scpo has no reproduction 'smoke': choose one of small"),
        ({"seeds": range(2)}, r"2 seed\(s\) give no interval over seeds: pass --seeds 3 or more"),
    ],
)
def test_what_cannot_be_reproduced(arguments, message, tmp_path):
    given = {"name": "scpo", "recipe": "small", "seeds": range(3), "out": tmp_path, "runs": tmp_path} | arguments
    with pytest.raises(InputError, match=message):
        reproduce(given.pop("name"), **given)


def test_a_seed_model_with_nothing_to_show_stops_the_reproduction(tmp_path: Path, monkeypatch, seed_model):
    hopeless = tiny.with_model(tiny.config(rounds=1), seed_model)
    values = {"accuracy": 0.0, "accuracy_sc4": 0.0}
    monkeypatch.setattr("selftaught.methods.scpo._check_seed_model", lambda lab, *_: lab.warn(f"hopeless {values}"))
    monkeypatch.setattr(
        reproductions,
        "get",
        lambda _: Reproduction(method="scpo", metrics=("accuracy",), recipes={"small": hopeless}, tried=0),
    )
    with pytest.raises(InputError, match="hopeless"):
        reproduce("scpo", recipe="small", seeds=range(3), out=tmp_path / "results", runs=tmp_path / "runs")
    assert not (tmp_path / "results").exists()
