import dataclasses
from pathlib import Path

import pytest
import torch
from tests import architectures
from tests.train import samples
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftaught.errors import InputError, NothingToTrainOn, TrainingDiverged
from selftaught.models.load import load_model
from selftaught.specs import SFT, Lora, ModelSpec, Preference
from selftaught.store.stage import Store
from selftaught.train import loop
from selftaught.train.loop import train
from selftaught.train.reference import reference_logps
from selftaught.train.update import Updater
from selftaught.types import Demonstration, Document, Pair, Score


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelSpec:
    return samples.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """Return a finished preference job of two epochs, with a snapshot of each."""
    job = samples.job(model, tmp_path_factory.mktemp("trained") / "run", settings=samples.settings(snapshots="epoch"))
    train(job)
    return job


def test_the_model_opens_with_from_pretrained(trained):
    opened = AutoModelForCausalLM.from_pretrained(trained.out / "model")
    assert opened.dtype == torch.float32
    assert opened.generation_config.eos_token_id == 1
    assert AutoTokenizer.from_pretrained(trained.out / "model").eos_token == "<eos>"
    before = samples.weights(trained.out.parents[0] / "run" / "snapshots" / "epoch-1")
    after = samples.weights(trained.out / "model")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in after)
    assert samples.weights(trained.out / "snapshots" / "epoch-2").keys() == after.keys()


def test_metrics_of_every_update(trained):
    lines = samples.metrics(trained.out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["effective_batch"] for line in lines] == [4, 4, 2, 4, 4, 2]
    assert lines[-1]["epoch"] == pytest.approx(2.0)
    tokens = sum(2 * len(e.prompt) + sum(map(len, e.completions)) for e in samples.encoded(samples.pairs(10)))
    assert lines[-1]["num_tokens"] == 2 * tokens
    assert {
        "loss",
        "grad_norm",
        "learning_rate",
        "rewards/chosen",
        "rewards/margins",
        "logps/rejected",
        "nll_loss",
    } <= (lines[0].keys())
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-4), "policy and reference start equal"
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_finished_run_is_left_alone(trained, monkeypatch):
    monkeypatch.setattr(loop, "load_tokenizer", lambda spec: pytest.fail("it was opened again"))
    before = {file: file.stat().st_mtime_ns for file in trained.out.rglob("*")}
    train(trained)
    assert before and {file: file.stat().st_mtime_ns for file in trained.out.rglob("*")} == before


def test_the_checkpoint_of_another_job_is_refused(model, tmp_path):
    job = samples.job(model, tmp_path, settings=samples.settings(max_steps=2))
    train(job)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    for change in (
        {"seed": 1},
        {"objective": Preference(beta=0.1)},
        {"settings": samples.settings(max_steps=2, lr=1.0)},
    ):
        with pytest.raises(InputError, match="another output directory"):
            train(dataclasses.replace(job, **change))


def test_the_reference_given_as_a_stage_is_the_one_computed(model, trained, tmp_path):
    rows = samples.pairs(10)
    scores = reference_logps(model, rows, trained.settings)
    assert {s.completion_id for s in scores} == {c.id for p in rows for c in (p.chosen, p.rejected)}
    store = Store(tmp_path / "store")
    stages = {}
    for name, row_type, content in (("pairs", Pair, rows), ("reference", Score, scores)):
        with store.writer(name, name, row_type) as writer:
            writer.write(0, content)
            stages[name] = writer.commit().path
    job = dataclasses.replace(trained, out=tmp_path / "run", examples=stages["pairs"], reference=stages["reference"])
    train(job)
    assert not (tmp_path / "run" / "reference").exists()
    assert samples.metrics(job.out) == samples.metrics(trained.out)


def test_supervised_training_learns(model, tmp_path):
    settings = samples.settings(epochs=15, lr=3e-3)
    train(samples.job(model, tmp_path, examples=samples.demonstrations(10), objective=SFT(), settings=settings))
    lines = samples.metrics(tmp_path)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]


def test_an_adapter_is_trained_saved_and_continued(model, tmp_path):
    settings = samples.settings(lora=Lora(rank=2, alpha=4.0), lr=1e-2)
    train(samples.job(model, tmp_path / "one", settings=settings))
    saved = samples.weights(tmp_path / "one" / "model")
    assert all("lora_" in name for name in saved)
    adapted = dataclasses.replace(model, adapter=str(tmp_path / "one" / "model"))
    (first, *_), (second, *_) = samples.metrics(tmp_path / "one"), _continue(adapted, tmp_path / "two", settings)
    assert second["nll_loss"] < first["nll_loss"]
    continued = samples.weights(tmp_path / "two" / "model")
    assert continued.keys() == saved.keys()
    assert any(not torch.equal(continued[name], saved[name]) for name in saved)


def _continue(model: ModelSpec, out, settings) -> list[dict]:
    train(samples.job(model, out, settings=settings))
    return samples.metrics(out)


