"""Reward models through the trainer: where a reward is read, what is learnt, and what is saved."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests import architectures
from tests.train import samples
from tests.train.test_update import assert_same, gradients
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from selftaught.errors import InputError
from selftaught.models.load import load_model, tokenizer_fingerprint
from selftaught.objectives import build_objective
from selftaught.scorers.reward_model import RewardModel
from selftaught.specs import SFT, BradleyTerry, Lora, ModelSpec, Preference
from selftaught.train.batching import Item, collate
from selftaught.train.distributed import Ranks
from selftaught.train.encoding import Encoded, encode
from selftaught.train.loop import train
from selftaught.train.rewards import choose_pad_id, preview_rewards, reward_items
from selftaught.train.setup import prepare_rewards
from selftaught.train.update import Updater
from selftaught.types import Completion, Group, Pair, Prompt

PAIRS = samples.pairs(6)
ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))


def tokenizer(pad: str = "<pad>") -> PreTrainedTokenizerFast:
    made = copy.deepcopy(architectures.tokenizer())
    made.pad_token = pad
    return made


def save_classifier(out: Path, family: str = "llama", labels: int = 1, pad: str = "<pad>") -> ModelSpec:
    """Save a random classifier with its tokenizer, every weight large enough to matter."""
    made = tokenizer(pad)
    config = copy.deepcopy(architectures.model(family).config)
    config.num_labels, config.pad_token_id = labels, made.pad_token_id
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = AutoModelForSequenceClassification.from_config(config)
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    network.save_pretrained(out)
    made.save_pretrained(out)
    return ModelSpec(source=str(out))


def save_language_model(out: Path, pad: str = "<pad>") -> ModelSpec:
    architectures.model("llama").save_pretrained(out)
    tokenizer(pad).save_pretrained(out)
    return ModelSpec(source=str(out))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> ModelSpec:
    return save_language_model(tmp_path_factory.mktemp("model"))


def encoded(rows: Sequence[Pair] = PAIRS, pad: str = "<pad>") -> list[Encoded]:
    made = tokenizer(pad)
    return encode(made, rows, "plain", tokenizer_fingerprint(made))


def updater(model: ModelSpec, rows: Sequence[Pair] = PAIRS, pad: str = "<pad>", **changes) -> Updater:
    settings, made = samples.settings(**changes), tokenizer(pad)
    pad_id = choose_pad_id(encoded(rows, pad), made)
    prepared = prepare_rewards(model, settings, ALONE, made.pad_token_id, pad_id)
    return Updater(
        policy=prepared.policy,
        objective=build_objective(BradleyTerry()),
        weights=prepared.weights,
        optimizer=torch.optim.AdamW(prepared.weights.masters, weight_decay=0.0, fused=True),
        settings=settings,
        ranks=ALONE,
        batcher=prepared.batcher,
    )


def items(rows: Sequence[Pair] = PAIRS) -> list[Item]:
    return reward_items(encoded(rows))


def scored(model: ModelSpec, rows: Sequence[Pair] = PAIRS, **fields) -> list[float]:
    """Return what the scorer reads of chosen and rejected, pair after pair."""
    groups = [Group(prompt=p.prompt, completions=(p.chosen, p.rejected)) for p in rows]
    return [score.value for row in RewardModel(model=model, **fields)(groups) for score in row]


def one_by_one(network, rows: Sequence[Pair] = PAIRS) -> torch.Tensor:
    """Return the rewards [pairs, 2] of whole rows, each alone: without a pad token a classifier reads the last one."""
    before, network.config.pad_token_id = network.config.pad_token_id, None
    found = [network(torch.tensor([[*e.prompt, *c]])).logits[0, 0] for e in encoded(rows) for c in e.completions]
    network.config.pad_token_id = before
    return torch.stack(found).view(-1, 2)


# --- where a reward is read ------------------------------------------------------------------------------------------


def test_a_row_holds_its_last_token():
    for item, example in zip(items(), encoded(), strict=True):
        for row, completion in zip(item.rows, example.completions, strict=True):
            assert row.tokens.tolist() == [*example.prompt, *completion]
            assert row.tokens[-1] == architectures.tokenizer().eos_token_id
        assert (item.tokens, item.width) == (example.tokens, example.longest)
    batch = collate(items(), packed=False, pad_id=0)
    assert (batch.sequences, batch.target_count) == (12, 0)
    assert batch.inputs["attention_mask"].sum() == sum(e.tokens for e in encoded())


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral with a window"])
def test_trainer_scorer_and_single_rows_agree(family, pad, tmp_path):
    model = save_classifier(tmp_path, family, pad=pad)
    made = updater(model, pad=pad)
    with torch.no_grad():
        found = made.policy(made.batcher.collate(items())).tolist()
        alone = one_by_one(AutoModelForSequenceClassification.from_pretrained(tmp_path)).flatten().tolist()
    assert found == pytest.approx(alone, abs=1e-5)
    assert scored(model) == pytest.approx(alone, abs=1e-5)
    assert scored(model, batch_tokens=1) == pytest.approx(alone, abs=1e-5)
    assert max(found) - min(found) > 0.1


def test_the_pad_id_ends_no_row():
    rows = encoded()
    assert choose_pad_id(rows, tokenizer()) == 0
    # The end-of-turn token has id 1.
    assert choose_pad_id(rows, tokenizer("<eos>")) == 0
    ending = [dataclasses.replace(e, completions=(e.completions[0], [5, 0])) for e in rows[:1]]
    assert choose_pad_id(ending, tokenizer()) == 2
    every = [dataclasses.replace(rows[0], completions=tuple([i] for i in range(len(tokenizer()))))]
    with pytest.raises(InputError, match="give it a pad token of its own"):
        choose_pad_id(every, tokenizer())


def test_the_preview_shows_where_the_reward_is_read():
    prompt = Prompt.from_text("ab")
    chosen, rejected = (Completion(prompt_id=prompt.id, k=k, text="cde"[k:]) for k in range(2))
    shown = preview_rewards(encoded([Pair(prompt=prompt, chosen=chosen, rejected=rejected)]), tokenizer())
    assert shown.splitlines()[1:] == [
        "  ab",
        "  cde⟦<eos>⟧ its reward is read at token 6",
        "  de⟦<eos>⟧ its reward is read at token 5",
    ]


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"micro_batch_tokens": 30}, {"activation_checkpointing": True}], ids=str)
def test_the_gradient_is_that_of_the_published_loss(changes, tmp_path):
    model = save_classifier(tmp_path)
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    chosen, rejected = one_by_one(network).unbind(1)
    weights = torch.tensor([p.weight for p in PAIRS])
    (weights * (1 + (rejected - chosen).exp()).log()).mean().backward()
    expected = {name: p.grad for name, p in network.named_parameters()}
    found = gradients(updater(model, **changes), items())
    assert_same({name.removeprefix("model."): gradient for name, gradient in found.items()}, expected)


def test_the_loss_is_trls(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model = save_classifier(tmp_path / "model")
    texts = [{"prompt": p.prompt.text, "chosen": p.chosen.text, "rejected": p.rejected.text} for p in PAIRS]
    trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(model.source),
        args=trl.RewardConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=len(PAIRS),
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        processing_class=tokenizer(),
        train_dataset=datasets.Dataset.from_list(texts),
    )
    theirs = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).item()
    unweighted = [dataclasses.replace(p, weight=1.0) for p in PAIRS]
    assert updater(model).update(items(unweighted), 0, 1e-3)["loss"] == pytest.approx(theirs, rel=1e-5)


# --- what is learnt --------------------------------------------------------------------------------------------------


def test_a_difference_in_the_last_token_alone_is_learnt(language_model, tmp_path):
    """Chosen ends its turn where rejected goes on, and all before is the same."""
    print_of = tokenizer_fingerprint(tokenizer())
    rows = []
    for pair in samples.pairs(16, seed=5):
        ids = tokenizer()(pair.chosen.text)["input_ids"]
        ends = ((*ids, 1), "stop"), ((*ids, 7), "length")
        chosen, rejected = (
            Completion(prompt_id=pair.prompt.id, k=k, text="", token_ids=end, tokenizer=print_of, finish=finish)
            for k, (end, finish) in enumerate(ends)
        )
        rows.append(Pair(prompt=pair.prompt, chosen=chosen, rejected=rejected))
    settings = samples.settings(epochs=6, lr=3e-3)
    train(samples.job(language_model, tmp_path, examples=rows, objective=BradleyTerry(), settings=settings))
    assert samples.metrics(tmp_path)[-1]["rewards/accuracies"] == 1.0
    assert samples.metrics(tmp_path)[-1]["loss"] < 0.3


def planted(count: int, seed: int) -> list[Pair]:
    """Return pairs whose chosen completions have letters of the alphabet's first half, the rejected of its second."""
    rows = []
    for pair in samples.pairs(count, seed, completion=(4, 10)):
        good = "".join(chr(ord("a") + ord(c) % 13) for c in pair.chosen.text)
        bad = "".join(chr(ord("n") + ord(c) % 13) for c in pair.rejected.text)
        chosen, rejected = (Completion(prompt_id=pair.prompt.id, k=k, text=t) for k, t in enumerate((good, bad)))
        rows.append(Pair(prompt=pair.prompt, chosen=chosen, rejected=rejected))
    return rows


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_a_planted_preference_is_learnt_and_read_by_the_scorer(pad, tmp_path):
    model = save_language_model(tmp_path / "start", pad)
    settings = samples.settings(epochs=4, lr=3e-3, batch_size=8)
    train(samples.job(model, tmp_path / "run", examples=planted(48, 0), objective=BradleyTerry(), settings=settings))
    trained, unseen = ModelSpec(source=str(tmp_path / "run" / "model")), planted(40, 1)
    rewards = scored(trained, unseen)
    right = sum(c > r for c, r in zip(rewards[::2], rewards[1::2], strict=True))
    assert right > 0.9 * len(unseen)
    opened = AutoModelForSequenceClassification.from_pretrained(trained.source).eval()
    assert (opened.config.num_labels, opened.config.pad_token_id) == (1, tokenizer(pad).pad_token_id)
    with torch.no_grad():
        assert rewards == pytest.approx(one_by_one(opened, unseen).flatten().tolist(), abs=1e-5)


