"""A special token that the model may write and no user can: [RESET] of Backtracking, say."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftaught.errors import InputError
from selftaught.models.load import load_model, load_tokenizer, quiet_loading
from selftaught.specs import ModelSpec
from selftaught.text.templates import MODEL_ONLY

TRAINED_WITH_ADAPTERS = "model_only_token_ids"
"""The key in a model's configuration of the tokens whose embeddings are trained along with a low-rank adapter."""


def add_token(*, model: ModelSpec, token: str, out: Path, seed: int) -> None:
    """Fill `out` with `model` and its tokenizer, to which `token` is added. Nothing is drawn: `seed` is not read.

    Its input and output embeddings are the means of all others. Texts of prompts never become the token
    (`text.templates.encode_prompt`), and an adapter trains its embeddings too. A token that is there keeps its id and
    its embeddings. An adapter of `model` is folded into the weights.

    Raises:
        InputError: the token is shorter than two characters, or is an ordinary word or another's role (EOS, say).
    """
    tokenizer = load_tokenizer(model)
    network = load_model(model, dtype=None)
    if model.adapter:
        network = network.merge_and_unload()
    known = len(tokenizer)
    number = add_to_tokenizer(tokenizer, token)
    if number >= known:
        _add_row(network, number)
    marked = {*getattr(network.config, TRAINED_WITH_ADAPTERS, ()), number}
    setattr(network.config, TRAINED_WITH_ADAPTERS, sorted(marked))
    quiet_loading()
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)


def add_to_tokenizer(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Add `token` to `tokenizer` as one that only the model may write, and return its id."""
    if len(token) < 2:
        raise InputError(f"token {token!r}: give two characters or more, [RESET] say, so that texts can be kept apart")
    roles = {name: value for name, value in tokenizer.special_tokens_map.items() if value == token}
    if roles:
        raise InputError(f"token {token!r} is the tokenizer's {min(roles)}: give another, [RESET] say")
    if token not in tokenizer.get_added_vocab() and token in tokenizer.get_vocab():
        raise InputError(f"token {token!r} is an ordinary word of the vocabulary: give another, <|reset|> say")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(token, special=True, normalized=False)]},
        replace_extra_special_tokens=False,
    )
    tokenizer.init_kwargs[MODEL_ONLY] = sorted({*tokenizer.init_kwargs.get(MODEL_ONLY, ()), token})
    return int(tokenizer.convert_tokens_to_ids(token))


@torch.no_grad()
def _add_row(network: PreTrainedModel, number: int) -> None:
    """Give id `number` the mean of the embeddings before it, in and out. Padded embeddings may have its row already."""
    tables = [network.get_input_embeddings(), network.get_output_embeddings()]
    if number >= tables[0].weight.shape[0]:
        network.resize_token_embeddings(number + 1, mean_resizing=False)
        tables = [network.get_input_embeddings(), network.get_output_embeddings()]
    for table in tables:
        for name in ("weight", "bias"):
            rows: Tensor | Any = getattr(table, name, None)
            if rows is not None:
                rows[number] = rows[:number].float().mean(0).to(rows.dtype)
