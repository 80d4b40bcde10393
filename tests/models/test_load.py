import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, PretrainedConfig

from selftaught.errors import InputError
from selftaught.models.load import (
    context_length,
    count_parameters,
    load_classifier,
    load_config,
    load_model,
    load_reward_model,
    load_tokenizer,
    model_key,
    tokenizer_fingerprint,
)
from selftaught.models.scratch import scratch_model, train_tokenizer
from selftaught.specs import ModelSpec, Scratch
from selftaught.store.stage import Store

SMALL = Scratch(layers=1, width=16, heads=2, context=32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "small"
    tokenizer = train_tokenizer(SMALL, ["0123456789"])
    scratch_model(SMALL, tokenizer, seed=0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def own(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "own"))


@pytest.fixture(scope="module")
def adapter(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapters") / "one"
    model = get_peft_model(load_model(ModelSpec(source=str(saved))), LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    model.save_pretrained(directory)
    return directory


def spec_of(path: Path, **fields) -> ModelSpec:
    return ModelSpec(source=str(path), **fields)


def change_json(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[3, 4, 5]])).logits


def test_a_model_is_ready_to_be_used(saved):
    model = load_model(spec_of(saved))
    assert not model.training
    assert model.dtype == torch.float32
    assert count_parameters(spec_of(saved)) == sum(p.numel() for p in model.parameters())


def test_dtypes(own):
    load_model(spec_of(own, dtype="bfloat16")).save_pretrained(own)
    assert load_model(spec_of(own)).dtype == torch.bfloat16
    assert load_model(spec_of(own, dtype="float32")).dtype == torch.float32
    assert load_model(spec_of(own, dtype="bfloat16"), dtype=torch.float32).dtype == torch.float32


def test_an_adapter_is_applied(saved, adapter):
    plain, adapted = load_model(spec_of(saved)), load_model(spec_of(saved, adapter=str(adapter)))
    assert not torch.allclose(logits(plain), logits(adapted))
    assert not adapted.training


def test_a_language_model_is_given_a_head_and_a_classifier_keeps_its_own(saved, own, adapter):
    torch.manual_seed(0)
    given, new = load_reward_model(spec_of(saved))
    assert new and given.config.num_labels == 1 and not given.training
    given.save_pretrained(own)
    kept, new = load_reward_model(spec_of(own))
    assert not new and torch.equal(kept.score.weight, given.score.weight)
    torch.manual_seed(0)
    adapted, new = load_reward_model(spec_of(saved, adapter=str(adapter)))
    assert new and torch.equal(adapted.get_base_model().score.weight, given.score.weight)
    assert not torch.allclose(logits(adapted), logits(given))
    both, new = load_reward_model(spec_of(own, adapter=str(adapter)))
    assert not new and torch.equal(logits(both), logits(adapted))
    assert torch.equal(logits(load_classifier(spec_of(own, adapter=str(adapter)))), logits(both))


def test_an_adapter_without_some_of_its_weights_is_refused(saved, adapter, tmp_path):
    partial = Path(shutil.copytree(adapter, tmp_path / "partial"))
    weights = load_file(partial / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    save_file({k: v for k, v in weights.items() if k != name}, partial / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"no reward model can be opened from .* holds no weights for .*lora_B"):
        load_reward_model(spec_of(saved, adapter=str(partial)))


def test_a_missing_pad_token_is_eos(own):
    change_json(own / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(spec_of(own))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def test_the_pad_token_of_a_tokenizer_is_kept(saved):
    assert load_tokenizer(spec_of(saved)).pad_token == "<pad>"


@pytest.mark.parametrize("load", [load_model, load_tokenizer, load_config])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./none", r"^model directory \./none does not exist: pass a directory that holds config\.json, or a Hub id"),
        ("/no/model", "^model directory /no/model does not exist"),
        ("a/b/c", "model directory a/b/c does not exist"),
        ("someone/none", r"can be opened from 'someone/none': .* \(pass a save_pretrained directory or a Hub id\)"),
    ],
)
def test_a_model_that_is_not_there(load, source, message):
    with pytest.raises(InputError, match=message) as error:
        load(ModelSpec(source=source))
    assert "\n" not in str(error.value)


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(InputError, match="no causal language model can be opened from"):
        load_model(spec_of(tmp_path))


@pytest.mark.parametrize("content", ["{", '{"model_type": "llama", "hidden_size": "wide"}', '{"model_type": "bert"}'])
def test_a_configuration_that_cannot_be_used(own, content):
    (own / "config.json").write_text(content)
    with pytest.raises(InputError) as error:
        load_model(spec_of(own))
    assert "\n" not in str(error.value)


def test_damaged_weights(own):
    weights = own / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="no causal language model can be opened from"):
        load_model(spec_of(own))


def test_an_adapter_that_is_not_there(saved, tmp_path):
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        load_model(spec_of(saved, adapter=str(tmp_path / "none")))


def test_neither_pad_nor_eos(own):
    change_json(own / "tokenizer_config.json", pad_token=None, eos_token=None)
    with pytest.raises(InputError, match=r"neither a pad nor an EOS token: set tokenizer\.eos_token and save it again"):
        load_tokenizer(spec_of(own))


def test_the_context_is_the_models(saved):
    assert context_length(load_config(spec_of(saved))) == 32
    assert context_length(GPT2Config(n_positions=48)) == 48
    assert context_length(PretrainedConfig()) is None


# --- fingerprints and keys -------------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_the_vocabulary(saved):
    tokenizer = load_tokenizer(spec_of(saved))
    fresh = train_tokenizer(SMALL, ["9876543210"])
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(fresh)
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(train_tokenizer(SMALL, ["0123456789a"]))


def test_calls_that_pad_or_truncate_leave_the_fingerprint(saved):
    tokenizer = load_tokenizer(spec_of(saved))
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["1", "12"], padding=True, truncation=True, max_length=1)
    assert tokenizer_fingerprint(tokenizer) == before


def test_a_directorys_key_is_its_content(saved, own):
    assert model_key(spec_of(own)) == model_key(spec_of(saved))
    change_json(own / "config.json", rms_norm_eps=1e-3)
    assert model_key(spec_of(own)) != model_key(spec_of(saved))


def test_what_else_a_key_is_made_of(saved, adapter):
    specs = [
        spec_of(saved),
        spec_of(saved, dtype="bfloat16"),
        spec_of(saved, adapter=str(adapter)),
        ModelSpec(source="a/b"),
        ModelSpec(source="a/b", revision="v2"),
    ]
    assert len({model_key(spec) for spec in specs}) == len(specs)


def test_a_trained_models_key_is_that_of_its_stage_wherever_it_lies(tmp_path):
    def made(place: str) -> ModelSpec:
        with Store(tmp_path / place).artifact("train", "k" * 24) as writer:
            (writer.directory / "model").mkdir()
            (writer.directory / "model" / "weights").write_text(place)
            return spec_of(writer.commit().path / "model")

    assert model_key(made("here")) == model_key(made("there")) != model_key(spec_of(tmp_path))
