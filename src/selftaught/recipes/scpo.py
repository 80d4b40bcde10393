"""Recipes of ScPO: the paper's setting on GSM8K, the laptop world, and one that runs in seconds."""

from dataclasses import replace

from selftaught.methods.scpo import Config
from selftaught.specs import Evaluation, ModelSpec, Phase, Sampling, Scratch, SeedModel, Training
from selftaught.tasks.task import TaskSpec

STEP_PATTERN = r";[a-z]\?|[;\n]?[a-z]=|\n?#### |[-+*]\d|=\d"
"""One token for what is written in one go: a variable's definition, an operation with its operand, a result."""

CHAINS = {
    "modulus": 5,
    "lengths": [3, 5],
    "demonstration_lengths": [2, 5],
    "largest_operand": 4,
    "multipliers": [2, 3],
    "variable_operands": 0.0,
    "answer_only": 0.78,
    "new_problems": 0.1,
}
"""Steps that a small model learns in a minute. Multipliers prime to the modulus leave no answer likelier."""


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
        evaluation=replace(config.evaluation, problems=None),
    )


def small() -> Config:
    """Arithmetic chains and a Llama of 0.7M parameters trained from scratch: minutes on two CPU cores.

    The seed model has learnt to derive answers step by step, and then a habit of guessing: three quarters of its last
    demonstrations are bare answers. Its guesses are mostly wrong and disagree; its derivations are right and agree.
    """
    supervised = Training(lr=2e-3, batch_size=64, weight_decay=0.1, betas=(0.9, 0.98), min_lr_ratio=0.02)
    return Config(
        task=TaskSpec(name="chains", options=CHAINS),
        seed_model=SeedModel(
            scratch=Scratch(
                layers=4,
                width=128,
                heads=4,
                intermediate=256,
                context=160,
                tokenizer="pattern",
                pattern=STEP_PATTERN,
                rope_theta=1000.0,
                init_std=0.06,
            ),
            phases=(
                Phase(
                    demonstrations=16_000,
                    options={"answer_only": 0.0},
                    training=replace(supervised, max_steps=240, warmup_ratio=0.25),
                ),
                Phase(demonstrations=8_000, training=replace(supervised, lr=1e-3, max_steps=100, warmup_ratio=0.2)),
            ),
        ),
        arms=("lmsi", "scpo"),
        rounds=1,
        problems=1000,
        fresh_problems=True,
        new_problems=200,
        problem_sampling=Sampling(temperature=1.0, max_tokens=32),
        sampling=Sampling(k=16, temperature=0.7, top_p=0.9, max_tokens=64),
        tau=(0.5,),
        nll_alpha=0.3,
        training=Training(lr=3e-4, epochs=2, batch_size=16, betas=(0.9, 0.98), min_lr_ratio=0.02, warmup_ratio=0.1),
        arm_lr={"lmsi": 1e-3, "irpo_noisy_rm": 1e-3},
        evaluation=Evaluation(problems=500, k=8, max_tokens=64),
    )


def gsm8k() -> Config:
    """GSM8K without a download: a Llama of 5M parameters trained from scratch on its worked solutions.

    It is poor at maths. What it shows is every stage on real text at real length.
    """
    return Config(
        task=TaskSpec(name="gsm8k", data="openai/gsm8k", limit=1000, options={"new_problems": 0.1}),
        seed_model=SeedModel(
            scratch=Scratch(
                layers=6,
                width=256,
                heads=4,
                intermediate=688,
                context=1024,
                tokenizer="bpe",
                vocab_size=2048,
                init_std=0.04,
            ),
            phases=(
                Phase(
                    demonstrations=10_000,
                    training=Training(lr=1.5e-3, epochs=4, batch_size=32, weight_decay=0.1, warmup_ratio=0.05),
                ),
            ),
        ),
        rounds=1,
        problems=1000,
        new_problems=200,
        problem_sampling=Sampling(temperature=0.7, top_p=0.9, max_tokens=96),
        sampling=Sampling(k=8, temperature=0.7, top_p=0.9, max_tokens=160),
        tau=(0.25,),
        training=Training(lr=1e-4, epochs=2, batch_size=16),
        evaluation=Evaluation(problems=250, k=8, temperature=0.7, top_p=0.9, max_tokens=160),
    )


def smoke() -> Config:
    """The whole loop in seconds: it shows that every stage runs, and nothing else."""
    config = small()
    seed_model = SeedModel(
        scratch=replace(config.seed_model.scratch, layers=2, width=32, heads=2),
        phases=tuple(
            replace(phase, demonstrations=256, training=replace(phase.training, max_steps=8))
            for phase in config.seed_model.phases
        ),
    )
    return replace(
        config,
        seed_model=seed_model,
        problems=64,
        new_problems=16,
        rounds=2,
        sampling=replace(config.sampling, k=8),
        tau=(0.125,),
        training=replace(config.training, epochs=1),
        evaluation=replace(config.evaluation, problems=32),
    )


RECIPES = {"paper": paper, "own": own, "small": small, "gsm8k": gsm8k, "smoke": smoke}
