"""What a model would say for each attribute of a record, read off its distribution instead of counted in samples.

Sampling estimates the entropy of 100 values from a thousand draws with a bias of several percent; a forward pass over
the same samples gives the whole conditional distribution at every value, and only its prefix is sampled.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from selftaught.errors import InputError
from selftaught.models.load import default_device, load_model, load_tokenizer
from selftaught.specs import ModelSpec
from selftaught.text.json_records import parse_record
from selftaught.text.templates import encode_prompt
from selftaught.types import Document, Group

_ROWS = 512
Spots = list[tuple[str, int]]


def exact_marginals(
    model: ModelSpec, groups: Iterable[Group], values: Mapping[str, Sequence[str]], temperature: float = 1.0
) -> dict[str, dict[str, float]]:
    """Return {attribute: {value: probability}}, averaged over the valid samples of `groups`.

    `values` lists each attribute's vocabulary; a sample is valid where it is a record of these attributes with values
    from it. At the place of a value the model's distribution given all before it, at `temperature`, is restricted to
    the attribute's vocabulary and normalised. So the first attribute's marginal is exact given the prompt, and a later
    one's has no other noise than that of the earlier values.

    Where no sample is valid the probabilities are empty: nothing is known.

    Raises:
        InputError: a value is not one token.
    """
    tokenizer = load_tokenizer(model)
    ids = {key: [_one_token(tokenizer, key, value) for value in words] for key, words in values.items()}
    rows = [row for group in groups for row in _rows(tokenizer, model.template, group, values, ids)]
    if not rows:
        return {key: {} for key in values}
    device = default_device()
    network = load_model(model, device=device, dtype=torch.float32)
    sums = {key: torch.zeros(len(words), dtype=torch.float64) for key, words in values.items()}
    for start in range(0, len(rows), _ROWS):
        _add_conditionals(network, rows[start : start + _ROWS], ids, temperature, sums)
    return {key: dict(zip(values[key], (total / len(rows)).tolist(), strict=True)) for key, total in sums.items()}


def marginal_rows(
    groups: Iterable[Group],
    counts: Counter[str],
    *,
    model: ModelSpec,
    values: Mapping[str, Sequence[str]],
    temperature: float = 1.0,
) -> Iterator[Document]:
    """Yield `exact_marginals` as a document per attribute, its `meta` the probabilities by value."""
    for key, shares in exact_marginals(model, groups, values, temperature).items():
        yield Document(text=key, meta=shares)


def _one_token(tokenizer, key: str, value: str) -> int:
    ids = tokenizer(value, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InputError(
            f"value {value!r} of {key} is {len(ids)} tokens or unknown to this tokenizer: exact marginals need one "
            "token a value; measure the entropy of samples instead"
        )
    return ids[0]


def _rows(tokenizer, template: str, group: Group, values: Mapping, ids: Mapping) -> Iterator[tuple[list[int], Spots]]:
    """Yield the token ids of each valid sample behind its prompt, with the places of its values."""
    known = {key: {word.casefold() for word in words} for key, words in values.items()}
    prompt = encode_prompt(tokenizer, group.prompt, template)
    for completion in group.completions:
        record = parse_record(completion.text, list(values))
        if record is None or any(record[key] not in known[key] for key in record) or completion.token_ids is None:
            continue
        tokens = list(completion.token_ids)
        found = [(i, key) for i, token in enumerate(tokens) for key in values if token in ids[key]]
        # Where a token serves two attributes its place is not known.
        if sorted(key for _, key in found) == sorted(values):
            yield prompt + tokens, [(key, len(prompt) + i) for i, key in found]


@torch.no_grad()
def _add_conditionals(network, batch: Sequence[tuple[list[int], Spots]], ids, temperature: float, sums) -> None:
    longest = max(len(tokens) for tokens, _ in batch)
    # Padded behind: a causal model does not see it.
    padded = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in batch], device=network.device)
    scores = network(padded).logits
    for key, columns in ids.items():
        places = torch.tensor([place for _, spots in batch for name, place in spots if name == key])
        logits = scores[torch.arange(len(batch)), places - 1][:, columns].double().cpu()
        sums[key] += torch.softmax(logits / temperature, dim=-1).sum(dim=0)
