"""Documents through the lab: windows, entropy models, byte models, stored patches, training, bits."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from tests.store.samples import python

from selftaught.errors import InputError
from selftaught.lab import Lab
from selftaught.models.blt.build import FACTS, PatchDocuments
from selftaught.models.load import place_key
from selftaught.specs import SFT, ByteLatent, EntropyModel, ModelSpec, Preference, Scratch, Training
from selftaught.store.stage import Stage
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
SETTINGS = Training(lr=3e-3, batch_size=16, epochs=1, precision="fp32", schedule="constant", checkpoint_every=1000)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with tiny.open_lab(tmp_path / "run") as lab:
        yield lab


def windows(lab: Lab, size: int = 4000) -> Stage:
    documents = lab.stage("documents", Document, list(TextCorpus().documents("train", size)))
    return lab.stage("windows", Document, WindowDocuments(length=64), documents)


def entropy(lab: Lab, rows: Stage, spec: EntropyModel) -> ModelSpec:
    def arguments(out: Path) -> dict[str, Any]:
        return {"spec": spec, "positions": 128, "documents": rows.path, "out": out, "seed": lab.seed}

    made = lab.artifact(
        "entropy", "selftaught.models.blt.build:build_entropy_model", {"spec": spec}, [rows.key], arguments
    )
    model = ModelSpec(source=str(made.path))
    return lab.train(model, rows, SFT(), spec.training) if spec.training else model


def blt(lab: Lab, rows: Stage, placed: ModelSpec | None, spec: ByteLatent = SPEC) -> ModelSpec:
    source = placed.source if placed else None

    def arguments(out: Path) -> dict[str, Any]:
        return {"spec": spec, "entropy": source, "documents": rows.path, "out": out, "seed": lab.seed}

    params = {"spec": spec, "entropy": source and place_key(source)}
    made = lab.artifact("blt", "selftaught.models.blt.build:build_blt", params, [rows.key], arguments)
    return ModelSpec(source=str(made.path))


def test_from_text_to_bits_with_a_trained_entropy_model(lab: Lab):
    rows = windows(lab)
    trained = entropy(lab, rows, EntropyModel(kind="transformer", layers=1, width=16, heads=2, training=SETTINGS))
    model = blt(lab, rows, trained)
    assert json.loads((Path(model.source) / FACTS).read_text())["mean_patch_length"] == pytest.approx(4.0, rel=0.03)
    patched = lab.stage("patches", Document, PatchDocuments(model=model.source), rows)
    after = lab.train(model, patched, SFT(), SETTINGS)
    bits = {}
    for name, spec in (("before", model), ("after", after)):
        scores = {s.completion_id: s.value for s in lab.logps(spec, patched, SETTINGS)}
        assert set(scores) == {d.id for d in rows}
        bits[name] = sum(scores.values())
    assert bits["after"] > bits["before"]
    # The same rows and weights: nothing is computed again, and rows without stored patches have the same log-probs.
    assert lab.logps(after, patched, SETTINGS).key == lab.logps(after, patched, SETTINGS).key
    found = {s.completion_id: s.value for s in lab.logps(after, rows, SETTINGS)}
    assert found == pytest.approx({s.completion_id: s.value for s in lab.logps(after, patched, SETTINGS)}, abs=1e-4)


def test_a_token_model_is_trained_on_the_same_windows(lab: Lab):
    rows = windows(lab)
    scratch = Scratch(layers=1, width=16, heads=2, context=128, tokenizer="bpe", vocab_size=300)
    model = lab.scratch(scratch, [rows])
    patched = lab.stage("patches", Document, PatchDocuments(model=blt(lab, rows, None, _stride(4.0)).source), rows)
    trained = lab.train(model, patched, SFT(), SETTINGS)
    before, after = ({s.completion_id: s.value for s in lab.logps(m, rows, SETTINGS)} for m in (model, trained))
    assert set(before) == {d.id for d in rows} and sum(after.values()) > sum(before.values())


def _stride(size: float) -> ByteLatent:
    return replace(SPEC, patching="stride", patch_size=size)


@pytest.mark.parametrize(
    "change",
    [
        lambda lab, rows, model: PatchDocuments(model=model.source, threshold=1.0),
        lambda lab, rows, model: PatchDocuments(model=blt(lab, rows, None, _stride(2.0)).source),
        lambda lab, rows, model: PatchDocuments(model=blt(lab, rows, None, _stride(4.0)).source),
    ],
    ids=["threshold", "rule", "size"],
)
def test_the_key_of_stored_patches_follows_model_rule_and_threshold(
    lab: Lab, change: Callable[[Lab, Stage, ModelSpec], PatchDocuments]
):
    rows = windows(lab, 600)
    model = blt(lab, rows, None, _stride(3.0))
    first = lab.stage("patches", Document, PatchDocuments(model=model.source), rows)
    assert lab.stage("patches", Document, PatchDocuments(model=model.source), rows).key == first.key
    assert lab.stage("patches", Document, change(lab, rows, model), rows).key != first.key


def test_weights_changed_in_place_are_another_model(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    before = PatchDocuments(model=str(tmp_path))
    (tmp_path / "config.json").write_text("{ }")
    assert PatchDocuments(model=str(tmp_path)) != before


def test_a_threshold_given_replaces_the_models_own(lab: Lab):
    rows = windows(lab, 2000)
    model = blt(lab, rows, entropy(lab, rows, EntropyModel(context=1)))
    mean = {}
    for threshold in (0.0, 2.0, 100.0):
        stage = lab.stage("patches", Document, PatchDocuments(model=model.source, threshold=threshold), rows)
        mean[threshold] = [len(d.patch_lengths) for d in stage]
    assert mean[100.0] == [2] * len(rows)
    assert mean[0.0] == [len(d.text.encode()) + 1 for d in rows]
    assert sum(mean[100.0]) < sum(mean[2.0]) < sum(mean[0.0])


def test_preferences_between_documents_are_refused(lab: Lab):
    rows = windows(lab, 600)
    model = blt(lab, rows, None, _stride(4.0))
    with pytest.raises(InputError, match="holds Document rows: Preference needs Pair rows"):
        lab.train(model, rows, Preference(), SETTINGS)


KILLED = """
import os, signal, sys
from pathlib import Path
from selftaught.models.blt import build
from tests import tiny
from tests.test_lab_documents import _stride, blt, windows
from selftaught.types import Document
original, written = build.replace, []
def deadly(document, **changes):
    written.append(document.id)
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(document, **changes)
with tiny.open_lab(Path(sys.argv[1])) as lab:
    rows = windows(lab, 600)
    model = blt(lab, rows, None, _stride(4.0))
    build.replace = deadly
    lab.stage("patches", Document, build.PatchDocuments(model=model.source), rows)
"""


def test_patching_that_was_killed_is_done_again_with_the_same_rows(tmp_path: Path):
    child = python(KILLED, tmp_path / "killed")
    assert child.communicate(timeout=60) and child.returncode == -9
    stages = []
    for run in ("killed", "whole"):
        with tiny.open_lab(tmp_path / run) as lab:
            rows = windows(lab, 600)
            model = blt(lab, rows, None, _stride(4.0))
            stages.append(list(lab.stage("patches", Document, PatchDocuments(model=model.source), rows)))
    assert stages[0] == stages[1] and all(d.patch_lengths for d in stages[0])
    assert os.listdir(tmp_path / "killed" / "stages")
