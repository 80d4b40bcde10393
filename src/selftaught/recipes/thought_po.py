"""Recipes of Thought PO: the paper's setting, the laptop world, a larger one for a GPU, and one of seconds."""

from dataclasses import replace

from selftaught.methods.thought_po import Config
from selftaught.scorers.judges import Judge
from selftaught.specs import Evaluation, ModelSpec, Phase, Sampling, Scratch, SeedModel, Training
from selftaught.tasks.task import TaskSpec


def paper() -> Config:
    """Llama-3 8B Instruct on UltraFeedback instructions with a pairwise judge (arXiv 2410.10630, Section 3).

    Beta, learning rate and batch size are not in the paper. Its better judge, ArmoRM, is a reward model.
    """
    return Config(
        task=TaskSpec(name="user", data="ultrafeedback.jsonl"),
        model=ModelSpec(source="meta-llama/Meta-Llama-3-8B-Instruct", dtype="bfloat16", template="chat"),
        rounds=4,
        problems=5000,
        match_tokens=False,
        sampling=Sampling(k=8, temperature=0.8, top_p=0.95, max_tokens=2048),
        judge=Judge(
            model=ModelSpec(source="facebook/Self-taught-evaluator-llama3.1-70B", dtype="bfloat16", template="chat"),
            rubric="better",
            sampling=Sampling(temperature=0.0, max_tokens=2048),
        ),
        training=Training(
            lr=1e-6,
            schedule="cosine",
            warmup_ratio=0.05,
            epochs=10,
            batch_size=32,
            precision="bf16",
            strategy="fsdp2",
            activation_checkpointing=True,
        ),
        dev_problems=1500,
        evaluation=Evaluation(problems=805, k=1, max_tokens=2048),
    )


def own() -> Config:
    """The paper's settings for a model and data of your own: graded by the task, all problems in each of two rounds."""
    config = paper()
    return replace(
        config,
        task=TaskSpec(name="user"),
        model=None,
        rounds=2,
        problems=None,
        judge=Judge(),
        training=replace(config.training, epochs=2, strategy="ddp", precision="auto", activation_checkpointing=False),
        dev_problems=0,
        evaluation=replace(config.evaluation, problems=None),
    )


def small() -> Config:
    """Chains of sums and a Llama of 0.6M parameters trained from scratch: minutes on two CPU cores.

    70% of its demonstrations think, but only 15% of those thoughts are worth anything. The judge sees the last digit.
    """
    return Config(
        task=TaskSpec(name="thought_chains"),
        seed_model=SeedModel(
            scratch=Scratch(layers=3, width=128, heads=4, context=96, tokenizer="char"),
            phases=(Phase(demonstrations=8000, training=Training(lr=2e-3, epochs=11, batch_size=32)),),
        ),
        rounds=3,
        problems=800,
        sampling=Sampling(k=8, temperature=0.8, max_tokens=32),
        nll_alpha=0.2,
        training=Training(lr=2e-4, epochs=2, batch_size=16),
        arm_lr={"direct": 1e-4},
        evaluation=Evaluation(problems=600, k=4, temperature=0.8, top_p=1.0, max_tokens=32),
    )


def gpu() -> Config:
    """The same world, longer chains, a Llama of 18M parameters and a noisy judge of pairs: minutes on one large GPU."""
    config = small()
    supervised = Training(lr=1e-3, epochs=4, batch_size=256, precision="bf16", micro_batch_tokens=65536)
    return replace(
        config,
        task=TaskSpec(name="thought_chains", options={"operations": [2, 6]}),
        seed_model=SeedModel(
            scratch=Scratch(layers=10, width=384, heads=6, context=128, tokenizer="char"),
            phases=(Phase(demonstrations=120_000, training=supervised),),
        ),
        rounds=4,
        problems=10_000,
        sampling=replace(config.sampling, max_tokens=48),
        judge=Judge(pairwise=True, noise=0.5, position_bias=0.2),
        training=replace(config.training, lr=1e-4, batch_size=64, precision="bf16", micro_batch_tokens=65536),
        arm_lr={"direct": 5e-5},
        evaluation=replace(config.evaluation, problems=2000, max_tokens=48),
    )


def smoke() -> Config:
    """The whole loop in seconds: it shows that every stage runs, and nothing else."""
    config = small()
    training = replace(config.seed_model.phases[0].training, epochs=1, max_steps=60)
    return replace(
        config,
        seed_model=SeedModel(
            scratch=replace(config.seed_model.scratch, layers=1, width=32, heads=2),
            phases=(Phase(demonstrations=512, training=replace(training, lr=1e-2)),),
        ),
        rounds=2,
        problems=32,
        sampling=replace(config.sampling, k=4),
        training=replace(config.training, epochs=1),
        evaluation=replace(config.evaluation, problems=24, k=2),
    )


RECIPES = {"paper": paper, "own": own, "small": small, "gpu": gpu, "smoke": smoke}
