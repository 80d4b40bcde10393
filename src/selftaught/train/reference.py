"""Reference log-probs: what the model said of each completion before training, computed once and stored."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from selftaught.functional.nll import sequence_sums
from selftaught.train.batching import Item, collate, micro_batches, shares, to_device
from selftaught.train.checkpoint import whole_directory
from selftaught.train.distributed import Ranks
from selftaught.train.forward import TargetLogps


def summed_logps(
    policy: TargetLogps, items: Sequence[Item], budget: int, packed: bool, pad_id: int
) -> Iterator[tuple[str, float]]:
    """Yield (completion id, log-prob summed over its targets in float32, nats) for all completions of `items`."""
    device = next(policy.parameters()).device
    for part in micro_batches(items, budget, packed):
        batch = to_device(collate(part, packed=packed, pad_id=pad_id), device)
        with torch.no_grad():
            sums = sequence_sums(policy(batch), batch.owner, batch.sequences)
        yield from zip((c for item in part for c in item.example.completion_ids), sums.tolist(), strict=True)


def stored_reference(
    out: Path, policy: TargetLogps, items: Sequence[Item], budget: int, packed: bool, pad_id: int, ranks: Ranks
) -> Mapping[str, float]:
    """Return the untrained policy's log-probs of all completions; computed by all ranks at the first call, then read from `out`."""
    path = out / "reference"
    if not path.is_dir():
        policy.eval()
        mine = dict(summed_logps(policy, shares(items, ranks.world)[ranks.rank], budget, packed, pad_id))
        policy.train()
        merged = {k: v for part in ranks.collect(mine) for k, v in part.items()}
        if ranks.rank == 0:
            with whole_directory(path) as aside:
                (aside / "logps.json").write_text(json.dumps(merged))
        ranks.wait()
    return json.loads((path / "logps.json").read_text())
