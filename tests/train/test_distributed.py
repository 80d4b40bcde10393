"""Two gloo processes give what one gives. All jobs run under one torchrun, for starting it costs most of the time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests import byte_models
from tests.train import samples

from selftaught.specs import SFT, BradleyTerry, Lora, ModelSpec, StepKTO
from selftaught.train.distributed import Ranks, join_ranks
from selftaught.train.loop import train

ROOT = Path(__file__).parents[2]
STRATEGIES = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelSpec:
    made = samples.save_model(tmp_path_factory.mktemp("model"))
    for level, _ in samples.HEAD_LOSSES:
        # Here, because both processes would write it.
        samples.with_head(made, level)
    samples.byte_model(made)
    return made


@pytest.fixture(scope="module")
def two(model, tmp_path_factory) -> Path:
    """Return the directory of what two processes trained."""
    out = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    script = str(Path(__file__).parent / "two_ranks.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, script, model.source, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def one(model: ModelSpec, out: Path, **changes) -> Path:
    """Train the same job in this process."""
    train(samples.job(model, out, examples=samples.pairs(9), settings=samples.settings(**changes)))
    return out


def assert_same(found: Path, expected: Path, tolerance: float) -> None:
    for mine, wanted in zip(samples.metrics(found), samples.metrics(expected), strict=True):
        names = mine.keys() - {"rewards/accuracies"}
        assert {n: mine[n] for n in names} == pytest.approx({n: wanted[n] for n in names}, rel=tolerance, abs=tolerance)
    mine, wanted = samples.weights(found / "model"), samples.weights(expected / "model")
    assert mine.keys() == wanted.keys()
    for name in mine:
        assert mine[name].dtype == wanted[name].dtype
        # Adam divides by the gradient's size, so rounding moves a weight whose gradient is nearly 0 by up to the lr.
        assert (mine[name] - wanted[name]).abs().mean() <= tolerance, name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_give_what_one_gives(model, two, strategy, tmp_path):
    assert_same(two / strategy, one(model, tmp_path, snapshots="epoch"), 1e-4)


@pytest.mark.parametrize(("name", "tolerance"), [("bytes", 1e-4), ("bytes-bf16", 0.1)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_byte_models_on_documents_keep_their_entropy_model(model, two, strategy, name, tolerance, tmp_path):
    source = samples.byte_model(model)
    settings = samples.settings(precision="bf16" if "bf16" in name else "fp32", max_steps=3)
    train(samples.job(source, tmp_path, examples=byte_models.documents(9), objective=SFT(), settings=settings))
    assert_same(two / f"{strategy}-{name}", tmp_path, tolerance)
    before, after = samples.weights(Path(source.source)), samples.weights(two / f"{strategy}-{name}" / "model")
    entropy = [key for key in before if ".entropy_model." in key]
    assert entropy and all(torch.equal(before[key], after[key]) for key in entropy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_micro_batch_split_gives_the_same(model, two, strategy, tmp_path):
    assert_same(two / f"{strategy}-small", one(model, tmp_path, max_steps=3), 1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bf16(model, two, strategy, tmp_path):
    assert_same(two / f"{strategy}-bf16", one(model, tmp_path, precision="bf16", max_steps=3), 0.1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_adapters(model, two, strategy, tmp_path):
    assert_same(two / f"{strategy}-adapter", one(model, tmp_path, lora=Lora(rank=2), max_steps=3), 1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reference_points_are_those_of_the_whole_batch(model, two, strategy, tmp_path):
    told = {"examples": samples.feedback(9), "objective": StepKTO(beta=0.3, step_beta=0.7)}
    train(samples.job(model, tmp_path, settings=samples.settings(), **told))
    assert_same(two / f"{strategy}-feedback", tmp_path, 1e-4)
    assert any(line["kl"] > 0 or line["step_kl"] > 0 for line in samples.metrics(tmp_path))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reward_models_start_from_the_same_head(model, two, strategy, tmp_path):
    rewarded = {"examples": samples.pairs(9), "objective": BradleyTerry()}
    train(samples.job(model, tmp_path, settings=samples.settings(), **rewarded))
    assert_same(two / f"{strategy}-rewards", tmp_path, 1e-4)


@pytest.mark.parametrize(("level", "objective"), samples.HEAD_LOSSES)
def test_heads(model, two, level, objective, tmp_path):
    decided = {"examples": samples.chosen_pairs(9, level), "objective": objective}
    train(samples.job(samples.with_head(model, level), tmp_path, settings=samples.settings(), **decided))
    assert_same(two / f"{level}-head", tmp_path, 1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_ends_in_the_same_bits(two, strategy):
    for part in ("model", "snapshots/epoch-1", "snapshots/epoch-2"):
        whole, resumed = samples.weights(two / strategy / part), samples.weights(two / f"{strategy}-resumed" / part)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), part
    assert samples.metrics(two / strategy) == samples.metrics(two / f"{strategy}-resumed")


def test_alone_every_method_is_the_identity(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (join_ranks().rank, join_ranks().world) == (0, 1)
    alone = Ranks(rank=0, world=1, device=torch.device("cpu"))
    assert alone.total({"a": 2.0}) == {"a": 2.0}
    assert alone.collect("x") == ["x"]
    assert alone.add_up(torch.ones(2)).tolist() == [1.0, 1.0]
    alone.wait()
