"""ScPO's smoke recipe with a model that reads bytes: built, taught the task by SFT, then improved by the loop."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests import byte_models, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftaught import methods
from selftaught.models.blt import BltForCausalLM, ByteTokenizer
from selftaught.runs import run_method
from selftaught.specs import SFT, ModelSpec, Training
from selftaught.store.stage import open_stage
from selftaught.tasks import load_task
from selftaught.types import Demonstration

TEACHING = Training(lr=1e-2, epochs=5.0, batch_size=32, precision="fp32", checkpoint_every=1000)


@pytest.fixture(scope="module", params=["plain", "chat"])
def taught(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """Return a model whose patches come from n-grams of the task's text, trained on demonstrations."""
    sizes = {"hidden_size": 32, "encoder_layers": 1, "decoder_layers": 1, "num_hidden_layers": 1, "window": 64}
    untaught = byte_models.save(byte_models.blt(**sizes), tmp_path_factory.mktemp("bytes"))
    with tiny.open_lab(tmp_path_factory.mktemp("taught")) as lab:
        rows = lab.stage("demonstrations", Demonstration, load_task(tiny.TASK).demonstrations(256, seed=0))
        return lab.train(replace(untaught, template=request.param), rows, SFT(), TEACHING)


def test_the_loop_trains_a_model_that_reads_bytes(taught: ModelSpec, tmp_path: Path):
    smoke = tiny.config(model=taught, rounds=2, new_problems=0)
    config = replace(
        smoke,
        sampling=replace(smoke.sampling, max_tokens=12),
        training=replace(smoke.training, lr=3e-4),
        evaluation=replace(smoke.evaluation, max_tokens=12),
    )
    summary = run_method(methods.get("scpo"), config, tmp_path / "run", seed=0, recipe="smoke")
    assert set(summary["arms"]) == {"seed_model", "scpo"}
    assert tiny.verbs_of(tmp_path / "run", "scpo", 2).count("train") == 1
    (samples,) = tiny.stages_of(tmp_path / "run", "generate", "scpo", 1)[:1]
    completions = list(open_stage(samples))
    assert len(completions) == 24 * 4
    finished = [c for c in completions if c.finish == "stop"]
    assert len(finished) > 48 and all(c.token_ids[-1] == ByteTokenizer().eos_token_id for c in finished if c.token_ids)
    assert all(c.text.encode() == ByteTokenizer().decode_bytes(list(c.token_ids or ())) for c in finished)
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(event["loss"] == event["loss"] for event in losses if event["event"] == "train")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert isinstance(model, BltForCausalLM)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path / "run" / "model"), ByteTokenizer)