def test_the_scorer_reads_what_the_trainer_computed(language_model, tmp_path):
    """The first update of a training that goes on from a saved one reports that one's rewards."""
    settings = samples.settings(max_steps=3)
    rows = [dataclasses.replace(p, weight=1.0) for p in PAIRS[:4]]
    job = {"examples": rows, "objective": BradleyTerry(), "settings": settings}
    train(samples.job(language_model, tmp_path / "one", **job))
    trained = ModelSpec(source=str(tmp_path / "one" / "model"))
    train(samples.job(trained, tmp_path / "two", **job))
    rewards, line = torch.tensor(scored(trained, rows)).view(-1, 2), samples.metrics(tmp_path / "two")[0]
    assert line["rewards/chosen"] == pytest.approx(rewards[:, 0].mean().item(), abs=1e-5)
    assert line["rewards/rejected"] == pytest.approx(rewards[:, 1].mean().item(), abs=1e-5)
    loss = torch.nn.functional.softplus(rewards[:, 1] - rewards[:, 0]).mean().item()
    assert line["bradley_terry_loss"] == line["loss"] == pytest.approx(loss, abs=1e-5)
    assert line["num_tokens"] == sum(e.tokens for e in encoded(rows))


def test_a_run_that_stops_in_the_middle_ends_in_the_same_bits(language_model, tmp_path, monkeypatch):
    train(samples.job(language_model, tmp_path / "whole", objective=BradleyTerry()))
    update = Updater.update

    def stopping(self, batch, step, lr):
        if step == 3:
            raise KeyboardInterrupt
        return update(self, batch, step, lr)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Updater, "update", stopping)
        train(samples.job(language_model, tmp_path / "resumed", objective=BradleyTerry()))
    train(samples.job(language_model, tmp_path / "resumed", objective=BradleyTerry()))
    assert samples.metrics(tmp_path / "resumed") == samples.metrics(tmp_path / "whole")
    whole, resumed = (samples.weights(tmp_path / name / "model") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# --- where it starts and what is saved -------------------------------------------------------------------------------


def test_a_new_head_is_drawn_from_the_seed_and_announced(language_model, tmp_path, capsys):
    once = {"objective": BradleyTerry(), "settings": samples.settings(max_steps=1)}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(samples.job(language_model, tmp_path / name, seed=seed, **once))
        said = capsys.readouterr().err
        assert f"{language_model.source} has no reward head: a new one is drawn from the seed" in said
        assert "⟦<eos>⟧ its reward is read at token" in said and "MISSING" not in said
    heads = [samples.weights(tmp_path / name / "model")["score.weight"] for name in "abc"]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    train(samples.job(ModelSpec(source=str(tmp_path / "a" / "model")), tmp_path / "d", **once))
    assert "no reward head" not in capsys.readouterr().err
    assert not (tmp_path / "a" / "reference").exists()


def test_an_adapter_holds_the_head_is_read_continued_and_folded_in(language_model, tmp_path, capsys):
    job = {"examples": planted(16, 0), "objective": BradleyTerry()}
    small = samples.settings(lora=Lora(rank=2, alpha=4.0), lr=1e-2)
    train(samples.job(language_model, tmp_path / "one", settings=small, **job))
    saved = samples.weights(tmp_path / "one" / "model")
    assert {name for name in saved if "lora_" not in name} == {"base_model.model.score.weight"}
    assert json.loads((tmp_path / "one" / "model" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    adapted = dataclasses.replace(language_model, adapter=str(tmp_path / "one" / "model"))
    assert "no reward head" in capsys.readouterr().err
    assert samples.metrics(tmp_path / "one")[-1]["rewards/accuracies"] == 1.0
    rewards = torch.tensor(scored(adapted, job["examples"])).view(-1, 2)
    assert (rewards[:, 0] > rewards[:, 1]).all()
    for name, settings in (("continued", small), ("folded", samples.settings())):
        once = dataclasses.replace(settings, batch_size=16, max_steps=1)
        train(samples.job(adapted, tmp_path / name, settings=once, **job))
        assert "no reward head" not in capsys.readouterr().err
        line = samples.metrics(tmp_path / name)[0]
        assert line["rewards/chosen"] == pytest.approx(rewards[:, 0].mean().item(), abs=1e-4), name
        assert line["rewards/rejected"] == pytest.approx(rewards[:, 1].mean().item(), abs=1e-4), name
    continued = samples.weights(tmp_path / "continued" / "model")
    assert continued.keys() == saved.keys()
    assert all(not torch.equal(continued[name], saved[name]) for name in saved)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "folded" / "model")


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_the_adapter_of_a_language_model_is_a_start_as_well(language_model, lora, tmp_path, capsys):
    tuned = samples.settings(lora=Lora(rank=2), lr=1e-1, max_steps=2)
    train(
        samples.job(
            language_model, tmp_path / "tuned", settings=tuned, objective=SFT(), examples=samples.demonstrations(4)
        )
    )
    adapted = dataclasses.replace(language_model, adapter=str(tmp_path / "tuned" / "model"))
    made = updater(adapted, lora=lora)
    assert "no reward head" in capsys.readouterr().err
    hidden = load_model(adapted).get_base_model().base_model(torch.tensor([[5, 6, 7, 1]]))[0][0, -1]
    network = made.policy.model.get_base_model() if lora else made.policy.model
    torch.testing.assert_close(network.base_model(torch.tensor([[5, 6, 7, 1]]))[0][0, -1], hidden, atol=1e-4, rtol=1e-4)
    frozen = {name for name, p in made.policy.named_parameters() if not p.requires_grad}
    assert bool(frozen) == bool(lora)
    assert not any("lora_" in name or "score.modules_to_save" in name for name in frozen)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_saved_in_the_dtype_they_came_in(precision, tmp_path):
    load_model(save_language_model(tmp_path / "wide"), dtype=torch.bfloat16).save_pretrained(tmp_path / "narrow")
    tokenizer().save_pretrained(tmp_path / "narrow")
    for name, expected in (("wide", torch.float32), ("narrow", torch.bfloat16)):
        settings = samples.settings(max_steps=1, precision=precision)
        model = ModelSpec(source=str(tmp_path / name))
        train(samples.job(model, tmp_path / f"{name}-run", objective=BradleyTerry(), settings=settings))
        saved = tmp_path / f"{name}-run" / "model"
        assert {tensor.dtype for tensor in samples.weights(saved).values()} == {expected}
        assert AutoModelForSequenceClassification.from_pretrained(saved).dtype == expected


def test_rows_that_are_no_pairs_are_named(language_model, tmp_path):
    for rows in (samples.demonstrations(2), samples.feedback(2)):
        with pytest.raises(InputError, match=f"example {rows[0].id} is no pair: BradleyTerry trains on Pair rows"):
            train(samples.job(language_model, tmp_path, examples=rows, objective=BradleyTerry()))


def test_starts_that_are_no_start(language_model, tmp_path):
    several = save_classifier(tmp_path / "several", labels=3)
    with pytest.raises(InputError, match="is a classifier with 3 labels, and a reward model has one"):
        train(samples.job(several, tmp_path / "a", objective=BradleyTerry()))
    network = architectures.model("llama")
    rest = {name: tensor for name, tensor in network.state_dict().items() if "layers.1.mlp" not in name}
    network.save_pretrained(tmp_path / "partial", state_dict=rest)
    tokenizer().save_pretrained(tmp_path / "partial")
    with pytest.raises(InputError, match=r"holds no weights for model\.layers\.1\.mlp.* would be random"):
        train(samples.job(ModelSpec(source=str(tmp_path / "partial")), tmp_path / "b", objective=BradleyTerry()))
    headless = samples.save_model(tmp_path / "headless", "mamba")
    with pytest.raises(InputError, match="no reward model can be opened"):
        train(samples.job(headless, tmp_path / "c", objective=BradleyTerry()))


def test_a_reward_model_is_no_language_model(tmp_path):
    model = save_classifier(tmp_path / "model")
    with pytest.raises(InputError, match="causal language model"):
        train(samples.job(model, tmp_path / "run", objective=Preference()))
