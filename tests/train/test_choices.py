"""Adaptive heads through the trainer: what they read, what is learnt, what is saved, and rows that cannot be used."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import architectures
from tests.heads import sample
from tests.train import samples
from tests.train.test_update import assert_same, gradients

from selftaught.engines.adaptive import AdaptivePolicy
from selftaught.engines.policies import build_policy
from selftaught.errors import InputError
from selftaught.functional.sampling import logps_under
from selftaught.models.adaptive_decoder import WEIGHTS, AdaptiveHead, build_head, load_head
from selftaught.models.decoding import FILE, open_spec
from selftaught.models.load import load_model, tokenizer_fingerprint
from selftaught.objectives import Choices, build_objective
from selftaught.specs import Adaptive, Choice, Head, LatentPreference, Lora, ModelSpec
from selftaught.train.choices import HeadChoices, choice_items
from selftaught.train.distributed import Ranks
from selftaught.train.encoding import Encoded
from selftaught.train.loop import train
from selftaught.train.setup import prepare_choices
from selftaught.train.update import Updater
from selftaught.types import Completion, Pair, Prompt

LEVELS = ("sequence", "token")
ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
LATENT = LatentPreference(loss="latent", beta=1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelSpec:
    return samples.save_model(tmp_path_factory.mktemp("model"))


def updater(spec: ModelSpec, objective: LatentPreference = LATENT, **changes: Any) -> tuple[Updater, bool]:
    """Return what updates the head of `spec`, and whether rows are trees."""
    settings = samples.settings(**changes)
    prepared = prepare_choices(spec, settings, ALONE, 0, objective.loss == "latent")
    made = Updater(
        policy=prepared.policy,
        objective=build_objective(objective),
        weights=prepared.weights,
        optimizer=torch.optim.AdamW(prepared.weights.masters, weight_decay=0.0, fused=True),
        settings=settings,
        ranks=ALONE,
        batcher=prepared.batcher,
    )
    return made, prepared.tree


def items(made: Updater, tree: bool, level: str, rows: Sequence[Pair] | None = None):
    policy = made.policy
    assert isinstance(policy, HeadChoices)
    encoded = samples.encoded(rows or samples.chosen_pairs(6, level))
    return choice_items(encoded, policy.model, tree, policy.with_text)


@torch.no_grad()
def by_hand(network, example: Encoded, head: AdaptiveHead) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return per completion the states [L, d] that its tokens are drawn from and the log-probs [L, K] of the tokens."""
    found = []
    for completion in example.completions:
        ids = torch.tensor([[*example.prompt, *completion]])
        read = []
        layer = network.get_output_embeddings()
        hook = layer.register_forward_pre_hook(lambda _, arguments, read=read: read.append(arguments[0]))
        logits = network(ids).logits[0]
        hook.remove()
        places = slice(len(example.prompt) - 1, -1)
        under = [logps_under(logits[places], torch.tensor(completion), **asdict(c)) for c in head.choices]
        found.append((read[0][0, places], torch.stack(under, 1)))
    return found


