"""The text of a sample while it is drawn: whole characters only, nothing that may yet become a stop string.

Tokens are told as they come, and what was told can be taken back: `advance` returns how many characters to drop from
the end of what was shown, and what to append. Applying all of it gives exactly the finished text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from selftaught.engines.rows import Event
from selftaught.text.tokens import TokenTexts


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was drawn: the text it completed, its log-prob (nats), and where its text starts."""

    text: str
    logprob: float
    offset: int


class SampleStream:
    """What to show of one sample, told by the sampler's events."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._texts = TokenTexts(tokenizer)
        self._ids: list[int] = []
        self.tokens: list[Token] = []
        self.shown = ""
        self.retractions = 0
        self._told = self._gone = 0

    def push(self, event: Event) -> None:
        """Take a token or a retraction."""
        if event.kind == "token":
            self._ids.append(event.token)
            offset = len(self._texts.text)
            self.tokens.append(Token(self._texts.push(event.token), event.logprob, offset))
        elif event.kind == "retract":
            self.retractions += 1
            del self._ids[len(self._ids) - event.count :]
            del self.tokens[len(self.tokens) - event.count :]
            self._gone += max(0, self._told - len(self.tokens))
            self._told = min(self._told, len(self.tokens))
            self._texts = TokenTexts(self._tokenizer)
            for token in self._ids:
                self._texts.push(token)

    def new_tokens(self) -> tuple[int, list[Token]]:
        """Return how many of the tokens told before are gone, and those that stand and were not told."""
        gone, new = self._gone, self.tokens[self._told :]
        self._told, self._gone = len(self.tokens), 0
        return gone, new

    def advance(self, final: str | None = None) -> tuple[int, str]:
        """Return how many shown characters to drop and what to append: up to `final`, or to what is certain so far."""
        target = self._certain() if final is None else final
        # What is held back was never shown, and what is shown stays unless its tokens were taken back.
        kept = len(self.shown) if target.startswith(self.shown) else _common(self.shown, target)
        dropped, added = len(self.shown) - kept, target[kept:]
        self.shown = target
        return dropped, added

    def _certain(self) -> str:
        """Return the text without the end that may be the start of a stop string."""
        text = self._texts.text
        found = [i for i in map(text.find, self._stop) if i >= 0]
        if found:
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        return text[: len(text) - held]


def _common(a: str, b: str) -> int:
    """Return how many characters two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def token_list(tokenizer: Any, ids: Sequence[int], logprobs: Sequence[float]) -> list[Token]:
    """Return the tokens of a finished sample, with the text that each completed."""
    texts, found = TokenTexts(tokenizer), []
    for token, logprob in zip(ids, logprobs, strict=True):
        offset = len(texts.text)
        found.append(Token(texts.push(token), logprob, offset))
    return found


def standing(values: Sequence[Any], discarded: Sequence[tuple[int, int]]) -> list[Any]:
    """Return the entries of `values` that no span took back."""
    kept = list(values)
    for start, end in reversed(discarded):
        del kept[start:end]
    return kept
