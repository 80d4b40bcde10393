"""Training examples read, encoded, checked and shown before anything else happens."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selftaught.errors import InputError, NothingToTrainOn
from selftaught.models.load import context_length, load_config, tokenizer_fingerprint
from selftaught.specs import KTO, SFT, BradleyTerry, LatentPreference, ModelSpec, ObjectiveSpec, StepKTO, Training
from selftaught.store.stage import open_stage
from selftaught.text.templates import end_token_ids
from selftaught.train.encoding import Encoded, as_steps, encode
from selftaught.train.preview import check_ends, preview
from selftaught.types import Example

PREVIEWED = 2


def prepare_examples(
    model: ModelSpec,
    examples: Path | Sequence[Example],
    settings: Training,
    tokenizer: Any,
    *,
    show: bool,
    render: Callable[[Sequence[Encoded], Any], str] = preview,
) -> list[Encoded]:
    """Return the examples as ids, without those longer than `max_length` or the model's context.

    With `show` the first rows are printed to stderr as `render` shows them, with counts of what was left out or encoded
    from text.

    Raises:
        NothingToTrainOn: no example is left.
        InputError: a row has an empty prompt or completion, or a finished completion without its end-of-turn token.
    """
    rows = read_examples(examples)
    encoded = encode(tokenizer, rows, model.template, tokenizer_fingerprint(tokenizer))
    check_ends(encoded, end_token_ids(tokenizer, model.template))
    context = context_length(load_config(model))
    limit = min(n for n in (settings.max_length, context, sys.maxsize) if n is not None)
    kept = [e for e in encoded if e.longest <= limit]
    if not kept:
        longest = max((e.longest for e in encoded), default=0)
        remedy = "cut them, for the model's context ends there" if limit == context else "raise max_length"
        reason = (
            f"all {len(encoded)} examples are longer than {limit} tokens (longest {longest}): {remedy}"
            if encoded
            else "there is no example"
        )
        raise NothingToTrainOn(f"{reason}, or relax what selects them")
    if show:
        _show(encoded, kept, limit, render(kept[:PREVIEWED], tokenizer))
    return kept


def for_objective(spec: ObjectiveSpec, examples: list[Encoded]) -> list[Encoded]:
    """Return the examples as `spec` trains on them: with their steps, without, or every step as an example.

    Raises:
        InputError: an objective other than SFT got documents; KTO got examples without labels, or no labelled step
            where it needs some; a reward model or a head got what is no pair; a head got a completion with context.
    """
    name = type(spec).__name__
    if not isinstance(spec, SFT) and (documents := [e.id for e in examples if e.is_document]):
        raise InputError(f"example {documents[0]} is a document, which has no completion to judge: train it with SFT")
    if isinstance(spec, BradleyTerry | LatentPreference):
        for example in examples:
            if len(example.completions) != 2:
                raise InputError(f"example {example.id} is no pair: {name} trains on Pair rows, two completions each")
    if isinstance(spec, LatentPreference) and (cut := [e.id for e in examples if any(e.context)]):
        raise InputError(f"example {cut[0]} has loss_from: {name} trains on all choices of a completion, so empty it")
    if not isinstance(spec, KTO | StepKTO):
        return examples
    for example in examples:
        if example.label is None:
            raise InputError(f"example {example.id} has no label: {name} trains on Feedback rows, good or bad")
    per_step = isinstance(spec, KTO) and spec.per_step
    if (per_step or isinstance(spec, StepKTO)) and not any(e.step_labels for e in examples):
        raise InputError(f"none of {len(examples)} examples has step labels: {name} needs some; objective KTO does not")
    if per_step:
        return [part for example in examples for part in as_steps(example)]
    if isinstance(spec, KTO):
        return [replace(e, steps=None, step_labels=(), step_spans=()) for e in examples]
    return examples


def read_examples(examples: Path | Sequence[Example]) -> Sequence[Example]:
    """Return the rows of a stage directory, or `examples` as they are."""
    if not isinstance(examples, Path):
        return examples
    return list(open_stage(examples))


def _show(encoded: Sequence[Encoded], kept: Sequence[Encoded], limit: int, rendered: str) -> None:
    lines = [rendered]
    if len(kept) < len(encoded):
        lines.append(f"{len(encoded) - len(kept)} of {len(encoded)} examples left out: longer than {limit} tokens")
    again = sum(e.retokenised for e in kept)
    documents = sum(e.is_document for e in kept)
    lines.append(
        f"{documents} documents, every token of their text a target"
        if documents == len(kept)
        else f"{len(kept)} examples; {again} completions encoded from text, the others are the ids that were sampled"
    )
    print("\n".join(lines), file=sys.stderr)
