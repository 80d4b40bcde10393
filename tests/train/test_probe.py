import copy

import pytest
import torch
from tests import architectures
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selftaught.train import attention
from selftaught.train.probe import Mode, choose_mode

PACKED = ["llama", "qwen2", "qwen2 with a window in some layers", "qwen3", "gpt2", "mistral with a window", "gemma3"]


@pytest.mark.parametrize("family", PACKED)
def test_common_families_take_packed_trees(family):
    assert choose_mode(architectures.model(family)) == (Mode(packed=True, chunked=True), "")


@pytest.mark.parametrize(("family", "why"), [("bloom", "differ"), ("gemma2", "softcap"), ("gpt-oss", "s_aux")])
def test_others_fall_back_to_separate_rows_and_say_so(family, why):
    mode, reason = choose_mode(architectures.model(family))
    assert mode == Mode(packed=False, chunked=True)
    assert why in reason and reason.endswith("training on separate rows")
    assert "\n" not in reason


def test_a_model_without_attention_falls_back():
    mode, reason = choose_mode(architectures.model("mamba"))
    assert not mode.packed
    assert "separate rows" in reason


def test_a_head_that_scales_its_logits_is_noticed():
    class Scaled(type(architectures.model("llama"))):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits / 3
            return output

    model = copy.deepcopy(architectures.model("llama"))
    model.__class__ = Scaled
    mode, reason = choose_mode(model)
    assert mode == Mode(packed=True, chunked=False)
    assert reason.endswith("training on tree rows with full logits")


def test_a_window_that_the_attention_ignores_is_noticed(monkeypatch):
    def careless(*args, sliding_window=None, **kwargs):
        return attention.packed_attention(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, attention.NAME, careless)
    mode, reason = choose_mode(architectures.model("mistral with a window"))
    assert not mode.packed
    assert "differ" in reason


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    choose_mode(architectures.model("llama"))
    assert torch.equal(torch.get_rng_state(), before)
