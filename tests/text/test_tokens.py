from hypothesis import given
from hypothesis import strategies as st

from selftaught.models.blt.tokenization import ByteTokenizer
from selftaught.text.tokens import TokenTexts, decode, token_groups


def test_bytes_that_are_no_text_do_not_wait_for_ever() -> None:
    """Nor is each decoded again with all before it: what a step decodes does not grow."""
    tokenizer, decoded = ByteTokenizer(), []

    class Counting:
        def decode(self, ids: list[int], **options: object) -> str:
            decoded.append(len(ids))
            return tokenizer.decode(ids, **options)

    data = b"a" + b"\xff\xe2\x98" * 60 + "é".encode()
    texts, shown = TokenTexts(Counting()), []
    for number in tokenizer.encode_bytes(data):
        texts.push(number)
        shown.append(len(texts.text))
    assert texts.text == data.decode("utf-8", "replace")
    assert all(n - 25 < 1.5 * length + 1 for n, length in enumerate(shown)) and max(decoded) < 70


@given(st.binary(max_size=40), st.booleans())
def test_groups_make_the_whole_text(data: bytes, special: bool) -> None:
    """Of any bytes, and of the special ids among them, whose names are text or not."""
    tokenizer = ByteTokenizer()
    ids = [b if b < 4 else i for b, i in zip(data, tokenizer.encode_bytes(data), strict=True)]
    groups = list(token_groups(tokenizer, ids, special=special))
    assert sum(count for count, _ in groups) == len(ids) and all(count for count, _ in groups)
    assert "".join(piece for _, piece in groups) == decode(tokenizer, ids, special=special)


def test_a_character_is_one_group() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer("a😀é", add_special_tokens=False)["input_ids"]
    assert list(token_groups(tokenizer, ids)) == [(1, "a"), (4, "😀"), (2, "é")]
    assert list(token_groups(tokenizer, ids[:3])) == [(1, "a"), (2, "\ufffd")]
