"""Exact and near duplicates among generated problems.

Two texts are equal when they agree after Unicode compatibility folding, in lower case, with runs of white space as one
space. They are near duplicates when their ROUGE-L (F1 of the longest common subsequence of words) exceeds a threshold,
0.7 in Self-Instruct (arXiv 2212.10560).

Comparing all pairs would be quadratic in slow operations, so candidates come from an index, without missing any: for
texts of m and n words, ROUGE-L > t needs more than t(m+n)/2 shared words, hence n > mt/(2-t) and an overlap above
mt/(2-t) of its own m words. If the words are ordered from rare to common, two such texts share one of the rarest
m - floor(mt/(2-t)) words of each (prefix filtering).
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

Status = Literal["kept", "exact duplicate", "near duplicate"]
Token = tuple[str, int]

_WORD = re.compile(r"\w+")
_SLACK = 1e-9
_BITS = 1024


def normalise(text: str) -> str:
    """Return the form in which equal texts are equal.

    >>> normalise("How  many\\nＡpples?")
    'how many apples?'
    """
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def words(text: str) -> list[str]:
    """Return the words of a text, normalised, without punctuation."""
    return _WORD.findall(normalise(text))


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004): one row of the dynamic programme is one integer, so the cost is len(first) operations on
    integers of len(second) bits.

    >>> lcs_length("a b c d".split(), "b x d".split())
    2
    """
    positions: dict[str, int] = defaultdict(int)
    for index, word in enumerate(second):
        positions[word] |= 1 << index
    full = (1 << len(second)) - 1
    row = full
    for word in first:
        matched = row & positions.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(second) - row.bit_count()


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """Return 2 LCS / (m + n), in [0, 1]; 0 for empty texts.

    >>> rouge_l("the cat sat".split(), "the cat".split())
    0.8
    """
    total = len(first) + len(second)
    return 2 * lcs_length(first, second) / total if total else 0.0


def find_duplicates(texts: Sequence[str], against: Iterable[str] = (), threshold: float | None = 0.7) -> list[Status]:
    """Say of each text whether it repeats an earlier kept one or one of `against`.

    `threshold` None looks for exact duplicates only: right for short formal texts, which all resemble each other.
    """
    earlier = list(against)
    exact = {normalise(text) for text in earlier}
    near = None if threshold is None else _NearIndex([*earlier, *texts], threshold)
    for text in earlier if near else ():
        near.add(words(text))  # type: ignore[union-attr]
    result: list[Status] = []
    for text in texts:
        folded, split = normalise(text), words(text)
        if folded in exact:
            result.append("exact duplicate")
        elif near is not None and near.has_near(split):
            result.append("near duplicate")
        else:
            result.append("kept")
            exact.add(folded)
            if near is not None:
                near.add(split)
    return result


class _NearIndex:
    """Texts by their rarest words. `corpus` fixes which words are rare; any order would be right, this one is fast."""

    def __init__(self, corpus: Iterable[str], threshold: float) -> None:
        self.threshold = threshold
        self.frequency = Counter(word for text in corpus for word in set(words(text)))
        self.texts: list[list[str]] = []
        self.signatures: list[int] = []
        self.holders: dict[Token, list[int]] = defaultdict(list)

    def add(self, text: list[str]) -> None:
        tokens = self._tokens(text)
        for token in self._rarest(tokens):
            self.holders[token].append(len(self.texts))
        self.texts.append(text)
        self.signatures.append(_signature(tokens))

    def has_near(self, text: list[str]) -> bool:
        tokens = self._tokens(text)
        signature = _signature(tokens)
        for index in {index for token in self._rarest(tokens) for index in self.holders.get(token, ())}:
            other = self.texts[index]
            needed = self.threshold * (len(text) + len(other)) / 2
            if (
                # A bit that only one of them has is a word that they do not share.
                len(text) - (signature & ~self.signatures[index]).bit_count() > needed
                and len(other) - (self.signatures[index] & ~signature).bit_count() > needed
                and rouge_l(text, other) > self.threshold
            ):
                return True
        return False

    def _tokens(self, text: list[str]) -> list[Token]:
        """Number the repeats of a word, rarest words first: the second "the" is a token of its own."""
        seen: Counter[str] = Counter()
        tokens: list[Token] = []
        for word in text:
            tokens.append((word, seen[word]))
            seen[word] += 1
        return sorted(tokens, key=lambda token: (self.frequency[token[0]], token))

    def _rarest(self, tokens: list[Token]) -> list[Token]:
        """Return the prefix of which every near duplicate shares a token."""
        overlap = int(len(tokens) * self.threshold / (2 - self.threshold) + _SLACK)
        return tokens[: len(tokens) - overlap]


def _signature(tokens: Iterable[Token]) -> int:
    signature = 0
    for token in tokens:
        signature |= 1 << hash(token) % _BITS
    return signature
