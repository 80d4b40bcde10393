"""KTO and Step-KTO on a 5.8M Llama: an update beside one of our own DPO, and a training beside TRL's KTOTrainer.

    python benchmarks/kto_step.py [--repeats 3] [--out benchmarks/results/kto_step.json]

The 512 completions of the 256 triples of preference_step, the chosen good and the rejected bad, 16 in a batch: every
update of KTO sees the completions that the same update of DPO sees. A completion's 6 equal steps have random labels.
In bf16; a warm-up on 16 triples is left out.

`... beside our own DPO` is the mean time of an update, reference log-probs computed beforehand. KTO's rows do not share
prompts, so that DPO has them apart as well (`tree_rows=False`): both compute the same tokens, and the ratio is the same
per update, per completion token and per prompt + completion token (a prompt counts with each of its completions). To
be met: KTO at most 1.45 times the time of DPO, Step-KTO at most 1.8 times, and at most 1.15 times without extra passes.
`times a DPO update with shared prompts` is beside DPO as it comes, which computes each prompt once.

Extra passes, without gradient: one over the mismatched completions for KTO's reference point, and one over the batch
for that of the steps. KTO needs the first (unless all prompts of a batch are the same), Step-KTO as it comes both,
`outcome=False` the second, `step_reference_point` "outcome" or "zero" the first, and `outcome=False` with "zero" none.

`bf16 best` is the whole training beside KTOTrainer's with reference log-probs computed beforehand (their time counts on
both sides), no activation checkpointing, and the faster of padding as it comes and to a multiple of 8. Both shift
completions by one inside a batch to mismatch them. Ours passes over completions of the same prompt and cuts a row at
the longest example's length; batches hold chosen before rejected, so that neighbours never share a prompt, and
`max_length` cuts TRL's rows at the same length: losses and reference points are of the same rows.
"""

