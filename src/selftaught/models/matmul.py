"""The faster of two libraries for float32 matmuls on a CPU, and where decoding gains by it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Numbers in a matrix from which on oneDNN is faster for as few as 8 rows: in smaller ones a call costs what it saves.
LARGE = 2**19


@contextmanager
def fast_fp32_matmul(device: torch.device) -> Iterator[None]:
    """Run CPU float32 matmuls through oneDNN where that is known to be both exact and faster.

    MKL, the default, keeps to its slower code on CPUs of other makers. Allowing oneDNN "bf16" arithmetic sends float32
    matmuls to it, and where the CPU has no matrix unit for bf16 it then computes in float32: a probe with values that
    bf16 and tf32 would round makes sure. The setting is put back on exit.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    if device.type == "cpu" and _onednn_is_exact() and _mkl_is_slow():
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@cache
def _onednn_is_exact() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    value = 1 + 2.0**-12
    try:
        matmul.fp32_precision = "bf16"
        product = torch.full((64, 64), value) @ torch.eye(64)
    finally:
        matmul.fp32_precision = before
    return bool((product == value).all())


@cache
def _mkl_is_slow() -> bool:
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text() and torch.backends.mkl.is_available()
    except OSError:
        return False


def decoding_matmul(module: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Return what to enter where `module` reads a few rows: `fast_fp32_matmul` if most of its weights gain by it.

    In training, with its many rows, smaller matrices gain too. Batched products (`torch.bmm`) may then give other bits
    beside other rows: it is for modules that have none.
    """
    matrices = [p for p in module.parameters() if p.dim() == 2]
    large = sum(p.numel() for p in matrices if p.numel() >= LARGE)
    if 2 * large <= sum(p.numel() for p in matrices):
        return nullcontext
    return partial(fast_fp32_matmul, matrices[0].device)
