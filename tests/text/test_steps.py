import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import architectures
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import AddedToken, PreTrainedTokenizerFast

from selftaught.errors import InputError
from selftaught.models.blt.tokenization import ByteTokenizer
from selftaught.text.steps import Segmentation, check_spans, cover, first_token, token_starts, token_steps

HOSTILE = st.text(alphabet=st.sampled_from("ab \n\t.?!:#1$\\Step\u2028é🎈"), max_size=60)


def pieces(text: str, **options) -> list[str]:
    return [text[a:b] for a, b in Segmentation(**options)(text)]


def test_blank_lines_and_numbers_end_steps_and_separators_belong_to_the_step_before():
    assert pieces("one\n\ntwo\n \n\nthree\n") == ["one\n\n", "two\n \n\n", "three\n"]
    assert pieces("Step 1: a\nStep 2: b\nc") == ["Step 1: a\n", "Step 2: b\nc"]
    assert pieces("\n\na") == ["\n\na"]
    assert pieces("") == [] and pieces(" ") == [" "] and pieces("abc") == ["abc"]


def test_the_final_answer_is_a_step_of_its_own_or_attached():
    text = "a = 1.\n\nSo b = 2. The answer is 2."
    assert pieces(text) == ["a = 1.\n\n", "So b = 2. ", "The answer is 2."]
    assert pieces(text, answer_step="attached") == ["a = 1.\n\n", "So b = 2. The answer is 2."]
    apart = "a = 1\n\n\\boxed{1}"
    assert pieces(apart) == ["a = 1\n\n", "\\boxed{1}"]
    assert pieces(apart, answer_step="attached") == [apart]


def test_any_separator():
    assert pieces("b=1;c=2;#3", separator=";", answer="#") == ["b=1;", "c=2;", "#3"]
    with pytest.raises(InputError, match=r"separator='\(' is no regular expression"):
        Segmentation(separator="(")


@given(HOSTILE, st.sampled_from(["own", "attached"]))
def test_steps_cover_any_text_once_and_none_is_blank(text, answer_step):
    found = pieces(text, answer_step=answer_step)
    assert "".join(found) == text
    assert all(piece.strip() for piece in found) or not text.strip()


def test_cover_gives_blanks_away_and_leaves_other_text_alone():
    assert cover([(1, 2), (4, 5), (8, 9)], " a\n\nb c\td ") == [(0, 4), (4, 5), (8, 10)]
    assert cover([], "abc") == []


@pytest.mark.parametrize("spans", [[(2, 2)], [(0, 3), (2, 4)], [(3, 4), (0, 1)], [(0, 6)], [(-1, 2)]])
def test_bad_spans_are_named(spans):
    with pytest.raises(InputError, match=r"row: step \[-?\d+, \d+\) of 5 characters"):
        check_spans(spans, "abcde", "row")


def test_tokens_by_hand():
    """ "ab\\nc" in tokens "a", "b\\n", " c"-like pieces: a token belongs where its first visible character lies."""
    text = "ab\n c"
    assert token_steps([0, 1, 3, 5], text, [(0, 4), (4, 5)]) == [1, 1, 2, 2]
    assert token_steps([0, 1, 3, 5], text, [(4, 5)]) == [0, 0, 1, 1]
    assert token_steps([0], "", []) == [0]


@given(HOSTILE, st.lists(st.integers(0, 60), max_size=12))
def test_every_token_is_in_exactly_one_step(text, starts):
    spans = Segmentation()(text)
    starts = sorted(min(start, len(text)) for start in starts)
    steps = token_steps(starts, text, spans)
    assert steps == sorted(steps) and len(steps) == len(starts)
    assert all(1 <= step <= len(spans) for step in steps) or not text


@given(st.text(alphabet="abc \n12", max_size=30))
def test_starts_are_those_of_the_tokenizer(text):
    tokenizer = architectures.tokenizer()
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert token_starts(tokenizer, ids, text) == list(range(len(text) + 1))


class Merged:
    """A slow tokenizer of two letters a token, which sampled single letters instead."""

    is_fast = False

    def __call__(self, text, **options):
        return {"input_ids": [-1]}

    def decode(self, ids, **options):
        return "".join({0: "", 1: "a", 2: "b", 3: "?x"}[i] for i in ids)


