"""Steps of a completion: cut by characters, then laid over its tokens."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from selftaught.errors import InputError
from selftaught.text.tokens import HALF, decode, token_groups

Span = tuple[int, int]

_SENTENCE_END = re.compile(r"\n|[.!?]\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """Where a completion falls into steps.

    A match of `separator` ends a step and belongs to it; the default is an empty line, or a line break before
    `Step 2:`. The last match of `answer` marks the final answer: the sentence it stands in begins a step of its own,
    or with `answer_step="attached"` belongs to the step before it.
    """

    separator: str = r"\n[^\S\n]*\n\s*|\n(?=[^\S\n]*[Ss]tep \d+[:.)])"
    answer: str = r"####|\\boxed\b|\b[Tt]he (?:final )?answer is\b"
    answer_step: Literal["own", "attached"] = "own"

    def __post_init__(self) -> None:
        for name in ("separator", "answer"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise InputError(f"{name}={getattr(self, name)!r} is no regular expression: {error}; mend it") from None

    def __call__(self, text: str) -> list[Span]:
        """Return the steps as [start, end) of characters: in order, without gaps, none of them blank.

        Text without a separator is one step, empty text none.

        >>> Segmentation()("Two and two.\\n\\nThat makes 4. The answer is 4")
        [(0, 14), (14, 28), (28, 43)]
        """
        cuts = {match.end() for match in re.finditer(self.separator, text)}
        start = self._answer_start(text)
        if start is not None and self.answer_step == "own":
            cuts.add(start)
        elif start is not None:
            step = max((cut for cut in cuts if cut <= start), default=0)
            if not text[step:start].strip():
                cuts.discard(step)
        return _tile(text, cuts)

    def _answer_start(self, text: str) -> int | None:
        last = None
        for match in re.finditer(self.answer, text):
            last = match.start()
        if last is None:
            return None
        return max((match.end() for match in _SENTENCE_END.finditer(text, 0, last)), default=0)


def _tile(text: str, cuts: Iterable[int]) -> list[Span]:
    bounds = [0, *sorted(cut for cut in cuts if 0 < cut < len(text)), len(text)]
    spans: list[Span] = []
    begin = 0
    for _, end in pairwise(bounds):
        if text[begin:end].strip():
            spans.append((begin, end))
            begin = end
        elif spans:
            spans[-1], begin = (spans[-1][0], end), end
    return spans or ([(0, len(text))] if text else [])


def check_spans(spans: Sequence[Span], text: str, name: str) -> None:
    """Raise InputError, naming `name`, where spans are empty, overlap, are out of order or reach beyond `text`."""
    before = 0
    for start, end in spans:
        if not before <= start < end <= len(text):
            raise InputError(
                f"{name}: step [{start}, {end}) of {len(text)} characters is empty, overlaps the one before or lies "
                "outside: give steps in order"
            )
        before = end


def cover(spans: Sequence[Span], text: str) -> list[Span]:
    """Return `spans` with the blanks around them: those before the first belong to it, others to the step before.

    Other text between steps stays outside of all of them.

    >>> cover([(0, 3), (4, 7)], "a=1\\nb=2\\n")
    [(0, 4), (4, 8)]
    """
    if not spans:
        return []
    ends = [*(start for start, _ in spans[1:]), len(text)]
    covered = [
        (start, following if not text[end:following].strip() else end)
        for (start, end), following in zip(spans, ends, strict=True)
    ]
    if not text[: covered[0][0]].strip():
        covered[0] = (0, covered[0][1])
    return covered


def token_starts(tokenizer: Any, ids: Sequence[int], text: str) -> list[int] | None:
    """Return the character of `text` at which each token begins: `len(text)` for one that adds no character after it.

    All tokens of a character that is split begin where it does.

    None where the ids do not spell `text`, for then no step can be found in them.
    """
    own = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    if tokenizer.is_fast and list(own["input_ids"]) == list(ids[: len(own["input_ids"])]):
        starts = [start for start, _ in own["offset_mapping"]]
        return starts + [len(text)] * (len(ids) - len(starts))
    # Sampled ids need not be those that the text is encoded to. The name of a special token in a text means the token.
    visible = text.strip()
    for special in (False, True):
        whole, starts = _spelled(tokenizer, ids, special)
        # A chat template may put something before an answer, or take the blanks around it away.
        if (found := whole.find(visible)) >= 0:
            shift = text.find(visible) - found
            return [min(max(start + shift, 0), len(text)) for start in starts]
    return None


def _spelled(tokenizer: Any, ids: Sequence[int], special: bool) -> tuple[str, list[int]]:
    """Return the text of `ids` and where each begins: all tokens of a character where the character does."""
    whole, starts, length = decode(tokenizer, ids, special=special), list[int](), 0
    for count, piece in token_groups(tokenizer, ids, special=special):
        group = ids[len(starts) : len(starts) + count]
        starts += [length + place for place in _within(tokenizer, group, special)]
        length += len(piece)
    return whole, starts


def _within(tokenizer: Any, group: Sequence[int], special: bool) -> Iterator[int]:
    """Yield where each token of a group begins in its text: bytes that are no character can make several."""
    before = ""
    for i in range(len(group)):
        after = decode(tokenizer, group[: i + 1], special=special) if len(group) > 1 else ""
        yield len(before) - (before.endswith(HALF) and len(after) <= len(before))
        before = after


def first_token(tokenizer: Any, ids: Sequence[int], text: str, begin: int) -> int | None:
    """Return the index of the first token of `text[begin:]`: `len(ids)` where it has none.

    A token belongs where its first visible character lies (a blank token where it begins), so one across `begin` is
    part of what precedes. A token after the end of the text (the end-of-turn token) is always one of `text[begin:]`.
    None where the ids do not spell `text`.
    """
    starts = token_starts(tokenizer, ids, text)
    if starts is None:
        return None
    return next((i for i, place in enumerate(_first_visible(starts, text)) if place >= begin), len(ids))


def _first_visible(starts: Sequence[int], text: str) -> Iterator[int]:
    for start, following in pairwise([*starts, len(text)]):
        piece = text[start:following]
        yield start + (len(piece) - len(piece.lstrip()) if piece.strip() else 0)


def token_steps(starts: Sequence[int], text: str, spans: Sequence[Span]) -> list[int]:
    """Return the number of each token's step, counted from 1; 0 for a token outside of all `spans`.

    A token belongs where its first visible character lies (a blank token where it begins), one after the end of the
    text (the end-of-turn token) where the last character does. Spans that cover the text thus share out all tokens.

    >>> token_steps([0, 1, 2, 4, 5], "ab cd", [(0, 3), (3, 5)])
    [1, 1, 2, 2, 2]
    """
    begins = [start for start, _ in spans]
    steps = []
    for visible in _first_visible(starts, text):
        place = min(visible, len(text) - 1)
        step = bisect_right(begins, place)
        steps.append(step if step and place < spans[step - 1][1] else 0)
    return steps
