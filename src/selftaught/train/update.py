"""One optimizer update over a global batch, however it is split into micro-batches and over ranks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from selftaught.errors import InputError, TrainingDiverged
from selftaught.objectives.base import Baseline, Batch, Objective, Term
from selftaught.specs import Training
from selftaught.train.batching import Batcher, Item, micro_batches
from selftaught.train.choices import HeadChoices
from selftaught.train.distributed import Ranks, split_like, whole
from selftaught.train.forward import TargetLogps
from selftaught.train.precision import Weights, kept_in_fp32
from selftaught.train.rewards import Rewards

Result = TypeVar("Result")


@dataclass(kw_only=True)
class Updater:
    """Sums gradients of the terms, each divided once by its global count, and steps the optimizer."""

    policy: TargetLogps | Rewards | HeadChoices
    objective: Objective
    weights: Weights
    optimizer: torch.optim.Optimizer
    settings: Training
    ranks: Ranks
    batcher: Batcher
    budget: int = field(init=False)

    def __post_init__(self) -> None:
        self.budget = self.settings.micro_batch_tokens

    def update(self, items: Sequence[Item], step: int, lr: float) -> dict[str, float]:
        """Make one update on the global batch `items` and return its metrics.

        Out of memory: the micro-batch budget is halved and the update done again from its start.

        Raises:
            TrainingDiverged: the loss or the gradient norm is not finite; the weights are left as they were.
            InputError: one example alone does not fit into memory.
        """
        batches = self._batches(items)
        counts = self._counts(batches)
        batches, baseline = self._baseline(batches, items)
        batches, (losses, totals) = self._in_memory(
            batches, items, lambda batches: self._accumulate(batches, counts, items, baseline)
        )
        metrics = self._finish(batches, losses, totals, counts, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.weights.publish()
        return {**metrics, "learning_rate": lr}

    def _in_memory(
        self, batches: list[Batch], items: Sequence[Item], run: Callable[[list[Batch]], Result]
    ) -> tuple[list[Batch], Result]:
        """Return `batches` and `run` on them or, where memory runs out, smaller micro-batches of `items` and that."""
        while True:
            try:
                return batches, run(batches)
            except (RuntimeError, MemoryError) as error:
                if not self.may_halve or not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else "out of memory"
            self._halve(items, reason)
            batches = self._batches(items)

    def _baseline(self, batches: list[Batch], items: Sequence[Item]) -> tuple[list[Batch], Baseline | None]:
        """Return the micro-batches, and what the objective wants to know of the whole global batch beforehand."""
        batches, sums = self._in_memory(batches, items, lambda batches: self.objective.prepare(self.policy, batches))
        if sums is None:
            return batches, None
        if idle := self.batcher.idle_passes(items, self.budget):
            self.objective.prepare(self.policy, [self.batcher.collate(items[:1])] * idle)
        return batches, self.ranks.add_up(sums.to(self.ranks.device))

    def _accumulate(
        self,
        batches: list[Batch],
        counts: dict[str, float],
        items: Sequence[Item],
        baseline: Baseline | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        self.weights.clear()
        totals = torch.zeros(len(counts), device=self.ranks.device)
        losses = []
        for batch in batches:
            terms = self.objective(self.policy, batch, baseline)
            loss = _loss(terms, counts)
            loss.backward()
            self.weights.collect()
            losses.append(loss.detach())
            totals += torch.stack([terms[n].sum.detach().float() for n in counts])
        for _ in range(self.batcher.idle_passes(items, self.budget)):
            (self.policy(self.batcher.collate(items[:1])).sum() * 0.0).backward()
        return losses, totals

    def state(self) -> dict[str, Any]:
        """Return weights, optimizer moments and every rank's random state, whole and on CPU; all ranks take part."""
        moments = [{k: whole(v) for k, v in self.optimizer.state[p].items()} for p in self.weights.masters]
        masters = [whole(p) for p in self.weights.masters]
        return {"weights": masters, "moments": moments, "rng": self.ranks.collect(random_state(self.ranks.device))}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        with torch.no_grad():
            for param, full, moments in zip(self.weights.masters, state["weights"], state["moments"], strict=True):
                param.copy_(split_like(full, param))
                restored = {k: split_like(v, param) for k, v in moments.items() if k != "step"}
                self.optimizer.state[param] = {**restored, "step": moments["step"].to(self.ranks.device)}
        self.weights.publish()
        set_random_state(state["rng"][self.ranks.rank], self.ranks.device)

    def full_state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the model's state dict in `dtype` from the master weights, whole and on CPU; all ranks take part.

        What the model's class keeps in float32 stays so.
        """
        masters = {id(p): m for p, m in zip(self.weights.params, self.weights.masters, strict=True)}
        done: dict[int, Tensor] = {}
        state = {}
        kept = kept_in_fp32(self.policy.model)
        for name, tensor in self.policy.model.state_dict(keep_vars=True).items():
            if id(tensor) not in done:
                full = whole(masters.get(id(tensor), tensor))
                done[id(tensor)] = full.to(dtype) if full.is_floating_point() and name not in kept else full
            state[name] = done[id(tensor)]
        return state

    def _finish(
        self, batches: list[Batch], losses: list[Tensor], totals: Tensor, counts: dict[str, float], step: int
    ) -> dict[str, float]:
        masters = self.weights.masters
        self.ranks.add_up_gradients(masters)
        norm = clip_gradients(masters, self.settings.clip)
        own = torch.stack(losses) if losses else totals.new_zeros(0)
        loss = self.ranks.add_up(own.sum())
        values = torch.cat([torch.stack([loss, norm.to(loss.dtype)]), self.ranks.add_up(totals)]).tolist()
        if not (math.isfinite(values[0]) and math.isfinite(values[1])):
            raise TrainingDiverged(self._divergence(step, batches, own, values))
        means = {n: v / c for (n, c), v in zip(counts.items(), values[2:], strict=True) if c}
        if {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means.setdefault("rewards/margins", means["rewards/chosen"] - means["rewards/rejected"])
        return {"loss": values[0], "grad_norm": values[1], **means}

    def _batches(self, items: Sequence[Item]) -> list[Batch]:
        return [self.batcher.collate(part) for part in self.batcher.split(items, self.budget)]

    @property
    def may_halve(self) -> bool:
        """Whether this rank may choose its micro-batches alone: not while FSDP2 ranks must keep step."""
        return not self.batcher.in_step

    def _counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        counts = dict.fromkeys(self.objective.terms, 0.0)
        for batch in batches:
            for name, count in self.objective.counts(batch).items():
                counts[name] += count
        return self.ranks.total(counts)

    def _halve(self, items: Sequence[Item], reason: str) -> None:
        self.weights.clear()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        largest = max(micro_batches(items, self.budget, self.batcher.packed), key=len)
        if len(largest) == 1:
            biggest = max(items, key=lambda i: i.tokens)
            raise InputError(
                f"example {biggest.example.id} ({biggest.tokens} tokens) alone does not fit into memory ({reason}): "
                "set max_length below that, or switch activation_checkpointing or lora on"
            )
        self.budget = min(self.budget, sum(i.tokens for i in largest)) // 2

    def _divergence(self, step: int, batches: Sequence[Batch], losses: Tensor, values: Sequence[float]) -> str:
        bad = [b for b, loss in zip(batches, losses.tolist(), strict=True) if not math.isfinite(loss)] or batches
        rows = sorted({i for found in self.ranks.collect([i for b in bad for i in b.example_ids]) for i in found})
        named = ", ".join(rows[:4]) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
        return (
            f"update {step + 1}: loss {values[0]:g}, gradient norm {values[1]:g} on rows {named}: no step was made; "
            "lower lr, or take these rows out; the last checkpoint is whole"
        )


def _loss(terms: dict[str, Term], counts: dict[str, float]) -> Tensor:
    parts = [term.sum * (term.weight / counts[name]) for name, term in terms.items() if term.weight and counts[name]]
    if parts:
        return torch.stack(parts).sum()
    return next(iter(terms.values())).sum * 0.0


def clip_gradients(params: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients to a 2-norm of at most `limit` (0 for no limit) and return the norm before, a scalar tensor."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if limit > 0:
        torch.nn.utils.clip_grads_with_norm_(params, limit, norm)
    return norm


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` says that memory ran out, on GPU or CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def random_state(device: torch.device) -> list[Tensor]:
    """Return the state of the generators training draws from: CPU's and, on a GPU, its own."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
