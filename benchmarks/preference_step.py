"""DPO over 256 triples on a 5.8M Llama: tokens per second and peak memory, beside TRL's DPOTrainer.

    python benchmarks/preference_step.py [--repeats 3] [--out benchmarks/results/preference_step.json]

Prompts of 64-192 tokens, completions of 16-160, batches of 8 triples, the pass over the reference included; tokens are
prompt + completion over both completions. Both sides see the same batches in the same order and make the same
updates. Loading, tokenising and a warm-up on 16 triples are left out on both sides. Cases: `fp32 default` is DPOConfig
as it comes, on CPU without bf16; `best` is with reference log-probs computed beforehand, no activation checkpointing,
and the faster of padding as it comes and to a multiple of 8.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from preferences import (
    BATCH,
    TRIPLES,
    VOCABULARY,
    Triple,
    best_options,
    pairs,
    save_model,
    tokens_of,
    train_ours,
    train_peer,
    triples,
)
from sides import (
    alternate,
    as_words,
    case,
    command_line,
    largest_difference,
    matmul_gflops,
    median_of,
    median_rate,
    peak_gigabytes,
    visiting_order,
)

CASES = ("fp32 default", "fp32 best", "bf16 best")


def columns(rows: Sequence[Triple]) -> dict[str, list[str]]:
    """Return TRL's columns, in the order in which this library visits the rows."""
    order = visiting_order(len(rows), BATCH)
    return {
        # The space is where the prompt ends, so that prompt + completion reads back as the same ids.
        "prompt": [as_words(rows[i][0]) + " " for i in order],
        "chosen": [as_words(rows[i][1]) for i in order],
        "rejected": [as_words(rows[i][2]) for i in order],
    }


def ours(model: Path, precision: str, work: Path) -> dict[str, Any]:
    """Train with this library and return what was measured."""
    from selftaught.specs import Preference

    rows = triples(TRIPLES, 0)
    return train_ours(model, Preference(), pairs, rows, work, batch_size=BATCH, precision=precision)


def peer(model: Path, case_name: str, work: Path, multiple: int | None) -> dict[str, Any]:
    """Train with TRL's DPOTrainer and return what was measured."""
    from trl import DPOConfig, DPOTrainer

    options = {} if case_name.endswith("default") else best_options(multiple)
    return train_peer(
        DPOTrainer,
        DPOConfig,
        columns,
        model,
        triples(TRIPLES, 0),
        work,
        bf16=case_name.startswith("bf16"),
        per_device_train_batch_size=BATCH,
        **options,
    )


def measure(side: str, case_name: str) -> None:
    """Print one measurement as JSON."""
    with tempfile.TemporaryDirectory() as work:
        os.environ["HF_DATASETS_CACHE"] = work
        model = Path(work) / "model"
        save_model(model)
        if side == "ours":
            facts = ours(model, case_name[:4], Path(work))
        else:
            facts = peer(model, case_name, Path(work), 8 if side == "padded peer" else None)
    print(json.dumps({**facts, "tokens": tokens_of(triples(TRIPLES, 0)), "gigabytes": peak_gigabytes()}))


def flops_per_token() -> float:
    """Return the arithmetic a token costs: 6 per weight in training, 2 in the pass over the reference."""
    layer = 4 * 256 * 256 + 3 * 256 * 688
    return 8 * (6 * layer + VOCABULARY * 256)


def report(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure everything and return the rows of the result and the matmul peaks."""
    import torch

    peaks = {"fp32": matmul_gflops(torch.float32), "bf16": matmul_gflops(torch.bfloat16)}
    found = alternate(__file__, CASES, repeats)
    found |= alternate(__file__, CASES[1:], repeats, ("padded peer",))
    rows = []
    for name in CASES:
        own = found[name, "ours"]
        rival = max((found[k] for k in found if k[0] == name and k[1] != "ours"), key=median_rate)
        share = {
            s: median_rate(m) * flops_per_token() / 1e9 / peaks[name[:4]] for s, m in (("ours", own), ("peer", rival))
        }
        difference = largest_difference(own[0]["losses"], rival[0]["losses"])
        facts = {"largest relative difference of losses": difference, "share of the matmul peak": share}
        rows.append(case(name, median_rate(own), median_rate(rival), "tokens/s", **facts))
        memory = [median_of(m, "gigabytes") for m in (own, rival)]
        rows.append(case(f"{name}, peak memory", *memory, "GB", more_is_better=False))
    return rows, {"matmul_gflops": peaks}


if __name__ == "__main__":
    command_line(__file__, __doc__, 3, measure, report)
