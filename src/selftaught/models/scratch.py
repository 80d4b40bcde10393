"""Small Llamas with random weights and the tokenizers trained for them: seed models that need no download."""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from selftaught.errors import InputError
from selftaught.models.load import quiet_loading
from selftaught.specs import Scratch
from selftaught.store.stage import open_stage
from selftaught.types import Document

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"


def build_scratch(*, scratch: Scratch, examples: Sequence[Path], out: Path, seed: int) -> None:
    """Fill `out` with a tokenizer trained on stages and a model with weights drawn from `seed`.

    The stages hold demonstrations, or documents.
    """
    stages = [open_stage(path) for path in examples]
    columns = (
        column
        for stage in stages
        for batch in stage.columns(*(("text",) if stage.row_type is Document else ("prompt", "completion")))
        for column in batch
    )
    texts = list(chain.from_iterable(columns))
    quiet_loading()
    tokenizer = train_tokenizer(scratch, texts)
    scratch_model(scratch, tokenizer, seed).save_pretrained(out)
    tokenizer.save_pretrained(out)


def scratch_model(scratch: Scratch, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """Return a Llama for `tokenizer` with random weights that `seed` fixes.

    Raises:
        InputError: the width cannot be divided among the heads.
    """
    if scratch.width % scratch.heads:
        raise InputError(f"width={scratch.width} is not a multiple of heads={scratch.heads}: change one of them")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=scratch.width,
        intermediate_size=scratch.intermediate or 8 * scratch.width // 3,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.kv_heads or scratch.heads,
        max_position_embeddings=scratch.context,
        rope_parameters={"rope_type": "default", "rope_theta": scratch.rope_theta},
        initializer_range=scratch.init_std,
        tie_word_embeddings=scratch.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def train_tokenizer(scratch: Scratch, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return the tokenizer that `scratch` describes, trained on `texts`. It adds no token of its own when it encodes.

    Where tokens are characters or matches of a pattern, what `texts` do not hold becomes `<unk>`.

    Raises:
        InputError: the pattern is no regular expression.
    """
    if scratch.tokenizer == "bpe":
        backend = _train_bpe(texts, scratch.vocab_size)
    else:
        backend = _train_words(texts, _token_pattern(scratch))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=scratch.context,
        clean_up_tokenization_spaces=False,
    )


def _token_pattern(scratch: Scratch) -> Regex:
    if scratch.tokenizer == "char":
        return Regex(r"[\s\S]")
    if not scratch.pattern:
        raise InputError("pattern='': give the regular expression of a token, or tokenizer='char'")
    try:
        return Regex(f"{scratch.pattern}|[\\s\\S]")
    except Exception as error:  # the tokenizers library raises nothing more special
        raise InputError(f"pattern={scratch.pattern!r} is no regular expression: {error}; mend it") from None


def _train_words(texts: Iterable[str], pattern: Regex) -> Tokenizer:
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    texts = list(texts)
    words = {word for text in set(texts) for word, _ in split.pre_tokenize_str(text)}
    characters = set().union(*map(set, texts))
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNK, *sorted(words | characters)])}
    tokenizer = Tokenizer(token_models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, EOS, UNK])
    return tokenizer


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(token_models.BPE())
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
