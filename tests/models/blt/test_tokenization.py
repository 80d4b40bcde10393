from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.blt.conftest import Build
from transformers import AutoTokenizer

from selftaught.models.blt import ByteTokenizer

TOKENIZER = ByteTokenizer()


def plain(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_byte_b_is_id_b_plus_4() -> None:
    assert TOKENIZER("aé")["input_ids"] == [1, 97 + 4, 0xC3 + 4, 0xA9 + 4]
    assert len(TOKENIZER) == TOKENIZER.vocab_size == 260
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(260))
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1, 2)
    assert sorted(TOKENIZER.all_special_ids) == [0, 1, 2, 3]


@given(st.binary(max_size=60))
def test_any_bytes_come_back(data: bytes) -> None:
    ids = TOKENIZER.encode_bytes(data)
    assert TOKENIZER.decode_bytes(ids) == data
    assert plain(data.decode("utf-8", "surrogateescape")) == ids
    assert TOKENIZER.decode(ids) == data.decode("utf-8", "replace")


@given(st.text(max_size=40))
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(plain(text)) == text
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("text", ["\x00\x01\x7f", "\ufeff", "e\u0301", "👩‍👩‍👧", "\r\n\t  ", "<bos", "\ufffd"])
def test_odd_text(text: str) -> None:
    assert TOKENIZER.decode(plain(text)) == text


def test_a_lone_surrogate_has_ids() -> None:
    assert plain("a\ud800b") == [101, 0xED + 4, 0xA0 + 4, 0x80 + 4, 102]


def test_partial_utf8_is_replaced() -> None:
    ids = plain("a€")
    assert TOKENIZER.decode(ids[:2]) == "a\ufffd" and TOKENIZER.decode(ids[:3]) == "a\ufffd"
    assert TOKENIZER.decode([200, 5]) == "\ufffd\x01"


def test_special_ids_are_never_bytes() -> None:
    ids = [1, 0xC3 + 4, 2, 0xA9 + 4, 3, 0]
    assert TOKENIZER.decode(ids) == "<bos>\ufffd<eos>\ufffd<delimiter><boe>"
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "é"
    assert TOKENIZER.decode_bytes(ids) == "é".encode()
    assert TOKENIZER.decode([], skip_special_tokens=True) == "" and plain("") == []


def test_a_spelled_special_token() -> None:
    assert TOKENIZER("a<eos>", add_special_tokens=False)["input_ids"] == [101, 2]
    assert plain("<eos>") == TOKENIZER.encode_bytes(b"<eos>")


def test_batches_and_chats(tmp_path: Path, build: Build) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "?"},
    ]
    TOKENIZER.save_pretrained(tmp_path)
    build(num_hidden_layers=1).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(again, ByteTokenizer)
    for tokenizer in (TOKENIZER, again):
        batch = tokenizer(["a", "bcd"], padding=True, return_tensors="pt")
        assert torch.equal(batch["input_ids"], torch.tensor([[1, 101, 0, 0], [1, 102, 103, 104]]))
        assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))
        shown = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert shown == "<bos>user: hi\nassistant: yo<eos>user: ?\nassistant: "
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert ids[0] == 1 and ids.count(2) == 1 and tokenizer.decode(ids) == shown
        assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3] and len(tokenizer) == 260


def test_an_added_token_of_one_character_is_no_byte():
    tokenizer = ByteTokenizer()
    tokenizer.add_tokens(["☃"])
    ids = tokenizer.encode("a☃é", add_special_tokens=False)
    assert ids == [101, 260, 199, 173]
    assert tokenizer.decode(ids) == "a☃é"


def test_ids_past_the_vocabulary_have_no_text():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([101, 300, 102]) == "ab"
    assert tokenizer.convert_tokens_to_ids(["unknown", "a"])[1] == 101