import json
import os
import random
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from preferences import (
    BATCH,
    TRIPLES,
    Triple,
    best_options,
    pairs,
    prompt_and_sides,
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

CASE, STEPS = "bf16 best", 6
DPO, SHARED_DPO = "DPO", "DPO with shared prompts"
COMPARED = ("KTO", "Step-KTO", "Step-KTO without extra passes")


def objective(side: str) -> Any:
    """Return what a side of ours trains towards."""
    from selftaught.specs import KTO, Preference, StepKTO

    return {
        DPO: Preference(),
        SHARED_DPO: Preference(),
        "KTO": KTO(),
        "Step-KTO": StepKTO(),
        "Step-KTO without extra passes": StepKTO(outcome=False, step_reference_point="zero"),
    }[side]


def visited(rows: Sequence[Triple]) -> list[tuple[int, int]]:
    """Return (triple, 0 chosen or 1 rejected) in the order of the updates: a batch of DPO's after the other."""
    order = visiting_order(len(rows), BATCH)
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return [(i, side) for batch in batches for side in (0, 1) for i in batch]


def feedback(rows: Sequence[Triple]) -> list[Any]:
    """Return the completions as labelled rows, placed so that the trainer visits them in the order of `visited`."""
    from selftaught.types import Feedback

    draw = random.Random(0)
    order = visited(rows)
    placed: list[Any] = [None] * len(order)
    for place, (i, side) in zip(visiting_order(len(order), 2 * BATCH), order, strict=True):
        prompt, completions = prompt_and_sides(rows[i])
        ids = rows[i][1 + side][:-1]
        cuts = [len(as_words(ids[: len(ids) * step // STEPS])) for step in range(STEPS + 1)]
        labels = tuple((start, end, draw.random() < 0.5) for start, end in pairwise(cuts))
        placed[place] = Feedback(prompt=prompt, completion=completions[side], label=side == 0, step_labels=labels)
    return placed


def columns(rows: Sequence[Triple]) -> dict[str, list]:
    """Return TRL's columns, in the order of `visited`."""
    order = visited(rows)
    return {
        # The space is where the prompt ends, so that prompt + completion reads back as the same ids.
        "prompt": [as_words(rows[i][0]) + " " for i, _ in order],
        "completion": [as_words(rows[i][1 + side]) for i, side in order],
        "label": [side == 0 for _, side in order],
    }


def ours(model: Path, side: str, rows: Sequence[Triple], work: Path, precision: str) -> dict[str, Any]:
    """Train with this library and return what was measured."""
    paired = side in (DPO, SHARED_DPO)
    settings = {
        "batch_size": BATCH if paired else 2 * BATCH,
        "tree_rows": side == SHARED_DPO,
        "precision": precision,
    }
    return train_ours(model, objective(side), pairs if paired else feedback, rows, work, **settings)


def peer(model: Path, rows: Sequence[Triple], work: Path, precision: str, multiple: int | None) -> dict[str, Any]:
    """Train with TRL's KTOTrainer and return what was measured."""
    from trl import KTOConfig, KTOTrainer

    return train_peer(
        KTOTrainer,
        KTOConfig,
        columns,
        model,
        rows,
        work,
        bf16=precision == "bf16",
        per_device_train_batch_size=2 * BATCH,
        max_length=max(len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in rows),
        **best_options(multiple),
    )


def measure(side: str, case_name: str) -> None:
    """Print one measurement as JSON."""
    rows, precision = triples(TRIPLES, 0), case_name[:4]
    with tempfile.TemporaryDirectory() as work:
        os.environ["HF_DATASETS_CACHE"] = work
        model = Path(work) / "model"
        save_model(model)
        if side.endswith("peer"):
            facts = peer(model, rows, Path(work), precision, 8 if side == "padded peer" else None)
        else:
            facts = ours(model, side, rows, Path(work), precision)
    print(json.dumps({**facts, "tokens": tokens_of(rows), "gigabytes": peak_gigabytes()}))


def update_seconds(measurements: Sequence[dict[str, Any]]) -> float:
    """Return the median over measurements of their mean time of an update."""
    return median(sum(m["updates"]) / len(m["updates"]) for m in measurements)


def beside_dpo(side: str, found: dict[tuple[str, str], list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the row of the result that compares updates of `side` with our own DPO's."""
    rows = triples(TRIPLES, 0)
    per_update = {"completion tokens/s": sum(len(c) for row in rows for c in row[1:]) / (TRIPLES // BATCH)}
    per_update["prompt + completion tokens/s"] = tokens_of(rows) / (TRIPLES // BATCH)
    own, dpo, shared = (update_seconds(found[CASE, s]) for s in (side, DPO, SHARED_DPO))
    facts = {
        "times a DPO update": round(own / dpo, 3),
        "times a DPO update with shared prompts": round(own / shared, 3),
        **{unit: {"ours": round(n / own, 1), "peer": round(n / dpo, 1)} for unit, n in per_update.items()},
    }
    return case(f"{side}, update beside our own DPO", own, dpo, "s", more_is_better=False, **facts)


def report(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure everything and return the rows of the result and the matmul peak."""
    import torch

    peak = {"bf16": matmul_gflops(torch.bfloat16)}
    found = alternate(__file__, (CASE,), repeats, (DPO, SHARED_DPO, *COMPARED, "peer", "padded peer"))
    own = found[CASE, "KTO"]
    rival = max((found[CASE, side] for side in ("peer", "padded peer")), key=median_rate)
    differences = {
        "largest relative difference of losses": largest_difference(own[0]["losses"], rival[0]["losses"]),
        "largest difference of reference points, nats": max(
            abs(a - b) for a, b in zip(own[0]["kl"], rival[0]["kl"], strict=True)
        ),
    }
    tokens = tokens_of(triples(TRIPLES, 0))
    alone = [tokens / median(sum(m["updates"]) for m in own), tokens / median_of(rival, "training")]
    memory = [median_of(m, "gigabytes") for m in (own, rival)]
    rows = [
        case(CASE, median_rate(own), median_rate(rival), "tokens/s", **differences),
        case(f"{CASE}, updates alone", *alone, "tokens/s"),
        case(f"{CASE}, peak memory", *memory, "GB", more_is_better=False),
        *(beside_dpo(side, found) for side in COMPARED),
    ]
    return rows, {"matmul_gflops": peak}


if __name__ == "__main__":
    command_line(__file__, __doc__, 3, measure, report)
