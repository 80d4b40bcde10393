import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import byte_models
from tests.models.blt.test_byteify import source as language_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftaught.config import from_dict, to_dict
from selftaught.errors import InputError
from selftaught.functional.patches import BOS, OFFSET
from selftaught.models.blt import BltForCausalLM, ByteTokenizer
from selftaught.models.blt.build import (
    FACTS,
    PatchDocuments,
    TokenPatches,
    build_blt,
    build_entropy_model,
    open_entropy_model,
)
from selftaught.models.blt.patchers import entropies
from selftaught.models.scratch import train_tokenizer
from selftaught.specs import ByteLatent, EntropyModel, ModelSpec, Scratch, Training
from selftaught.store.stage import Stage, Store
from selftaught.tasks.text_corpora import TextCorpus, WindowDocuments
from selftaught.types import Document

SPEC = ByteLatent(
    hidden_size=16,
    num_attention_heads=2,
    decoder_layers=1,
    num_hidden_layers=1,
    window=16,
    ngram_sizes=(3,),
    ngram_vocab=64,
)


def stored(root: Path, rows: list[Document], key: str = "0") -> Stage:
    with Store(root).writer("documents", key * 24, Document) as writer:
        writer.write(0, rows)
        return writer.commit()


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """About 20 kB of real text in windows of 128 bytes."""
    documents = TextCorpus().documents("train", 20_000)
    return stored(tmp_path_factory.mktemp("windows"), list(WindowDocuments(length=128)(documents, Counter())))


