"""The byte tokenizer: text is UTF-8, byte b is id b + 4, and four ids are special. It learns nothing."""

from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from selftaught.functional.patches import OFFSET, VOCABULARY

_BYTES = {chr(b): b for b in range(256)}
SPECIAL = ("<boe>", "<bos>", "<eos>", "<delimiter>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class ByteTokenizer(PreTrainedTokenizer):
    """Bytes as tokens, with the interface of every tokenizer of transformers.

    A text begins with `<bos>` unless `add_special_tokens=False`; `<boe>` pads. Ids below 4 never become bytes: `decode`
    leaves them out with `skip_special_tokens=True` and writes their names without. A text that spells such a name
    means the special id, as with other tokenizers, unless `split_special_tokens=True`; `encode_bytes` never does.

    Ids past them, with which a model's tables may be padded, have no text. Bytes that are not UTF-8 are decoded as
    replacement characters. To read such bytes, use `encode_bytes`, or decode them with `surrogateescape`: that text's
    ids are the bytes.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - transformers' own convention

    def __init__(self, **kwargs: Any) -> None:
        self._added_tokens_decoder = {
            i: AddedToken(name, special=True, normalized=False) for i, name in enumerate(SPECIAL)
        }
        kwargs.setdefault("chat_template", CHAT_TEMPLATE)
        kwargs.setdefault("special_tokens_pattern", "bos")
        kwargs.setdefault("extra_special_tokens", [SPECIAL[3]])
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        for role, name in zip(("pad_token", "bos_token", "eos_token"), SPECIAL[:3], strict=True):
            kwargs.setdefault(role, name)
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """All ids, special ones included."""
        return VOCABULARY

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token; byte b is written as the character with code b."""
        return {**{token: b + OFFSET for token, b in _BYTES.items()}, **self._added_tokens_encoder}

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return the ids of these very bytes, none of them special."""
        return [b + OFFSET for b in data]

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Return the bytes of `ids`, special ids left out."""
        return bytes(i - OFFSET for i in ids if OFFSET <= i < VOCABULARY)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Return no files: there is no vocabulary to save."""
        return ()

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens; runs of bytes between special tokens are decoded together."""
        parts: list[str] = []
        run = bytearray()
        for token in tokens:
            if token in _BYTES and token not in self._added_tokens_encoder:
                run.append(_BYTES[token])
                continue
            parts += [run.decode("utf-8", "replace"), token]
            run.clear()
        return "".join([*parts, run.decode("utf-8", "replace")])

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            # A lone surrogate that stands for no byte has no UTF-8; these three bytes are what is usual for it.
            data = text.encode("utf-8", "surrogatepass")
        return [chr(b) for b in data]

    def _convert_token_to_id(self, token: str) -> int | None:
        return _BYTES[token] + OFFSET if token in _BYTES else None

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index - OFFSET) if index < VOCABULARY else ""
