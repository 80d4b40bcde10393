import pytest
import torch
from torch import nn

from selftaught.models import matmul
from selftaught.models.matmul import LARGE, decoding_matmul, fast_fp32_matmul

CPU = torch.device("cpu")


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


def test_fast_matmuls_are_float32_and_the_setting_is_put_back() -> None:
    """1 + 2^-12 needs 13 bits: bf16 (8) and tf32 (11) would round it to 1."""
    before = setting()
    with fast_fp32_matmul(CPU):
        assert (torch.full((96, 96), 1 + 2.0**-12) @ torch.eye(96) == 1 + 2.0**-12).all()
        a, b = (torch.randn(64, 300, dtype=torch.float64) for _ in range(2))
        torch.testing.assert_close(a.float() @ b.float().T, (a @ b.T).float(), atol=1e-4, rtol=0)
    assert setting() == before


def test_the_setting_is_put_back_after_an_error() -> None:
    before = setting()
    with pytest.raises(KeyError), fast_fp32_matmul(CPU):
        raise KeyError
    assert setting() == before


@pytest.mark.parametrize(("exact", "slow"), [(False, True), (True, False)])
def test_it_is_left_alone_where_it_is_not_known_to_help(
    monkeypatch: pytest.MonkeyPatch, exact: bool, slow: bool
) -> None:
    monkeypatch.setattr(matmul, "_onednn_is_exact", lambda: exact)
    monkeypatch.setattr(matmul, "_mkl_is_slow", lambda: slow)
    before = setting()
    with fast_fp32_matmul(CPU):
        assert setting() == before


def test_decoding_asks_for_it_where_most_weights_are_in_large_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_onednn_is_exact", lambda: True)
    monkeypatch.setattr(matmul, "_mkl_is_slow", lambda: True)
    large, *small = (nn.Linear(512, LARGE // 512 - few) for few in (0, 1, 1))
    before = setting()
    cases = ((large, small[0]), "bf16"), ((large, *small), before), ((nn.ReLU(),), before)
    for modules, expected in cases:
        module = nn.Sequential(*modules)
        matmul_of = decoding_matmul(module)
        for _ in range(2):
            with matmul_of():
                assert setting() == expected
            assert setting() == before
