"""The one training loop: micro-batches, global counts, one division per term, clip, step, checkpoint."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selftaught.errors import TrainingDiverged
from selftaught.models.load import load_model, load_tokenizer, tokenizer_fingerprint
from selftaught.objectives import build_objective
from selftaught.specs import ModelSpec, ObjectiveSpec, Training
from selftaught.train.attention import NAME
from selftaught.train.batching import collate, encode, make_items, micro_batches
from selftaught.train.forward import TargetLogps
from selftaught.train.precision import fast_fp32_matmul
from selftaught.train.schedule import batch_indices, learning_rate, steps_per_epoch, total_steps
from selftaught.types import Example


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One training stage: what to train, on what, towards what, and where to put it."""

    model: ModelSpec
    examples: Path | Sequence[Example]
    objective: ObjectiveSpec
    settings: Training
    out: Path
    seed: int
    reference: Mapping[str, float] | Path | None = None


def train(job: TrainJob) -> None:
    settings, device = job.settings, torch.device("cpu")
    tokenizer = load_tokenizer(job.model)
    encoded = encode(tokenizer, job.examples, job.model.template, tokenizer_fingerprint(tokenizer))
    with fast_fp32_matmul(device):
        model = load_model(job.model, dtype=torch.float32)
        model.set_attn_implementation(NAME)
        policy = TargetLogps(model)
        objective = build_objective(job.objective)
        reference = job.reference
        if objective.needs_reference and reference is None:
            reference = _reference(policy, make_items(encoded, True, None), settings, tokenizer.pad_token_id)
        items = make_items(encoded, settings.tree_rows, reference if objective.needs_reference else None)
        run(job, policy, objective, items, tokenizer.pad_token_id)
    model.save_pretrained(job.out / "model")
    tokenizer.save_pretrained(job.out / "model")


@torch.no_grad()
def _reference(policy, items, settings, pad_id):
    out = {}
    for mb in micro_batches(items, settings.micro_batch_tokens, True):
        batch = collate(mb, packed=True, pad_id=pad_id)
        lp = policy(batch)
        sums = torch.zeros(batch.sequences).index_add(0, batch.owner, lp).tolist()
        ids = [c for i in mb for c in i.example.completion_ids]
        out.update(zip(ids, sums))
    return out


def run(job, policy, objective, items, pad_id):
    settings = job.settings
    params = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
    total = total_steps(len(items), settings)
    job.out.mkdir(parents=True, exist_ok=True)
    log = open(job.out / "metrics.jsonl", "a")
    tokens = 0
    for step in range(total):
        t0 = time.perf_counter()
        chosen = [items[i] for i in batch_indices(step, len(items), settings, job.seed)]
        batches = [collate(m, packed=True, pad_id=pad_id) for m in micro_batches(chosen, settings.micro_batch_tokens, True)]
        counts: dict[str, float] = {}
        for b in batches:
            for name, n in objective.counts(b).items():
                counts[name] = counts.get(name, 0) + n
        sums = dict.fromkeys(counts, 0.0)
        loss_value = 0.0
        optimizer.zero_grad(set_to_none=True)
        for b in batches:
            terms = objective(policy, b, None)
            loss = sum(t.sum * (t.weight / counts[n]) for n, t in terms.items() if t.weight and counts[n])
            loss.backward()
            loss_value += loss.detach()
            for n, t in terms.items():
                sums[n] += t.sum.detach()
        norm = torch.nn.utils.clip_grad_norm_(params, settings.clip, foreach=True)
        lr = learning_rate(step, total, settings)
        values = torch.stack([loss_value, norm, *sums.values()]).tolist()
        if not (math.isfinite(values[0]) and math.isfinite(values[1])):
            raise TrainingDiverged(f"step {step}")
        for g in optimizer.param_groups:
            g["lr"] = lr
        optimizer.step()
        tokens += sum(b.input_count for b in batches)
        line = {"step": step + 1, "loss": values[0], "grad_norm": values[1], "learning_rate": lr,
                "epoch": (step + 1) / steps_per_epoch(len(items), settings.batch_size), "num_tokens": tokens,
                **{n: v / counts[n] for n, v in zip(sums, values[2:])}, "seconds": time.perf_counter() - t0}
        log.write(json.dumps(line) + "\n")
        log.flush()
