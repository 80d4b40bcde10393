import torch

from selftaught.train import precision
from selftaught.train.precision import Weights, resolve_precision

CPU = torch.device("cpu")


def test_precisions(monkeypatch):
    assert resolve_precision("fp32", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "_cpu_has_bf16", lambda native=native: native)
        assert resolve_precision("auto", CPU) == expected


def test_gradients_of_micro_batches_are_added_up_in_float32():
    model = torch.nn.Linear(1, 1, bias=False)
    weights = Weights(model, torch.bfloat16)
    for value in (256.0, 1.0):
        model.weight.grad = torch.full_like(model.weight, value)
        weights.collect()
    assert weights.masters[0].grad.item() == 257.0, "bf16 would give 256"
    weights.clear()
    assert weights.masters[0].grad is None


def test_float32_needs_no_copies():
    model = torch.nn.Linear(2, 2)
    weights = Weights(model, torch.float32)
    assert all(m is p for m, p in zip(weights.masters, model.parameters(), strict=True))


def test_frozen_weights_have_no_master():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    weights = Weights(model, torch.bfloat16)
    assert len(weights.masters) == 1
    assert model.bias.dtype == torch.bfloat16
