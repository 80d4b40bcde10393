"""Recipes of ScPO: the paper's setting on GSM8K, the laptop world, and one that runs in seconds."""

from dataclasses import replace

from selftaught.methods.scpo import Config
from selftaught.specs import Evaluation, ModelSpec, Sampling, Scratch, SeedModel, Training
from selftaught.tasks.task import TaskSpec

STEP_PATTERN = r"[a-z]=|[+*-]|#### |\d|[a-z]\?"


def paper() -> Config:
    """Llama-3 8B on GSM8K without labels (arXiv 2411.04109, Section 3 and Appendix A)."""
    return Config(
        task=TaskSpec(name="gsm8k", data="openai/gsm8k"),
        model=ModelSpec(source="meta-llama/Meta-Llama-3-8B", dtype="bfloat16"),
        problem_model=ModelSpec(source="meta-llama/Meta-Llama-3-8B-Instruct", dtype="bfloat16", template="chat"),
        rounds=2,
        problems=6673,
        new_problems=7000,
        sampling=Sampling(k=8, temperature=0.7, top_p=0.9, max_tokens=512),
        hot=Sampling(k=8, temperature=1.2, top_p=0.9, max_tokens=512),
        hot_from_round=2,
        tau=(0.5, 0.7),
        beta=0.5,
        nll_alpha=1.0,
        training=Training(
            lr=5e-6,
            schedule="cosine",
            warmup_ratio=0.05,
            epochs=10,
            batch_size=16,
            precision="bf16",
            strategy="fsdp2",
            activation_checkpointing=True,
        ),
        dev_problems=800,
        evaluation=Evaluation(problems=1319, k=8, temperature=0.7, top_p=0.9, max_tokens=512),
    )


def own() -> Config:
    """The paper's settings for a model and data of your own: no generated problems, one process, plain fine-tuning."""
    config = paper()
    return replace(
        config,
        model=None,
        problem_model=None,
        problems=None,
        new_problems=0,
        training=replace(config.training, strategy="ddp", precision="auto", activation_checkpointing=False),
        dev_problems=0,
    )


def small() -> Config:
    """Arithmetic chains and a Llama of 0.7M parameters trained from scratch: minutes on two CPU cores."""
    return Config(
        task=TaskSpec(name="chains", options={"answer_only": 0.6}),
        seed_model=SeedModel(
            scratch=Scratch(
                layers=4,
                width=128,
                heads=4,
                tokenizer="pattern",
                pattern=STEP_PATTERN,
                rope_theta=1000.0,
                init_std=0.06,
            ),
            demonstrations=12_000,
            training=Training(lr=2e-3, epochs=3, batch_size=64, weight_decay=0.1, warmup_ratio=0.1),
        ),
        arms=("lmsi", "scpo"),
        rounds=1,
        problems=800,
        fresh_problems=True,
        sampling=Sampling(k=8, temperature=0.7, top_p=0.9, max_tokens=80),
        tau=(0.5,),
        training=Training(lr=3e-4, epochs=3, batch_size=16),
        evaluation=Evaluation(problems=500, k=8, max_tokens=80),
    )


def smoke() -> Config:
    """The whole loop in seconds: it shows that every stage runs, and nothing else."""
    config = small()
    seed_model = replace(
        config.seed_model,
        scratch=replace(config.seed_model.scratch, layers=2, width=32, heads=2),
        demonstrations=256,
        training=replace(config.seed_model.training, epochs=2),
    )
    return replace(
        config,
        seed_model=seed_model,
        problems=64,
        new_problems=16,
        rounds=2,
        tau=(0.125,),
        training=replace(config.training, epochs=1),
        evaluation=replace(config.evaluation, problems=32),
    )


RECIPES = {"paper": paper, "own": own, "small": small, "smoke": smoke}
