"""Processes that train together: gloo on CPU, NCCL on GPU, replicated weights or FSDP2 shards."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from selftaught.train.precision import kept_in_fp32

BUCKET_BYTES = 2**25


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that train together; alone, every method is the identity."""

    rank: int
    world: int
    device: torch.device

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """Return `values` summed over ranks; all ranks pass the same keys."""
        if self.world == 1:
            return values
        sums = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def add_up(self, tensor: Tensor) -> Tensor:
        """Return `tensor` summed over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def add_up_gradients(self, params: Sequence[nn.Parameter]) -> None:
        """Replace replicated parameters' gradients by their sum over ranks; FSDP2 has done so for sharded ones."""
        if self.world == 1 or any(isinstance(p, DTensor) for p in params):
            return
        bucket: list[Tensor] = []
        size = 0
        for param in params:
            # A rank without examples in this update still takes part, with zeros.
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
            bucket.append(param.grad)
            size += param.grad.nbytes
            if size >= BUCKET_BYTES:
                _all_reduce(bucket)
                bucket, size = [], 0
        if bucket:
            _all_reduce(bucket)

    def collect(self, value: Any) -> list[Any]:
        """Return every rank's `value`, in rank order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when all ranks are here."""
        if self.world > 1:
            dist.barrier()


def _all_reduce(tensors: list[Tensor]) -> None:
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def join_ranks() -> Ranks:
    """Return this process's place: from torchrun's environment variables, or alone where there are none.

    The process group stays open until the process ends: torchrun's rendezvous serves each process once.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return Ranks(rank=dist.get_rank() if world > 1 else 0, world=world, device=device)


def shard(policy: nn.Module, layer_classes: Sequence[str], dtype: torch.dtype) -> None:
    """Shard `policy` with FSDP2, each module of `layer_classes` on its own: float32 shards, computing in `dtype`.

    What the model's class keeps in float32 is not sharded.
    """
    mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    names = kept_in_fp32(policy)
    kept = {parameter for name, parameter in policy.named_parameters() if name in names}
    for module in policy.modules():
        if type(module).__name__ in layer_classes and not kept.issuperset(module.parameters()):
            fully_shard(module, mp_policy=mixed, ignored_params=kept)
    fully_shard(policy, mp_policy=mixed, ignored_params=kept)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            # The loop divides by global counts, so ranks' gradients must be summed and not averaged.
            module.set_gradient_divide_factor(1.0)
            # Gloo knows sums only.
            module.set_force_sum_reduction_for_comms(True)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its shards on this rank's CPU; every rank must take part."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def split_like(full: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of `full`, placed as `like` is."""
    full = full.to(like.device)
    return distribute_tensor(full, like.device_mesh, like.placements) if isinstance(like, DTensor) else full
