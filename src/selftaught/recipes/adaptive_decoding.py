"""Recipes of Adaptive Decoding: the paper's setting as far as it is known, two laptop worlds, a GPU's, seconds."""

import json
from dataclasses import replace

from selftaught.config import to_dict
from selftaught.methods.adaptive_decoding import Config, temperatures
from selftaught.specs import (
    Choice,
    EntropyTemperature,
    Evaluation,
    ModelSpec,
    Phase,
    Sampling,
    Scratch,
    SeedModel,
    Training,
)
from selftaught.tasks.constrained_text import TOKENS as TEXT_TOKENS
from selftaught.tasks.sums_and_lists import TOKENS as SUM_TOKENS
from selftaught.tasks.task import TaskSpec

MIN_P = tuple(Choice(temperature=t, min_p=p) for t in (1.0, 1.5) for p in (0.05, 0.1, 0.2))
ENTROPY = tuple(EntropyTemperature(base=base, theta=theta) for base in (1.0, 1.5) for theta in (0.1, 0.5, 2.0))
_MODEL_TRAINING = Training(
    lr=2e-3, epochs=100, batch_size=64, weight_decay=0.1, betas=(0.9, 0.98), min_lr_ratio=0.02, max_steps=800
)


def paper() -> Config:
    """Llama-3.0 8B Instruct, frozen, six temperatures (arXiv 2411.09661); what is not known is a recommendation.

    GSM8K stands in for the paper's mixture of UltraFeedback, GSM8K and stories: its reward is exact. For a mixture give
    your own rows (--task user --data FILE) with a `category` in each, and --reward_model or --reward.
    """
    return Config(
        task=TaskSpec(name="gsm8k", data="openai/gsm8k"),
        model=ModelSpec(source="meta-llama/Meta-Llama-3-8B-Instruct", dtype="bfloat16", template="chat"),
        arms=("seq_separate", "tok_separate"),
        rounds=1,
        prompts=4000,
        sampling=Sampling(k=16, max_tokens=512),
        beta=0.5,
        training=Training(lr=1e-4, epochs=3, batch_size=64, precision="bf16"),
        evaluation=Evaluation(problems=1319, k=1, max_tokens=512),
        token={"pairs_per_prompt": 3},
    )


def own() -> Config:
    """The paper's settings for a model and data of your own, in one process."""
    config = paper()
    return replace(
        config,
        model=None,
        arms=("seq_separate",),
        prompts=None,
        training=replace(config.training, precision="auto"),
        evaluation=replace(config.evaluation, problems=None),
        token={},
    )


def small() -> Config:
    """Sums and lists for one temperature an answer, constrained text for one a token: minutes on two CPU cores."""
    return _both(_sequence(), _token())


def gpu() -> Config:
    """More prompts, longer texts and Llamas of 25M parameters: one GPU."""
    sequence, token = (
        replace(
            config,
            seed_model=replace(
                config.seed_model,
                scratch=replace(config.seed_model.scratch, layers=8, width=512, heads=8, context=128),
                phases=tuple(_longer(phase) for phase in config.seed_model.phases),
            ),
            prompts=4000,
            sampling=replace(config.sampling, k=16),
            evaluation=replace(config.evaluation, problems=1000),
        )
        for config in (_sequence(), _token())
    )
    token = replace(
        token,
        task=TaskSpec(name="constrained_text", options={"sentences": 10, "words": 6}),
        sampling=replace(token.sampling, max_tokens=96),
        evaluation=replace(token.evaluation, max_tokens=96),
    )
    arms = tuple(f"{level}_{loss}" for level in ("seq", "tok") for loss in ("separate", "token", "latent", "nll"))
    return replace(_both(sequence, token), arms=arms)


def smoke() -> Config:
    """The whole loop in seconds: it shows that every stage runs, and nothing else."""
    sequence, token = (
        replace(
            config,
            seed_model=SeedModel(
                scratch=replace(config.seed_model.scratch, layers=1, width=32, heads=2),
                phases=(Phase(demonstrations=256, training=replace(_MODEL_TRAINING, lr=1e-2, max_steps=24)),),
            ),
            prompts=16,
            sampling=replace(config.sampling, k=4, max_tokens=12),
            training=replace(config.training, epochs=1, batch_size=8),
            min_accuracy=0.0,
            heat=2,
            evaluation=Evaluation(problems=12, k=2, max_tokens=12),
        )
        for config in (_sequence(), _token())
    )
    return _both(sequence, token)


def _sequence() -> Config:
    """Sums and lists. The frozen Llama of 0.4M parameters learns right sums first, and nothing else.

    In the mixture the loss of sums lies on a plateau for a time that differs from seed to seed, and a model that is
    frozen there has nothing that a temperature could spoil.
    """
    sums = Phase(
        demonstrations=20_000,
        options={"sums": 1.0, "digit_noise": 0.0},
        training=replace(_MODEL_TRAINING, max_steps=1000, weight_decay=0.0),
    )
    return Config(
        task=TaskSpec(name="sums_and_lists", options={"digit_noise": 0.1}),
        seed_model=SeedModel(
            scratch=_scratch(SUM_TOKENS), phases=(sums, Phase(demonstrations=30_000, training=_MODEL_TRAINING))
        ),
        rounds=2,
        prompts=400,
        sampling=Sampling(k=12, max_tokens=8),
        choices=temperatures(0.0, 0.3, 0.6, 0.9, 1.2, 1.5),
        beta=0.5,
        training=Training(lr=1e-3, epochs=20, batch_size=64, betas=(0.9, 0.98)),
        min_p=MIN_P,
        entropy=ENTROPY,
        min_accuracy=0.8,
        evaluation=Evaluation(problems=1000, k=2, max_tokens=8),
    )


def _token() -> Config:
    """Constrained text."""
    return Config(
        task=TaskSpec(name="constrained_text"),
        seed_model=SeedModel(
            scratch=_scratch(TEXT_TOKENS),
            phases=(Phase(demonstrations=8000, training=replace(_MODEL_TRAINING, max_steps=400)),),
        ),
        rounds=2,
        prompts=200,
        sampling=Sampling(k=16, max_tokens=40),
        choices=temperatures(0.0, 0.25, 0.5, 0.75, 1.0, 1.25),
        pairs_per_prompt=4,
        beta=5.0,
        training=Training(lr=1e-3, epochs=8, batch_size=64, betas=(0.9, 0.98)),
        min_p=MIN_P,
        entropy=ENTROPY,
        min_accuracy=0.8,
        evaluation=Evaluation(problems=300, k=2, max_tokens=40),
    )


def _both(sequence: Config, token: Config) -> Config:
    """Return the configuration of both levels."""
    # As a file would give it: with lists for tuples.
    ours, theirs = (json.loads(json.dumps(to_dict(config))) for config in (sequence, token))
    changes = {name: value for name, value in theirs.items() if value != ours[name]}
    return replace(sequence, arms=("seq_separate", "tok_separate"), token=changes)


def _longer(phase: Phase) -> Phase:
    training = replace(phase.training, lr=1e-3, max_steps=4000)
    return replace(phase, demonstrations=3 * phase.demonstrations, training=training)


def _scratch(tokens: str) -> Scratch:
    return Scratch(layers=3, width=96, heads=4, context=64, init_std=0.04, tokenizer="pattern", pattern=tokens)


RECIPES = {"paper": paper, "own": own, "small": small, "gpu": gpu, "smoke": smoke}
