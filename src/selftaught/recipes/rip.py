"""Recipes of RIP: the paper's setting on WildChat, instructions on lists on a laptop or a GPU, and one of seconds."""

from dataclasses import replace

from selftaught.methods.rip import ARMS, Config
from selftaught.specs import Evaluation, ModelSpec, Phase, Sampling, Scratch, SeedModel, Training
from selftaught.tasks.task import TaskSpec

TOKEN_PATTERN = (
    r"sort desc|reverse|sort|rotate|swap|unique|double|drop|count|length|max|min|add| then | [a-z0-9](?=[ :\n]|$)"
)
"""One token for what is written in one go: an operator, an item with the space before it."""

LIST_OPS = {
    "operations": ["reverse", "sort", "sort desc", "rotate", "swap"],
    "lengths": [4, 6],
    "corruption": 0.6,
    "bias": 0.9,
    "rewarded_give_ups": 0.1,
    "demonstration_corruption": 0.1,
    "give_ups": 0.5,
}
"""Answers as long as the list, so that a short one is a bad one. 60% are corrupted, all five kinds alike."""

UNSEEN = "contradict"
"""The kind of corruption that is left out while thresholds are chosen."""


def paper() -> Config:
    """Llama 3.1 8B Instruct on 20,000 first turns of WildChat (arXiv 2501.18578, Section 4 and Appendix)."""
    return Config(
        task=TaskSpec(name="user", data="wildchat-20k.jsonl"),
        model=ModelSpec(source="meta-llama/Llama-3.1-8B-Instruct", dtype="bfloat16", template="chat"),
        reward_model=ModelSpec(source="Skywork/Skywork-Reward-Llama-3.1-8B-v0.2", dtype="bfloat16", template="chat"),
        problems=20_000,
        sampling=Sampling(k=64, temperature=0.8, top_p=0.95, max_tokens=2048),
        prompt_sampling=Sampling(temperature=0.8, top_p=0.95, max_tokens=512),
        written=20_000,
        beta=0.1,
        training=Training(
            lr=1e-6,
            schedule="constant",
            warmup_ratio=0.1,
            epochs=3,
            batch_size=64,
            precision="bf16",
            strategy="fsdp2",
            activation_checkpointing=True,
        ),
        dev_problems=470,
        evaluation=Evaluation(problems=500, k=1, max_tokens=2048),
    )


def own() -> Config:
    """The paper's settings for a model and data of your own: one process, plain fine-tuning, N = 8.

    Give a reward model (`--reward_model.source`) or a function (`--reward_function`). Without, the task's verifier is
    the reward, and too coarse for most tasks: prompts without a right and a wrong completion make no pair.
    """
    config = paper()
    return replace(
        config,
        model=None,
        reward_model=None,
        problems=None,
        written=1000,
        sampling=replace(config.sampling, k=8, max_tokens=512),
        training=replace(config.training, epochs=1, strategy="ddp", precision="auto", activation_checkpointing=False),
        dev_problems=0,
        evaluation=replace(config.evaluation, problems=None, max_tokens=512),
    )


def small() -> Config:
    """Instructions on lists, 60% of them corrupted, and a Llama of 0.6M parameters from scratch: minutes on two cores.

    The pool is so large that what RIP leaves is seen about once; every arm makes the same number of updates, with the
    same likelihood term. Thresholds were chosen on development seeds.
    """
    return Config(
        task=TaskSpec(name="list_ops", options=LIST_OPS),
        seed_model=SeedModel(
            scratch=Scratch(
                layers=4,
                width=128,
                heads=4,
                intermediate=256,
                context=160,
                tokenizer="pattern",
                pattern=TOKEN_PATTERN,
                rope_theta=1000.0,
                init_std=0.06,
            ),
            phases=(
                Phase(
                    demonstrations=32_000,
                    training=Training(
                        lr=2e-3,
                        batch_size=64,
                        max_steps=640,
                        warmup_ratio=0.2,
                        weight_decay=0.1,
                        betas=(0.9, 0.98),
                        min_lr_ratio=0.02,
                    ),
                ),
            ),
        ),
        arms=("no_filter", "random", "rip", "self_instruct", "self_rip"),
        problems=19_200,
        sampling=Sampling(k=8, temperature=1.0, max_tokens=24),
        quantiles={"rejected_reward": 0.6, "rejected_length": 0.05, "gap": 0.95},
        unseen=UNSEEN,
        prompt_form="task",
        written=3200,
        attempts=2,
        prompt_sampling=Sampling(temperature=1.0, max_tokens=32),
        near_duplicate=None,
        keywords=(),
        nll_alpha=1.0,
        training=Training(
            lr=3e-4, max_steps=250, batch_size=32, betas=(0.9, 0.98), min_lr_ratio=0.02, warmup_ratio=0.1
        ),
        evaluation=Evaluation(problems=2000, k=1, max_tokens=24),
    )


def gpu() -> Config:
    """The same world, a Llama of 15M parameters, a pool of 20,000 prompts, N = 64, all arms: minutes on a GPU."""
    config = small()
    (phase,) = config.seed_model.phases
    return replace(
        config,
        seed_model=SeedModel(
            scratch=replace(config.seed_model.scratch, layers=8, width=384, heads=6, intermediate=1024, init_std=0.02),
            phases=(
                replace(
                    phase,
                    demonstrations=64_000,
                    training=replace(phase.training, lr=1e-3, batch_size=256, max_steps=400),
                ),
            ),
        ),
        arms=tuple(ARMS),
        problems=20_000,
        sampling=replace(config.sampling, k=64),
        written=20_000,
        training=replace(config.training, lr=3e-5, batch_size=64, max_steps=600),
        evaluation=replace(config.evaluation, problems=2000),
    )


def smoke() -> Config:
    """The whole loop in seconds: it shows that every stage runs, and nothing else."""
    config = small()
    (phase,) = config.seed_model.phases
    return replace(
        config,
        task=replace(config.task, options={**LIST_OPS, "continuations": 0.4}),
        seed_model=SeedModel(
            scratch=replace(config.seed_model.scratch, layers=2, width=32, heads=2),
            phases=(
                replace(
                    phase, demonstrations=512, training=replace(phase.training, lr=1e-2, batch_size=16, max_steps=40)
                ),
            ),
        ),
        problems=48,
        # So few prompts that medians might leave none.
        quantiles={"rejected_reward": 0.2, "rejected_length": 0.2, "gap": 0.8},
        sampling=replace(config.sampling, max_tokens=12),
        written=24,
        nll_alpha=0.0,
        prompt_sampling=replace(config.prompt_sampling, max_tokens=16),
        training=replace(config.training, max_steps=2, batch_size=8),
        evaluation=replace(config.evaluation, problems=16, max_tokens=12),
    )


RECIPES = {"paper": paper, "own": own, "small": small, "gpu": gpu, "smoke": smoke}