# --- What the head reads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral with a window", "gemma2", "bloom", "mamba"])
@pytest.mark.parametrize("level", LEVELS)
def test_head_and_text_are_read_where_tokens_are_drawn_from(level, family, tmp_path) -> None:
    """Against one forward pass per completion: packed trees, padded rows, softcapped logits, rows read alone."""
    spec = samples.with_head(samples.save_model(tmp_path, family), level)
    made, tree = updater(spec)
    head, batch = made.policy.model, items(made, tree, level)
    collated = made.batcher.collate(batch)
    found = made.policy(collated)
    assert isinstance(found, Choices) and tree == (family not in ("gemma2", "bloom", "mamba"))
    network = architectures.model(family)
    wanted = [pair for item in batch for pair in by_hand(network, item.example, head)]
    for number, (states, text) in enumerate(wanted):
        own = found.owner == number
        states = states if level == "token" else states[:1]
        text = text if level == "token" else text.sum(0, keepdim=True)
        torch.testing.assert_close(found.logps[own], head(states), atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(found.text_logps[own], text, atol=2e-3, rtol=1e-3)


def test_without_text_nothing_behind_the_prompt_is_read(model) -> None:
    """The head says the same of a prompt, and the batch has no completion tokens."""
    spec = samples.with_head(model, "sequence")
    (short, tree), (whole, _) = updater(spec, LatentPreference()), updater(spec, LATENT)
    batches = [made.batcher.collate(items(made, tree, "sequence")) for made in (short, whole)]
    found, wanted = (made.policy(batch) for made, batch in zip((short, whole), batches, strict=True))
    torch.testing.assert_close(found.logps, wanted.logps, atol=1e-5, rtol=1e-5)
    assert torch.equal(batches[0].choices, batches[1].choices)
    prompts = {tuple(i.example.prompt.tolist()) for i in items(short, tree, "sequence")}
    assert sum(i.tokens for i in items(short, tree, "sequence")) == sum(map(len, prompts))


# --- The loss ---------------------------------------------------------------------------------------------------------


def published(spec: ModelSpec, objective: LatentPreference, level: str) -> dict[str, torch.Tensor]:
    """Return the gradients of the loss written out, one pair after the other."""
    head = load_head(spec.decoding.head).train()
    total = 0.0
    for example in items(*updater(spec, LATENT), level):
        scores = []
        rows = by_hand(architectures.model("llama"), example.example, head)
        for (states, text), drawn in zip(rows, example.example.choices, strict=True):
            logps = head(states if level == "token" else states[:1])
            text = text if level == "token" else text.sum(0, keepdim=True)
            if objective.loss == "latent":
                uniform = torch.full_like(logps, 1 / 3).log()
                score = (logps + text).logsumexp(1) - (uniform + text).logsumexp(1)
            else:
                score = logps[torch.arange(len(drawn)), torch.tensor(drawn)]
            scores.append(score.mean() if objective.length_normalize else score.sum())
        weight = example.example.weight
        margin = objective.beta * (scores[0] - scores[1])
        total = total + weight * (-scores[0] if objective.loss == "nll" else (1 + (-margin).exp()).log()) / 6
    total.backward()
    return {f"model.{name}": p.grad for name, p in head.named_parameters()}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss", ["token", "separate", "latent", "nll"])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_gradient_is_that_of_the_published_loss(model, level, loss, normalised) -> None:
    """Whatever the micro-batches, and whether rows are trees."""
    spec = samples.with_head(model, level)
    objective = LatentPreference(loss=loss, beta=0.7, length_normalize=normalised)
    expected = published(spec, objective, level)
    for changes in ({}, {"micro_batch_tokens": 30}, {"tree_rows": False}):
        made, tree = updater(spec, objective, **changes)
        assert_same(gradients(made, items(made, tree, level)), expected, 1e-4)


# --- Training ---------------------------------------------------------------------------------------------------------


def job(spec: ModelSpec, out: Path, level: str, **changes: Any):
    defaults = {"examples": samples.chosen_pairs(10, level), "objective": LATENT}
    return samples.job(samples.with_head(spec, level), out, **{**defaults, **changes})


@pytest.mark.parametrize("level", LEVELS)
def test_only_the_head_is_trained_and_saved(model, level, tmp_path) -> None:
    train(job(model, tmp_path, level, settings=samples.settings(lr=1e-2, snapshots="epoch")))
    saved = tmp_path / "model"
    assert {path.name for path in saved.iterdir()} == {FILE, WEIGHTS}
    before, after = samples.weights(Path(samples.with_head(model, level).decoding.head)), samples.weights(saved)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert open_spec(str(saved)).source == model.source
    snapshots = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert snapshots == ["epoch-1", "epoch-2"]
    assert torch.equal(samples.weights(tmp_path / "snapshots" / "epoch-2")["layers.0.weight"], after["layers.0.weight"])
    lines = samples.metrics(tmp_path)
    assert all({"loss", "rewards/accuracies", "rewards/margins", "choice_entropy"} <= line.keys() for line in lines)


def test_the_language_model_is_neither_moved_nor_differentiated(model) -> None:
    made, tree = updater(samples.with_head(model, "token"))
    before = copy.deepcopy(made.policy.base.state_dict())
    made.update(items(made, tree, "token"), 0, 1e-1)
    assert not any(p.requires_grad or p.grad is not None for p in made.policy.base.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in made.policy.base.state_dict().items())
    assert not made.policy.base.training


class Stopped(Exception):
    """Stands for a job that ended in the middle."""


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """End a training before update `step`."""
    original = Updater.update

    def update(self, batch, at, lr):
        if at == step:
            raise Stopped
        return original(self, batch, at, lr)

    with pytest.MonkeyPatch.context() as patch, suppress(Stopped):
        patch.setattr(Updater, "update", update)
        yield


@pytest.mark.parametrize("level", LEVELS)
def test_a_resumed_run_ends_in_the_same_bits(model, level, tmp_path) -> None:
    whole, resumed = job(model, tmp_path / "whole", level), job(model, tmp_path / "resumed", level)
    train(whole)
    with stopped_at(4):
        train(resumed)
    assert not (resumed.out / "model").exists()
    train(resumed)
    first, second = samples.weights(whole.out / "model"), samples.weights(resumed.out / "model")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert samples.metrics(whole.out) == samples.metrics(resumed.out)


def test_a_checkpoint_of_other_choices_is_refused(model, tmp_path) -> None:
    with stopped_at(2):
        train(job(model, tmp_path, "token"))
    others = [
        replace(p, chosen=replace(p.chosen, latents={"choice": (0.0,) * (len(p.chosen.text) + 1)}))
        for p in samples.chosen_pairs(10, "token")
    ]
    with pytest.raises(InputError, match="was written by a training with other data"):
        train(job(model, tmp_path, "token", examples=others))


def test_in_bf16_the_head_stays_in_float32(model, tmp_path) -> None:
    made, tree = updater(samples.with_head(model, "token"), precision="bf16")
    assert {p.dtype for p in made.policy.base.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in made.policy.model.parameters()} == {torch.float32}
    wide, _ = updater(samples.with_head(model, "token"))
    batch = made.batcher.collate(items(made, tree, "token"))
    torch.testing.assert_close(made.policy(batch).logps, wide.policy(batch).logps, atol=0.2, rtol=0.2)


def test_a_language_model_with_an_adapter_is_read_with_it(model, tmp_path) -> None:
    tuned = samples.settings(lora=Lora(rank=2), lr=1e-1, max_steps=2)
    train(samples.job(model, tmp_path / "tuned", settings=tuned))
    adapted = replace(samples.with_head(model, "sequence"), adapter=str(tmp_path / "tuned" / "model"))
    made, tree = updater(adapted)
    example = items(made, tree, "sequence")[0].example
    network = load_model(adapted).merge_and_unload()
    (states, _), _ = by_hand(network, example, made.policy.model)
    found = made.policy(made.batcher.collate(items(made, tree, "sequence")[:1])).logps[0]
    torch.testing.assert_close(found, made.policy.model(states[0]), atol=1e-4, rtol=1e-4)


# --- A world in which the temperature matters -------------------------------------------------------------------------


def likely(completion: Completion) -> float:
    return sum(completion.logprobs) / len(completion.logprobs)


def varied(completion: Completion) -> float:
    return len(set(completion.token_ids)) / len(completion.token_ids)


def bandit_pairs(policy: AdaptivePolicy, reward: Callable[[Completion], float]) -> list[Pair]:
    """Return best against worst of 8 samples with uniformly drawn choices, where reward and choices differ."""
    draw, fingerprint = random.Random(5), tokenizer_fingerprint(architectures.tokenizer())
    texts = tuple(samples.text(draw, 3, 6) for _ in range(100))
    outputs = sample(policy, texts=texts, k=8, tokens=8)
    rows = []
    for text in texts:
        prompt = Prompt.from_text(text)
        found = [
            Completion(prompt_id=prompt.id, k=k, tokenizer=fingerprint, **asdict(outputs[text, k])) for k in range(8)
        ]
        best, worst = max(found, key=reward), min(found, key=reward)
        if reward(best) > reward(worst) and best.latents != worst.latents:
            rows.append(Pair(prompt=prompt, chosen=best, rejected=worst))
    return rows


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("reward", "better"), [(likely, 0), (varied, 1)])
@pytest.mark.parametrize("loss", ["separate", "latent"])
def test_the_better_of_two_temperatures_is_learnt(model, level, reward, better, loss, tmp_path) -> None:
    """Low temperatures say what is likely, high ones what is varied."""
    spec = Head(level=level, choices=(Choice(temperature=0.3), Choice(temperature=3.0)))
    build_head(model=model, head=spec, out=tmp_path / "head", seed=0)
    exploring = Adaptive(head=str(tmp_path / "head"), explore=1.0)
    rows = bandit_pairs(build_policy(exploring, architectures.tokenizer()), reward)
    settings = samples.settings(lr=3e-3, epochs=6, batch_size=8, checkpoint_every=100)
    objective = LatentPreference(loss=loss, beta=1.0)
    decoding = replace(model, decoding=exploring)
    train(samples.job(decoding, tmp_path, examples=rows, objective=objective, settings=settings))
    lines = samples.metrics(tmp_path)
    assert lines[0]["choice_entropy"] == pytest.approx(0.693147, abs=1e-5)
    assert lines[-1]["choice_entropy"] < 0.6
    trained = build_policy(Adaptive(head=str(tmp_path / "model")), architectures.tokenizer())
    chosen = [c for output in sample(trained).values() for c in output.latents["choice"]]
    assert sum(c == better for c in chosen) >= 0.9 * len(chosen)


