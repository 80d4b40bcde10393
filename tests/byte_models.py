"""Tiny Byte Latent Transformers, saved with their byte tokenizer, and text for them to read."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import torch

from selftaught.models.blt import (
    BltConfig,
    BltForCausalLM,
    ByteNgrams,
    ByteTokenizer,
    byte_transformer_config,
    count_ngrams,
)
from selftaught.models.blt.patchers import entropies
from selftaught.specs import ModelSpec
from selftaught.types import Document

TEXT = "the cat sat on the mat, and the naïve rat ran at 7 cats. "
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "global_attention_heads": 4,
    "global_key_value_heads": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_hidden_layers": 2,
    "ngram_sizes": (3, 4),
    "ngram_vocab": 64,
    "window": 8,
}


@cache
def ngrams() -> ByteNgrams:
    return count_ngrams([torch.tensor(list((TEXT * 8).encode())) + 4])


def blt(**changes: Any) -> BltForCausalLM:
    """Return a model with random weights that show a wrong mask; its patches come from n-grams, or by `changes`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BltForCausalLM(BltConfig(**{**SIZES, "patching_threshold": 1.5, **changes})).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    if model.model.entropy_model is None:
        model.model.set_entropy_model(ngrams())
    return model


def blt_with_transformer(**changes: Any) -> BltForCausalLM:
    """Return a model whose entropies are a byte transformer's; about every third byte begins a patch."""
    model = blt(entropy_config=byte_transformer_config(width=16, layers=1, heads=2, window=6), **changes)
    assert model.model.entropy_model is not None
    ids = torch.tensor([[1, *(b + 4 for b in (TEXT * 2).encode())]])
    model.config.patching_threshold = float(entropies(model.model.entropy_model, ids).quantile(0.66))
    return model


def save(model: BltForCausalLM, out: Path) -> ModelSpec:
    model.save_pretrained(out)
    ByteTokenizer().save_pretrained(out)
    return ModelSpec(source=str(out))


def documents(count: int, seed: int = 0, low: int = 1, high: int = 40) -> list[Document]:
    """Return pieces of a text of very different lengths."""
    draw = random.Random(seed)
    starts = [draw.randrange(len(TEXT)) for _ in range(count)]
    return [
        Document(text=(TEXT * 4)[at : at + draw.randint(low, high)], meta={"place": i}, parents=(f"{i}",))
        for i, at in enumerate(starts)
    ]
