"""A Byte Latent Transformer through every objective, adapter and precision of the trainer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import byte_models
from tests.train import samples
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from selftaught.errors import InputError
from selftaught.models.blt import BltConfig, BltForCausalLM, ByteTokenizer
from selftaught.models.load import load_model
from selftaught.models.special_tokens import add_token
from selftaught.scorers.reward_model import RewardModel
from selftaught.specs import KTO, SFT, BradleyTerry, Lora, ModelSpec, ObjectiveSpec, Preference, StepKTO
from selftaught.train.batching import collate
from selftaught.train.distributed import join_ranks
from selftaught.train.encoding import encode
from selftaught.train.loop import train
from selftaught.train.probe import Mode, choose_mode
from selftaught.train.reference import reference_logps
from selftaught.train.rewards import reward_items
from selftaught.train.setup import open_model, prepare, prepare_rewards
from selftaught.train.update import Updater
from selftaught.types import Completion, Demonstration, Group, Prompt

BYTES = ByteTokenizer()
OBJECTIVES = [
    pytest.param(SFT(), samples.demonstrations(8), id="sft"),
    pytest.param(Preference(beta=0.5, nll_alpha=1.0), samples.pairs(8), id="dpo"),
    pytest.param(KTO(beta=0.5), samples.feedback(8), id="kto"),
    pytest.param(StepKTO(), samples.feedback(8), id="step-kto"),
    pytest.param(BradleyTerry(), samples.pairs(8), id="reward"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return byte_models.save(byte_models.blt_with_transformer(), tmp_path_factory.mktemp("blt"))


def job(model: ModelSpec, out: Path, objective: ObjectiveSpec, rows: Sequence[Any], **changes: Any):
    return samples.job(model, out, objective=objective, examples=rows, settings=samples.settings(**changes))


def entropy_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if ".entropy_model." in name}


def by_hand(network: BltForCausalLM, rows: Sequence[Any], template: str = "plain") -> list[float]:
    """Return the summed log-prob of every completion, one unpadded row at a time."""
    sums = []
    for example in encode(BYTES, rows, template, ""):
        for completion in example.completions:
            ids = torch.tensor([[*example.prompt, *completion]])
            with torch.no_grad():
                logps = network(ids[:, :-1]).logits[0].log_softmax(-1)
            targets = logps.gather(-1, ids[0, 1:, None])[len(example.prompt) - 1 :]
            sums.append(float(targets.sum()))
    return sums


def test_the_probe_chooses_padded_rows_and_says_why():
    mode, reason = choose_mode(byte_models.blt())
    assert mode == Mode(packed=False, chunked=True)
    assert reason == "this model takes no packed rows: training on separate rows"


@pytest.mark.parametrize(
    "changes",
    [
        {"patching": "explicit"},
        {"ngram_vocab": 500_000, "hidden_size": 96, "num_attention_heads": 4},
        {"ngram_sizes": (), "pooled_query": False, "encoder_cross_attention": "all", "decoder_cross_attention": "none"},
        {"global_key_value_heads": 3, "patch_width": 3, "global_attention_heads": 6, "ngram_table": "frequency"},
    ],
)
def test_the_probe_decides_on_a_small_copy_of_every_kind(changes: dict[str, Any]):
    config = BltConfig(**{**byte_models.SIZES, "global_key_value_heads": None, **changes})
    with torch.device("meta"):
        network = BltForCausalLM(config)
    assert choose_mode(network)[0] == Mode(packed=False, chunked=True)


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("rows", [samples.demonstrations(6), samples.pairs(6)], ids=["demonstrations", "pairs"])
def test_log_probs_are_those_of_single_rows(model: ModelSpec, template: str, rows: Sequence[Any]):
    """Also the chat template, under which the end token is the last target."""
    spec = replace(model, template=template)
    scores = reference_logps(spec, rows, samples.settings(micro_batch_tokens=200))
    found = [s.value for s in scores]
    assert found == pytest.approx(by_hand(AutoModelForCausalLM.from_pretrained(model.source), rows, template), abs=1e-4)
    for example in encode(BYTES, rows, template, ""):
        assert all(c[-1] == BYTES.eos_token_id for c in example.completions)


def test_the_first_loss_of_dpo_is_that_of_no_preference_yet(model: ModelSpec, tmp_path: Path):
    """Before the first update the policy is its reference: the loss is ln 2 times the mean weight."""
    rows = [replace(p, weight=1.0) for p in samples.pairs(4)]
    train(job(model, tmp_path, Preference(beta=0.5), rows, epochs=1))
    assert samples.metrics(tmp_path)[0]["loss"] == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize(("objective", "rows"), OBJECTIVES)
def test_every_objective_trains_and_the_split_into_micro_batches_does_not_matter(
    model: ModelSpec, tmp_path: Path, objective: ObjectiveSpec, rows: Sequence[Any]
):
    train(job(model, tmp_path / "whole", objective, rows, epochs=1))
    train(job(model, tmp_path / "split", objective, rows, epochs=1, micro_batch_tokens=40))
    whole, split = samples.metrics(tmp_path / "whole"), samples.metrics(tmp_path / "split")
    assert len(whole) == 2
    for a, b in zip(whole, split, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3) and a["grad_norm"] > 0
    before, after = samples.weights(Path(model.source)), samples.weights(tmp_path / "whole" / "model")
    kept = entropy_weights(before)
    assert kept and all(torch.equal(value, after[name]) for name, value in kept.items())
    assert not torch.equal(
        before["model.global_stack.layers.0.attention.q.weight"],
        after["model.global_stack.layers.0.attention.q.weight"],
    )


class Stopped(Exception):
    """Stands for a run that ended in the middle."""


def test_a_stopped_run_resumes_bit_equal_and_its_models_open_with_the_auto_classes(
    model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows, original, steps = samples.demonstrations(8), Updater.update, []

    def update(self: Updater, items: Any, step: int, lr: float) -> dict[str, float]:
        steps.append(step)
        if steps == [0, 1, 2, 3]:
            raise Stopped
        return original(self, items, step, lr)

    train(job(model, tmp_path / "whole", SFT(), rows, snapshots="epoch"))
    monkeypatch.setattr(Updater, "update", update)
    with pytest.raises(Stopped):
        train(job(model, tmp_path / "stopped", SFT(), rows, snapshots="epoch"))
    train(job(model, tmp_path / "stopped", SFT(), rows, snapshots="epoch"))
    assert steps == [0, 1, 2, 3, 3]
    a, b = (samples.weights(tmp_path / name / "model") for name in ("whole", "stopped"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    for path in (*sorted((tmp_path / "whole" / "snapshots").iterdir()), tmp_path / "whole" / "model"):
        opened = AutoModelForCausalLM.from_pretrained(path)
        assert isinstance(opened, BltForCausalLM) and not any(
            p.requires_grad for p in opened.model.entropy_model.parameters()
        )
        assert isinstance(AutoTokenizer.from_pretrained(path), ByteTokenizer)


def test_an_adapter_trains_beside_the_frozen_entropy_model_and_opens_again(model: ModelSpec, tmp_path: Path):
    rows = samples.demonstrations(8)
    train(job(model, tmp_path, SFT(), rows, lora=Lora(rank=2), epochs=4, lr=1e-2))
    adapter = tmp_path / "model"
    assert not any("entropy_model" in name for name in samples.weights(adapter))
    spec = replace(model, adapter=str(adapter))
    losses = [line["loss"] for line in samples.metrics(tmp_path)]
    assert losses[-1] < losses[0]
    adapted = [s.value for s in reference_logps(spec, rows, samples.settings())]
    merged = load_model(spec).merge_and_unload()
    assert by_hand(merged, rows) == pytest.approx(adapted, abs=1e-3)
    assert adapted != pytest.approx([s.value for s in reference_logps(model, rows, samples.settings())], abs=1e-2)
    # Folded in, all weights are trained again but those of the entropy model.
    opened = open_model(spec, samples.settings(), torch.device("cpu"))
    frozen = {name for name, p in opened.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in opened.named_parameters() if ".entropy_model." in name}


def test_recomputed_activations_give_the_same_update(model: ModelSpec, tmp_path: Path):
    rows = samples.demonstrations(4)
    for name, recompute in (("plain", False), ("again", True)):
        train(job(model, tmp_path / name, SFT(), rows, epochs=1, activation_checkpointing=recompute))
    a, b = (samples.weights(tmp_path / name / "model") for name in ("plain", "again"))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_in_bf16_boundaries_stay_those_of_float32(model: ModelSpec, tmp_path: Path):
    prepared = prepare(model, samples.settings(precision="bf16"), join_ranks(), 0)
    inner = prepared.policy.model.model
    assert {p.dtype for p in inner.entropy_model.parameters()} == {torch.float32}
    assert inner.global_stack.layers[0].attention.q.weight.dtype == torch.bfloat16
    ids = torch.tensor([[1, *BYTES.encode_bytes((byte_models.TEXT * 4).encode())]])
    plain = AutoModelForCausalLM.from_pretrained(model.source)
    assert torch.equal(inner.find_starts(ids), plain.model.find_starts(ids))
    train(job(model, tmp_path, SFT(), samples.demonstrations(8), epochs=1, precision="bf16"))
    before, after = samples.weights(Path(model.source)), samples.weights(tmp_path / "model")
    assert all(torch.equal(v, after[n]) and v.dtype == torch.float32 for n, v in entropy_weights(before).items())


def test_a_reward_is_read_at_the_last_byte_by_trainer_scorer_and_single_rows(model: ModelSpec, tmp_path: Path):
    rows = samples.pairs(6)
    train(job(model, tmp_path, BradleyTerry(), rows, epochs=1))
    spec = ModelSpec(source=str(tmp_path / "model"))
    network = AutoModelForSequenceClassification.from_pretrained(spec.source)
    examples = encode(BYTES, rows, "plain", "")
    alone = [
        float(network(torch.tensor([[*e.prompt, *c]])).logits[0, 0].detach()) for e in examples for c in e.completions
    ]
    prepared = prepare_rewards(spec, samples.settings(), join_ranks(), 0, 0)
    with torch.no_grad():
        found = prepared.policy(collate(reward_items(examples), packed=False, pad_id=0)).tolist()
    assert found == pytest.approx(alone, abs=1e-5)
    groups = [Group(prompt=p.prompt, completions=(p.chosen, p.rejected)) for p in rows]
    assert [s.value for row in RewardModel(model=spec)(groups) for s in row] == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.01


def test_a_reward_model_with_an_adapter_scores(model: ModelSpec, tmp_path: Path):
    """peft hands on every argument that transformers' models have, `inputs_embeds` among them."""
    rows = samples.pairs(4)
    train(job(model, tmp_path, BradleyTerry(), rows, epochs=1, lora=Lora(rank=2)))
    spec = replace(model, adapter=str(tmp_path / "model"))
    groups = [Group(prompt=p.prompt, completions=(p.chosen, p.rejected)) for p in rows]
    found = [s.value for row in RewardModel(model=spec)(groups) for s in row]
    prepared = prepare_rewards(spec, samples.settings(), join_ranks(), 0, 0)
    with torch.no_grad():
        trained = prepared.policy(collate(reward_items(encode(BYTES, rows, "plain", "")), packed=False, pad_id=0))
    assert found == pytest.approx(trained.tolist(), abs=1e-4)