def test_sampled_ids_that_are_not_the_encoding():
    assert token_starts(Merged(), [1, 2, 0], "ab") == [0, 1, 2]
    assert token_starts(Merged(), [3, 1, 2], "ab") == [0, 0, 1]
    assert token_starts(Merged(), [1, 1], "ab") is None


def test_characters_of_several_tokens():
    """Bytes of one character begin where it does, and bytes that are none where their mark of replacement does."""
    assert token_starts(Bytes(), [97, *"é".encode(), 98], "aéb") == [0, 1, 1, 2]
    assert token_starts(Bytes(), [*"甲😀".encode(), 256], "甲😀") == [0, 0, 0, 1, 1, 1, 1, 2]
    broken = b"a\xf0\x9fb\xe3c\xff\xffd\xe3"
    assert token_starts(Bytes(), list(broken), broken.decode("utf-8", "replace")) == [0, 1, 1, 2, 3, 4, 5, 6, 7, 8]


def test_steps_keep_the_last_bytes_of_their_characters():
    text, spans = "甲。乙!", [(0, 2), (2, 4)]
    starts = token_starts(Bytes(), list(text.encode()), text)
    assert token_steps(starts, text, spans) == [1] * 6 + [2] * 4


def test_a_special_token_that_a_text_names():
    """[RESET] is a token of its own, and not left out where the text that was trained on names it."""
    tokenizer = ByteTokenizer()
    tokenizer.add_tokens(AddedToken("[RESET]", special=True))
    reset = tokenizer.convert_tokens_to_ids("[RESET]")
    for text in ("bad[RESET]good", "é[RESET]é"):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        starts, behind = token_starts(tokenizer, ids, text), text.index("]") + 1
        assert starts[ids.index(reset) :][:2] == [text.index("["), behind]
        assert first_token(tokenizer, ids, text, behind) == ids.index(reset) + 1


def test_a_long_text_is_decoded_in_parts():
    """Decoding every prefix would read a text of n bytes n times."""

    class Counted(Bytes):
        read = 0

        def decode(self, ids, **options):
            self.read += len(ids)
            return super().decode(ids, **options)

    tokenizer, text = Counted(), "é" + "a" * 2000
    assert token_starts(tokenizer, list(text.encode()), text)[-1] == 2000
    assert tokenizer.read < 20 * 2000


# --- the first token behind a character ------------------------------------------------------------------------------


class Pieces(Merged):
    """A slow tokenizer whose tokens are the given pieces."""

    def __init__(self, *pieces: str):
        self.pieces = pieces

    def decode(self, ids, **options):
        return "".join(self.pieces[i] for i in ids)


@pytest.mark.parametrize(("begin", "first"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (6, 4)])
def test_the_first_token_by_hand(begin, first):
    """ "a b\ncd" in "a", " b", a line break, "cd" and an end lies at 0, 2 (its visible part), 3, 4 and 6.

    Character 5 is inside of "cd", which is thus part of what precedes: the end alone is left."""
    tokenizer = Pieces("a", " b", "\n", "cd", "")
    assert first_token(tokenizer, [0, 1, 2, 3, 4], "a b\ncd", begin) == first


def test_the_end_alone_and_nothing_at_all():
    tokenizer = Pieces("ab", "")
    assert first_token(tokenizer, [0, 1], "ab", 2) == 1
    assert first_token(tokenizer, [0], "ab", 2) == 1 == len([0])
    assert first_token(tokenizer, [0, 1], "ba", 1) is None


class Bytes(Merged):
    """A slow tokenizer of bytes."""

    def decode(self, ids, **options):
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


def byte_level() -> PreTrainedTokenizerFast:
    vocabulary = {c: i for i, c in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(token_models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", clean_up_tokenization_spaces=False)


BYTE_LEVEL = byte_level()


@given(HOSTILE, st.integers(0, 60))
def test_no_byte_of_a_character_is_on_the_wrong_side(text, begin):
    begin = min(begin, len(text))
    wanted = len(text[:begin].encode())
    assert first_token(Bytes(), [*text.encode(), 256], text, begin) == wanted
    assert first_token(BYTE_LEVEL, [*BYTE_LEVEL(text)["input_ids"], 0], text, begin) == wanted
