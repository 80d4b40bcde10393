"""Noise for measuring robustness: five ways to spoil a text (Pagnoni et al. 2024, arXiv 2412.09871, section 5.3).

Each is a function of (text, seed): the same on every machine and Python version, except that `str.upper` and
`str.lower` know the letters of the interpreter's Unicode version. The draws depend on the text too, so that one seed
gives every document noise of its own. What is dropped, repeated or spaced are code points, so none is ever split.

The paper gives shares; here each character is drawn independently with that share as probability. It says that
characters are repeated "up to four times": here a repeated one stands two to four times in all.
"""

import random
from collections.abc import Callable, Iterator, Mapping

from selftaught.errors import InputError
from selftaught.types import content_id

DROPPED = 0.1
REPEATED = 0.2
MOST_TIMES = 4


def antspeak(text: str, seed: int = 0) -> str:
    """Return the text in upper case with a space between any two characters; nothing is drawn.

    >>> antspeak("an ant")
    'A N   A N T'
    """
    return " ".join(text.upper())


def drop(text: str, seed: int = 0) -> str:
    """Return the text without a tenth of its characters."""
    return "".join(c for c, draw in _draws("drop", text, seed) if draw() >= DROPPED)


def random_case(text: str, seed: int = 0) -> str:
    """Return the text with every character in upper or lower case, half each."""
    return "".join(c.upper() if draw() < 0.5 else c.lower() for c, draw in _draws("random_case", text, seed))


def repeat(text: str, seed: int = 0) -> str:
    """Return the text with a fifth of its characters written two, three or four times."""
    times = range(2, MOST_TIMES + 1)
    drawn = _draws("repeat", text, seed)
    return "".join(c * times[int(draw() * len(times))] if draw() < REPEATED else c for c, draw in drawn)


def upper_case(text: str, seed: int = 0) -> str:
    """Return the text in upper case; nothing is drawn.

    >>> upper_case("Straße")
    'STRASSE'
    """
    return text.upper()


NOISES: Mapping[str, Callable[[str, int], str]] = {
    "antspeak": antspeak,
    "drop": drop,
    "random_case": random_case,
    "repeat": repeat,
    "upper_case": upper_case,
}
"""The suite, by name."""


def noised(text: str, noise: str, seed: int = 0) -> str:
    """Return the text under a noise of `NOISES`. Raises InputError for an unknown one."""
    if noise not in NOISES:
        raise InputError(f"unknown noise {noise!r}: give one of {', '.join(NOISES)}")
    return NOISES[noise](text, seed)


def _draws(noise: str, text: str, seed: int) -> Iterator[tuple[str, Callable[[], float]]]:
    # Only `random()` is promised to draw the same numbers on every Python version.
    draw = random.Random(int(content_id("noise", noise, seed, text), 16)).random
    return ((c, draw) for c in text)
