"""Stop strings, found as tokens arrive, also where they straddle tokens."""

from collections.abc import Collection
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from selftaught.text.tokens import CHARACTER, HALF, decode

_pieces: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()


class StopStrings:
    """Finds the stop strings of running rows.

    Per set of stop strings a table over the vocabulary marks the tokens in which one of them could end; only rows
    that drew such a token are decoded and searched. A set is named by a number; 0 is the empty one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.sets: dict[int, tuple[str, ...]] = {0: ()}
        self._tables: dict[int, np.ndarray] = {}
        self._numbers: dict[tuple[str, ...], int] = {(): 0}
        self._next = 1

    def number(self, stop: tuple[str, ...]) -> int:
        """Return the number of this set of stop strings; empty strings are left out."""
        stop = tuple(s for s in stop if s)
        if stop not in self._numbers:
            table = np.array([_could_end(piece, stop) for piece in _vocabulary_pieces(self.tokenizer)])
            self._numbers[stop], self.sets[self._next], self._tables[self._next] = self._next, stop, table
            self._next += 1
        return self._numbers[stop]

    def forget(self, numbers: Collection[int]) -> None:
        """Drop all sets but these, and the empty one."""
        for number in self._tables.keys() - set(numbers):
            del self._tables[number], self._numbers[self.sets.pop(number)]

    def candidates(self, numbers: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the indices of rows whose newest token may complete one of their stop strings."""
        found = np.zeros(len(tokens), bool)
        for number in np.unique(numbers):
            if number:
                table = self._tables[number]
                rows = numbers == number
                # Ids past the tokenizer's vocabulary (padded embeddings) have no text of their own.
                found[rows] = (tokens[rows] >= 0) & table[np.clip(tokens[rows], 0, len(table) - 1)]
        return np.flatnonzero(found)

    def reached(self, number: int, ids: list[int]) -> bool:
        """Return whether the text of `ids` holds one of the set's stop strings near its end."""
        stop = self.sets[number]
        # A token may hold as little as one byte of text, and special tokens hold none.
        tail = ids[-(2 * max(len(s.encode()) for s in stop) + 8) :]
        text = decode(self.tokenizer, tail)
        if HALF in text and any(HALF in s for s in stop):
            # A character of which a part has come is not what was asked for, at the end or where the tail begins.
            text = finished_text(self.tokenizer, tail)
            text = text.lstrip(HALF) if len(tail) < len(ids) else text
        return any(s in text for s in stop)

    def cut(self, number: int, text: str) -> str:
        """Return `text` up to the first stop string."""
        ends = [i for i in map(text.find, self.sets[number]) if i >= 0]
        return text[: min(ends)] if ends else text


def finished_text(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of `ids` to which nothing will be added: without a character of which only a part has come.

    Bytes that no others could have made a character stay U+FFFD.
    """
    text = decode(tokenizer, ids)
    if not text.endswith(HALF):
        return text
    tail = ids[-2 * CHARACTER :]
    length = len(decode(tokenizer, tail))
    parts = (i for i, piece in enumerate(_vocabulary_pieces(tokenizer)) if piece == HALF)
    # What is whole, or no text at all, stays as it is before one byte more: that shows as another U+FFFD.
    waits = any(len(decode(tokenizer, [*tail, i])) <= length for i in parts)
    return text[:-1] if waits else text


def _vocabulary_pieces(tokenizer: Any) -> list[str]:
    """Return each token's text in the middle of a line: a token on its own may lose its leading space."""
    if tokenizer not in _pieces:
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        start = len(decode(tokenizer, anchor))
        _pieces[tokenizer] = [decode(tokenizer, [*anchor, i])[start:] for i in range(len(tokenizer))]
    return _pieces[tokenizer]


def _could_end(piece: str, stop: tuple[str, ...]) -> bool:
    # A token that holds part of a character shows as U+FFFD; it could be part of anything.
    if HALF in piece:
        return True
    return any(s in piece or any(s.endswith(piece[:n]) for n in range(1, len(piece) + 1)) for s in stop)
