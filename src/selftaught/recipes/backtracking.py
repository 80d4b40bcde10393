"""Recipes of Backtracking: the paper's setting as far as known, the laptop world, one for a GPU, one for seconds."""

from dataclasses import replace
from typing import Any

from selftaught.methods.backtracking import Config
from selftaught.specs import Evaluation, ModelSpec, Phase, Scratch, SeedModel, Training
from selftaught.tasks.safety_grammar import UNIT
from selftaught.tasks.task import TaskSpec

TOKEN_PATTERN = rf"{UNIT}|\?"
COMPLIES = "selftaught.scorers.safety:complies"


def paper() -> Config:
    """Llama-3 8B on HH-RLHF's harmless part (arXiv 2409.14586); what the paper does not tell is a recommendation.

    `task` is your own file of harmless prompts with answers (the paper has OpenAssistant-2). The classifier only looks
    for refusals: name a better one, a guard model say.
    """
    training = Training(
        lr=1e-5,
        warmup_ratio=0.1,
        epochs=1,
        batch_size=64,
        max_length=2048,
        precision="bf16",
        strategy="fsdp2",
        activation_checkpointing=True,
    )
    return Config(
        task=TaskSpec(name="user", data="harmless.jsonl"),
        safety=TaskSpec(name="hh_rlhf", data="Anthropic/hh-rlhf"),
        model=ModelSpec(source="meta-llama/Meta-Llama-3-8B", dtype="bfloat16"),
        classifier=COMPLIES,
        problems=20_000,
        training=training,
        dpo_training=replace(training, lr=5e-7),
        beta=0.1,
        bias_grid=(-5.0, -2.5, 0.0, 2.5, 5.0),
        prefill=10,
        evaluation=Evaluation(problems=500, k=1, temperature=1.0, top_p=1.0, max_tokens=512),
    )


def own() -> Config:
    """The paper's settings for a model and harmless data of your own, in one process."""
    config = paper()
    local: dict[str, Any] = {"strategy": "ddp", "precision": "auto", "activation_checkpointing": False}
    return replace(
        config,
        task=TaskSpec(name="user"),
        model=None,
        training=replace(config.training, **local),
        dpo_training=replace(config.dpo_training, **local),
    )


def small() -> Config:
    """A safety grammar and a Llama of 0.4M parameters trained from scratch: minutes on two CPU cores."""
    return Config(
        task=TaskSpec(name="safety_grammar"),
        seed_model=SeedModel(
            scratch=Scratch(layers=3, width=96, heads=2, context=48, tokenizer="pattern", pattern=TOKEN_PATTERN),
            phases=(
                Phase(
                    demonstrations=10_000,
                    training=Training(lr=2e-3, epochs=100, max_steps=1000, batch_size=64, betas=(0.9, 0.98)),
                ),
            ),
        ),
        cut="first_flagged",
        later=1.0,
        unit=UNIT,
        copies=6,
        training=Training(lr=2.5e-4, epochs=100, max_steps=1600, batch_size=64, betas=(0.9, 0.98)),
        dpo_training=Training(lr=5e-5, epochs=100, max_steps=150, batch_size=32, betas=(0.9, 0.98)),
        nll_alpha=1.0,
        other_prompts=0.1,
        bias=0.0,
        attacked=40,
        suffix=4,
        budget=500,
        aimed=4,
        evaluation=Evaluation(problems=720, k=2, temperature=1.0, top_p=1.0, max_tokens=28),
    )


def gpu() -> Config:
    """2,000 objects, longer procedures, a Llama of 15M parameters: one GPU."""
    config = small()
    phase = config.seed_model.phases[0]
    world = {"objects": 2000, "banned": 800, "known": 400, "steps": 60, "tools": 40, "length": [10, 16]}
    wide: dict[str, Any] = {"batch_size": 256, "precision": "bf16", "micro_batch_tokens": 65536}
    return replace(
        config,
        task=TaskSpec(name="safety_grammar", options=world),
        seed_model=SeedModel(
            scratch=replace(config.seed_model.scratch, layers=8, width=384, heads=6, context=128),
            phases=(
                replace(
                    phase, demonstrations=60_000, training=replace(phase.training, lr=1e-3, max_steps=3000, **wide)
                ),
            ),
        ),
        training=replace(config.training, lr=2e-4, max_steps=500, **wide),
        dpo_training=replace(config.dpo_training, lr=2e-5, max_steps=400, **wide),
        attacked=200,
        suffix=8,
        budget=4000,
        evaluation=replace(config.evaluation, problems=2000, max_tokens=72),
    )


def smoke() -> Config:
    """The whole method in seconds: it shows that every stage runs, and nothing else."""
    config = small()
    phase = config.seed_model.phases[0]
    return replace(
        config,
        task=TaskSpec(name="safety_grammar", options={"objects": 12, "banned": 6, "known": 3, "unknown": 1}),
        seed_model=SeedModel(
            scratch=replace(config.seed_model.scratch, layers=1, width=32),
            phases=(replace(phase, training=replace(phase.training, lr=1e-2, max_steps=60, batch_size=32)),),
        ),
        copies=2,
        training=replace(config.training, lr=3e-3, max_steps=30, batch_size=16),
        dpo_training=replace(config.dpo_training, lr=1e-3, max_steps=10, batch_size=16),
        bias=None,
        bias_grid=(0.0, 4.0),
        attacked=2,
        budget=20,
        evaluation=replace(config.evaluation, problems=24),
    )


RECIPES = {"paper": paper, "own": own, "small": small, "gpu": gpu, "smoke": smoke}