@pytest.fixture(scope="module")
def resets() -> list[Demonstration]:
    return [
        Demonstration(
            prompt=Prompt.from_text("q"),
            completion=Completion(prompt_id="q", k=0, text=text, finish="stop"),
            loss_from=(text.index("["),),
        )
        for text in ("bad[RESET]good", "éé[RESET]è")
    ]


def test_an_added_token_is_trained_with_an_adapter(resets: list[Demonstration], tmp_path: Path):
    start = byte_models.save(byte_models.blt(), tmp_path / "blt")
    add_token(model=start, token="[RESET]", out=tmp_path / "start", seed=0)
    start = ModelSpec(source=str(tmp_path / "start"))
    train(job(start, tmp_path / "run", SFT(), resets, epochs=2, lora=Lora(rank=2), lr=1e-2))
    merged = load_model(replace(start, adapter=str(tmp_path / "run" / "model"))).merge_and_unload()
    before = load_model(start)
    for old, new in ((before.lm_head, merged.lm_head), (before.get_input_embeddings(), merged.get_input_embeddings())):
        assert not torch.equal(new.weight[-1], old.weight[-1]) and torch.equal(new.weight[:-1], old.weight[:-1])


def test_an_adapter_cannot_tell_two_tables_apart(model: ModelSpec, resets: list[Demonstration], tmp_path: Path):
    """A transformer that places patches has an `lm_head` too, which knows nothing of an added token."""
    add_token(model=model, token="[RESET]", out=tmp_path / "start", seed=0)
    start = ModelSpec(source=str(tmp_path / "start"))
    with pytest.raises(
        InputError, match=r"added tokens in lm_head and not in model\.entropy_model\.lm_head: train all"
    ):
        train(job(start, tmp_path / "run", SFT(), resets, lora=Lora(rank=2)))
    train(job(start, tmp_path / "whole", SFT(), resets, epochs=1))
