import numpy as np
import pytest
from tests import architectures
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from selftaught.engines.stopping import StopStrings, finished_text
from selftaught.models.blt import ByteTokenizer
from selftaught.text.tokens import decode

TEXTS = [
    "The answer is 42.\n\nQuestion: how many? Ünïcödé, 日本語 and 🙂 too.",
    "Answer: 7.\nQuestion: why?\nAnswer: so.",
]


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<eos>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.fixture(scope="module")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Metaspace pieces, as in Llama 2: a piece decoded on its own loses its leading space."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<eos>"]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["byte_tokenizer", "word_tokenizer"])
@pytest.mark.parametrize("stop", ["\n\nQuestion:", "Question:", " is 4", "日本", "🙂", "7.\nQ", "y?", " "])
def test_a_string_is_found_when_its_last_token_comes(kind: str, stop: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    finder = StopStrings(tokenizer)
    number = finder.number((stop,))
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        first = next((n for n in range(1, len(ids) + 1) if stop in decode(tokenizer, ids[:n])), None)
        found = None
        for n in range(1, len(ids) + 1):
            candidates = finder.candidates(np.array([number]), np.array(ids[n - 1 : n]))
            if len(candidates) and finder.reached(number, ids[:n]):
                found = n
                break
        assert found == first


def test_rows_look_for_their_own_strings_only() -> None:
    finder = StopStrings(architectures.tokenizer())
    a, b = finder.number(("a",)), finder.number(("bb", "c"))
    ids = architectures.tokenizer()("abc")["input_ids"]
    assert finder.candidates(
        np.array([a, a, b, b, 0]), np.array([ids[0], ids[1], ids[0], ids[2], ids[0]])
    ).tolist() == [0, 3]


def test_ids_without_text_are_no_candidates() -> None:
    finder = StopStrings(architectures.tokenizer())
    number = finder.number(("a",))
    assert finder.candidates(np.array([number] * 2), np.array([-1, 10**6])).tolist() == []


def test_empty_strings_are_left_out() -> None:
    finder = StopStrings(architectures.tokenizer())
    assert finder.number(("",)) == 0 == finder.number(())


def test_text_is_cut_at_the_first_of_several() -> None:
    finder = StopStrings(architectures.tokenizer())
    assert finder.cut(finder.number(("cd", "b")), "abcd") == "a"
    assert finder.cut(finder.number(("xyz",)), "abcd") == "abcd"


def test_sets_that_nobody_uses_are_forgotten_and_numbers_stay() -> None:
    stops = StopStrings(architectures.tokenizer())
    first, second = stops.number(("a",)), stops.number(("b", ""))
    stops.forget([second])
    assert stops.sets == {0: (), second: ("b",)}
    assert stops.number(("b",)) == second and stops.number(("a",)) not in (first, second)
    assert stops.cut(second, "xbx") == "x" and stops.cut(0, "xbx") == "xbx"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"ab", "ab"),
        ("aé√😀".encode(), "aé√😀"),
        *(("a😀".encode()[:n], "a") for n in (2, 3, 4)),
        (b"a\xe0\xa0", "a"),
        (b"a\xed\x80", "a"),
        (b"a\xf4\x8f", "a"),
        (b"a\xff", "a\ufffd"),
        (b"a\x80", "a\ufffd"),
        (b"a\xff\xff\xc3", "a\ufffd\ufffd"),
        (b"a\xed\xa0", "a\ufffd\ufffd"),
        ("a\ufffd".encode(), "a\ufffd"),
        (b"", ""),
    ],
)
def test_a_character_of_which_a_part_came_is_no_text(data: bytes, text: str) -> None:
    tokenizer = ByteTokenizer()
    assert finished_text(tokenizer, [1, *tokenizer.encode_bytes(data)]) == text


def test_a_stop_string_of_bytes_that_are_no_text() -> None:
    """U+FFFD is reached when a byte cannot become text any more, not inside of one, nor where the tail begins."""
    tokenizer = ByteTokenizer()
    finder = StopStrings(tokenizer)
    number = finder.number(("\ufffd",))
    ids = tokenizer.encode_bytes("ééééééééééé😀".encode() + b"\xe2\x98z")
    found = [n for n in range(1, len(ids) + 1) if finder.reached(number, ids[:n])]
    assert found[0] == len(ids)
