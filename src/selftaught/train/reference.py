"""Reference log-probs: what a model said of each completion before training, computed once, as a stage of its own."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from selftaught.functional.nll import sequence_sums
from selftaught.models.load import load_tokenizer
from selftaught.models.matmul import fast_fp32_matmul
from selftaught.specs import ModelSpec, Training
from selftaught.store.stage import write_shard
from selftaught.train.batching import Batcher, Item, make_items
from selftaught.train.checkpoint import whole_directory
from selftaught.train.distributed import Ranks, join_ranks
from selftaught.train.encoding import Encoded, reference_key
from selftaught.train.examples import prepare_examples
from selftaught.train.forward import TargetLogps
from selftaught.train.setup import Prepared, prepare
from selftaught.types import Example, Score

SCORER = "logps/ref"


def reference_shards(
    *,
    model: ModelSpec,
    examples: Path,
    settings: Training,
    stage_key: str,
    seed: int,
    directory: Path,
    shards: int,
    missing: Sequence[int],
) -> None:
    """Write the `missing` shards of a stage of `Score` rows: the log-prob of every completion of `examples`.

    A labelled step of feedback has a row of its own, with its span. Where a part of a completion is context only, its
    row is that of the rest, with the rest's span.

    Under torchrun all ranks share each shard, and rank 0 writes it. `stage_key` and `seed` have no influence.
    """
    ranks = join_ranks()
    for shard, scores in _scored_parts(model, examples, settings, shards, missing, ranks):
        if ranks.rank == 0:
            write_shard(directory, Score, shard, shards, scores)
    ranks.wait()


def reference_logps(model: ModelSpec, examples: Path | Sequence[Example], settings: Training) -> list[Score]:
    """Return the summed log-prob (nats) of every completion of `examples` under `model`, as scores "logps/ref".

    Each labelled step has a score as well, with its span, and a completion with context has that of the rest.
    Of `settings` it takes what the numbers may depend on: `max_length`, precision, strategy, batches and adapter.
    """
    ((_, scores),) = _scored_parts(model, examples, settings, 1, [0], join_ranks())
    return scores


def _scored_parts(
    model: ModelSpec,
    examples: Path | Sequence[Example],
    settings: Training,
    parts: int,
    wanted: Sequence[int],
    ranks: Ranks,
) -> Iterator[tuple[int, list[Score]]]:
    with fast_fp32_matmul(ranks.device), torch.random.fork_rng():
        tokenizer = load_tokenizer(model)
        encoded = prepare_examples(model, examples, settings, tokenizer, show=False)
        prepared = prepare(model, settings, ranks, tokenizer.pad_token_id)
        items = make_items(encoded, tree=prepared.tree)
        for part in wanted:
            start, stop = (len(items) * i // parts for i in (part, part + 1))
            logps = all_logps(prepared, items[start:stop], settings.micro_batch_tokens, ranks)
            yield part, list(_scores(encoded[start:stop], logps))


def _scores(examples: Sequence[Encoded], logps: Mapping[str, float]) -> Iterator[Score]:
    written: set[str] = set()
    for example in examples:
        for name, span in example.scored_spans:
            key = reference_key(name, span)
            if key not in written:
                written.add(key)
                yield Score(completion_id=name, scorer=SCORER, value=logps[key], span=span)


def read_reference(scores: Iterable[Score]) -> dict[str, float]:
    """Return log-probs by the names of completions and their steps from the scores of a reference stage."""
    return {reference_key(s.completion_id, s.span): s.value for s in scores if s.value is not None}


def stored(path: Path, compute: Callable[[], Mapping[str, float]], ranks: Ranks) -> Mapping[str, float]:
    """Return log-probs under the untrained policy, for a training that was given none of them.

    All ranks compute them together at the first call, and leave them in `path`; later calls read them there.
    """
    if not path.is_dir():
        logps = compute()
        if ranks.rank == 0:
            with whole_directory(path) as aside:
                (aside / "logps.json").write_text(json.dumps(logps))
        ranks.wait()
    return json.loads((path / "logps.json").read_text())


def all_logps(prepared: Prepared, items: Sequence[Item], budget: int, ranks: Ranks) -> dict[str, float]:
    """Return {name: log-prob} of completions and steps, in the order of `items`; all ranks compute and get the whole.

    The names are those of `reference_key`.
    """
    prepared.policy.eval()
    mine = dict(summed_logps(prepared.policy, items, prepared.batcher, budget))
    prepared.policy.train()
    merged = {name: value for part in ranks.collect(mine) for name, value in part.items()}
    return {name: merged[name] for item in items for name in _names(item)}


def _names(item: Item) -> tuple[str, ...]:
    return (*item.example.completion_keys, *item.example.step_keys)


@torch.no_grad()
def summed_logps(
    policy: TargetLogps, items: Sequence[Item], batcher: Batcher, budget: int
) -> Iterator[tuple[str, float]]:
    """Yield (name, log-prob in nats summed in float32) of completions and steps for this rank's share of `items`."""
    for part in batcher.split(items, budget):
        batch = batcher.collate(part)
        logps = policy(batch)
        sums = sequence_sums(logps, batch.owner, batch.sequences)
        yield from zip((key for item in part for key in item.example.completion_keys), sums.tolist(), strict=True)
        if batch.steps is not None:
            names = (name for item in part for name in item.example.step_keys)
            yield from zip(names, batch.steps.sums(logps).tolist(), strict=True)
    for _ in range(batcher.idle_passes(items, budget)):
        policy(batcher.collate(items[:1]))