def test_an_adapter_is_folded_in_before_full_training(model, tmp_path):
    settings = samples.settings(lora=Lora(rank=2), max_steps=1)
    train(samples.job(model, tmp_path / "one", settings=settings))
    adapted = dataclasses.replace(model, adapter=str(tmp_path / "one" / "model"))
    train(samples.job(adapted, tmp_path / "two", settings=samples.settings(max_steps=1)))
    assert samples.weights(tmp_path / "two" / "model").keys() == samples.weights(Path(model.source)).keys()


def test_an_adapter_that_fits_nowhere_is_named(model, tmp_path):
    with pytest.raises(InputError, match=r"no adapter fits lora.targets=\['nowhere'\]"):
        train(samples.job(model, tmp_path, settings=samples.settings(lora=Lora(targets=("nowhere",)))))


def test_weights_are_saved_in_the_dtype_they_came_in(model, tmp_path):
    load_model(model, dtype=torch.bfloat16).save_pretrained(tmp_path / "narrow")
    architectures.tokenizer().save_pretrained(tmp_path / "narrow")
    source = ModelSpec(source=str(tmp_path / "narrow"))
    for name, spec, expected in (("a", source, torch.bfloat16), ("b", model, torch.float32)):
        settings = samples.settings(max_steps=1, precision="bf16")
        train(samples.job(spec, tmp_path / name, settings=settings))
        assert {t.dtype for t in samples.weights(tmp_path / name / "model").values()} == {expected}
        assert load_model(ModelSpec(source=str(tmp_path / name / "model"))).dtype == expected


def test_the_first_rows_are_shown_before_training(model, tmp_path, capsys):
    train(samples.job(model, tmp_path, settings=samples.settings(max_steps=1)))
    shown = capsys.readouterr().err
    assert shown.count("⟦") == 4
    assert "<eos>⟧" in shown
    assert "10 examples; 20 completions encoded from text" in shown


def test_a_model_that_cannot_take_trees_says_so_and_trains(tmp_path, capsys):
    bloom = samples.save_model(tmp_path / "bloom", "bloom")
    train(samples.job(bloom, tmp_path / "run", settings=samples.settings(max_steps=2)))
    assert "training on separate rows" in capsys.readouterr().err
    assert len(samples.metrics(tmp_path / "run")) == 2


def test_tree_rows_can_be_switched_off(model, trained, tmp_path):
    train(samples.job(model, tmp_path, settings=samples.settings(tree_rows=False)))
    for mine, wanted in zip(samples.metrics(tmp_path), samples.metrics(trained.out), strict=True):
        # At the start both sides of a pair have a margin of 0, and rounding decides which is larger.
        names = mine.keys() - {"rewards/accuracies"}
        assert {n: mine[n] for n in names} == pytest.approx({n: wanted[n] for n in names}, rel=1e-3, abs=1e-4)


def test_rows_that_are_too_long_are_left_out_and_counted(model, tmp_path, capsys):
    lengths = sorted(e.longest for e in samples.encoded(samples.pairs(10)))
    train(samples.job(model, tmp_path, settings=samples.settings(max_length=lengths[4], max_steps=1)))
    left_out = sum(n > lengths[4] for n in lengths)
    assert f"{left_out} of 10 examples left out: longer than {lengths[4]} tokens" in capsys.readouterr().err


def test_nothing_to_train_on(model, tmp_path):
    with pytest.raises(NothingToTrainOn, match="there is no example"):
        train(samples.job(model, tmp_path / "a", examples=[]))
    with pytest.raises(NothingToTrainOn, match=r"all 10 examples are longer than 1 tokens .* raise max_length"):
        train(samples.job(model, tmp_path / "b", settings=samples.settings(max_length=1)))
    long = [Document(text="a " * 2000)]
    with pytest.raises(NothingToTrainOn, match="cut them, for the model's context ends there"):
        train(samples.job(model, tmp_path / "c", objective=SFT(), examples=long))


def test_divergence_keeps_the_last_checkpoint(model, tmp_path, monkeypatch):
    def poisoned(self, items, step, lr):
        items = [dataclasses.replace(i, reference=(float("nan"), 0.0)) for i in items] if step == 2 else items
        return original(self, items, step, lr)

    original = Updater.update
    monkeypatch.setattr(Updater, "update", poisoned)
    with pytest.raises(TrainingDiverged, match="update 3: loss nan"):
        train(samples.job(model, tmp_path))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    assert not (tmp_path / "model").exists()


def test_the_callers_random_state_is_left_alone(model, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(samples.job(model, tmp_path, settings=samples.settings(max_steps=1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_demonstrations_need_no_reference(model, tmp_path):
    rows = samples.demonstrations(3)
    assert isinstance(rows[0], Demonstration)
    train(samples.job(model, tmp_path, examples=rows, objective=SFT(per_sequence=True)))
    assert not (tmp_path / "reference").exists()
