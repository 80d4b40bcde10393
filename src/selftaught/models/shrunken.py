"""A small random-weight copy of a model's architecture, on which a way of computing can be tried at no cost."""

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

WINDOW = 6
VOCABULARY = 97
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
INTERMEDIATE = ("intermediate_size", "n_inner", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim")


def shrunken(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Return a float32 model of this class and configuration with one layer of each kind, few heads and a short window.

    A configuration that has a method `small_copy` says itself what that is.

    Raises:
        Exception: whatever the architecture raises when its sizes do not fit one another.
    """
    small = config.small_copy() if hasattr(config, "small_copy") else _small_copy(config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = model_class._from_config(small, dtype=torch.float32)
        for parameter in model.parameters():
            # Initial weights are so small that a wrong mask would hardly show.
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _small_copy(config: PreTrainedConfig) -> PreTrainedConfig:
    small = copy.deepcopy(config)
    text: Any = small.get_text_config()
    kinds = list(dict.fromkeys(getattr(text, "layer_types", None) or ()))
    text.num_hidden_layers = max(2, len(kinds))
    if kinds:
        text.layer_types = (kinds * 2)[: text.num_hidden_layers]
    for name in WINDOWS:
        if getattr(text, name, None):
            setattr(text, name, WINDOW)
    _shrink_heads(text)
    for name in INTERMEDIATE:
        if getattr(text, name, None):
            setattr(text, name, 64)
    text.vocab_size = VOCABULARY
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    return small


def _shrink_heads(text: Any) -> None:
    heads = text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = min(2, key_heads)
    text.num_attention_heads = kept * (heads // key_heads)
    if getattr(text, "num_key_value_heads", None):
        text.num_key_value_heads = kept
    text.hidden_size = text.num_attention_heads * head_dim
