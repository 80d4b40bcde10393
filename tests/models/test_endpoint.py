import pytest

from selftaught.errors import InputError
from selftaught.models.endpoint import is_endpoint, parse_endpoint
from selftaught.models.load import load_model, load_tokenizer, model_key
from selftaught.specs import ModelSpec


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(parse_endpoint("http://localhost:8000/v1/#org/name")) == "http://localhost:8000/v1#org/name"
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert parse_endpoint("openai:gpt-x").base_url == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://here/v1")
    assert str(parse_endpoint("openai:gpt-x")) == "http://here/v1#gpt-x"
    assert model_key(ModelSpec(source="openai:gpt-x")).startswith("http://here/v1#gpt-x")
    assert not any(is_endpoint(s) for s in ("gpt2", "./openai", "org/http"))


@pytest.mark.parametrize(
    "source",
    ["http://localhost/v1", "http://#name", "https://me:secret@host/v1#x", "http://h/v1?key=secret#x", "http://[#x"],
)
def test_bad_names(source: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_endpoint(source)
    assert "me:secret" not in str(caught.value)


def test_weights_of_a_server_cannot_be_opened() -> None:
    spec = ModelSpec(source="http://localhost/v1#x")
    for opening in (load_model, load_tokenizer):
        with pytest.raises(InputError, match="can only be sampled from"):
            opening(spec)
