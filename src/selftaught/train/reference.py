"""Reference log-probs: what the model said of each completion before training, computed once and stored."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from selftaught.functional.nll import sequence_sums
from selftaught.train.batching import Batcher, Item
from selftaught.train.checkpoint import whole_directory
from selftaught.train.distributed import Ranks
from selftaught.train.forward import TargetLogps


@torch.no_grad()
def summed_logps(
    policy: TargetLogps, items: Sequence[Item], batcher: Batcher, budget: int
) -> Iterator[tuple[str, float]]:
    """Yield (completion id, log-prob in nats summed over its targets in float32) for this rank's share of `items`."""
    for part in batcher.split(items, budget):
        batch = batcher.collate(part)
        sums = sequence_sums(policy(batch), batch.owner, batch.sequences)
        yield from zip((c for item in part for c in item.example.completion_ids), sums.tolist(), strict=True)
    for _ in range(batcher.idle_passes(items, budget)):
        policy(batcher.collate(items[:1]))


def stored_reference(
    out: Path, policy: TargetLogps, items: Sequence[Item], batcher: Batcher, budget: int, ranks: Ranks
) -> Mapping[str, float]:
    """Return the untrained policy's log-probs of all completions.

    All ranks compute them together at the first call, and leave them in `out`/reference; later calls read them there.
    """
    path = out / "reference"
    if not path.is_dir():
        policy.eval()
        mine = dict(summed_logps(policy, items, batcher, budget))
        policy.train()
        merged = {k: v for part in ranks.collect(mine) for k, v in part.items()}
        if ranks.rank == 0:
            with whole_directory(path) as aside:
                (aside / "logps.json").write_text(json.dumps(merged))
        ranks.wait()
    return json.loads((path / "logps.json").read_text())
