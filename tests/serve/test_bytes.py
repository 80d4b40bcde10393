"""A model without tokens, served: text comes in whole characters, and what is no character is no surprise."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.byte_models import blt
from tests.serve.serving import Server, running

from selftaught.models.blt import ByteTokenizer

ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 40, "seed": 5}
TURNS: Any = [{"role": "user", "content": "naïve cats: ☀?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(blt(), tokenizer=ByteTokenizer()) as server:
        yield server


def test_a_chat_is_answered_and_its_stream_adds_up(server: Server) -> None:
    client = server.client()
    whole = client.chat.completions.create(messages=TURNS, n=3, **ASKED)
    assert all(c.message.content for c in whole.choices) and whole.usage and whole.usage.completion_tokens > 60
    texts = [""] * 3
    for chunk in client.chat.completions.create(messages=TURNS, n=3, stream=True, **ASKED):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [c.message.content for c in whole.choices]
    assert not any(name in text for text in texts for name in ("<bos>", "<eos>", "<boe>", "<delimiter>"))


def test_prompts_of_ids_and_stop_strings_of_several_bytes(server: Server) -> None:
    client = server.client()
    prompt = [1, *ByteTokenizer().encode_bytes("é".encode()[:1])]
    whole = client.completions.create(prompt=prompt, **ASKED).choices[0].text
    # The random model says hardly a character beyond ASCII: stop at two that it does say.
    stop = whole[5:7]
    cut = client.completions.create(prompt=prompt, stop=stop, **ASKED).choices[0]
    assert cut.text == whole[: whole.index(stop)] and cut.finish_reason == "stop"
    pieces = client.completions.create(prompt=prompt, stop=stop, stream=True, **ASKED)
    assert "".join(c.choices[0].text for c in pieces) == cut.text
