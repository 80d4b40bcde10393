import json
from pathlib import Path

import pytest

from selftaught.errors import InputError
from selftaught.models.decoding import decoding_key, open_spec, read_decoding, write_decoding
from selftaught.specs import Adaptive, EntropyTemperature, ModelSpec, Resets


def test_a_place_that_says_nothing_decodes_plainly(tmp_path: Path) -> None:
    assert read_decoding(tmp_path) is None
    assert open_spec(str(tmp_path), "chat") == ModelSpec(source=str(tmp_path), template="chat")
    assert open_spec("owner/model") == ModelSpec(source="owner/model")


@pytest.mark.parametrize("decoding", [Resets(bias=2.5, max_resets=3), EntropyTemperature(base=1.2)])
def test_what_is_written_is_read_back(tmp_path: Path, decoding) -> None:
    write_decoding(tmp_path, decoding)
    assert open_spec(str(tmp_path)) == ModelSpec(source=str(tmp_path), decoding=decoding)


def test_a_head_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "decoding.json").write_text(
        json.dumps({"kind": "adaptive", "base_model": "owner/model", "revision": "abc", "level": "token"})
    )
    wanted = ModelSpec(source="owner/model", revision="abc", decoding=Adaptive(head=str(tmp_path)))
    assert open_spec(str(tmp_path)) == wanted


def test_a_heads_template_is_used_unless_another_is_given(tmp_path: Path) -> None:
    fields = {"kind": "adaptive", "base_model": "m", "template": "chat", "dtype": "bfloat16", "adapter": "lora"}
    (tmp_path / "decoding.json").write_text(json.dumps(fields | {"trust_remote_code": True}))
    found = open_spec(str(tmp_path))
    assert (found.template, found.dtype, found.adapter, found.trust_remote_code) == ("chat", "bfloat16", "lora", False)
    assert open_spec(str(tmp_path), "plain").template == "plain"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds a list"),
        ('{"kind": "adaptive"}', "names no base_model"),
        ('{"kind": "magic"}', "kind = 'magic': give one of adaptive, resets"),
        ('{"kind": "resets", "bias": "high"}', "bias"),
        ('{"kind": "resets", "surprise": 1}', "unknown key 'surprise'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "decoding.json").write_text(text)
    with pytest.raises(InputError, match=message):
        open_spec(str(tmp_path))


def test_a_head_is_known_by_its_content(tmp_path: Path) -> None:
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "head.safetensors").write_text(content)
    keys = [decoding_key(Adaptive(head=str(tmp_path / name))) for name in "abc"]
    assert keys[0] == keys[1] != keys[2]
    assert decoding_key(Resets(bias=1.0)) != decoding_key(Resets(bias=2.0))
