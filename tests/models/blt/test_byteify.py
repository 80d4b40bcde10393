import pytest
import torch
import torch.nn.functional as F
from tests import byte_models
from transformers import GraniteConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from selftaught.errors import InputError
from selftaught.models.blt import BltConfig
from selftaught.models.blt.byteify import byteify

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
    "initializer_range": 0.3,
}
CONFIG = BltConfig(**byte_models.SIZES, patching="space")


def source(kind: type = LlamaConfig, **changes: object):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(kind(**{**SIZES, **changes})).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


class Causal:
    """Plain causal attention."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (LlamaConfig, {}),
        (LlamaConfig, {"num_key_value_heads": 4}),
        (MistralConfig, {"sliding_window": None}),
    ],
)
def test_the_global_transformer_computes_what_the_models_layers_compute(kind: type, changes: dict):
    theirs = source(kind, **changes)
    ours = byteify(theirs, CONFIG)
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs.model(inputs_embeds=x, output_hidden_states=True)
        stack = ours.model.global_stack
        cos, sin = stack.rope(9, x.device)
        found = x
        for layer in stack.layers:
            found = layer(found, cos, sin, Causal())
        normed = theirs.model.norm(found)
    assert torch.allclose(normed, wanted.last_hidden_state, atol=1e-5)
    assert (found - x).abs().max() > 0.1


def test_the_rest_is_drawn_from_the_seed_and_the_configuration_is_not_changed():
    before = CONFIG.to_dict()
    a, b, c = (byteify(source(), CONFIG, seed) for seed in (1, 1, 2))
    assert torch.equal(a.lm_head.weight, b.lm_head.weight) and not torch.equal(a.lm_head.weight, c.lm_head.weight)
    assert CONFIG.to_dict() == before
    assert (a.config.num_hidden_layers, a.config.global_rope_theta) == (3, 77.0)
    assert a(torch.tensor([[1, 70, 80]])).logits.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        (LlamaConfig, {"hidden_size": 64}, r"64 wide and hidden_size \* patch_width is 32"),
        (LlamaConfig, {"head_dim": 16}, "4 heads of 16 do not make up the width 32"),
        (LlamaConfig, {"attention_bias": True}, "holds self_attn.q_proj.bias"),
        (LlamaConfig, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (LlamaConfig, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}}, "plain rotary"),
        (MistralConfig, {"sliding_window": 4}, "sliding_window=4"),
        (Qwen2Config, {}, "holds self_attn.q_proj.bias"),
        (Qwen3Config, {"head_dim": 8}, "a qwen3 computes what ours does not"),
        (GraniteConfig, {}, "a granite computes what ours does not: byte-ify a Llama, a Mistral or a Qwen2"),
    ],
)
def test_what_a_global_layer_cannot_hold_is_named(kind: type, changes: dict, why: str):
    with pytest.raises(InputError, match=why):
        byteify(source(kind, **changes), CONFIG)
