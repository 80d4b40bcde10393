r"""A text cut into patches of bytes, as a person sees it, whatever its bytes are.

A text is a sequence of items: bytes as integers, special ids by their names. Bytes that are the UTF-8 of one printable
character show as it; line ends and tabs as `\n`, `\r`, `\t`; every other byte, such as one of a character that a patch
boundary cuts, as `\xNN`; a special id as `\<name>`. A backslash of the text is doubled, so that nothing is ambiguous.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Items = Sequence[int | str]
SEPARATOR = "|"
_NAMED = {9: r"\t", 10: r"\n", 13: r"\r", 92: r"\\"}
_LONGEST_CHARACTER = 4


@dataclass(frozen=True, slots=True)
class Glyph:
    """What stands for items `start` to `start + size`; `literal` is False where it is not the character itself."""

    start: int
    size: int
    text: str
    literal: bool

    @property
    def is_mark(self) -> bool:
        """Whether it would join the character before it."""
        return self.literal and unicodedata.category(self.text).startswith("M")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedText:
    """A text and its patches by several rules, for figures.

    Attributes:
        items: the text, without the begin-of-sequence id.
        entropies: nats, of each item given those before it; () where there is no entropy model.
        threshold: nats, over which an item begins a patch of the first scheme; None where that is not its rule.
        schemes: the name of a rule -> how many items each of its patches has.
    """

    items: Items
    entropies: Sequence[float] = ()
    threshold: float | None = None
    schemes: Mapping[str, Sequence[int]]

    def patches(self, scheme: str) -> Iterator[Items]:
        """Yield the items of each patch of a scheme."""
        start = 0
        for size in self.schemes[scheme]:
            yield self.items[start : start + size]
            start += size


def glyphs(items: Items) -> list[Glyph]:
    r"""Return what is shown for `items`, in order; together they cover each item once.

    >>> [glyph.text for glyph in glyphs([0xC3, 0xA9, 0xC3, 10, "<eos>"])]
    ['é', '\\xc3', '\\n', '\\<eos>']
    """
    found, at = [], 0
    while at < len(items):
        found.append(_glyph(items, at))
        at += found[-1].size
    return found


def visible(items: Items) -> str:
    r"""Return `items` as one line of printable text.

    >>> visible(list(b"a b\xe2\x82"))
    'a b\\xe2\\x82'
    """
    shown = glyphs(items)
    # A mark at the beginning would join the separator.
    return "◌" * bool(shown and shown[0].is_mark) + "".join(glyph.text for glyph in shown)


def separated(patches: Iterator[Items]) -> str:
    r"""Return patches as one line with `|` between them; a `|` of the text is `\|`.

    >>> separated(iter([b"to be", b" | ", b"not"]))
    'to be| \\| |not'
    """
    return SEPARATOR.join(visible(patch).replace(SEPARATOR, rf"\{SEPARATOR}") for patch in patches)


def _glyph(items: Items, at: int) -> Glyph:
    item = items[at]
    if isinstance(item, str):
        return Glyph(at, 1, f"\\{item}", False)
    if item in _NAMED:
        return Glyph(at, 1, _NAMED[item], False)
    size = _character_size(items, at)
    character = bytes(items[at : at + size]).decode()  # type: ignore[arg-type]
    if size and character.isprintable():
        return Glyph(at, size, character, True)
    return Glyph(at, 1, f"\\x{item:02x}", False)


def _character_size(items: Items, at: int) -> int:
    """Return how many bytes from `at` on are the UTF-8 of one character, 0 where they are none."""
    for size in range(1, _LONGEST_CHARACTER + 1):
        part = items[at : at + size]
        if len(part) < size or any(isinstance(item, str) for item in part):
            return 0
        try:
            bytes(part).decode()  # type: ignore[arg-type]
        except UnicodeDecodeError:
            continue
        return size
    return 0
