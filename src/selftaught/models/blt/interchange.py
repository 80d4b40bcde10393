"""To and from the format of transformers' `BltForCausalLM`, which the released weights are in."""

import re
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import MistralConfig
from transformers import initialization as init

from selftaught.errors import InputError
from selftaught.functional.byte_hash import PRIME
from selftaught.models.blt.configuration import BltConfig
from selftaught.models.blt.modeling import BltForCausalLM

# How that implementation computes, which differs from the paper; a model made for it has these switches.
SWITCHES: dict[str, Any] = {
    "patching": "entropy",
    "entropy_resets_at_newline": False,
    "documents": False,
    "ngram_table": "hash",
    "ngram_padding": "zero",
    "divide_embeddings": False,
    "double_residual": True,
    "repool": True,
    "pooled_query": True,
}

# Names there, names here; the first match of each line is replaced.
NAMES = (
    (r"^model\.local_encoder\.layers\.", "model.encoder.stack.layers."),
    (r"^model\.local_decoder\.layers\.", "model.decoder.stack.layers."),
    (r"^model\.global_transformer\.layers\.", "model.global_stack.layers."),
    (r"^model\.local_(encoder|decoder)\.", r"model.\1."),
    (r"^model\.encoder_hash_tok_embedding\.", "model.encoder.ngrams."),
    (r"\.patch_embedding_projection\.", ".patch_projection."),
    (r"\.cross_attn_layers\.(\d+)\.k_norm\.", r".cross.\1.kv_norm."),
    (r"\.cross_attn_layers\.", ".cross."),
    (r"\.self_attn\.", ".attention."),
    (r"\.([qkvo])_proj\.", r".\1."),
    (r"\.mlp\.(gate|up|down)_proj\.", r".feed_forward.\1."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".feed_forward_norm."),
)
PARTS = ("encoder", "decoder", "global", "patcher")
PATCHER = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "max_position_embeddings",
    "rms_norm_eps",
)
SAME = ("hidden_size", "num_attention_heads", "rms_norm_eps", "rope_parameters")
ROTATED = re.compile(r"self_attn\.([qk])_proj\.weight$")


def load_transformers_blt(source: str | Path, **options: Any) -> BltForCausalLM:
    """Return the model that transformers' `BltForCausalLM` saved at `source`, a directory or a Hub id.

    `options` go to its `from_pretrained` (revision, dtype).

    Raises:
        InputError: a feature that this package's model does not have.
    """
    return from_transformers(transformers.BltForCausalLM.from_pretrained(source, **options))


def save_transformers_blt(model: BltForCausalLM, out: str | Path) -> None:
    """Save `model` so that transformers' own `BltForCausalLM` opens it.

    Raises:
        InputError: it computes something that implementation does not.
    """
    to_transformers(model).save_pretrained(out)


def from_transformers(theirs: Any) -> BltForCausalLM:
    """Return our model with the weights of transformers' `BltForCausalLM`, which are shared where they can be.

    Both give the same logits, but for two places: with `max_patch_length`, a row whose last patch has just been filled
    lets its last byte attend to that patch here, as it will once the row goes on, and not there; and in bf16 or fp16
    the entropy model is float32 here, so that boundaries are the same after the model is saved and opened.
    """
    with init.no_init_weights():
        ours = BltForCausalLM(_our_config(theirs.config))
    heads = _heads(theirs.config)
    weights = {
        _name_here(name): _turn(value, heads(name), True) if ROTATED.search(name) else value
        for name, value in theirs.state_dict().items()
    }
    ours.load_state_dict(weights, assign=True)
    if ours.model.entropy_model is not None:
        ours.model.entropy_model.float().requires_grad_(False)
    return ours.eval()


def to_transformers(ours: BltForCausalLM) -> Any:
    """Return transformers' `BltForCausalLM` with the weights of our model, as `from_transformers` reads them."""
    with init.no_init_weights():
        theirs = transformers.BltForCausalLM(_their_config(ours.config))
    heads, held = _heads(theirs.config), ours.state_dict()
    weights = {}
    for name in theirs.state_dict():
        value = held[_name_here(name)]
        weights[name] = _turn(value, heads(name), False) if ROTATED.search(name) else value
    theirs.load_state_dict(weights, assign=True)
    return theirs.eval()


