import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftaught.text.patched import PatchedText, glyphs, separated, visible

BYTES = st.lists(st.one_of(st.integers(0, 255), st.sampled_from(["<bos>", "<eos>"])), max_size=40)
# Bytes of characters, so that printable ones of all lengths occur.
TEXTS = st.text(max_size=20).map(lambda text: list(text.encode("utf-8", "surrogatepass")))


@given(st.one_of(BYTES, TEXTS))
def test_glyphs_cover_each_item_once_in_order(items):
    at = 0
    for glyph in glyphs(items):
        assert glyph.start == at and glyph.size >= 1
        at += glyph.size
    assert at == len(items)


@given(st.one_of(BYTES, TEXTS))
def test_what_is_shown_is_printable_and_of_one_line(items):
    shown = visible(items)
    assert shown.isprintable() and len(shown.splitlines()) <= 1


@given(TEXTS, st.data())
def test_nothing_shown_is_ambiguous(items, data):
    """The bytes and the boundaries can be read back, whatever backslashes and bars the text has."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(items)), max_size=5)))
    patches = [items[a:b] for a, b in zip([0, *cuts], [*cuts, len(items)], strict=True)]
    assert read_back(separated(iter(patches))) == [bytes(patch) for patch in patches]


def read_back(shown: str) -> list[bytes]:
    """An independent reader of what `separated` writes; "◌" before a mark is what it adds."""
    found, at = [bytearray()], 0
    while at < len(shown):
        c, after = shown[at], shown[at + 1 : at + 2]
        at += 1
        if c == "|":
            found.append(bytearray())
        elif c == "◌" and not found[-1] and after and unicodedata.category(after).startswith("M"):
            continue
        elif c != "\\":
            found[-1] += c.encode()
        elif after == "x":
            found[-1].append(int(shown[at + 1 : at + 3], 16))
            at += 3
        else:
            found[-1] += {"n": b"\n", "t": b"\t", "r": b"\r", "\\": b"\\", "|": b"|"}[after]
            at += 1
    return [bytes(patch) for patch in found]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", ""),
        (b"a b", "a b"),
        ("é漢😀".encode(), "é漢😀"),
        (b"\xc3", r"\xc3"),
        (b"\xa9t", r"\xa9t"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),  # a surrogate
        (b"\xc0\xaf", r"\xc0\xaf"),  # a slash in more bytes than it has
        (b"\xf4\x90\x80\x80", r"\xf4\x90\x80\x80"),  # past the last character
        (b"\x00\x1b[31m\x7f", r"\x00\x1b[31m\x7f"),
        ("\u202eabc\u200d\u2028".encode(), r"\xe2\x80\xaeabc\xe2\x80\x8d\xe2\x80\xa8"),
        (b"line\r\n\ttab \\x41", r"line\r\n\ttab \\x41"),
        (b"<script>", "<script>"),
        ("e\u0301".encode(), "e\u0301"),
        ("\u0301".encode(), "◌\u0301"),
        ("שלום".encode(), "שלום"),
    ],
)
def test_what_stands_for_bytes(data, shown):
    assert visible(list(data)) == shown


def test_special_ids_are_not_text_that_spells_them():
    assert visible([97, "<eos>", *b"<eos>"]) == r"a\<eos><eos>"
    assert visible([0xC3, "<eos>", 0xA9]) == r"\xc3\<eos>\xa9"


def test_a_character_that_a_boundary_cuts_is_its_bytes():
    text = PatchedText(items=list("né".encode()), schemes={"byte": [1, 1, 1], "whole": [3]})
    assert separated(text.patches("byte")) == r"n|\xc3|\xa9"
    assert separated(text.patches("whole")) == "né"
