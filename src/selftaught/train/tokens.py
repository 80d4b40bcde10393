"""How many tokens examples hold: the measure by which arms are given equal training."""

from collections.abc import Iterable

from selftaught.models.load import load_tokenizer, tokenizer_fingerprint
from selftaught.specs import ModelSpec
from selftaught.train.encoding import encode
from selftaught.types import Example


def example_tokens(model: ModelSpec, examples: Iterable[Example]) -> list[int]:
    """Return the tokens of every example under the model's tokenizer: of all its sequences, the prompt with each."""
    tokenizer = load_tokenizer(model)
    return [e.tokens for e in encode(tokenizer, list(examples), model.template, tokenizer_fingerprint(tokenizer))]
