"""Directories that decode in a way of their own are served so."""

from pathlib import Path
from typing import Any

import openai
import pytest
from tests import architectures
from tests.heads import head, temperatures
from tests.serve.serving import running

from selftaught.models.adaptive_decoder import save_head
from selftaught.models.decoding import write_decoding
from selftaught.models.special_tokens import add_token
from selftaught.serve.server import open_engine
from selftaught.specs import ModelSpec, Resets

ASKED: dict[str, Any] = {"model": "tiny", "prompt": "abc", "max_tokens": 12, "seed": 1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the tests' Llama."""
    directory = tmp_path_factory.mktemp("plain")
    architectures.model("llama").save_pretrained(directory)
    architectures.tokenizer().save_pretrained(directory)
    return directory


def test_a_model_with_resets(plain: Path, tmp_path: Path) -> None:
    """Biased so far that it resets at once; then the cap lets it speak."""
    add_token(model=ModelSpec(source=str(plain)), token="[RESET]", out=tmp_path, seed=0)
    write_decoding(tmp_path, Resets(bias=100.0, max_resets=2))
    with running(engine=open_engine(str(tmp_path), None, 64)) as server:
        client = server.client()
        choice = client.completions.create(**ASKED).choices[0]
        assert choice.model_extra["discarded"] == {"retractions": 2, "tokens": 2, "texts": [""]}
        assert len(choice.text) <= 10 and "reset_prob" in choice.model_extra["latents"]
        never = client.completions.create(extra_body={"max_resets": 0}, **ASKED).choices[0]
        assert "discarded" not in never.model_extra
        streamed = client.completions.create(stream=True, **ASKED)
        assert "".join(c.choices[0].text for c in streamed) == choice.text
        with pytest.raises(openai.BadRequestError, match="max_resets"):
            client.completions.create(extra_body={"max_resets": -1}, **ASKED)
        # Nobody can make the model read its own token: the text of it is seven characters, its id is refused.
        usage = client.completions.create(**ASKED | {"prompt": "abc[RESET]"}).usage
        assert usage.prompt_tokens > 4
        with pytest.raises(openai.BadRequestError, match="token id 48"):
            client.completions.create(**ASKED | {"prompt": [3, 48]})


def test_a_head_that_chooses_the_temperature(plain: Path, tmp_path: Path) -> None:
    save_head(head(choices=temperatures(1.5, 0.0), always=1), tmp_path, ModelSpec(source=str(plain)))
    with running(engine=open_engine(str(tmp_path), None, 64)) as server:
        client = server.client()
        chosen = [client.completions.create(**ASKED | {"seed": seed}).choices[0] for seed in (1, 2)]
        greedy = client.completions.create(temperature=0, **ASKED).choices[0]
        assert [c.text for c in chosen] == [greedy.text] * 2
        assert [c.model_extra["latents"]["choice"] for c in chosen] == [[1.0]] * 2
        assert "latents" not in greedy.model_extra
        assert client.completions.create(temperature=1.5, **ASKED).choices[0].text != greedy.text
