"""Common parts of decoder layers, computed in fewer passes over memory: what CPU training spends its time on.

A part is replaced only where it has exactly the expected members, and `train.probe` compares the result with the
model's own code before it is used. Weights stay where they are; only the way they are applied changes.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from selftaught.train.attention import attend, from_rows, to_rows

_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def fuse(model: PreTrainedModel) -> int:
    """Let the parts of `model` that are known compute in fewer passes; return how many are."""
    fused = 0
    for module in model.modules():
        forward = _known_forward(module)
        if forward is not None:
            module.forward = MethodType(forward, module)
            fused += 1
    return fused


def _known_forward(module: nn.Module) -> Any:
    children = dict(module.named_children())
    linear = [type(child) is nn.Linear for name, child in children.items() if name.endswith("_proj")]
    if not all(linear):
        return None
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon") and not children:
        return _norm_forward
    if children.keys() == _ATTENTION and hasattr(module, "head_dim") and hasattr(module, "scaling"):
        return _attention_forward
    if children.keys() == _GATED and _is_silu(children["act_fn"]) and children["gate_proj"].bias is None:
        return _gated_forward
    return None


def _is_silu(module: nn.Module) -> bool:
    return type(module).__name__ in ("SiLU", "SiLUActivation")


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(_GatedUnit.apply(x, self.gate_proj.weight, self.up_proj.weight))


def _attention_forward(
    self: Any, hidden_states: Tensor, position_embeddings: Any, layout: Any = None, **kwargs: Any
) -> tuple[Tensor, None]:
    projections = (self.q_proj, self.k_proj, self.v_proj)
    biases = [p.bias for p in projections if p.bias is not None]
    joint = joint_linear(hidden_states[0], [p.weight for p in projections], biases)
    heads, key_heads = (p.out_features // self.head_dim for p in projections[:2])
    rows = to_rows(joint.view(-1, heads + 2 * key_heads, self.head_dim), layout, *position_embeddings, heads + key_heads)
    q, k, v = rows.split([heads, key_heads, key_heads])
    out = from_rows(attend(q, k, v, layout, getattr(self, "sliding_window", None), self.scaling), layout)
    return self.o_proj(out.flatten(1))[None], None


def joint_linear(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Return [x W_1^T + b_1, x W_2^T + b_2, ...] side by side, in one matmul. x [N, d], W_i [m_i, d] -> [N, sum m_i].

    `biases` has as many tensors as `weights`, or none.
    """
    return F.linear(x, torch.cat(weights), torch.cat(biases) if biases else None)


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467, eq. 4), in float32 inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        wide = grad.to(scale.dtype)
        normed = x.to(scale.dtype) * scale
        product = wide * normed
        d_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        along = (product @ weight.to(scale.dtype)).div_(x.shape[-1]).unsqueeze(-1)
        d_x = (wide * weight).addcmul_(normed, along, value=-1).mul_(scale)
        return d_x.to(x.dtype), d_weight, None


class _GatedUnit(torch.autograd.Function):
    """silu(x W_gate^T) * (x W_up^T) (SwiGLU, arXiv 2002.05202, eq. 6), both products in one matmul."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        both = F.linear(x, torch.cat([gate, up]))
        ctx.save_for_backward(x, gate, up, both)
        g, u = both.chunk(2, -1)
        return F.silu(g).mul_(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        x, gate, up, both = ctx.saved_tensors
        g, u = both.chunk(2, -1)
        d_both = torch.empty_like(both)
        d_g, d_u = d_both.chunk(2, -1)
        torch.mul(grad, F.silu(g), out=d_u)
        torch.ops.aten.silu_backward.grad_input(grad * u, g, grad_input=d_g)
        d_x = d_both @ torch.cat([gate, up])
        d_gate, d_up = (d_both.flatten(0, -2).T @ x.flatten(0, -2)).split([len(gate), len(up)])
        return d_x, d_gate, d_up
