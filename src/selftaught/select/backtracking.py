"""Training rows of Backtracking (Zhang et al. 2024, arXiv 2409.14586, section 3), from safe and unsafe answers.

A row that teaches the reset is prefix(y-) + token + y+: the prefix is read and never trained on (`loss_from`), so that
no gradient reaches its tokens. Answers are cut between words, matches of `unit`. The token in a text of the data is
taken out, for only rows made here may hold it.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Literal, get_args

from selftaught.errors import InputError
from selftaught.types import Completion, Demonstration, Pair, Prompt, content_share

CutRule = Literal["uniform", "first_flagged", "sentence"]
Kind = Literal["positive", "negative", "useless", "plain"]
WORD = r"\s*\S+"
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
TOO_SHORT = "an unsafe answer of one word has no place to cut"
NEVER_FLAGGED = "no part of the unsafe answer is flagged"
EMPTY = "an answer is empty"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a prefix ends. It has at least one word, and leaves at least one.

    `rule` "uniform" draws any place between words, "sentence" any end of a sentence before the last (any place, where
    there is none), "first_flagged" takes the shortest prefix that `classifier` flags or, with the chance `later`, any
    place after it. `share`s are drawn from (seed, pair, number), so that rows do not depend on their order.
    """

    rule: CutRule = "uniform"
    unit: str = WORD
    classifier: Callable[[Prompt, str], bool | None] | None = None
    later: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in get_args(CutRule):
            raise InputError(f"cut rule {self.rule!r}: give one of {', '.join(get_args(CutRule))}")
        if self.rule == "first_flagged" and self.classifier is None:
            raise InputError("cut rule 'first_flagged' asks a classifier where an answer turns unsafe: give one")
        if not 0 <= self.later <= 1:
            raise InputError(f"later={self.later} is not a share: give 0 to 1")
        try:
            re.compile(self.unit)
        except re.error as error:
            raise InputError(f"unit={self.unit!r} is no regular expression: {error}; mend it") from None

    def __call__(self, prompt: Prompt, text: str, *, flagged: bool, name: tuple[object, ...]) -> int | str:
        """Return how many characters of the answer `text` are the prefix, or why there is none.

        `flagged` says that the rule "first_flagged" holds for this text: a safe answer is cut anywhere.
        """
        places = words(text, self.unit)[:-1]
        if not places:
            return TOO_SHORT
        if self.rule == "sentence":
            ends = [m.end() for m in _SENTENCE_END.finditer(text) if text[m.end() :].strip()]
            places = ends or places
        if self.rule == "first_flagged" and flagged:
            assert self.classifier is not None
            first = next((i for i, place in enumerate(places) if self.classifier(prompt, text[:place])), None)
            if first is None:
                return NEVER_FLAGGED
            places = places[first:] if _share("later", self.seed, name) < self.later else [places[first]]
        return places[int(_share("cut", self.seed, name) * len(places))]


@dataclass(frozen=True, kw_only=True)
class BacktrackRows:
    """Rows to imitate, from pairs of a safe (chosen) and an unsafe (rejected) answer.

    Each pair gives `copies` rows; of all rows the share `reset_share` are prefix(y-) + token + y+, the others y+ alone.
    Of the rows with a reset the share `other_prompts` follow a harmless row's prompt in place of their own, so that the
    reset is learned from what was said, not from who asked. Without `prefix` all rows are y+ to its own prompt: the
    baseline, with as many rows. With `token` "" the answer follows the prefix at once (`refuse_midway`). Without
    `mask_prefix` the prefix is trained on: an arm that shows why it must not be.
    """

    token: str = "[RESET]"
    reset_token: str = "[RESET]"
    reset_share: float = 0.5
    other_prompts: float = 0.0
    copies: int = 2
    prefix: bool = True
    mask_prefix: bool = True
    cut: Cut = Cut()

    def __post_init__(self) -> None:
        if not (0 <= self.reset_share <= 1 and 0 <= self.other_prompts <= 1) or self.copies < 1:
            raise InputError(
                f"reset_share={self.reset_share}, other_prompts={self.other_prompts}, copies={self.copies}: give "
                "shares from 0 to 1, and 1 copy or more"
            )

    def __call__(
        self, pairs: Iterable[Pair], utility: Iterable[Demonstration] = (), dropped: Counter[str] | None = None
    ) -> Iterator[Demonstration]:
        """Yield `copies` rows per pair, then those of `utility`; a pair that cannot be cut gives y+ in their place."""
        dropped = Counter() if dropped is None else dropped
        harmless = list(clean_rows(utility, dropped, token=self.reset_token))
        for pair in pairs:
            safe, unsafe = (clean(c.text, self.reset_token) for c in (pair.chosen, pair.rejected))
            if not safe.strip():
                dropped[EMPTY] += 1
                continue
            for copy in range(self.copies):
                if not self._resets(pair, copy):
                    yield _demonstration(pair, pair.prompt, safe, 0, copy, {"kind": "plain"})
                else:
                    prompt = self._other_prompt(pair, copy, harmless) or pair.prompt
                    yield self._reset_row(pair, prompt, safe, unsafe, copy, dropped)
        yield from harmless

    def _resets(self, pair: Pair, copy: int) -> bool:
        # Rounded per pair where that comes out even, drawn where it does not.
        drawn = _share("reset share", self.cut.seed, (pair.id,))
        return copy >= self.copies - int(self.reset_share * self.copies + drawn)

    def _other_prompt(self, pair: Pair, copy: int, harmless: Sequence[Demonstration]) -> Prompt | None:
        name = (pair.id, copy)
        if not harmless or _share("other prompt", self.cut.seed, name) >= self.other_prompts:
            return None
        return harmless[int(_share("which prompt", self.cut.seed, name) * len(harmless))].prompt

    def _reset_row(
        self, pair: Pair, prompt: Prompt, safe: str, unsafe: str, copy: int, dropped: Counter[str]
    ) -> Demonstration:
        place = self.cut(pair.prompt, unsafe, flagged=True, name=(pair.id, copy)) if self.prefix else 0
        if isinstance(place, str):
            dropped[f"{place}: trained without a reset"] += 1
        if not self.prefix or isinstance(place, str):
            return _demonstration(pair, pair.prompt, safe, 0, copy, {"kind": "plain"})
        text = unsafe[:place] + self.token + safe
        begin = place if self.mask_prefix else 0
        return _demonstration(pair, prompt, text, begin, copy, {"kind": "reset", "cut": place})