def _name_here(name: str) -> str:
    if name.startswith("model.patcher."):
        inner = name.removeprefix("model.patcher.")
        return "model.entropy_model." + (inner if inner.startswith("lm_head.") else f"model.{inner}")
    for there, here in NAMES:
        name = re.sub(there, here, name)
    return name


def _turn(weight: Tensor, heads: int, here: bool) -> Tensor:
    """Reorder rows of a query or key projection: rotated pairs are neighbours there, half a head apart here."""
    pairs = (heads, -1, 2) if here else (heads, 2, -1)
    return weight.unflatten(0, pairs).transpose(1, 2).flatten(0, 2)


def _heads(config: Any) -> Any:
    parts = {
        "model.local_encoder": config.encoder_config,
        "model.local_decoder": config.decoder_config,
        "model.global_transformer": config.global_config,
        "model.patcher": config.patcher_config,
    }
    return lambda name: next(part.num_attention_heads for start, part in parts.items() if name.startswith(start))


def _our_config(theirs: Any) -> BltConfig:
    encoder, decoder, across, patcher = (getattr(theirs, f"{part}_config") for part in PARTS)
    _refuse_there(theirs)
    return BltConfig(
        **SWITCHES,
        vocab_size=theirs.vocab_size,
        hidden_size=encoder.hidden_size,
        patch_width=theirs.cross_attn_k,
        num_attention_heads=encoder.num_attention_heads,
        encoder_layers=encoder.num_hidden_layers,
        decoder_layers=decoder.num_hidden_layers,
        num_hidden_layers=across.num_hidden_layers,
        encoder_intermediate=encoder.intermediate_size,
        decoder_intermediate=decoder.intermediate_size,
        intermediate_size=across.intermediate_size,
        global_attention_heads=across.num_attention_heads,
        window=theirs.local_attention_window_len,
        max_position_embeddings=theirs.max_position_embeddings,
        rope_theta=encoder.rope_parameters["rope_theta"],
        global_rope_theta=across.rope_parameters["rope_theta"],
        rms_norm_eps=encoder.rms_norm_eps,
        encoder_cross_attention="all" if encoder.cross_attn_all_layers else "last",
        decoder_cross_attention="all" if decoder.cross_attn_all_layers else "first",
        ngram_sizes=theirs.encoder_hash_byte_group_size,
        ngram_vocab=theirs.encoder_hash_byte_group_vocab,
        patching_threshold=theirs.patching_threshold,
        max_patch_length=theirs.max_patch_length,
        bos_token_id=theirs.bos_token_id,
        eos_token_id=theirs.eos_token_id,
        pad_token_id=theirs.pad_token_id,
        entropy_config=MistralConfig(
            **{name: getattr(patcher, name) for name in PATCHER}, rope_parameters=dict(patcher.rope_parameters)
        ),
    )


def _their_config(ours: BltConfig) -> Any:
    _refuse_here(ours)
    entropy = ours.entropy_config
    return transformers.BltConfig(
        vocab_size=ours.vocab_size,
        max_position_embeddings=ours.max_position_embeddings,
        local_attention_window_len=ours.window,
        cross_attn_k=ours.patch_width,
        encoder_hash_byte_group_size=list(ours.ngram_sizes),
        encoder_hash_byte_group_vocab=ours.ngram_vocab,
        encoder_hash_byte_group_nb_functions=1,
        patching_threshold=float(ours.patching_threshold),
        max_patch_length=ours.max_patch_length,
        bos_token_id=ours.bos_token_id,
        eos_token_id=ours.eos_token_id,
        pad_token_id=ours.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        patcher_config={
            **{name: getattr(entropy, name) for name in PATCHER},
            "rope_parameters": dict(entropy.rope_parameters),
        },
        **_their_stacks(ours),
    )


