from itertools import product

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from selftaught.errors import InputError
from selftaught.functional.flops import (
    BLTSizes,
    Stack,
    blt_flops_per_byte,
    closest,
    cross_attention_flops,
    mean_keys,
    transformer_flops,
    transformer_flops_per_byte,
)

SIZES = BLTSizes(
    encoder=Stack(layers=1, width=2, ffn=3, window=2),
    latent=Stack(layers=2, width=4, ffn=5),
    decoder=Stack(layers=1, width=2, ffn=3, window=2, vocabulary=5),
    slots=2,
    decoder_cross=1,
)


@pytest.mark.parametrize("window", [None, 1, 2, 3, 7, 8, 50])
@pytest.mark.parametrize("positions", [1, 2, 7, 40])
def test_mean_keys_against_counting(positions, window):
    counted = [min(i, window or positions) for i in range(1, positions + 1)]
    assert mean_keys(positions, window) == pytest.approx(sum(counted) / positions)


def test_a_transformer_by_hand():
    """l = 1, d = 2, f = 3, V = 5, 2.5 keys: q, k, v, o 4*2*2*2 = 32; scores and mixture 4*2.5*2 = 20; feed-forward
    2*3*2*3 = 36; output 2*2*5 = 20; in all 108. Two heads' worth of attention width 4 with keys of width 1: 4*2*5 = 40
    and 4*2.5*4 = 40, and two matrices 24: 124. Two layers count the output once: 196.
    """
    small = Stack(layers=1, width=2, ffn=3, vocabulary=5)
    assert transformer_flops(small, 2.5) == 108
    odd = Stack(layers=1, width=2, ffn=3, gated=False, attention=4, keys=1, vocabulary=5)
    assert transformer_flops(odd, 2.5) == 124
    assert transformer_flops(Stack(layers=2, width=2, ffn=3, vocabulary=5), 2.5) == 196


def test_tokens_cost_less_per_byte():
    """16 bytes in tokens of 4: 4 tokens, 2.5 keys, 108 per token, 27 per byte; as bytes 8.5 keys, 108 + 6*8 = 156."""
    small = Stack(layers=1, width=2, ffn=3, vocabulary=5)
    assert transformer_flops_per_byte(small, context=16, bytes_per_token=4) == 27
    assert transformer_flops_per_byte(small, context=16) == 156


def test_cross_attention_by_hand():
    """d = 2: query and output 2*2*2*2 = 16; keys and values of 1.5 sources 24; 3 keys 4*3*2 = 24."""
    assert cross_attention_flops(2, keys=3, sources=1.5) == 64


def test_blt_by_hand():
    """Context 16, patches of 4, so 4 patches and 2.5 keys; local windows of 2: 2 - 2/32 = 1.9375 keys.

    latent: 2 (4*4*8 + 4*2.5*4 + 2*3*4*5) = 576, / 4 = 144. Encoder: 32 + 4*1.9375*2 + 36 = 83.5; decoder with output
    103.5. Encoder cross: a patch has 2 queries, each sees 4 bytes and pays for the keys of 2: 2 (16*3 + 4*4*2) = 160, a
    byte 40. Decoder cross: a byte sees 2 slots and pays for half of one: 16*1.5 + 4*2*2 = 40. Projections of a patch:
    2*2*4 + 2*4*4 = 48, a byte 12; without pool and cross-attention 2*4*2 = 16, a byte 4. An entropy model like the
    encoder with 5 outputs: 103.5.
    """
    parts = blt_flops_per_byte(SIZES, context=16, patch_length=4)
    assert parts == {
        "latent": 144,
        "encoder": 83.5,
        "decoder": 103.5,
        "encoder cross": 40,
        "decoder cross": 40,
        "projections": 12,
    }
    changed = {"encoder": SIZES.encoder, "latent": SIZES.latent, "decoder": SIZES.decoder, "slots": 2}
    bare = BLTSizes(**changed, encoder_cross=0, decoder_cross=0, pools=0, entropy=SIZES.decoder)
    parts = blt_flops_per_byte(bare, context=16, patch_length=4)
    assert (parts["encoder cross"], parts["decoder cross"], parts["projections"]) == (0, 0, 4)
    assert parts["entropy"] == 103.5


