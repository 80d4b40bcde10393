"""Pairs of responses with a label that says which is better: LLMBar's files and preference files of one's own.

LLMBar (Zeng et al. 2023, arXiv 2310.07641) has rows of `input`, `output_1`, `output_2` and `label` (1 or 2), and here
`subset`. A preference file has `prompt`, `chosen` and `rejected`.
"""

from itertools import islice
from pathlib import Path
from typing import Any

from selftaught.errors import InputError
from selftaught.store.datafiles import read_pairs
from selftaught.store.tables import Record, read_table
from selftaught.types import Completion, Group, Prompt, Score, content_id, number_repeats

GOLD = "gold"
"""The scorer of labels: 1 for the better response, 0 for the other, 0.5 for both where they are equally good."""

_LLMBAR = {"input": str, "output_1": str, "output_2": str, "label": int}


def read_comparisons(path: Path | str, limit: int | None = None) -> list[Group]:
    """Return a group of two completions and two gold scores for every row.

    Raises:
        InputError: a row lacks a column, or its label is neither 1 nor 2; names file and line.
    """
    first = next(read_table(path, {}))
    if "chosen" in first.fields:
        rows = [(p.prompt, p.chosen.text, p.rejected.text, 1) for p in read_pairs(path, limit)]
    elif "output_1" in first.fields:
        rows = [_llmbar(record) for record in islice(read_table(path, _LLMBAR, {"subset": str}), limit)]
    else:
        found = ", ".join(first.fields) or "none"
        raise InputError(
            f"{first.where}: no comparison (fields: {found}); give prompt, chosen and rejected, or LLMBar's input, "
            "output_1, output_2 and label"
        )
    prompts = number_repeats(prompt for prompt, *_ in rows)
    return [_group(prompt, *row[1:]) for prompt, row in zip(prompts, rows, strict=True)]


def _llmbar(record: Record) -> tuple[Prompt, str, str, int]:
    fields: dict[str, Any] = record.fields
    if fields["label"] not in (1, 2):
        raise InputError(
            f"{record.where}: 'label' = {fields['label']}; it must be 1 or 2, the number of the better one"
        )
    meta = {"subset": fields["subset"]} if "subset" in fields else {}
    return Prompt.from_text(fields["input"], meta=meta), fields["output_1"], fields["output_2"], fields["label"]


def _group(prompt: Prompt, first: str, second: str, better: int) -> Group:
    completions = tuple(
        Completion(prompt_id=prompt.id, k=k, text=text, id=content_id("given", prompt.id, k, text))
        for k, text in enumerate((first, second))
    )
    scores = tuple(Score(completion_id=c.id, scorer=GOLD, value=float(c.k == better - 1)) for c in completions)
    return Group(prompt=prompt, completions=completions, scores=scores)