def _their_stacks(ours: BltConfig) -> dict[str, Any]:
    local = {
        "vocab_size": ours.vocab_size,
        "cross_attn_k": ours.patch_width,
        "hidden_size_global": ours.global_hidden_size,
        "hidden_size": ours.hidden_size,
        **_sizes(ours.num_attention_heads, ours.hidden_size, ours.rope_theta, ours),
    }
    return {
        "encoder_config": {
            **local,
            "cross_attn_all_layers": ours.encoder_cross_attention == "all",
            "num_hidden_layers": ours.encoder_layers,
            "intermediate_size": ours.encoder_intermediate,
        },
        "decoder_config": {
            **local,
            "cross_attn_all_layers": ours.decoder_cross_attention == "all",
            "num_hidden_layers": ours.decoder_layers,
            "intermediate_size": ours.decoder_intermediate,
        },
        "global_config": {
            "hidden_size": ours.global_hidden_size,
            "num_hidden_layers": ours.num_hidden_layers,
            "intermediate_size": ours.intermediate_size,
            **_sizes(ours.global_attention_heads, ours.global_hidden_size, ours.global_rope_theta, ours),
        },
    }


def _sizes(heads: int, width: int, theta: float, ours: BltConfig) -> dict[str, Any]:
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "max_position_embeddings": ours.max_position_embeddings,
        "rms_norm_eps": ours.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }


def _refuse_there(theirs: Any) -> None:
    encoder, decoder, across, patcher = (getattr(theirs, f"{part}_config") for part in PARTS)
    stacks = (encoder, decoder, across, patcher)
    reasons = {
        "several hash functions": theirs.encoder_hash_byte_group_nb_functions != 1,
        f"patching_mode={theirs.patching_mode!r}": theirs.patching_mode != "entropy",
        "no patcher": not theirs.patch_in_forward,
        "shared key heads": any(x.num_key_value_heads != x.num_attention_heads for x in stacks[:3]),
        "an activation other than silu": any(x.hidden_act != "silu" for x in stacks),
        "rotary embeddings of a special type": any(x.rope_parameters["rope_type"] != "default" for x in stacks),
        "encoder and decoder that differ in width, heads, rope or norm": any(
            getattr(encoder, name) != getattr(decoder, name) for name in SAME
        ),
        "norms that differ": encoder.rms_norm_eps != across.rms_norm_eps,
        f"patches not {theirs.cross_attn_k} bytes wide": across.hidden_size
        != theirs.cross_attn_k * encoder.hidden_size,
        "heads that are not width / heads wide": any(
            (getattr(x, "head_dim", None) or x.hidden_size // x.num_attention_heads) * x.num_attention_heads
            != x.hidden_size
            for x in stacks[:3]
        ),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise InputError(f"this checkpoint has {', '.join(found)}, which is not supported: use transformers for it")


def _refuse_here(ours: BltConfig) -> None:
    wrong = [
        f"{name}={getattr(ours, name)!r}"
        for name, value in SWITCHES.items()
        # With one cross-attention there is no state to keep or to pool anew.
        if getattr(ours, name) != value and not (name == "repool" and ours.encoder_cross_attention == "last")
    ]
    wrong += [
        f"{name}='none'"
        for name in ("encoder_cross_attention", "decoder_cross_attention")
        if getattr(ours, name) == "none"
    ]
    wrong += ["ngram_sizes=[]"] * (not ours.ngram_sizes) + [f"ngram_prime={ours.ngram_prime}"] * (
        ours.ngram_prime != PRIME
    )
    if ours.global_key_value_heads != ours.global_attention_heads:
        wrong.append(f"global_key_value_heads={ours.global_key_value_heads}")
    if not isinstance(ours.entropy_config, MistralConfig):
        wrong.append("an entropy model that is no byte transformer")
    if wrong:
        wanted = ", ".join(f"{name}={value!r}" for name, value in SWITCHES.items())
        raise InputError(f"transformers' Blt cannot compute {', '.join(wrong)}: build the model with {wanted}")
