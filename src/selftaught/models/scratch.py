"""Small Llamas with random weights and the tokenizers trained for them: seed models that need no download."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selftaught.specs import ModelSpec, Scratch

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"


def build_scratch(scratch: Scratch, texts: Iterable[str], seed: int, out: Path) -> ModelSpec:
    """Train a tokenizer on `texts`, draw weights from `seed`, and save both to `out` as `from_pretrained` expects."""
    tokenizer = train_tokenizer(scratch, texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=scratch.width,
        intermediate_size=scratch.intermediate or 8 * scratch.width // 3,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.kv_heads or scratch.heads,
        max_position_embeddings=scratch.context,
        tie_word_embeddings=scratch.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return ModelSpec(source=str(out))


def train_tokenizer(scratch: Scratch, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on `texts`: one token per character, or a byte-level BPE of `scratch.vocab_size`.

    It adds no token of its own when it encodes. Characters outside a "char" vocabulary become `<unk>`.
    """
    backend = _train_char(texts) if scratch.tokenizer == "char" else _train_bpe(texts, scratch.vocab_size)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, unk_token=UNK, model_max_length=scratch.context, clean_up_tokenization_spaces=False
    )


def _train_char(texts: Iterable[str]) -> Tokenizer:
    characters = sorted(set().union(*map(set, texts)))
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNK, *characters])}
    tokenizer = Tokenizer(token_models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, EOS, UNK])
    return tokenizer


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(token_models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