@pytest.fixture(scope="module")
def ngrams(windows: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ngrams")
    build_entropy_model(spec=EntropyModel(context=2), positions=64, documents=windows.path, out=out, seed=0)
    return out


@pytest.fixture(scope="module")
def transformer(windows: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("transformer")
    spec = EntropyModel(kind="transformer", layers=1, width=16, heads=2, window=8)
    build_entropy_model(spec=spec, positions=64, documents=windows.path, out=out, seed=0)
    return out


def build(windows: Stage, entropy: Path | None, out: Path, seed: int = 0, **changes: object) -> dict[str, float]:
    spec = replace(SPEC, **changes)  # type: ignore[arg-type]
    build_blt(spec=spec, entropy=entropy, documents=windows.path, out=out, seed=seed)
    return json.loads((out / FACTS).read_text())


def patched(out: Path, rows: Stage | list[Document]) -> list[Document]:
    return list(PatchDocuments(model=str(out))(rows, Counter()))


@pytest.mark.parametrize("patching", ["entropy", "monotonic", "both"])
@pytest.mark.parametrize("size", [2.5, 6.0])
def test_the_threshold_gives_the_wanted_mean_patch_length(
    windows: Stage, ngrams: Path, tmp_path: Path, patching: str, size: float
):
    facts = build(windows, ngrams, tmp_path, patching=patching, patch_size=size)
    assert facts["mean_patch_length"] == pytest.approx(size, rel=0.03)
    assert facts["bytes"] == sum(len(d.text.encode()) + 1 for d in windows)
    lengths = [n for d in patched(tmp_path, windows) for n in d.patch_lengths]
    assert (sum(lengths), len(lengths)) == (facts["bytes"], facts["patches"])
    assert BltForCausalLM.from_pretrained(tmp_path).config.patching_threshold == facts["threshold"]


def test_rules_without_a_threshold_have_none_and_say_what_came_out(windows: Stage, tmp_path: Path):
    facts = build(windows, None, tmp_path, patching="stride", patch_size=4.0)
    rows = patched(tmp_path, windows)
    # 1, then 4 at a time: a window of 128 bytes has 1 + 32 patches.
    assert rows[0].patch_lengths == (1, *[4] * 32)
    assert facts["threshold"] is None
    assert facts["mean_patch_length"] == facts["bytes"] / sum(len(d.patch_lengths) for d in rows)


def test_boundaries_follow_the_entropies_of_the_model(windows: Stage, ngrams: Path, tmp_path: Path):
    facts = build(windows, ngrams, tmp_path)
    rows = list(windows)[:5]
    model = open_entropy_model(ngrams)
    for document, found in zip(rows, patched(tmp_path, rows), strict=True):
        ids = torch.tensor([[BOS, *(b + OFFSET for b in document.text.encode())]])
        scores = entropies(model, ids)[0].tolist()
        starts = [i for i in range(ids.shape[1]) if i < 2 or scores[i - 1] > facts["threshold"]]
        ends = [*starts[1:], ids.shape[1]]
        assert found.patch_lengths == tuple(b - a for a, b in zip(starts, ends, strict=True))


def test_patches_are_the_same_whatever_else_is_patched_with_them(windows: Stage, transformer: Path, tmp_path: Path):
    build(windows, transformer, tmp_path, patching="entropy")
    rows = [Document(text="a"), *list(windows)[:6], Document(text="né" * 30), Document(text="")]
    together = patched(tmp_path, rows)
    assert [replace(d, patch_lengths=()) for d in together] == rows
    assert [d.patch_lengths for d in together] == [patched(tmp_path, [d])[0].patch_lengths for d in rows]
    assert together[-1].patch_lengths == (1,) and together[0].patch_lengths == (1, 1)


@pytest.mark.parametrize("size", [1.0, 70.0])
def test_a_patch_size_that_no_threshold_gives_is_refused(windows: Stage, ngrams: Path, tmp_path: Path, size: float):
    with pytest.raises(InputError, match=rf"patch_size={size}: .* give between 1 and 63.8"):
        build(windows, ngrams, tmp_path, patch_size=size)


def test_a_rule_by_entropy_needs_a_model(windows: Stage, tmp_path: Path):
    with pytest.raises(InputError, match="patching='entropy' needs the entropies of a model"):
        build(windows, None, tmp_path)


def test_no_documents_are_refused(ngrams: Path, tmp_path: Path):
    with pytest.raises(InputError, match="holds no document to find patches in"):
        build(stored(tmp_path / "none", []), ngrams, tmp_path / "out")


def test_the_global_transformer_may_start_from_a_language_model(windows: Stage, ngrams: Path, tmp_path: Path):
    theirs = language_model()
    theirs.save_pretrained(tmp_path / "llama")
    spec, start = replace(SPEC, patch_width=2), ModelSpec(source=str(tmp_path / "llama"))
    build_blt(spec=spec, entropy=ngrams, documents=windows.path, out=tmp_path / "blt", seed=0, start=start)
    model = BltForCausalLM.from_pretrained(tmp_path / "blt")
    assert (model.config.num_hidden_layers, model.config.global_key_value_heads) == (3, 2)
    found = model.model.global_stack.layers[2].feed_forward.down.weight
    assert torch.equal(found, theirs.model.layers[2].mlp.down_proj.weight)
    facts = json.loads((tmp_path / "blt" / FACTS).read_text())
    assert model.config.patching_threshold == facts["threshold"] and facts["mean_patch_length"] == pytest.approx(
        4, rel=0.03
    )


def test_weights_follow_the_seed_and_not_the_entropy_model(
    windows: Stage, ngrams: Path, transformer: Path, tmp_path: Path
):
    built = {}
    for name, entropy, seed in (("a", ngrams, 1), ("b", transformer, 1), ("c", ngrams, 2), ("d", ngrams, 1)):
        build(windows, entropy, tmp_path / name, seed)
        built[name] = BltForCausalLM.from_pretrained(tmp_path / name).lm_head.weight
    assert torch.equal(built["a"], built["b"]) and torch.equal(built["a"], built["d"])
    assert not torch.equal(built["a"], built["c"])


def test_a_transformer_follows_its_seed_and_opens_with_the_auto_classes(windows: Stage, transformer: Path):
    model = AutoModelForCausalLM.from_pretrained(transformer)
    assert (model.config.sliding_window, model.config.num_hidden_layers) == (8, 1)
    assert model.config.max_position_embeddings == 64
    assert isinstance(AutoTokenizer.from_pretrained(transformer), ByteTokenizer)


def test_frequent_ngrams_are_those_of_the_documents(windows: Stage, tmp_path: Path):
    build(windows, None, tmp_path, patching="space", ngram_table="frequency")
    model = BltForCausalLM.from_pretrained(tmp_path).model
    expected = byte_models.blt(
        **{**{k: getattr(SPEC, k) for k in ("hidden_size", "ngram_sizes", "ngram_vocab")}, "ngram_table": "frequency"}
    ).model
    expected.set_frequent_ngrams(torch.tensor([BOS, *(b + OFFSET for b in d.text.encode())]) for d in windows)
    assert torch.equal(model.encoder.ngrams.codes, expected.encoder.ngrams.codes)


def test_a_patch_for_every_token(windows: Stage, tmp_path: Path):
    texts = [d.text for d in windows]
    tokenizer = train_tokenizer(Scratch(tokenizer="bpe", vocab_size=300), texts)
    tokenizer.save_pretrained(tmp_path / "bpe")
    rows = list(TokenPatches(tokenizer=str(tmp_path / "bpe"))(windows, Counter()))
    for document, source in zip(rows[:20], windows, strict=False):
        tokens = tokenizer.tokenize(source.text)
        assert sum(document.patch_lengths) == len(source.text.encode()) + 1
        if source.text.isascii():
            assert document.patch_lengths == (1, *map(len, tokens))
    explicit = stored(tmp_path / "patches", rows)
    facts = build(explicit, None, tmp_path / "blt", patching="explicit")
    assert facts["patches"] == sum(len(d.patch_lengths) for d in rows)
    with pytest.raises(InputError, match="has no patch_lengths, which patching='explicit' needs"):
        build(windows, None, tmp_path / "bare", patching="explicit")


def test_specs_pass_through_configuration_files():
    for spec in (EntropyModel(kind="transformer", training=Training(lr=1e-3)), SPEC):
        assert from_dict(type(spec), to_dict(spec)) == spec
    with pytest.raises(InputError, match="patch_sizes"):
        from_dict(ByteLatent, {"patch_sizes": 3})