@dataclass(frozen=True, kw_only=True)
class BacktrackPairs:
    """Preference pairs, from pairs of a safe (chosen) and an unsafe (rejected) answer.

    - positive: prefix(y-) + token + y+ over y-;
    - negative: y+ over prefix(y+) + token + y-;
    - useless: y+ over prefix(y+) + token + y+ (reported as not tried in the paper).

    Each pair gives one row per name in `kinds`; the rows of "plain" are y+ over y-, the baseline's. `utility` pairs
    hold a better and a worse harmless answer: a positive row of these would teach needless resets, and is a plain one.
    The prefix is part of both sides of a positive row and of a negative one: its log-probs cancel, and it is masked.
    """

    token: str = "[RESET]"
    kinds: tuple[Kind, ...] = ("positive", "negative")
    mask_prefix: bool = True
    cut: Cut = Cut()

    def __call__(
        self, pairs: Iterable[Pair], utility: Iterable[Pair] = (), dropped: Counter[str] | None = None
    ) -> Iterator[Pair]:
        """Yield the rows of each pair, in order, then those of `utility`."""
        dropped = Counter() if dropped is None else dropped
        harmless: tuple[Kind, ...] = tuple("plain" if kind == "positive" else kind for kind in self.kinds)
        for pair, kinds in chain(zip(pairs, repeat(self.kinds)), zip(utility, repeat(harmless))):
            good, bad = (clean(c.text, self.token) for c in (pair.chosen, pair.rejected))
            if not good.strip() or not bad.strip():
                dropped[EMPTY] += 1
                continue
            for number, kind in enumerate(kinds):
                row = self._row(pair, good, bad, kind, number)
                if isinstance(row, str):
                    dropped[row] += 1
                else:
                    yield row

    def _row(self, pair: Pair, good: str, bad: str, kind: str, number: int) -> Pair | str:
        if kind == "plain":
            return _pair(pair, good, bad, 0, number, {"kind": kind})
        cut_text = bad if kind == "positive" else good
        place = self.cut(pair.prompt, cut_text, flagged=kind == "positive", name=(pair.id, kind, number))
        if isinstance(place, str):
            return place
        again = cut_text[:place] + self.token
        chosen, rejected = {
            "positive": (again + good, bad),
            "negative": (good, again + bad),
            "useless": (good, again + good),
        }[kind]
        return _pair(pair, chosen, rejected, place if self.mask_prefix else 0, number, {"kind": kind, "cut": place})


def words(text: str, unit: str = WORD) -> list[int]:
    """Return where the words of `text`, matches of `unit`, end; blanks behind the last one belong to it.

    >>> words("No way. ")
    [2, 8]
    """
    ends = [match.end() for match in re.finditer(unit, text) if match.end() > match.start()]
    return [*(end for end in ends if text[end:].strip()), len(text)] if ends else []


def clean_rows(rows: Iterable[Demonstration], dropped: Counter[str], *, token: str) -> Iterator[Demonstration]:
    """Yield demonstrations with `token` taken out of their completions; one with nothing left is dropped."""
    for row in rows:
        text = clean(row.completion.text, token)
        if text == row.completion.text:
            yield row
        elif text.strip():
            dropped[f"{token} taken out"] += 1
            completion = _completion(row.prompt, text, row.completion.k)
            yield Demonstration(prompt=row.prompt, completion=completion, weight=row.weight, parents=(row.id,))
        else:
            dropped[EMPTY] += 1


def clean(text: str, token: str) -> str:
    """Return `text` without `token`, however it is nested.

    >>> clean("a[RE[RESET]SET]b", "[RESET]")
    'ab'
    """
    if token not in text:
        return text
    kept: list[str] = []
    for character in text:
        kept.append(character)
        if character == token[-1] and "".join(kept[-len(token) :]) == token:
            del kept[-len(token) :]
    return "".join(kept)


def _share(what: str, seed: int, name: tuple[object, ...]) -> float:
    return content_share("backtracking", what, seed, name)


def _completion(prompt: Prompt, text: str, number: int) -> Completion:
    return Completion(prompt_id=prompt.id, k=number, text=text)


def _demonstration(
    pair: Pair, prompt: Prompt, text: str, begin: int, number: int, meta: dict[str, object]
) -> Demonstration:
    return Demonstration(
        prompt=prompt,
        completion=_completion(prompt, text, number),
        weight=pair.weight,
        loss_from=(begin,),
        meta=meta,
        parents=(pair.id,),
    )


def _pair(pair: Pair, chosen: str, rejected: str, begin: int, number: int, meta: dict[str, object]) -> Pair:
    return Pair(
        prompt=pair.prompt,
        chosen=_completion(pair.prompt, chosen, 2 * number),
        rejected=_completion(pair.prompt, rejected, 2 * number + 1),
        weight=pair.weight,
        loss_from=(begin, begin),
        meta=meta,
        parents=(pair.id,),
    )
