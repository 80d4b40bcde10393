"""A generation stage as a worker sees it: sample the shards that are missing and write each when it is whole."""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch

from selftaught.engines.policies import build_policy
from selftaught.engines.sampler import generate
from selftaught.models.load import load_model, load_tokenizer, model_key
from selftaught.specs import ModelSpec, Sampling
from selftaught.store.stage import open_stage, write_shard
from selftaught.types import Completion


def generate_shards(
    *,
    model: ModelSpec,
    prompts: Path,
    sampling: Sampling,
    first_k: int,
    stage_key: str,
    seed: int,
    directory: Path,
    shards: int,
    missing: Sequence[int],
) -> None:
    """Write this rank's part of the `missing` shards of a stage of `Completion` rows to `directory`.

    A shard is a fixed run of consecutive prompts and one run of the sampler, so it comes out the same whichever
    process makes it and however often it is begun.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    table = open_stage(prompts, verify=False)
    tokenizer, network, key = load_tokenizer(model), load_model(model, device=device), model_key(model)
    policy = build_policy(model.decoding, tokenizer, device)
    for shard in list(missing)[rank::world]:
        start, stop = (len(table) * i // shards for i in (shard, shard + 1))
        completions = generate(
            network,
            tokenizer,
            list(table.slice(start, stop)),
            sampling,
            seed=seed,
            stage_key=stage_key,
            template=model.template,
            model_id=key,
            first_k=first_k,
            policy=policy,
        )
        write_shard(directory, Completion, shard, shards, chain.from_iterable(completions))
