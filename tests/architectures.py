"""Tiny random models of the families the sampler must serve, and a tokenizer with one token per character."""

import string
from collections.abc import Callable
from functools import lru_cache

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 48
WINDOW = 7
CONTEXT = 160

_sizes = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_wide_heads = {**_sizes, "head_dim": 16}
_gpt2 = GPT2Config(
    vocab_size=VOCABULARY,
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_positions=CONTEXT,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=0,
)
_windowed_qwen = Qwen2Config(**_sizes, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_sizes)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_sizes)),
    "qwen2 with a window in some layers": lambda: Qwen2ForCausalLM(_windowed_qwen),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_wide_heads)),
    "gpt2": lambda: GPT2LMHeadModel(_gpt2),
    "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**_sizes, sliding_window=WINDOW)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_wide_heads, sliding_window=WINDOW)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**_wide_heads, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])
    ),
}
# Attention sinks: our attention does not know them, 4D masks do.
MASKED: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt-oss": lambda: GptOssForCausalLM(
        GptOssConfig(**_wide_heads, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2)
    ),
}
# No keys and values (Mamba), positions only in a bias computed from the padding mask (Bloom).
UNCACHED: dict[str, Callable[[], PreTrainedModel]] = {
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, eos_token_id=1, pad_token_id=0)
    ),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, eos_token_id=1, pad_token_id=0)
    ),
}


@lru_cache
def model(name: str) -> PreTrainedModel:
    """Return the family's model in eval mode, its weights large enough for every position to matter."""
    build = {**FAMILIES, **MASKED, **UNCACHED}[name]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = build()
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return network.eval()


@lru_cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters: pad 0, eos 1, unk 2, then letters, digits, a space, punctuation."""
    characters = ["<pad>", "<eos>", "<unk>", *string.ascii_lowercase, *string.digits, " ", *".,:;!?\n-"]
    backend = Tokenizer(token_models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(characters[:3])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def prompts(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    """Return random prompts without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in lengths]
