"""What will be trained on, shown before it is: rendered rows with the loss mask marked."""

from collections.abc import Sequence
from typing import Any

from selftaught.errors import InputError
from selftaught.train.encoding import Encoded

OPEN, CLOSE = "⟦", "⟧"
DOCUMENT_TOKENS = 200
"""Of a document that is longer than twice as many, so many tokens at either end are shown."""


def check_ends(examples: Sequence[Encoded], end_ids: Sequence[int]) -> None:
    """Make sure that every finished completion ends in an end-of-turn token, which is a target like any other.

    Raises:
        InputError: one does not; names the example and its last token.
    """
    ends = frozenset(end_ids)
    for example in examples:
        for tokens, finished, name in zip(example.completions, example.finished, example.completion_ids, strict=True):
            if finished and int(tokens[-1]) not in ends:
                raise InputError(
                    f"example {example.id}: completion {name} finished, but its loss mask ends with token "
                    f"{int(tokens[-1])} and not with an end-of-turn token {sorted(ends)}, so the model would never "
                    "learn to stop: fix the template, or mark the completion finish='length'"
                )


def preview(examples: Sequence[Encoded], tokenizer: Any) -> str:
    """Return the examples as text, the targets of the loss between ⟦ and ⟧, special tokens shown.

    What stands before ⟦ is the part of a completion that is context only.
    """
    lines = []
    for example in examples:
        if example.is_document:
            lines += _document(example, tokenizer)
            continue
        lines.append(f"example {example.id} (weight {example.weight:g}): {len(example.prompt)} prompt tokens, no loss")
        lines.append(f"  {_text(tokenizer, example.prompt)}")
        for tokens, first, targets in zip(
            example.completions, example.first_targets, example.target_counts, strict=True
        ):
            shown = f"{_text(tokenizer, tokens[:first])}{OPEN}{_text(tokenizer, tokens[first:])}{CLOSE}"
            behind = f" behind {first} tokens without loss" if first else ""
            lines.append(f"  {shown} {targets} targets{behind}")
    return "\n".join(lines)


def _document(example: Encoded, tokenizer: Any) -> list[str]:
    (tokens,) = example.completions
    shown = _text(tokenizer, tokens)
    if (hidden := len(tokens) - 2 * DOCUMENT_TOKENS) > 0:
        ends = tokens[:DOCUMENT_TOKENS], tokens[-DOCUMENT_TOKENS:]
        shown = f" … {hidden} tokens … ".join(_text(tokenizer, end) for end in ends)
    patches = "" if example.patch_lengths is None else f" in {len(example.patch_lengths)} stored patches"
    return [
        f"document {example.id}: all text, after the token that begins one",
        f"  {_text(tokenizer, example.prompt)}{OPEN}{shown}{CLOSE} {len(tokens)} targets{patches}",
    ]


def _text(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False).replace("\n", "\\n")
