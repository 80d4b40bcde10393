import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tests import architectures
from transformers import GPT2Config, GPT2LMHeadModel

from selftaught.errors import InputError
from selftaught.models.load import load_model, load_tokenizer
from selftaught.models.special_tokens import add_to_tokenizer, add_token
from selftaught.specs import SFT, Lora, ModelSpec, Training
from selftaught.train.forward import causal_lm
from selftaught.train.loop import TrainJob, train
from selftaught.train.setup import open_model
from selftaught.types import Completion, Demonstration, Prompt

R, ID = "[RESET]", architectures.VOCABULARY


def saved(path: Path, family: str = "llama", *, tied: bool = False, rows: int = ID) -> ModelSpec:
    """Save a tiny model, with `rows` embeddings where there shall be more than tokens."""
    config = deepcopy(architectures.model(family).config)
    config.tie_word_embeddings = tied
    network = type(architectures.model(family))(config)
    if rows > ID:
        network.resize_token_embeddings(rows, mean_resizing=False)
    network.save_pretrained(path)
    architectures.tokenizer().save_pretrained(path)
    return ModelSpec(source=str(path))


def with_token(spec: ModelSpec, out: Path, token: str = R) -> ModelSpec:
    add_token(model=spec, token=token, out=out, seed=0)
    return ModelSpec(source=str(out))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_new_rows_are_the_means_of_the_old(family, tied, tmp_path):
    spec = saved(tmp_path / "a", family, tied=tied)
    made = with_token(spec, tmp_path / "b")
    old, new, tokenizer = load_model(spec), load_model(made), load_tokenizer(made)
    assert len(tokenizer) == ID + 1 and tokenizer.convert_tokens_to_ids(R) == ID
    assert R in tokenizer.all_special_tokens and new.config.vocab_size == ID + 1
    for name in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(old, name)().weight, getattr(new, name)().weight
        assert after.shape[0] == ID + 1 and torch.equal(after[:ID], before)
        torch.testing.assert_close(after[ID], before.mean(0))
    shares = new.get_input_embeddings().weight.data_ptr() == new.get_output_embeddings().weight.data_ptr()
    assert shares == tied
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(new(ids).logits[..., :ID], old(ids).logits)


def test_padded_embeddings_are_used_before_there_are_more(tmp_path):
    """Many models have more embeddings than tokens: the row is there, and full of noise."""
    made = with_token(saved(tmp_path / "a", rows=64), tmp_path / "b")
    weight = load_model(made).get_input_embeddings().weight
    assert weight.shape[0] == 64
    torch.testing.assert_close(weight[ID], weight[:ID].mean(0))


def test_adding_it_again_changes_nothing(tmp_path):
    once = with_token(saved(tmp_path / "a"), tmp_path / "b")
    network = load_model(once)
    with torch.no_grad():
        network.get_input_embeddings().weight[ID] = 7.0
    network.save_pretrained(tmp_path / "b")
    twice = with_token(once, tmp_path / "c")
    assert len(load_tokenizer(twice)) == ID + 1
    assert torch.equal(load_model(twice).get_input_embeddings().weight[ID], torch.full((32,), 7.0))


def test_two_tokens(tmp_path):
    once = with_token(saved(tmp_path / "a"), tmp_path / "b")
    twice = with_token(once, tmp_path / "c", "<|undo|>")
    tokenizer = load_tokenizer(twice)
    assert tokenizer.init_kwargs["model_only_tokens"] == ["<|undo|>", R]
    assert tokenizer.convert_tokens_to_ids([R, "<|undo|>"]) == [ID, ID + 1]
    assert load_model(twice).config.model_only_token_ids == [ID, ID + 1]