def test_longer_patches_cost_less():
    totals = [sum(blt_flops_per_byte(SIZES, 1024, p).values()) for p in (1, 2.5, 4, 4.5, 8, 1024)]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals)


def counted(model, *inputs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("positions", [5, 32])
def test_agreement_with_counting_a_llama(positions):
    """Torch counts what is computed: all n keys of every query. It does not know the fused attention of CPUs."""
    config = LlamaConfig(
        vocab_size=77,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    stack = Stack(layers=3, width=24, ffn=40, attention=32, keys=16, vocabulary=77)
    assert counted(model, torch.arange(positions)[None]) == positions * transformer_flops(stack, keys=positions)


def test_agreement_with_counting_training():
    """Backward of a product is two products: three forward passes, less the gradient of the embedded input's."""
    layer = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(5)))
    x = torch.ones(3, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * counted(layer, x)


class Cross(nn.Module):
    """Cross-attention in which every patch of p bytes is apart from the others; no outside implementation is used."""

    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, queries, sources):
        scores = self.q(queries) @ self.k(sources).transpose(-1, -2)
        return self.o(scores.softmax(-1) @ self.v(sources))


@pytest.mark.parametrize(("patches", "p", "k"), [(6, 4, 2), (5, 3, 1), (2, 8, 4)])
def test_agreement_with_counting_cross_attention(patches, p, k):
    """Slots over the bytes of their patch, as in the encoder, and bytes over the slots of theirs, as in the decoder."""
    width = 8
    slots, data = torch.ones(patches, k, width), torch.ones(patches, p, width)
    encoder = patches * k * cross_attention_flops(width, keys=p, sources=p / k)
    decoder = patches * p * cross_attention_flops(width, keys=k, sources=k / p)
    assert counted(Cross(width), slots, data) == pytest.approx(encoder)
    assert counted(Cross(width), data, slots) == pytest.approx(decoder)


def test_a_baseline_of_equal_flops():
    """Costs 10, 12, 15, 15 for a target of 13.5: 12 and 15 are equally close, and 12 comes first."""
    assert closest(13.5, [10, 12, 15], float) == (12, pytest.approx(-1 / 9))
    assert closest(13.5, iter([15, 12]), float) == (15, pytest.approx(1 / 9))
    target = sum(blt_flops_per_byte(SIZES, 64, 4).values())
    grid = [Stack(layers=n, width=w, ffn=2 * w, vocabulary=5) for n, w in product((1, 2, 3), (2, 4, 6))]
    flat, gap = closest(target, grid, lambda stack: transformer_flops_per_byte(stack, 64))
    costs = [transformer_flops_per_byte(stack, 64) for stack in grid]
    assert abs(gap) == min(abs(cost / target - 1) for cost in costs) and flat in grid


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_keys(0), "context of 0 positions"),
        (lambda: mean_keys(4, 0), "window 0"),
        (lambda: transformer_flops_per_byte(SIZES.encoder, 8, 0.5), "bytes per token = 0.5"),
        (lambda: blt_flops_per_byte(SIZES, 8, 9), "patch length = 9 in a context of 8 bytes"),
        (lambda: blt_flops_per_byte(SIZES, 8, float("nan")), "patch length = nan"),
        (lambda: closest(0, [1], float), "a target of 0 FLOPs"),
        (lambda: closest(1, [], float), "0 sizes"),
        (
            lambda: BLTSizes(
                encoder=SIZES.encoder, latent=SIZES.latent, decoder=SIZES.decoder, slots=3, decoder_cross=1
            ),
            "3 slots of 2 make no patch of 4",
        ),
    ],
)
def test_bad_sizes(call, message):
    with pytest.raises(InputError, match=message):
        call()
