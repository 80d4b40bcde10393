import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, LlamaConfig, MistralConfig

from selftaught.errors import InputError
from selftaught.evals.flops import blt_sizes_of, flops_per_byte, stack_of
from selftaught.functional.flops import Stack, blt_flops_per_byte, transformer_flops_per_byte
from selftaught.models.blt import modeling
from selftaught.models.blt.configuration import BltConfig, ByteNgramsConfig, byte_transformer_config
from selftaught.models.blt.layers import mask_sight
from selftaught.models.blt.modeling import BltForCausalLM

SMALL = {
    "hidden_size": 16,
    "patch_width": 2,
    "num_attention_heads": 2,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_hidden_layers": 2,
    "global_attention_heads": 4,
    "global_key_value_heads": 2,
    "window": 8,
    "ngram_sizes": [3],
    "ngram_vocab": 10,
    "patching": "stride",
    "patch_size": 4,
}


def test_flops_per_byte_of_either_kind_of_model():
    blt, tokens = BltConfig(**SMALL), LlamaConfig(hidden_size=32, intermediate_size=40, vocab_size=77)
    assert flops_per_byte(blt, 64, 4.0) == sum(blt_flops_per_byte(blt_sizes_of(blt), 64, 4.0).values())
    assert flops_per_byte(tokens, 64, 2.0) == transformer_flops_per_byte(stack_of(tokens), 64, 2.0)


def test_stacks_of_known_models():
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "vocab_size": 77}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    llama = stack_of(LlamaConfig(**sizes, **heads, head_dim=8))
    assert llama == Stack(layers=3, width=24, ffn=40, attention=32, keys=16, vocabulary=77)
    mistral = stack_of(MistralConfig(**sizes, **heads, sliding_window=5))
    assert mistral == Stack(layers=3, width=24, ffn=40, attention=24, keys=12, window=5, vocabulary=77)
    with pytest.raises(InputError, match="gpt2 has no intermediate_size"):
        stack_of(GPT2Config())


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"encoder_cross_attention": "all", "decoder_cross_attention": "first"},
        {"encoder_cross_attention": "all", "repool": True},
        {"encoder_cross_attention": "none", "decoder_cross_attention": "none"},
        {"pooled_query": False},
        {"patch_width": 3, "global_attention_heads": 6, "global_key_value_heads": 6},
    ],
)
def test_agreement_with_counting_a_blt(change, monkeypatch):
    """Torch counts the products with weights. Attention it does not, where it is its own (`mask_sight`): on a CPU that
    is fused. So what the formula says of scores and mixtures, 4 keys d a query, is taken off.
    """
    monkeypatch.setattr(modeling, "sight", mask_sight)
    config = BltConfig(**SMALL | change)
    model = BltForCausalLM(config).eval().requires_grad_(False)
    ids = torch.arange(64)[None] + 4
    with FlopCounterMode(display=False) as counter:
        patches = model(ids).patch_lengths.shape[1]
    sizes, n = blt_sizes_of(config), ids.shape[1]
    total = n * sum(blt_flops_per_byte(sizes, n, n / patches).values())
    k, d = sizes.slots, sizes.encoder.width
    local = (8 - 8 * 7 / (2 * n)) * (sizes.encoder.layers + sizes.decoder.layers)
    cross = k * sizes.encoder_cross + k * sizes.decoder_cross
    latent = (patches + 1) / 2 * sizes.latent.layers * k * d * patches
    assert counter.get_total_flops() == pytest.approx(total - 4 * (n * d * (local + cross) + latent))


def test_entropy_models():
    """A transformer counts where it is used; a table of n-grams is looked up."""
    by_entropy = SMALL | {"patching": "entropy"}
    entropy = byte_transformer_config(width=16, layers=2, heads=2, window=32)
    assert blt_sizes_of(BltConfig(**by_entropy, entropy_config=entropy)).entropy == stack_of(entropy)
    assert stack_of(entropy).window == 32
    assert blt_sizes_of(BltConfig(**by_entropy, entropy_config=ByteNgramsConfig())).entropy is None
    assert blt_sizes_of(BltConfig(**SMALL, entropy_config=entropy)).entropy is None
