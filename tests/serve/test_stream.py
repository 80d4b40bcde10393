"""What a stream shows, applied chunk by chunk, is the finished text, and no chunk shows what is not certain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import architectures
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selftaught.engines.rows import Event
from selftaught.models.blt import ByteTokenizer
from selftaught.serve.stream import SampleStream, standing, token_list
from selftaught.text.tokens import decode


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte: every character beyond ASCII comes in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({"<eos>": 256, **{c: i for i, c in enumerate(alphabet)}}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", clean_up_tokenization_spaces=False)


BYTES = bytes_tokenizer()


def token(number: int) -> Event:
    return Event(kind="token", request="r", sample=0, token=number, logprob=-0.5)


def retract(count: int) -> Event:
    return Event(kind="retract", request="r", sample=0, count=count)


class Screen:
    """Applies what a stream says, as docs/serve.md tells a client to."""

    def __init__(self) -> None:
        self.text, self.tokens, self.history = "", [], []

    def apply(self, stream: SampleStream, final: str | None = None) -> None:
        dropped, text = stream.advance(final)
        gone, new = stream.new_tokens()
        assert dropped <= len(self.text)
        self.text = self.text[: len(self.text) - dropped] + text
        self.tokens = [*self.tokens[: len(self.tokens) - gone], *new]
        self.history.append(self.text)


def test_no_half_characters() -> None:
    stream, screen = SampleStream(BYTES), Screen()
    for number in BYTES("aé√😀b")["input_ids"]:
        stream.push(token(number))
        screen.apply(stream)
    assert [*dict.fromkeys(screen.history)] == ["a", "aé", "aé√", "aé√😀", "aé√😀b"]


def test_the_start_of_a_stop_string_is_held_back() -> None:
    stream, screen = SampleStream(BYTES, ("END", "\n\n")), Screen()
    for number in BYTES("aEN b\nc\n\nd")["input_ids"]:
        stream.push(token(number))
        screen.apply(stream)
    assert screen.history == ["a", "a", "a", "aEN ", "aEN b", "aEN b", "aEN b\nc", "aEN b\nc", "aEN b\nc", "aEN b\nc"]
    screen.apply(stream, "aEN b\nc")
    assert screen.text == "aEN b\nc"


def test_the_end_is_shown_whatever_was_held_back() -> None:
    stream, screen = SampleStream(BYTES, ("END",)), Screen()
    for number in BYTES("aEN")["input_ids"]:
        stream.push(token(number))
    screen.apply(stream)
    assert screen.text == "a"
    screen.apply(stream, "aEN")
    assert screen.text == "aEN"


def test_taken_back_text_leaves_the_screen() -> None:
    """ "abcd" is shown, three tokens go, "xb" comes: drop 3 of 4 characters, then append."""
    stream = SampleStream(BYTES)
    for number in BYTES("abcd")["input_ids"]:
        stream.push(token(number))
    assert stream.advance() == (0, "abcd") and stream.new_tokens()[0] == 0
    for event in (retract(3), *map(token, BYTES("xb")["input_ids"])):
        stream.push(event)
    assert stream.advance() == (3, "xb")
    gone, new = stream.new_tokens()
    assert (gone, [t.text for t in new], [t.offset for t in new]) == (3, ["x", "b"], [1, 2])
    assert stream.retractions == 1


def test_a_decoder_that_rewrites_what_it_said_is_corrected_at_the_end() -> None:
    stream = SampleStream(BYTES)
    for number in BYTES("abc")["input_ids"]:
        stream.push(token(number))
    stream.advance()
    assert stream.advance("aBc") == (2, "Bc")


_steps = st.lists(st.one_of(st.text(max_size=4), st.integers(1, 9)), max_size=12)


@given(_steps, st.sampled_from([(), ("b",), ("ab", "é"), ("aab", "😀a")]), st.data())
def test_what_was_told_adds_up(steps: list, stop: tuple[str, ...], data: st.DataObject) -> None:
    """Random texts and retractions, told at random moments."""
    stream, screen, ids = SampleStream(BYTES, stop), Screen(), []
    for step in steps:
        if isinstance(step, int):
            count = min(step, len(ids))
            del ids[len(ids) - count :]
            if count:
                stream.push(retract(count))
        else:
            for number in BYTES(step)["input_ids"]:
                ids.append(number)
                stream.push(token(number))
        if data.draw(st.booleans()):
            before = screen.text
            screen.apply(stream)
            # Nothing is shown that has to be corrected later, unless its tokens were taken back.
            assert stream.retractions or screen.text.startswith(before)
            assert not any(s in screen.text for s in stop)
    final = decode(BYTES, ids)
    final = final[: min((i for i in map(final.find, stop) if i >= 0), default=None)]
    screen.apply(stream, final)
    assert screen.text == final and len(screen.tokens) == len(ids)


@pytest.mark.parametrize("tokenizer", [BYTES, architectures.tokenizer(), ByteTokenizer()])
def test_token_texts_join_to_the_text(tokenizer) -> None:
    ids = [*tokenizer("abc 12\nzé", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    tokens = token_list(tokenizer, ids, [-1.0] * len(ids))
    assert "".join(t.text for t in tokens) == decode(tokenizer, ids)
    assert tokens[-1].text == "" and [t.offset for t in tokens[:4]] == [0, 1, 2, 3]


def test_spans_are_left_out() -> None:
    assert standing("abcdef", [(0, 1), (2, 4)]) == ["b", "e", "f"]
