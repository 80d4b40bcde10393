"""Documents as training rows: pretraining, with and without stored patches."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import architectures, byte_models
from tests.train import samples
from transformers import AutoModelForCausalLM

from selftaught.errors import InputError, NothingToTrainOn
from selftaught.models.blt import ByteTokenizer
from selftaught.models.blt.build import PatchDocuments
from selftaught.specs import KTO, SFT, BradleyTerry, LatentPreference, ModelSpec, Preference, StepKTO, Training
from selftaught.store.stage import Store
from selftaught.train.batching import collate, make_items
from selftaught.train.encoding import encode
from selftaught.train.examples import for_objective, prepare_examples
from selftaught.train.forward import TargetLogps
from selftaught.train.loop import _fingerprint, train
from selftaught.train.preview import preview
from selftaught.train.reference import reference_logps
from selftaught.types import Document

BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return byte_models.save(byte_models.blt_with_transformer(), tmp_path_factory.mktemp("blt"))


def patched(model: ModelSpec, rows: list[Document]) -> list[Document]:
    return list(PatchDocuments(model=model.source)(rows, Counter()))


def test_a_document_is_bos_and_all_its_bytes_and_no_end():
    """ "né" is the bytes 6e c3 a9, ids 114 199 173; the two first and BOS are inputs, all three are targets."""
    (encoded,) = encode(BYTES, [Document(text="né")], "plain", "")
    assert encoded.prompt.tolist() == [1]
    assert [c.tolist() for c in encoded.completions] == [[114, 199, 173]]
    assert encoded.finished == (False,) and encoded.weight == 1.0 and encoded.is_document
    batch = collate(make_items([encoded], tree=False), packed=False, pad_id=0)
    assert batch.inputs["input_ids"].tolist() == [[1, 114, 199]]
    assert (batch.sources.tolist(), batch.targets.tolist()) == ([0, 1, 2], [114, 199, 173])
    assert "patch_lengths" not in batch.inputs


def test_text_that_spells_a_special_token_stays_text():
    (encoded,) = encode(BYTES, [Document(text="a<eos><bos>")], "plain", "")
    assert encoded.completions[0].tolist() == BYTES.encode_bytes(b"a<eos><bos>")
    words = architectures.tokenizer()
    (encoded,) = encode(words, [Document(text="a<eos>b")], "plain", "")
    assert words.eos_token_id not in encoded.completions[0]


def test_a_tokenizer_without_bos_begins_documents_with_its_eos():
    words = architectures.tokenizer()
    assert words.bos_token_id is None
    (encoded,) = encode(words, [Document(text="ab")], "plain", "")
    assert encoded.prompt.tolist() == [words.eos_token_id]


def test_a_tokenizer_without_bos_and_eos_is_refused_with_a_remedy():
    class Bare:
        bos_token_id = eos_token_id = None

    with pytest.raises(InputError, match=r"document d1: .*neither a BOS nor an EOS.*set tokenizer.bos_token"):
        encode(Bare(), [Document(text="x", id="d1")], "plain", "")


def test_an_empty_document_is_refused_by_name():
    with pytest.raises(InputError, match="document d7 has no text: leave it out"):
        encode(BYTES, [Document(text="x"), Document(text="", id="d7")], "plain", "")


def test_stored_patches_are_those_of_the_inputs_with_the_last_byte_still_to_come():
    """Four bytes after BOS: stored 1 1 2 1; inputs are BOS and three bytes, and 5 = 4 + 1 counts the last target."""
    rows = [Document(text="abcd", patch_lengths=(1, 1, 2, 1)), Document(text="ab", patch_lengths=(1, 2))]
    batch = collate(make_items(encode(BYTES, rows, "plain", ""), tree=False), packed=False, pad_id=0)
    assert batch.inputs["patch_lengths"].tolist() == [[1, 1, 2, 1], [1, 2, 0, 0]]
    assert (batch.inputs["patch_lengths"].sum(1) == batch.inputs["attention_mask"].sum(1) + 1).all()


def test_stored_patches_equal_those_found_on_the_fly_for_every_rule(tmp_path: Path):
    rows = byte_models.documents(12)
    for rule in ("entropy", "monotonic", "both", "space", "stride", "byte", "top_k"):
        network = byte_models.blt(patching=rule, patching_threshold=0.5)
        model = byte_models.save(network, tmp_path / rule)
        with_patches = patched(model, rows)
        assert [replace(d, patch_lengths=()) for d in with_patches] == rows
        results = []
        for examples in (rows, with_patches):
            batch = collate(make_items(encode(BYTES, examples, "plain", ""), tree=False), packed=False, pad_id=0)
            assert ("patch_lengths" in batch.inputs) == (examples is with_patches)
            with torch.no_grad():
                results.append(TargetLogps(network)(batch))
        assert torch.equal(*results), rule


def test_other_stored_patches_give_other_log_probs(model: ModelSpec):
    rows = [
        Document(text="the cat sat", patch_lengths=(1, 1, 10)),
        Document(text="the cat sat", patch_lengths=(1,) * 12),
    ]
    network = AutoModelForCausalLM.from_pretrained(model.source)
    batch = collate(make_items(encode(BYTES, rows, "plain", ""), tree=False), packed=False, pad_id=0)
    logps = TargetLogps(network)(batch).detach().view(2, -1)
    assert not torch.allclose(logps[0], logps[1], atol=1e-3)


@pytest.mark.parametrize("lengths", [(1, 1, 1), (1, 1, 3), (1, 0, 3), (1, -1, 4)])
def test_patches_that_do_not_fit_the_text_are_refused_by_name(lengths: tuple[int, ...]):
    with pytest.raises(InputError, match=r"document d1: patch_lengths .* sum to 4, or none"):
        encode(BYTES, [Document(text="né", patch_lengths=lengths, id="d1")], "plain", "")


def test_patches_for_some_documents_only_are_refused():
    rows = [Document(text="ab", patch_lengths=(1, 2)), Document(text="ab", id="bare")]
    with pytest.raises(InputError, match="example bare has no patch_lengths, and others have"):
        encode(BYTES, rows, "plain", "")


def test_a_model_that_reads_no_patches_is_not_given_them():
    tokens, network = architectures.tokenizer(), architectures.model("llama")
    plain = [Document(text="abc"), Document(text="a")]
    with_patches = [replace(d, patch_lengths=(1,) * (len(d.text) + 1)) for d in plain]
    padded = [
        collate(make_items(encode(tokens, rows, "plain", ""), tree=False), packed=False, pad_id=0)
        for rows in (plain, with_patches)
    ]
    assert "patch_lengths" in padded[1].inputs
    assert torch.equal(*(TargetLogps(network)(batch) for batch in padded))
    packed = collate(make_items(encode(tokens, with_patches, "plain", ""), tree=True), packed=True, pad_id=0)
    assert "patch_lengths" not in packed.inputs


def test_documents_are_shown_with_what_begins_them_and_cut_in_the_middle():
    short, long = Document(text="né", patch_lengths=(1, 3)), Document(text="a" * 200 + "b" * 7 + "c" * 200)
    shown = preview(encode(BYTES, [short], "plain", ""), BYTES)
    assert "<bos>⟦né⟧ 3 targets in 2 stored patches" in shown
    shown = preview(encode(BYTES, [long], "plain", ""), BYTES)
    assert "a … 7 tokens … c" in shown and "b" not in shown.split("⟦")[1].split("⟧")[0]


@pytest.mark.parametrize("spec", [Preference(), KTO(), StepKTO(), BradleyTerry(), LatentPreference()])
def test_other_objectives_refuse_documents(spec):
    with pytest.raises(InputError, match="example d1 is a document"):
        for_objective(spec, encode(BYTES, [Document(text="ab", id="d1")], "plain", ""))


def test_documents_longer_than_the_context_are_counted_and_left_out(model: ModelSpec, capsys: pytest.CaptureFixture):
    rows = [Document(text="abc"), Document(text="abcdef")]
    kept = prepare_examples(model, rows, Training(max_length=5), BYTES, show=True)
    assert [e.id for e in kept] == [rows[0].id]
    assert "1 of 2 examples left out: longer than 5 tokens" in capsys.readouterr().err
    with pytest.raises(NothingToTrainOn):
        prepare_examples(model, rows[1:], Training(max_length=5), BYTES, show=False)


def test_log_probs_of_documents_by_a_hand_written_forward(model: ModelSpec):
    rows = byte_models.documents(7)
    network = AutoModelForCausalLM.from_pretrained(model.source).eval()
    scores = reference_logps(model, rows, samples.settings(micro_batch_tokens=60))
    assert [s.completion_id for s in scores] == [d.id for d in rows]
    for document, score in zip(rows, scores, strict=True):
        ids = torch.tensor([[1, *BYTES.encode_bytes(document.text.encode())]])
        with torch.no_grad():
            logps = network(ids[:, :-1]).logits[0].log_softmax(-1)
        wanted = logps.gather(-1, ids[0, 1:, None]).sum()
        assert score.value == pytest.approx(float(wanted), abs=1e-4)


def test_training_with_stored_patches_is_that_without_and_resumes(model: ModelSpec, tmp_path: Path):
    rows = byte_models.documents(10)
    with Store(tmp_path).writer("patches", "0" * 24, Document) as writer:
        writer.write(0, patched(model, rows))
        stage = writer.commit()
    settings = samples.settings(epochs=1)
    for name, examples in (("plain", rows), ("stored", stage.path)):
        train(samples.job(model, tmp_path / name, examples=examples, objective=SFT(), settings=settings))
    plain, stored = (samples.metrics(tmp_path / name) for name in ("plain", "stored"))
    assert [line["loss"] for line in plain] == [line["loss"] for line in stored]
    assert plain[0]["loss"] > plain[-1]["loss"] or len(plain) == 3
    a, b = (samples.weights(tmp_path / name / "model") for name in ("plain", "stored"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_is_the_mean_over_all_bytes_of_a_hand_written_forward(model: ModelSpec, tmp_path: Path):
    rows = byte_models.documents(4)
    settings = samples.settings(batch_size=4, epochs=1, max_steps=1, micro_batch_tokens=50)
    train(samples.job(model, tmp_path, examples=rows, objective=SFT(), settings=settings))
    nats = -sum(s.value for s in reference_logps(model, rows, settings) if s.value is not None)
    assert samples.metrics(tmp_path)[0]["loss"] == pytest.approx(
        nats / sum(len(d.text.encode()) for d in rows), rel=1e-5
    )


def test_a_checkpoint_knows_the_patches_it_was_trained_with(model: ModelSpec, tmp_path: Path):
    found = set()
    for lengths in ((), (1, 1, 1), (1, 2)):
        rows = [Document(text="ab", patch_lengths=lengths)]
        items = make_items(encode(BYTES, rows, "plain", ""), tree=False)
        found.add(_fingerprint(samples.job(model, tmp_path, examples=rows, objective=SFT()), items, 1))
    assert len(found) == 3
