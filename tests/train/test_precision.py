import pytest
import torch

from selftaught.train import precision
from selftaught.train.precision import Weights, fast_fp32_matmul, resolve_precision

CPU = torch.device("cpu")


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


def test_fast_matmuls_are_float32_and_the_setting_is_put_back():
    """1 + 2^-12 needs 13 bits: bf16 (8) and tf32 (11) would round it to 1."""
    before = setting()
    with fast_fp32_matmul(CPU):
        assert (torch.full((96, 96), 1 + 2.0**-12) @ torch.eye(96) == 1 + 2.0**-12).all()
        a, b = (torch.randn(64, 300, dtype=torch.float64) for _ in range(2))
        torch.testing.assert_close(a.float() @ b.float().T, (a @ b.T).float(), atol=1e-4, rtol=0)
    assert setting() == before


def test_the_setting_is_put_back_after_an_error():
    before = setting()
    with pytest.raises(KeyError), fast_fp32_matmul(CPU):
        raise KeyError
    assert setting() == before


@pytest.mark.parametrize(("exact", "slow"), [(False, True), (True, False)])
def test_it_is_left_alone_where_it_is_not_known_to_help(monkeypatch, exact, slow):
    monkeypatch.setattr(precision, "_onednn_is_exact", lambda: exact)
    monkeypatch.setattr(precision, "_mkl_is_slow", lambda: slow)
    before = setting()
    with fast_fp32_matmul(CPU):
        assert setting() == before


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
