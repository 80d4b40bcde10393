"""Noise for measuring robustness: five ways to spoil a text (Pagnoni et al. 2024, arXiv 2412.09871, section 5.3).

Each is a function of (text, seed): the same on every machine and Python version, except that `str.upper` and
`str.lower` know the letters of the interpreter's Unicode version. The draws depend on the text too, so that one seed
gives every document noise of its own. What is dropped, repeated or spaced are code points, so none is ever split.

The paper gives shares (`SHARES`); here each character is drawn independently with that share as probability. It says
that characters are repeated "up to four times": here a repeated one stands two to four times in all. Smaller shares are
for models so small that at the paper's they no longer read.
"""

import random
from collections.abc import Callable, Iterator, Mapping

from selftaught.errors import InputError
from selftaught.types import content_id

SHARES: Mapping[str, float] = {"drop": 0.1, "random_case": 1.0, "repeat": 0.2}
"""The kinds that are drawn, with the share of characters that the paper draws."""
MOST_TIMES = 4


def antspeak(text: str) -> str:
    """Return the text in upper case with a space between any two characters.

    >>> antspeak("an ant")
    'A N   A N T'
    """
    return " ".join(text.upper())


def drop(text: str, seed: int = 0, share: float = SHARES["drop"]) -> str:
    """Return the text without a tenth, or `share`, of its characters."""
    return "".join(c for c, draw in _draws("drop", text, seed) if draw() >= share)


def random_case(text: str, seed: int = 0, share: float = SHARES["random_case"]) -> str:
    """Return the text with every character, or a `share` of them, in upper or lower case, half each."""

    def cased(character: str, drawn: float) -> str:
        if drawn >= share:
            return character
        return character.upper() if drawn < share / 2 else character.lower()

    return "".join(cased(c, draw()) for c, draw in _draws("random_case", text, seed))


def repeat(text: str, seed: int = 0, share: float = SHARES["repeat"]) -> str:
    """Return the text with a fifth, or `share`, of its characters written two, three or four times."""
    times = range(2, MOST_TIMES + 1)
    drawn = _draws("repeat", text, seed)
    return "".join(c * times[int(draw() * len(times))] if draw() < share else c for c, draw in drawn)


def upper_case(text: str) -> str:
    """Return the text in upper case.

    >>> upper_case("Straße")
    'STRASSE'
    """
    return text.upper()


_FIXED: Mapping[str, Callable[[str], str]] = {"antspeak": antspeak, "upper_case": upper_case}
_DRAWN: Mapping[str, Callable[[str, int, float], str]] = {"drop": drop, "random_case": random_case, "repeat": repeat}
NOISES = tuple(sorted([*_FIXED, *_DRAWN]))
"""The suite, by name."""


def noised(text: str, noise: str, seed: int = 0, share: float | None = None) -> str:
    """Return the text under a noise of `NOISES`, with the paper's share of characters or, for a drawn kind, `share`.

    Raises InputError for an unknown noise, a share outside [0, 1], and one for a kind that is not drawn.
    """
    if noise not in NOISES:
        raise InputError(f"unknown noise {noise!r}: give one of {', '.join(NOISES)}")
    if noise in _FIXED:
        if share is not None:
            raise InputError(f"{noise} changes all characters, not share={share}: leave it out")
        return _FIXED[noise](text)
    if share is not None and not 0 <= share <= 1:
        raise InputError(f"{noise}: share={share} is no share of the characters; give 0 to 1")
    return _DRAWN[noise](text, seed, SHARES[noise] if share is None else share)


def _draws(noise: str, text: str, seed: int) -> Iterator[tuple[str, Callable[[], float]]]:
    # Only `random()` is promised to draw the same numbers on every Python version.
    draw = random.Random(int(content_id("noise", noise, seed, text), 16)).random
    return ((c, draw) for c in text)
