"""The one training loop: global batches, updates, checkpoints, snapshots, the final model."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from selftaught.models.adaptive_decoder import save_head
from selftaught.models.load import load_config, load_tokenizer
from selftaught.models.matmul import fast_fp32_matmul
from selftaught.objectives import Objective, build_objective
from selftaught.specs import LatentPreference, ModelSpec, ObjectiveSpec, Training
from selftaught.store.stage import open_stage
from selftaught.train.batching import Item, make_items, with_reference
from selftaught.train.checkpoint import load_checkpoint, save_checkpoint, whole_directory
from selftaught.train.choices import HeadChoices, choice_items
from selftaught.train.distributed import Ranks, join_ranks
from selftaught.train.encoding import Encoded
from selftaught.train.examples import for_objective, prepare_examples
from selftaught.train.memory import keep_freed_memory
from selftaught.train.mismatched import mismatched_reference, with_mismatched
from selftaught.train.preview import preview
from selftaught.train.reference import all_logps, read_reference, stored
from selftaught.train.rewards import choose_pad_id, preview_rewards, reward_items
from selftaught.train.schedule import batch_indices, learning_rate, steps_per_epoch, total_steps
from selftaught.train.setup import Prepared, prepare, prepare_choices, prepare_rewards
from selftaught.train.trackers import Metrics
from selftaught.train.update import Updater
from selftaught.types import Example, content_id


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One training stage: what to train, on what, towards what, and where to put it.

    `examples` is a stage directory or rows. `reference` maps completion ids to summed log-probs (and the steps' names,
    as `encoding.reference_key` makes them, to theirs), or is a stage of scores; None lets the untrained model compute
    them.
    """

    model: ModelSpec
    examples: Path | Sequence[Example]
    objective: ObjectiveSpec
    settings: Training
    out: Path
    seed: int
    reference: Mapping[str, float] | Path | None = None


def train(job: TrainJob) -> None:
    """Train `job.model` and leave it in `job.out/model`, with `metrics.jsonl` beside it.

    Runs alone or as one of torchrun's processes. Called again on the same `out` it resumes from the last checkpoint,
    and ends in bit-equal weights on the same machine, threads, processes and versions. A finished `out` is left alone.

    Raises:
        NothingToTrainOn: there is no example, or none that fits.
        InputError: a row, the model or a setting cannot be used.
        TrainingDiverged: a loss or gradient norm is not finite.
    """
    if (job.out / "model").is_dir():
        return
    keep_freed_memory()
    ranks = join_ranks()
    with fast_fp32_matmul(ranks.device), torch.random.fork_rng():
        torch.manual_seed(job.seed)
        _train(job, ranks)