# --- Bad input --------------------------------------------------------------------------------------------------------


def with_choices(pair: Pair, *choices: float) -> Pair:
    return replace(pair, rejected=replace(pair.rejected, latents={"choice": choices} if choices else {}))


@pytest.mark.parametrize(
    ("level", "choices", "message"),
    [
        ("sequence", (), r'has no latents\["choice"\]: sample it from a model'),
        ("token", (), r'has no latents\["choice"\]: sample it from a model'),
        ("sequence", (0.0, 1.0), "has 2 choices, and a head at the sequence level makes 1"),
        ("token", (0.0,) * 40, r"has 40 choices, and a head at the token level makes \d+"),
        ("sequence", (3.0,), "has choice 3, and the head has 0 to 2"),
        ("sequence", (-1.0,), "has choice -1, and"),
        ("sequence", (0.5,), "has choice 0.5, and"),
        ("sequence", (float("nan"),), "has choice nan, and"),
    ],
)
def test_rows_whose_choices_cannot_be_used_are_named(model, level, choices, message, tmp_path) -> None:
    rows = samples.chosen_pairs(3, level)
    rows[1] = with_choices(rows[1], *choices)
    with pytest.raises(InputError, match=f"example {rows[1].id}: completion {rows[1].rejected.id} {message}"):
        train(job(model, tmp_path, level, examples=rows))


