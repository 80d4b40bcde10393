import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.blt.conftest import TEXT, Build, random_bytes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from selftaught.functional import patches as p
from selftaught.models.blt import ByteNgrams
from selftaught.models.blt.patchers import bpe_patch_lengths, entropies, find_starts


def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT.decode()], trainer)
    return tokenizer


BPE = bpe()


def ids_of(text: bytes) -> torch.Tensor:
    return torch.tensor(list(text), dtype=torch.int64) + p.OFFSET


def test_entropies_of_a_transformer(build: Build) -> None:
    model, ids = build().model.entropy_model, random_bytes(2, 20)
    expected = torch.distributions.Categorical(logits=model(ids).logits).entropy()
    found = entropies(model, ids)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    # Given places, each document is read as if it were alone, in the same window.
    positions = torch.cat([torch.arange(11), torch.arange(9)]).expand(2, -1)
    alone = torch.cat([entropies(model, ids[:, :11]), entropies(model, ids[:, 11:])], 1)
    torch.testing.assert_close(entropies(model, ids, positions), alone, rtol=0, atol=1e-5)
    assert entropies(model, ids[:, :0]).shape == (2, 0)


def test_entropies_begin_anew_after_a_newline(build: Build, ngrams: ByteNgrams) -> None:
    for counts in (False, True):
        model = build(entropy_resets_at_newline=True, documents=False)
        if counts:
            model.model.set_entropy_model(ngrams)
        scores = entropies(model.model.entropy_model, ids_of(b"the cat")[None])
        model.config.patching_threshold = float(scores[0, 1:].median()) - 1e-4
        starts = model.model.find_starts(ids_of(b"the cat\nthe cat")[None])[0]
        alone = model.model.find_starts(ids_of(b"the cat")[None])[0]
        # Byte 1 of a line begins a patch by entropy only, byte 1 of a row always does.
        assert starts[10:].tolist() == alone[2:].tolist() and not alone.all()


def test_a_boundary_is_where_the_entropy_is_over_the_threshold(build: Build) -> None:
    model, ids = build(documents=False), random_bytes(3, 40)
    starts = find_starts(model.config, model.model.entropy_model, ids)
    over = entropies(model.model.entropy_model, ids) > model.config.patching_threshold
    assert starts[:, :2].all() and torch.equal(starts[:, 2:], over[:, 1:]) and 0 < over.sum() < 120


def test_patches_of_a_bpe_tokenizer() -> None:
    text = b"the cat sat on the mat"
    tokens = BPE.encode(text.decode()).tokens
    lengths = bpe_patch_lengths(BPE, [ids_of(text), ids_of(b"the")])
    assert lengths[0].tolist() == [len(t) for t in tokens] and len(tokens) < len(text)
    assert lengths[1].tolist() == [3] + [0] * (len(tokens) - 1)
    special = torch.cat([torch.tensor([p.BOS]), ids_of(b"the"), torch.tensor([p.EOS])])
    assert bpe_patch_lengths(BPE, [special]).tolist() == [[1, 3, 1]]


@given(st.binary(max_size=40))
def test_bpe_patches_cover_all_bytes(data: bytes) -> None:
    """Invalid UTF-8, replacement characters of its own and empty text."""
    for text in (data, data + "\ufffd é😀".encode()):
        assert int(bpe_patch_lengths(BPE, [ids_of(text)]).sum()) == len(text)


def test_bpe_patches_look_ahead(build: Build) -> None:
    """The boundaries of "... the c" are not the first ones of "... the cat": f(x[:i]) != f(x)[:i]."""
    text, changed = b" the cat the rat", 0
    whole = p.explicit_starts(bpe_patch_lengths(BPE, [ids_of(text)]), len(text))[0]
    for n in range(2, len(text)):
        prefix = p.explicit_starts(bpe_patch_lengths(BPE, [ids_of(text[:n])]), n)[0]
        changed += prefix[:n].tolist() != whole[:n].tolist()
    assert changed and not p.INCREMENTAL["explicit"]
    lengths = bpe_patch_lengths(BPE, [ids_of(text)])
    out = build(patching="explicit")(ids_of(text)[None], patch_lengths=lengths)
    assert out.logits.isfinite().all()
