"""What every method must fulfil, whatever it does: its record, its configuration, its recipes, its smoke run."""

import dataclasses
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests import tiny

from selftaught import methods, recipes, reproductions
from selftaught.config import describe, from_dict, override, to_dict
from selftaught.executor import resolve
from selftaught.methods.method import Claim, Method
from selftaught.runs import run_method
from selftaught.specs import ModelSpec
from selftaught.tasks.task import TaskSpec

ROOT = Path(__file__).parents[2]
RECIPES = [(name, recipe) for name in methods.NAMES for recipe in recipes.names(name)]


@pytest.fixture(params=methods.NAMES)
def method(request: pytest.FixtureRequest) -> Method:
    return methods.get(request.param)


@pytest.fixture(scope="module", params=methods.NAMES)
def smoke(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Method, Any, Path, dict]:
    """Run the smoke recipe: (method, configuration, run directory, summary)."""
    method, config = methods.get(request.param), recipes.get(request.param, "smoke")
    out = tmp_path_factory.mktemp("smoke") / method.name
    return method, config, out, run_method(method, config, out, seed=0, recipe="smoke")


# --- records ---------------------------------------------------------------------------------------------------------


def test_the_record_is_complete(method):
    assert methods.get(method.name) is method
    assert re.fullmatch(r"[a-z][a-z0-9_]*", method.name)
    assert method.title and method.claim and not method.claim.endswith(".")
    assert re.fullmatch(r"arXiv \d{4}\.\d{5}", method.paper)
    assert method.equations and all(callable(resolve(place)) for place in method.equations.values())
    assert method.claims and all(isinstance(claim, Claim) for claim in method.claims)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.name = "other"


def test_the_file_says_what_it_follows_and_where_it_departs(method):
    text = sys.modules[f"selftaught.methods.{method.name}"].__doc__
    assert method.paper in text and "epartures" in text


def test_there_is_a_page_and_a_reproduction(method):
    assert (ROOT / "docs" / f"{method.name}.md").exists()
    reproduction = reproductions.get(method.name)
    assert reproduction.method == method.name and "small" in reproduction.recipes
    for config in reproduction.recipes.values():
        arms = {"seed_model", *config.arms}
        assert all({claim.arm, claim.baseline or claim.arm, claim.gold or claim.arm} <= arms for claim in method.claims)
    assert {claim.metric for claim in method.claims} <= set(reproduction.metrics)


def test_the_configuration_class_is_frozen_and_by_keyword_only(method):
    assert dataclasses.is_dataclass(method.config) and method.config.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(method.config))
    assert {field.name for field in dataclasses.fields(method.config)} >= {"task", "model", "seed_model", "arms"}


def test_nothing_heavy_is_imported(method):
    modules = f"selftaught.methods.{method.name}, selftaught.recipes.{method.name}"
    code = f"import sys, {modules}; assert not {{'torch', 'transformers', 'pyarrow'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "src")


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.NAMES)
def test_the_recipes_there_must_be(name):
    assert {"paper", "small", "smoke"} <= set(recipes.names(name))


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_a_recipe_crosses_processes_and_files(name, recipe):
    config = recipes.get(name, recipe)
    assert isinstance(config, methods.get(name).config)
    assert config == recipes.get(name, recipe)
    assert pickle.loads(pickle.dumps(config)) == config
    assert from_dict(type(config), to_dict(config)) == config
    assert from_dict(type(config), yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config
    assert override(config, []) == config


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_every_listed_field_can_be_given(name, recipe):
    config = recipes.get(name, recipe)
    plain = [(f, v) for f, v in describe(config) if v is None or isinstance(v, bool | int | float | str)]
    assert override(config, [part for field, value in plain for part in (f"--{field}", str(value))]) == config


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_a_recipe_says_what_it_will_cost(name, recipe, tmp_path):
    config = recipes.get(name, recipe)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(f'{{"prompt": "{i}?"}}' for i in range(50)))
    if recipe == "own":
        config = dataclasses.replace(config, task=TaskSpec(name="user", data=str(rows)), model=ModelSpec(source="m"))
    works = methods.get(name).plan(config)
    assert len(works) >= 3 * len(config.arms)
    assert all(work.rows > 0 and work.tokens > 0 and work.passes in (2, 6) for work in works)
    assert len({work.name for work in works}) == len(works)


# --- the smoke run ---------------------------------------------------------------------------------------------------


def test_every_arm_is_measured_after_every_round(smoke):
    method, config, _, summary = smoke
    before = ["seed_model"] if starts_trained(config) else []
    assert list(summary["arms"]) == [*before, *config.arms]
    assert all(len(summary["rounds"][name]) == 1 for name in before)
    for arm in config.arms:
        assert len(summary["rounds"][arm]) == config.rounds + starts_measured(method)
    metrics = {claim.metric for claim in method.claims}
    assert all(metrics <= reports.keys() for rounds in summary["rounds"].values() for reports in rounds)


def test_the_summary_has_the_shape_of_all_summaries(smoke):
    method, _, out, summary = smoke
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary.keys() == {
        "method", "recipe", "seeds", "wall_seconds", "arms", "claims", "per_seed", "rounds", "tried", "versions"
    }  # fmt: skip
    assert (summary["method"], summary["recipe"], summary["seeds"]) == (method.name, "smoke", [0])
    for reports in summary["arms"].values():
        assert all(cell.keys() == {"mean", "stderr", "n"} for cell in reports.values())
    for claim in summary["claims"]:
        assert {"text", "arm", "baseline", "metric", "ci95", "over", "holds"} <= claim.keys()
        assert (claim["over"], claim["holds"]) == ("problems", None)


def test_the_run_directory_is_whole(smoke):
    _, config, out, _ = smoke
    assert {"config.yaml", "metrics.jsonl", "stages", "summary.json"} <= {path.name for path in out.iterdir()}
    models = [out / "model"] if len(config.arms) == 1 else [out / "models" / arm for arm in config.arms]
    files = [{path.name for path in model.iterdir()} for model in models]
    # A tokenizer of bytes has learnt nothing that a file would have to hold.
    whole, head = {"config.json", "tokenizer_config.json"}, {"decoding.json", "head.safetensors"}
    assert all(whole <= names or head <= names for names in files)


def test_arms_share_the_sampling_of_their_first_round(smoke):
    _, config, out, _ = smoke
    # Some methods train on given answers, and sample nothing before an arm has a model of its own.
    verbs = {arm: tiny.verbs_of(out, arm, 1) for arm in config.arms}
    sampled = [arm for arm, done in verbs.items() if "generate" in done[: done.index("train")]]
    first = {tuple(tiny.stages_of(out, verb, arm, 1)[0] for verb in ("prompts", "generate")) for arm in sampled}
    assert len(first) == len({prompts for prompts, _ in first}), "the same prompts were sampled twice"


def test_every_event_names_its_arm_and_its_round(smoke):
    method, config, out, _ = smoke
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rounds = range(1 - starts_measured(method), config.rounds + 1)
    labels = {("seed_model", 0)} | {(arm, t) for arm in config.arms for t in rounds}
    assert {(event["arm"], event["round"]) for event in events} == labels


def starts_trained(config: Any) -> bool:
    """Say whether there is a trained model before any arm is, which is then measured too."""
    return config.model is not None or bool(config.seed_model.phases)


def starts_measured(method: Method) -> bool:
    """Say whether every arm has a measurement of its own before its first round."""
    return any(claim.round == 0 for claim in method.claims)
