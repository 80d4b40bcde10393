"""Recipes of DivPO: the paper's persona setting, the laptop world, keyword stories, and one that runs in seconds."""

from dataclasses import replace

from selftaught.methods.divpo import Config
from selftaught.specs import ModelSpec, Phase, Sampling, Scratch, SeedModel, Training
from selftaught.tasks.task import TaskSpec

RECORD_PATTERN = r'persona: [a-z_, ]+|(?:\{"|", ")(?:first_name|city|occupation|hobby)": "|"\}|[A-Za-z]+'
"""One token for a request, for a key with what surrounds it, for a value, for the end of a record."""

WORD_PATTERN = r" ?[a-z]+"
PERSONAS = {"names": 60, "cities": 60, "occupations": 40, "malformed": 0.05}


def paper() -> Config:
    """Llama-3.1 8B Instruct on personas (arXiv 2501.18101, Section 4).

    Samples per prompt, learning rate, batch, updates and beta are not the paper's but ours: it could not be read whole.
    """
    return Config(
        task=TaskSpec(name="personas", options={"wording": "full", "strict": False}),
        model=ModelSpec(source="meta-llama/Llama-3.1-8B-Instruct", dtype="bfloat16", template="chat"),
        arms=("divpo",),
        rounds=8,
        refreshes=10,
        prompts=5120,
        sampling=Sampling(k=16, temperature=1.0, max_tokens=128),
        criterion="probability",
        rho=0.3,
        minimum=0.5,
        beta=0.1,
        training=Training(
            lr=1e-6,
            schedule="constant",
            batch_size=64,
            precision="bf16",
            strategy="fsdp2",
            activation_checkpointing=True,
        ),
        dev=Sampling(k=32, max_tokens=128),
        measurement=Sampling(k=64, max_tokens=128),
        generations=1000,
    )


def own() -> Config:
    """The paper's settings for a model, data and a reward of your own: three rounds on the same prompts, one process.

    The reward is the task's verifier, or name yours with --reward module:function or --reward_model.source.
    """
    config = paper()
    return replace(
        config,
        task=TaskSpec(name="user"),
        model=None,
        rounds=3,
        refreshes=1,
        prompts=None,
        fresh_prompts=False,
        length_normalize=True,
        minimum=None,
        sampling=replace(config.sampling, max_tokens=512),
        training=replace(config.training, strategy="ddp", precision="auto", activation_checkpointing=False),
        measurement=Sampling(k=8, max_tokens=512),
        generations=None,
    )


def small() -> Config:
    """Personas with a skewed base and a Llama of 0.25M parameters trained from scratch: minutes on two CPU cores.

    Every arm ends with the first round whose held-out samples are valid at 96%, so that arms are compared at equal
    validity: rounds are short and held-out samples many, for an arm must not be stopped late, or by luck. Prompts whose
    samples are all valid are left out: pairs of two valid records make both less likely.
    """
    return Config(
        task=TaskSpec(name="personas", options=PERSONAS),
        seed_model=SeedModel(
            scratch=Scratch(
                layers=2,
                width=96,
                heads=2,
                context=32,
                tokenizer="pattern",
                pattern=RECORD_PATTERN,
                rope_theta=1000.0,
                init_std=0.06,
            ),
            phases=(
                Phase(
                    demonstrations=40_000,
                    training=Training(
                        lr=2e-3, batch_size=64, max_steps=1500, betas=(0.9, 0.98), min_lr_ratio=0.02, weight_decay=0.1
                    ),
                ),
            ),
        ),
        arms=("dpo_online", "divpo_freq_online", "divpo_prob_online"),
        rounds=20,
        refreshes=2,
        prompts=240,
        sampling=Sampling(k=16, temperature=1.0, max_tokens=12),
        minimum=0.5,
        allow_same_pool=False,
        beta=0.3,
        nll_alpha=0.3,
        training=Training(lr=5e-5, schedule="constant", warmup_ratio=0.0, batch_size=8, betas=(0.9, 0.98)),
        validity_level=0.96,
        stop_rule="first",
        dev=Sampling(k=2000, max_tokens=12),
        measurement=Sampling(k=1000, max_tokens=12),
        generations=200,
        exact=True,
    )


def gpu() -> Config:
    """Keyword stories: 500 titles, 2,000 words, a planted reward, a Llama of 15M parameters; minutes on one GPU."""
    config = small()
    return replace(
        config,
        task=TaskSpec(name="stories"),
        seed_model=SeedModel(
            scratch=Scratch(
                layers=8, width=384, heads=6, context=128, tokenizer="pattern", pattern=WORD_PATTERN, init_std=0.04
            ),
            phases=(
                Phase(
                    demonstrations=100_000,
                    training=Training(lr=1e-3, batch_size=128, max_steps=3000, weight_decay=0.1, betas=(0.9, 0.98)),
                ),
            ),
        ),
        arms=("sft", "dpo_offline", "dpo_online", "divpo_freq_online", "divpo_prob_online"),
        rounds=5,
        refreshes=6,
        prompts=960,
        sampling=Sampling(k=16, temperature=1.0, max_tokens=24),
        minimum=None,
        allow_same_pool=True,
        rho=0.3,
        beta=0.1,
        training=replace(config.training, lr=3e-5, batch_size=16),
        validity_level=0.95,
        stop_rule="last",
        dev=Sampling(k=32, max_tokens=24),
        measurement=Sampling(k=32, max_tokens=24),
        generations=1000,
        exact=False,
        stories=500,
        story_sampling=Sampling(temperature=1.0, max_tokens=64),
    )


def smoke() -> Config:
    """The whole loop in seconds: it shows that every stage runs, and nothing else."""
    config = small()
    (phase,) = config.seed_model.phases
    return replace(
        config,
        task=TaskSpec(
            name="personas", options={"names": 8, "cities": 8, "occupations": 8, "hobbies": 4, "malformed": 0.2}
        ),
        seed_model=SeedModel(
            scratch=replace(config.seed_model.scratch, layers=1, width=32),
            phases=(
                replace(
                    phase, demonstrations=640, training=replace(phase.training, lr=1e-2, max_steps=60, batch_size=32)
                ),
            ),
        ),
        arms=("sft", "dpo_online", "divpo_freq_offline", "divpo_freq_online", "divpo_prob_online"),
        rounds=2,
        refreshes=1,
        prompts=12,
        sampling=replace(config.sampling, k=8),
        training=replace(config.training, lr=1e-3),
        allow_same_pool=True,
        validity_level=0.5,
        stop_rule="last",
        dev=replace(config.dev, k=4),
        measurement=replace(config.measurement, k=8),
        generations=40,
    )


RECIPES = {"paper": paper, "own": own, "small": small, "gpu": gpu, "smoke": smoke}
