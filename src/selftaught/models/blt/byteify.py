"""Byte-ify: a Byte Latent Transformer whose global transformer starts from a language model over tokens.

Section 6.2 of the paper (arXiv 2412.09871): the layers between embeddings and head are taken over as they are, encoder
and decoder are new, and all are then trained on bytes.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selftaught.errors import InputError
from selftaught.models.blt.configuration import BltConfig
from selftaught.models.blt.modeling import BltForCausalLM

# Names in a layer there, names in a layer here.
NAMES = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.q",
    "self_attn.k_proj": "attention.k",
    "self_attn.v_proj": "attention.v",
    "self_attn.o_proj": "attention.o",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up",
    "mlp.down_proj": "feed_forward.down",
}


def byteify(model: PreTrainedModel, config: BltConfig, seed: int = 0) -> BltForCausalLM:
    """Return a model of `config` whose global transformer is the layers of `model`; all else is drawn from `seed`.

    The global sizes, the norms' eps and the rotations' base are those of `model`, whatever `config` says; its
    `hidden_size`, times `patch_width`, must be the width of `model`. The source's final norm is left out, as the
    decoder norms its own output.

    Args:
        model: a causal language model with the layers of Llama: Llama, Mistral, Qwen2 without its biases.
        config: the rest of the model; it is not changed.
        seed: of the new weights.

    Raises:
        InputError: the layers of `model` hold or do what ours do not; names it.
    """
    theirs: Any = model.config
    _check(model, config)
    sizes = copy.deepcopy(config)
    sizes.num_hidden_layers = theirs.num_hidden_layers
    sizes.global_attention_heads = theirs.num_attention_heads
    sizes.global_key_value_heads = theirs.num_key_value_heads
    sizes.intermediate_size = theirs.intermediate_size
    sizes.rms_norm_eps = theirs.rms_norm_eps
    sizes.global_rope_theta = theirs.rope_parameters["rope_theta"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = BltForCausalLM(sizes)
    made.model.global_stack.load_state_dict(_layers(model))
    return made.eval()


def _layers(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights of the layers under our names, in float32."""
    held = {}
    for name, value in model.base_model.layers.state_dict().items():
        number, _, part = name.partition(".")
        known = NAMES.get(part.removesuffix(".weight"))
        if known is None:
            raise InputError(f"layer {number} holds {part}, which a global layer has not: byte-ify a model without it")
        held[f"layers.{number}.{known}.weight"] = value.detach().float()
    return held


def _check(model: PreTrainedModel, config: BltConfig) -> None:
    theirs: Any = model.config
    # Others with layers of these names scale their residuals, or leave some layers without positions.
    if theirs.model_type not in ("llama", "mistral", "qwen2"):
        raise InputError(f"a {theirs.model_type} computes what ours does not: byte-ify a Llama, a Mistral or a Qwen2")
    if theirs.hidden_size != config.global_hidden_size:
        raise InputError(
            f"the model is {theirs.hidden_size} wide and hidden_size * patch_width is {config.global_hidden_size}: "
            "make them equal"
        )
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    if head_dim * theirs.num_attention_heads != theirs.hidden_size:
        raise InputError(
            f"{theirs.num_attention_heads} heads of {head_dim} do not make up the width {theirs.hidden_size}, as "
            "those of a global layer do: byte-ify another model"
        )
    rope = theirs.rope_parameters
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"rope_parameters={rope}: only plain rotary positions are known here; byte-ify another model")
    if theirs.hidden_act != "silu":
        raise InputError(f"hidden_act={theirs.hidden_act!r}: a global layer has 'silu'; byte-ify another model")
    kinds = set(getattr(theirs, "layer_types", None) or ())
    window = getattr(theirs, "sliding_window", None) if kinds <= {"sliding_attention"} else None
    if "sliding_attention" in kinds or (window and getattr(theirs, "use_sliding_window", True)):
        raise InputError(f"sliding_window={window}: the global transformer sees all patches; byte-ify another model")
