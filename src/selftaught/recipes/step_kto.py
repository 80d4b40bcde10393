"""Recipes of Step-KTO: the paper's setting as far as it is known, the laptop world, one for a GPU, one for seconds."""

from dataclasses import replace

from selftaught.methods.step_kto import Config
from selftaught.specs import Evaluation, ModelSpec, Phase, Sampling, Scratch, SeedModel, Training
from selftaught.tasks.task import TaskSpec


def paper() -> Config:
    """Llama-3.1 8B Instruct, three rounds (arXiv 2501.10799); what the paper does not tell is a recommendation.

    GSM8K stands in for its problems. Its steps are labelled by a model that sees a reference solution; which model is
    unverified, so the initial one judges: name a stronger one with --step_judge.source.
    """
    return Config(
        task=TaskSpec(name="gsm8k", data="openai/gsm8k"),
        model=ModelSpec(source="meta-llama/Llama-3.1-8B-Instruct", dtype="bfloat16", template="chat"),
        step_labels="judge",
        step_judge_sampling=Sampling(k=3, temperature=0.7, max_tokens=1024),
        rounds=3,
        problems=4000,
        sampling=Sampling(k=8, temperature=1.0, top_p=0.95, max_tokens=512),
        training=Training(
            lr=1e-6,
            warmup_ratio=0.1,
            epochs=1,
            batch_size=64,
            precision="bf16",
            strategy="fsdp2",
            activation_checkpointing=True,
        ),
        evaluation=Evaluation(problems=1319, k=8, temperature=1.0, top_p=0.95, max_tokens=512),
    )


def own() -> Config:
    """The paper's settings for a model of your own, in one process; equations label the steps, as any model allows."""
    config = paper()
    return replace(
        config,
        model=None,
        step_labels="equations",
        problems=None,
        training=replace(config.training, strategy="ddp", precision="auto", activation_checkpointing=False),
        evaluation=replace(config.evaluation, problems=None),
    )


def small() -> Config:
    """Lazy side steps and a Llama of 0.6M parameters trained from scratch: minutes on two CPU cores.

    The seed model copies an operand in place of a result, most often where the answer does not depend on it. A reward
    on the answer cannot see that; labels of the steps do.
    """
    return Config(
        task=TaskSpec(name="side_steps", options={"lazy": 0.4}),
        seed_model=SeedModel(
            scratch=Scratch(layers=3, width=128, heads=4, intermediate=344, context=96, init_std=0.04),
            phases=(
                Phase(
                    demonstrations=4000,
                    training=Training(
                        lr=2e-3, epochs=9, batch_size=32, weight_decay=0.1, betas=(0.9, 0.98), min_lr_ratio=0.02
                    ),
                ),
            ),
        ),
        arms=("kto", "step_kto"),
        rounds=2,
        problems=360,
        fresh_problems=True,
        sampling=Sampling(k=8, temperature=1.0, max_tokens=40),
        per_class=2,
        balanced=True,
        beta=0.3,
        step_beta=1.0,
        training=Training(lr=3e-4, epochs=2, batch_size=32, betas=(0.9, 0.98), warmup_ratio=0.2),
        evaluation=Evaluation(problems=600, k=4, temperature=1.0, top_p=1.0, max_tokens=40),
    )


def gpu() -> Config:
    """Longer chains, a Llama of 15M parameters, three rounds of 10,000 problems: one GPU."""
    config = small()
    phase = config.seed_model.phases[0]
    return replace(
        config,
        task=TaskSpec(name="side_steps", options={"variables": 9, "side_steps": [1, 3], "lazy": 0.4}),
        seed_model=SeedModel(
            scratch=replace(config.seed_model.scratch, layers=8, width=384, heads=6, intermediate=1024),
            phases=(replace(phase, demonstrations=60_000, training=replace(phase.training, lr=1e-3, epochs=3)),),
        ),
        arms=("rft", "irpo", "kto", "step_kto", "process_only", "step_kto_noise20"),
        rounds=3,
        problems=10_000,
        sampling=replace(config.sampling, max_tokens=64),
        training=replace(config.training, lr=1e-4, batch_size=128),
        evaluation=replace(config.evaluation, problems=2000, max_tokens=64),
    )


def smoke() -> Config:
    """The whole loop in seconds: it shows that every stage runs, and nothing else."""
    config = small()
    phase = config.seed_model.phases[0]
    return replace(
        config,
        task=TaskSpec(name="side_steps", options={"variables": 3, "side_steps": [0, 1], "lazy": 0.4}),
        seed_model=SeedModel(
            scratch=replace(config.seed_model.scratch, layers=1, width=32, heads=2, intermediate=64),
            phases=(
                replace(phase, demonstrations=512, training=replace(phase.training, lr=1e-2, epochs=6, batch_size=64)),
            ),
        ),
        problems=24,
        balanced=False,
        sampling=replace(config.sampling, k=4, max_tokens=16),
        training=replace(config.training, epochs=1, batch_size=8),
        evaluation=replace(config.evaluation, problems=16, k=2, max_tokens=16),
    )


RECIPES = {"paper": paper, "own": own, "small": small, "gpu": gpu, "smoke": smoke}
