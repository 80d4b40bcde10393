"""Which arithmetic runs where: fp32 or bf16 matmuls, and the faster of two fp32 matmul libraries on CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch


@contextmanager
def fast_fp32_matmul(device: torch.device) -> Iterator[None]:
    """Run CPU float32 matmuls through oneDNN where that is known to be both exact and faster.

    MKL, the default, keeps to its slower code on CPUs of other makers. Allowing oneDNN "bf16" arithmetic sends float32
    matmuls to it, and where the CPU has no matrix unit for bf16 it then computes in float32: a probe with values that
    bf16 and tf32 would round makes sure. The setting is put back on exit.
    """
    matmul = torch.backends.mkldnn.matmul
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
    matmul = torch.backends.mkldnn.matmul
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