def test_other_special_tokens_stay(tmp_path):
    tokenizer = architectures.tokenizer().__class__.from_pretrained(saved(tmp_path).source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    add_to_tokenizer(tokenizer, R)
    assert {"<|end|>", R} <= set(tokenizer.all_special_tokens)


@pytest.mark.parametrize(
    ("token", "complaint"),
    [("x", "two characters"), ("", "two characters"), ("<eos>", "is the tokenizer's eos_token")],
)
def test_tokens_that_cannot_be_kept_apart(token, complaint, tmp_path):
    with pytest.raises(InputError, match=complaint):
        with_token(saved(tmp_path / "a"), tmp_path / "b", token)


def test_an_ordinary_word_is_refused(tmp_path):
    from selftaught.models.scratch import train_tokenizer
    from selftaught.specs import Scratch

    tokenizer = train_tokenizer(Scratch(tokenizer="pattern", pattern=r"\w+"), ["reset now"])
    with pytest.raises(InputError, match="is an ordinary word of the vocabulary"):
        add_to_tokenizer(tokenizer, "reset")


# --- with an adapter -------------------------------------------------------------------------------------------------


def trained(spec: ModelSpec, out: Path, lora: Lora | None) -> ModelSpec:
    prompt = Prompt.from_text("abc")
    row = Demonstration(prompt=prompt, completion=Completion(prompt_id=prompt.id, k=0, text=f"de{R}fg"))
    settings = Training(lr=1e-2, max_steps=3, epochs=3, batch_size=1, lora=lora)
    train(TrainJob(model=spec, examples=[row], objective=SFT(), settings=settings, out=out, seed=0))
    return ModelSpec(source=spec.source, adapter=str(out / "model")) if lora else ModelSpec(source=str(out / "model"))


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_trains_the_tokens_embeddings_and_no_others(tied, tmp_path):
    made = with_token(saved(tmp_path / "a", tied=tied), tmp_path / "b")
    adapted = trained(made, tmp_path / "c", Lora(rank=2))
    merged = open_model(adapted, Training(), torch.device("cpu"))
    before = load_model(made)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, name)().weight, getattr(causal_lm(merged), name)().weight
        assert torch.equal(new[:ID], old[:ID]) and not torch.equal(new[ID], old[ID])
    ids = torch.tensor([[3, ID, 5]])
    torch.testing.assert_close(merged(ids).logits, load_model(adapted)(ids).logits)


def test_training_an_adapter_further_trains_the_token_too(tmp_path):
    made = with_token(saved(tmp_path / "a"), tmp_path / "b")
    adapted = trained(made, tmp_path / "c", Lora(rank=2))
    opened = open_model(adapted, Training(lora=Lora(rank=2)), torch.device("cpu"))
    names = [name for name, p in opened.named_parameters() if p.requires_grad and "lora_" not in name]
    assert len(names) == 2 and all("trainable_tokens_delta" in name for name in names)


def test_without_an_added_token_an_adapter_is_as_it_was(tmp_path):
    opened = open_model(saved(tmp_path), Training(lora=Lora(rank=2)), torch.device("cpu"))
    assert all("lora_" in name for name, p in opened.named_parameters() if p.requires_grad)
    trained(saved(tmp_path / "a"), tmp_path / "b", Lora(rank=2))
    assert json.loads((tmp_path / "b" / "model" / "adapter_config.json").read_text())["trainable_token_indices"] is None


def test_an_adapter_of_the_model_is_folded_in(tmp_path):
    plain = saved(tmp_path / "a")
    adapted = trained(plain, tmp_path / "c", Lora(rank=2))
    made = with_token(adapted, tmp_path / "d")
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(load_model(made)(ids).logits[..., :ID], load_model(adapted)(ids).logits)


def test_a_head_with_a_bias(tmp_path):
    network = GPT2LMHeadModel(GPT2Config(vocab_size=ID, n_embd=32, n_layer=1, n_head=2, tie_word_embeddings=False))
    network.lm_head = torch.nn.Linear(32, ID)
    from selftaught.models.special_tokens import _add_row

    _add_row(network, ID)
    torch.testing.assert_close(network.lm_head.bias[ID], network.lm_head.bias[:ID].mean())
