"""A generation stage as a worker sees it: sample the shards that are missing and write each when it is whole."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from selftaught.engines.policies import build_policy
from selftaught.engines.sampler import generate
from selftaught.errors import InputError
from selftaught.models.endpoint import is_endpoint
from selftaught.models.load import load_model, load_tokenizer, model_key
from selftaught.specs import ModelSpec, Sampling
from selftaught.store.stage import open_stage, write_shard
from selftaught.types import Completion, Prompt

Draw = Callable[[list[Prompt], Path], Iterator[list[Completion]]]
JOURNAL = ".answers"
"""Prefix of the files in which a server's answers wait for their shard to be whole. Hidden: they are no data."""


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
    process makes it and however often it is begun. Where the model is a server's, a shard that is begun again asks only
    for what had not arrived.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    table = open_stage(prompts, verify=False)
    options = {"seed": seed, "stage_key": stage_key, "model_id": model_key(model), "first_k": first_k}
    draw = (_by_server if is_endpoint(model.source) else _by_model)(model, sampling, options)
    for shard in list(missing)[rank::world]:
        start, stop = (len(table) * i // shards for i in (shard, shard + 1))
        journal = directory / f"{JOURNAL}-{shard:05d}-of-{shards:05d}.jsonl"
        completions = draw(list(table.slice(start, stop)), journal)
        write_shard(directory, Completion, shard, shards, chain.from_iterable(completions))
        journal.unlink(missing_ok=True)


def _by_model(model: ModelSpec, sampling: Sampling, options: dict[str, Any]) -> Draw:
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    tokenizer, network = load_tokenizer(model), load_model(model, device=device)
    policy = build_policy(model.decoding, tokenizer, device)
    options = {"template": model.template, "policy": policy, **options}
    return lambda prompts, journal: generate(network, tokenizer, prompts, sampling, **options)


def _by_server(model: ModelSpec, sampling: Sampling, options: dict[str, Any]) -> Draw:
    try:
        from selftaught.engines.api import generate_remote
    except ModuleNotFoundError as error:
        raise InputError(f"a model of a server needs {error.name}: pip install 'selftaught[api]'") from None
    return lambda prompts, journal: generate_remote(model, prompts, sampling, journal=journal, **options)