def _train(job: TrainJob, ranks: Ranks) -> None:
    settings = job.settings
    tokenizer = load_tokenizer(job.model)
    objective = build_objective(job.objective)
    render = preview_rewards if objective.reads == "rewards" else preview
    encoded = prepare_examples(job.model, job.examples, settings, tokenizer, show=ranks.rank == 0, render=render)
    encoded = for_objective(job.objective, encoded)
    prepared, items = _prepare(job, objective, encoded, tokenizer, ranks)
    weights = prepared.weights
    if objective.needs_reference:
        reference = _reference(job, prepared, items, ranks)
        items = [with_reference(item, reference) for item in items]
    longest = max(item.example.longest for item in items)
    foreign = _mismatched(job, prepared, items, longest, ranks) if objective.needs_mismatched else None
    optimizer = torch.optim.AdamW(weights.masters, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
    updater = Updater(
        policy=prepared.policy,
        objective=objective,
        weights=weights,
        optimizer=optimizer,
        settings=settings,
        ranks=ranks,
        batcher=prepared.batcher,
    )
    # Every rank draws its own adapter dropout.
    torch.manual_seed(job.seed + ranks.rank)
    _run(
        job,
        updater,
        items,
        tokenizer,
        partial(with_mismatched, reference=foreign, longest=longest) if foreign else list,
    )
    _export(job, updater, tokenizer, job.out / "model")


def _prepare(
    job: TrainJob,
    objective: Objective,
    examples: Sequence[Encoded],
    tokenizer: PreTrainedTokenizerBase,
    ranks: Ranks,
) -> tuple[Prepared, list[Item]]:
    own = tokenizer.pad_token_id
    if objective.reads == "rewards":
        pad_id = choose_pad_id(examples, tokenizer)
        return prepare_rewards(job.model, job.settings, ranks, own, pad_id), reward_items(examples)
    if isinstance(job.objective, LatentPreference):
        with_text = job.objective.loss == "latent"
        opened = prepare_choices(job.model, job.settings, ranks, own, with_text)
        return opened, choice_items(examples, opened.policy.model, opened.tree, with_text)
    prepared = prepare(job.model, job.settings, ranks, own)
    return prepared, make_items(examples, tree=prepared.tree)


def _reference(job: TrainJob, prepared: Prepared, items: Sequence[Item], ranks: Ranks) -> Mapping[str, float]:
    if isinstance(job.reference, Path):
        return read_reference(open_stage(job.reference))
    if job.reference is not None:
        return job.reference
    compute = partial(all_logps, prepared, items, job.settings.micro_batch_tokens, ranks)
    return stored(job.out / "reference", compute, ranks)


def _mismatched(
    job: TrainJob, prepared: Prepared, items: Sequence[Item], longest: int, ranks: Ranks
) -> Mapping[str, float]:
    compute = partial(mismatched_reference, prepared, items, job.settings, job.seed, longest, ranks)
    return stored(job.out / "reference-mismatched", compute, ranks)


def _run(
    job: TrainJob,
    updater: Updater,
    items: Sequence[Item],
    tokenizer: PreTrainedTokenizerBase,
    complete: Callable[[Sequence[Item]], Sequence[Item]],
) -> None:
    settings, ranks = job.settings, updater.ranks
    fingerprint = _fingerprint(job, items, ranks.world)
    total, per_epoch = total_steps(len(items), settings), steps_per_epoch(len(items), settings.batch_size)
    root = job.out / "checkpoints"
    state = load_checkpoint(root, fingerprint)
    start, tokens = (state["step"], state["num_tokens"]) if state else (0, 0)
    if state:
        updater.restore(state)
    metrics = Metrics(job.out, settings.trackers, state["metrics_bytes"] if state else 0) if ranks.rank == 0 else None
    for step in range(start, total):
        began = time.perf_counter()
        chosen = complete([items[i] for i in batch_indices(step, len(items), settings, job.seed)])
        values = updater.update(chosen, step, learning_rate(step, total, settings))
        tokens += sum(item.example.tokens for item in chosen)
        done = step + 1
        if metrics:
            extra = {"epoch": done / per_epoch, "num_tokens": tokens, "effective_batch": len(chosen)}
            metrics.log(done, {**values, **extra, "seconds": time.perf_counter() - began})
        if settings.snapshots == "epoch" and (done % per_epoch == 0 or done == total):
            _export(job, updater, tokenizer, job.out / "snapshots" / f"epoch-{math.ceil(done / per_epoch)}")
        if done % settings.checkpoint_every == 0 and done < total:
            progress = {"fingerprint": fingerprint, "step": done, "num_tokens": tokens}
            state = updater.state() | progress
            if metrics:
                save_checkpoint(root, done, state | {"metrics_bytes": metrics.sync()})
            ranks.wait()
    if metrics:
        metrics.close()


def _export(job: TrainJob, updater: Updater, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    dtype = getattr(load_config(job.model), "dtype", None) or torch.float32
    policy = updater.policy
    state = updater.full_state(dtype)
    if updater.ranks.rank == 0 and not path.is_dir():
        with whole_directory(path) as aside:
            if isinstance(policy, HeadChoices):
                save_head(policy.model, aside, job.model)
            else:
                policy.model.save_pretrained(aside, state_dict=state)
                tokenizer.save_pretrained(aside)
                _set_saved_dtype(aside / "config.json", dtype)
    updater.ranks.wait()


def _set_saved_dtype(config: Path, dtype: torch.dtype) -> None:
    # transformers writes the dtype it computed in, which is not that of the saved master weights.
    if config.exists():
        values = json.loads(config.read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _fingerprint(job: TrainJob, items: Sequence[Item], world: int) -> str:
    settings = {k: v for k, v in asdict(job.settings).items() if k not in ("trackers", "checkpoint_every")}
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        digest.update(f"{item.example.id} {item.example.weight!r} {item.reference}".encode())
        if item.example.label is not None:
            digest.update(f" {item.example.label} {item.example.step_labels} {item.step_reference}".encode())
        if item.example.patch_lengths is not None:
            digest.update(item.example.patch_lengths.tobytes())
        for choices in item.example.choices:
            digest.update(f" {choices.tolist()}".encode())
        digest.update(b"\n")
    return content_id(
        asdict(job.model),
        type(job.objective).__name__,
        asdict(job.objective),
        settings,
        job.seed,
        world,
        digest.hexdigest(),
    )
