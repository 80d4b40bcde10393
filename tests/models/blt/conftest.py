"""A Byte Latent Transformer of a few thousand weights, made large enough that a wrong mask shows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from selftaught.functional.patches import calibrate_threshold
from selftaught.models.blt import BltConfig, BltForCausalLM, ByteNgrams, byte_transformer_config, count_ngrams
from selftaught.models.blt.patchers import entropies

Build = Callable[..., BltForCausalLM]
TEXT = b"the cat sat on the mat, and the rat ran at the cat. " * 8


@pytest.fixture(scope="session")
def ngrams() -> ByteNgrams:
    return count_ngrams([torch.tensor(list(TEXT)) + 4])


@pytest.fixture(scope="session")
def build() -> Build:
    """Return what builds a model with random weights from changes to a tiny configuration."""

    def model(**changes: Any) -> BltForCausalLM:
        defaults: dict[str, Any] = {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "global_attention_heads": 4,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "num_hidden_layers": 2,
            "ngram_sizes": (3, 4),
            "ngram_vocab": 64,
            "window": 8,
            "entropy_config": byte_transformer_config(width=16, layers=1, heads=2, window=6),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = BltForCausalLM(BltConfig(**{**defaults, **changes})).eval()
            for parameter in made.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        if made.model.entropy_model is not None and "patching_threshold" not in changes:
            calibrate(made, random_bytes(4, 60))
        return made

    return model


def calibrate(model: BltForCausalLM, ids: torch.Tensor) -> None:
    """Give the model a threshold under which its random entropies make patches of about 3 bytes of `ids`."""
    assert model.model.entropy_model is not None
    model.config.patching_threshold = calibrate_threshold(entropies(model.model.entropy_model, ids), 3.0)


def random_bytes(rows: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 260, (rows, n), generator=torch.Generator().manual_seed(seed))