def test_rows_that_are_no_pairs_or_have_context_are_named(model, tmp_path) -> None:
    for rows in (samples.demonstrations(2), samples.feedback(2)):
        with pytest.raises(InputError, match=f"example {rows[0].id} is no pair: LatentPreference trains on Pair rows"):
            train(job(model, tmp_path, "token", examples=rows))
    (row,) = samples.chosen_pairs(1, "token", seed=3)
    row = replace(row, loss_from=(1, 0), id="")
    with pytest.raises(InputError, match=f"example {row.id} has loss_from"):
        train(job(model, tmp_path, "token", examples=[row]))


def test_a_model_without_a_head_is_refused(model, tmp_path) -> None:
    with pytest.raises(InputError, match="has no adaptive head to train"):
        train(samples.job(model, tmp_path, objective=LATENT, examples=samples.chosen_pairs(2, "token")))


@pytest.mark.parametrize(
    ("changes", "name"), [({"lora": Lora(rank=2)}, "lora"), ({"strategy": "fsdp2"}, "strategy=fsdp2")]
)
def test_settings_for_language_models_are_refused(model, changes, name, tmp_path) -> None:
    with pytest.raises(InputError, match=f"{name} is for language models"):
        train(job(model, tmp_path, "token", settings=samples.settings(**changes)))


def test_other_objectives_ignore_choices(model, tmp_path) -> None:
    """The same pairs train a language model."""
    rows = samples.chosen_pairs(6, "token")
    train(samples.job(model, tmp_path / "with", examples=rows, settings=samples.settings(max_steps=2)))
    bare = [replace(p, chosen=bare_of(p.chosen), rejected=bare_of(p.rejected)) for p in rows]
    train(samples.job(model, tmp_path / "without", examples=bare, settings=samples.settings(max_steps=2)))
    first, second = (samples.weights(tmp_path / name / "model") for name in ("with", "without"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def bare_of(completion: Completion) -> Completion:
    return replace(completion, latents={})
