import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftaught.errors import InputError
from selftaught.models.scratch import build_scratch, scratch_model, train_tokenizer
from selftaught.specs import Scratch
from selftaught.store.stage import Store
from selftaught.tasks.task import demonstrate
from selftaught.types import Demonstration, Document, Prompt

TEXTS = ["a=7;b=a*5;b?", "b=7*5=5\n#### 5"]
SMALL = Scratch(layers=2, width=16, heads=2, context=32)
CHAR = train_tokenizer(SMALL, TEXTS)
BPE = train_tokenizer(Scratch(tokenizer="bpe", vocab_size=300), TEXTS)


@given(st.text(alphabet="ab=7;*5?\n# "))
def test_characters_come_back_one_token_each(text):
    ids = CHAR(text)["input_ids"]
    assert len(ids) == len(text)
    assert CHAR.decode(ids) == text


@given(st.text())
def test_bpe_brings_any_text_back(text):
    if not any(token in text for token in BPE.all_special_tokens):
        assert BPE.decode(BPE(text)["input_ids"]) == text


def test_patterns_are_tokens_and_other_characters_too():
    tokenizer = train_tokenizer(Scratch(tokenizer="pattern", pattern=r"[a-z]=|#### |\d"), TEXTS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("b=7*5\n#### 5")["input_ids"]) == [
        "b=", "7", "*", "5", "\n", "#### ", "5"
    ]  # fmt: skip


def test_what_was_never_seen_is_unknown():
    assert CHAR("z7")["input_ids"][0] == CHAR.unk_token_id
    # A pattern's match that was never seen whole is unknown as a whole.
    tokenizer = train_tokenizer(Scratch(tokenizer="pattern", pattern=r"[a-z]="), TEXTS)
    assert tokenizer("c=")["input_ids"] == [tokenizer.unk_token_id]


@pytest.mark.parametrize("tokenizer", [CHAR, BPE], ids=["char", "bpe"])
def test_the_special_tokens(tokenizer):
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [0, 1, 2]
    assert tokenizer.bos_token is None
    assert tokenizer("7<eos>")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("7<eos>")["input_ids"], skip_special_tokens=True) == "7"


def test_a_vocabulary_does_not_depend_on_the_order_of_texts():
    assert train_tokenizer(SMALL, TEXTS[::-1]).get_vocab() == CHAR.get_vocab()


def test_the_model_is_the_one_described():
    scratch = Scratch(layers=3, width=32, heads=4, kv_heads=2, intermediate=48, context=64, tied=False, init_std=0.5)
    model = scratch_model(scratch, CHAR, seed=0)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (3, 32, 48)
    assert (config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings) == (4, 2, 64)
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id) == (len(CHAR), 0, 1)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert model.lm_head.weight.std().item() == pytest.approx(0.5, rel=0.1)


def test_the_seed_fixes_the_weights_and_leaves_other_draws_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (scratch_model(SMALL, CHAR, seed).model.norm.weight.new_tensor(0) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = (scratch_model(SMALL, CHAR, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_stage_of_demonstrations_becomes_a_model_that_opens(tmp_path):
    rows = [demonstrate(Prompt.from_text(TEXTS[0]), TEXTS[1])]
    with Store(tmp_path).writer("demonstrations", "k" * 24, Demonstration) as writer:
        writer.write(0, rows)
        stage = writer.commit()
    build_scratch(scratch=SMALL, examples=[stage.path], out=tmp_path / "model", seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert tokenizer.get_vocab() == CHAR.get_vocab()
    assert model.get_input_embeddings().weight.shape == (len(CHAR), 16)
    assert tokenizer(TEXTS[0])["input_ids"] == CHAR(TEXTS[0])["input_ids"]


def test_a_stage_of_documents_gives_the_same_tokenizer_as_the_texts_themselves(tmp_path):
    with Store(tmp_path).writer("documents", "k" * 24, Document) as writer:
        writer.write(0, [Document(text=text) for text in TEXTS])
        stage = writer.commit()
    build_scratch(scratch=SMALL, examples=[stage.path], out=tmp_path / "model", seed=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == train_tokenizer(SMALL, TEXTS).get_vocab()


@pytest.mark.parametrize(
    ("scratch", "message"),
    [
        (Scratch(width=30, heads=4), "width=30 is not a multiple of heads=4"),
        (Scratch(tokenizer="pattern"), "pattern='': give the regular expression of a token"),
        (Scratch(tokenizer="pattern", pattern="["), r"pattern='\['"),
    ],
)
def test_what_cannot_be_built(scratch, message):
    with pytest.raises(InputError, match=message) as error:
        scratch_model(scratch, train_tokenizer(scratch, TEXTS), seed=0)
    assert "\n" not in str(error.value)
