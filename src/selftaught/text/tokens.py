"""The text of tokens: of all together, and which of it each one completes."""

from collections.abc import Iterator, Sequence
from typing import Any

HALF = "\ufffd"
"""What a decoder writes for bytes that are no text, or not yet."""
CHARACTER = 4
"""Bytes of the longest character in UTF-8."""
PATIENCE = 4 * CHARACTER
"""Tokens without whole text after which those that cannot be part of a character any more are looked at."""


def decode(tokenizer: Any, ids: Sequence[int], *, special: bool = False) -> str:
    """Return the text of `ids`, spaces as they are, special tokens by their names or left out."""
    return tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)


class TokenTexts:
    """Which text each token of a growing sequence completed.

    A token that opens a character completes nothing; the character belongs to the token that closes it. Joined, the
    texts are the text of all tokens but for a character that the end cuts; `special` is as in `decode`.
    """

    def __init__(self, tokenizer: Any, *, special: bool = False) -> None:
        self._tokenizer, self._special = tokenizer, special
        self.text = ""
        self.complete = 0
        self._ids: list[int] = []
        self._start = 0

    def push(self, token: int) -> str:
        """Add a token and return what it completed; `complete` counts the tokens whose text is known."""
        self._ids.append(token)
        # Decoders treat the start of a text in their own way, so that new tokens are decoded after known ones.
        known, whole = self._decode(self._start, self.complete), self._decode(self._start)
        if not whole.endswith(HALF) and len(whole) > len(known):
            return self._take(known, whole, len(self._ids))
        # Bytes that are no text may go on for ever, and nobody should wait, or decode all of them each time.
        settled = len(self._ids) - CHARACTER
        if whole.endswith(HALF) and settled - self.complete > PATIENCE:
            before = self._decode(self._start, settled)
            if before + self._decode(settled) == whole:
                return self._take(known, before, settled)
        return ""

    def rest(self) -> str:
        """Return the text of the tokens that have completed nothing, as it is without more of them."""
        return self._decode(self._start)[len(self._decode(self._start, self.complete)) :]

    def _decode(self, begin: int, end: int | None = None) -> str:
        return decode(self._tokenizer, self._ids[begin:end], special=self._special)

    def _take(self, known: str, whole: str, read: int) -> str:
        """Take what `whole` adds to `known` as the text of the tokens up to `read`."""
        self._start, self.complete = self.complete, read
        piece = whole[len(known) :]
        self.text += piece
        return piece


def token_groups(tokenizer: Any, ids: Sequence[int], *, special: bool = False) -> Iterator[tuple[int, str]]:
    """Yield how many tokens make the next text together, and that text: often one, several for a split character.

    `special` is as in `decode`.
    """
    # Most texts are those of their tokens one by one, of which few are different.
    alone = {i: decode(tokenizer, [i], special=special) for i in set(ids)}
    if "".join(alone[i] for i in ids) == decode(tokenizer, ids, special=special):
        yield from ((1, alone[i]) for i in ids)
        return
    texts = TokenTexts(tokenizer, special=special)
    for token in ids:
        before = texts.complete
        piece = texts.push(token)
        if texts.complete > before:
            yield texts.complete - before, piece
    if left := len(ids) - texts.complete:
        yield left, texts.rest()
