"""Trains the same job with each strategy under torchrun: `two_ranks.py MODEL OUT`."""

import sys
from pathlib import Path

import torch
from tests import byte_models
from tests.train import samples

from selftaught.specs import SFT, BradleyTerry, Lora, ModelSpec, StepKTO
from selftaught.train.loop import train
from selftaught.train.update import Updater


class Stopped(Exception):
    """Stands for a job that ended in the middle."""


def stop_at(step: int):
    """Make update `step` raise, on all ranks, and return how to undo it."""
    original = Updater.update

    def update(self, items, at, lr):
        if at == step:
            raise Stopped
        return original(self, items, at, lr)

    Updater.update = update
    return original


def main() -> None:
    torch.set_num_threads(1)
    model, root = ModelSpec(source=sys.argv[1]), Path(sys.argv[2])
    # A last batch of one example leaves one rank without any.
    pairs = samples.pairs(9)
    for strategy in ("ddp", "fsdp2"):
        options = {"strategy": strategy, "snapshots": "epoch"}
        train(samples.job(model, root / strategy, examples=pairs, settings=samples.settings(**options)))
        job = samples.job(model, root / f"{strategy}-resumed", examples=pairs, settings=samples.settings(**options))
        original = stop_at(4)
        try:
            train(job)
        except Stopped:
            Updater.update = original
        train(job)
    for strategy in ("ddp", "fsdp2"):
        small = samples.settings(strategy=strategy, micro_batch_tokens=30, max_steps=3)
        train(samples.job(model, root / f"{strategy}-small", examples=pairs, settings=small))
        narrow = samples.settings(strategy=strategy, precision="bf16", max_steps=3)
        train(samples.job(model, root / f"{strategy}-bf16", examples=pairs, settings=narrow))
        adapter = samples.settings(strategy=strategy, lora=Lora(rank=2), max_steps=3)
        train(samples.job(model, root / f"{strategy}-adapter", examples=pairs, settings=adapter))
        told = {"examples": samples.feedback(9), "objective": StepKTO(beta=0.3, step_beta=0.7)}
        halves = samples.settings(strategy=strategy, micro_batch_tokens=40)
        train(samples.job(model, root / f"{strategy}-feedback", settings=halves, **told))
        rewarded = {"examples": pairs, "objective": BradleyTerry()}
        train(samples.job(model, root / f"{strategy}-rewards", settings=halves, **rewarded))
        read = {"examples": byte_models.documents(9), "objective": SFT()}
        for name, precision in (("bytes", "fp32"), ("bytes-bf16", "bf16")):
            halves = samples.settings(strategy=strategy, precision=precision, micro_batch_tokens=60, max_steps=3)
            train(samples.job(samples.byte_model(model), root / f"{strategy}-{name}", settings=halves, **read))
    for level, objective in samples.HEAD_LOSSES:
        decided = {"examples": samples.chosen_pairs(9, level), "objective": objective}
        halves = samples.settings(micro_batch_tokens=40)
        train(samples.job(samples.with_head(model, level), root / f"{level}-head", settings=halves, **decided))


if __name__ == "__main__":
    main()
