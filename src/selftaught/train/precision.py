"""Which arithmetic runs where: fp32 or bf16, and the float32 weights that the optimizer steps."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from selftaught.specs import Precision


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in; "auto" is bf16 where the device multiplies it natively, else float32."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    return torch.bfloat16 if native else torch.float32


@cache
def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def kept_in_fp32(model: nn.Module) -> set[str]:
    """Return the names of the parameters that a transformers class inside `model` keeps in float32 in any precision."""
    parts = {part for m in model.modules() for part in getattr(m, "_keep_in_fp32_modules_strict", None) or ()}
    return {name for name, _ in model.named_parameters() if any(f".{part}." in f".{name}." for part in parts)}


class Weights:
    """The weights a model computes with and the float32 master weights that the optimizer steps.

    In float32 they are the same tensors. In bf16 the model holds rounded copies; gradients of micro-batches are added
    up in float32 on the masters. What the model's class keeps in float32 is not rounded.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.separate = dtype != torch.float32
        self.masters = [nn.Parameter(p.detach().float().clone()) for p in self.params] if self.separate else self.params
        if self.separate:
            # Parameters only: buffers such as rotary frequencies lose too much in bf16.
            kept = kept_in_fp32(model)
            for name, parameter in model.named_parameters():
                if name not in kept:
                    parameter.data = parameter.data.to(dtype)

    def collect(self) -> None:
        """Add the gradients of the micro-batch just done to the masters'."""
        if not self.separate:
            return
        for param, master in zip(self.params, self.masters, strict=True):
            if param.grad is None:
                continue
            if master.grad is None:
                master.grad = param.grad.float()
            else:
                master.grad.add_(param.grad)
            param.grad = None

    def publish(self) -> None:
        """Copy the stepped masters into the model."""
        if self.separate:
            with torch.no_grad():
                torch._foreach_copy_(list[Tensor](self.params), list[Tensor](self.masters))

    def clear(self) -> None:
        """Drop all gradients."""
        for tensor in (*self.params, *self.masters):
            tensor.grad = None
