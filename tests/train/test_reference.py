"""Tests of selftaught.train.reference."""

from dataclasses import replace

import pytest
import torch
from tests.train import samples

from selftaught.models.load import load_model
from selftaught.specs import Lora, ModelSpec
from selftaught.store.stage import Store
from selftaught.train.batching import make_items, with_reference
from selftaught.train.loop import train
from selftaught.train.reference import read_reference, reference_logps, reference_shards
from selftaught.types import Pair, Score


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelSpec:
    return samples.save_model(tmp_path_factory.mktemp("model"))


def test_reference_log_probs_are_sums_over_the_completion(model):
    (pair,) = samples.pairs(1)
    network, (row,) = load_model(model), samples.encoded([pair])
    expected = {}
    for name, completion in zip(row.completion_ids, row.completions, strict=True):
        logps = network(torch.tensor([[*row.prompt, *completion]])).logits[0].log_softmax(-1)
        expected[name] = logps[len(row.prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None]).sum().item()
    found = {s.completion_id: s.value for s in reference_logps(model, [pair], samples.settings())}
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_new_adapter_leaves_the_reference_as_it_is(model):
    rows = samples.pairs(3)
    plain, adapted = (
        {s.completion_id: s.value for s in reference_logps(model, rows, samples.settings(lora=lora))}
        for lora in (None, Lora(rank=2, alpha=4.0, dropout=0.5))
    )
    assert adapted == pytest.approx(plain, abs=1e-5)


def test_the_callers_random_state_is_left_alone(model):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    reference_logps(model, samples.pairs(1), samples.settings(lora=Lora(rank=2)))
    assert torch.equal(torch.get_rng_state(), before)


def _stage(store: Store, model: ModelSpec, examples, shards: int, passes: list[list[int]]) -> list[Score]:
    with store.writer("reference", f"{shards}-{len(passes)}", Score, shards) as writer:
        for missing in passes:
            reference_shards(
                model=model,
                examples=examples,
                settings=samples.settings(),
                stage_key="",
                seed=0,
                directory=writer.directory,
                shards=shards,
                missing=missing,
            )
        return list(writer.commit())


def test_shards_written_in_two_passes_hold_every_completion_once_and_in_order(model, tmp_path):
    rows, store = samples.pairs(7), Store(tmp_path)
    with store.writer("pairs", "pairs", Pair) as writer:
        writer.write(0, rows)
        examples = writer.commit().path
    whole = _stage(store, model, examples, 1, [[0]])
    split = _stage(store, model, examples, 3, [[1], [0, 2]])
    assert [s.completion_id for s in whole] == [c.id for p in rows for c in (p.chosen, p.rejected)]
    assert [s.completion_id for s in split] == [s.completion_id for s in whole]
    assert [s.value for s in split] == pytest.approx([s.value for s in whole], abs=1e-4)


# --- completions with context ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree_rows", [True, False])
def test_log_probs_behind_context_are_sums_over_the_rest(model, tree_rows):
    """The same completions whole and with three characters (tokens, to this tokenizer) of context, in one reference."""
    (pair,) = samples.pairs(1, completion=(6, 12))
    masked = replace(pair, loss_from=(3, 0), id="")
    network, (row,) = load_model(model), samples.encoded([pair])
    tokens = torch.cat([torch.from_numpy(row.prompt), torch.from_numpy(row.completions[0])])
    logps = network(tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    scores = reference_logps(model, [pair, masked], samples.settings(tree_rows=tree_rows))
    spans = [None, None, (3, len(pair.chosen.text))]
    assert [(s.completion_id, s.span) for s in scores] == list(
        zip([pair.chosen.id, pair.rejected.id, pair.chosen.id], spans, strict=True)
    )
    first = len(row.prompt) - 1
    assert scores[0].value == pytest.approx(logps[first:].sum().item(), abs=1e-4)
    assert scores[2].value == pytest.approx(logps[first + 3 :].sum().item(), abs=1e-4)
    reference = read_reference(scores)
    for example, wanted in ((pair, scores[:2]), (masked, [scores[2], scores[1]])):
        (item,) = make_items(samples.encoded([example]), tree=True)
        assert with_reference(item, reference).reference == tuple(s.value for s in wanted)


def test_training_with_context_from_stages_and_from_rows_is_the_same(model, tmp_path):
    rows, store, stages = samples.with_context(samples.pairs(6)), Store(tmp_path / "store"), {}
    scores = reference_logps(model, rows, samples.settings())
    for name, row_type, content in (("pairs", Pair, rows), ("reference", Score, scores)):
        with store.writer(name, name, row_type) as writer:
            writer.write(0, content)
            stages[name] = writer.commit().path
    alone = samples.job(model, tmp_path / "alone", examples=rows)
    staged = replace(alone, out=tmp_path / "staged", examples=stages["pairs"], reference=stages["reference"])
    for job in (alone, staged):
        train(job)
    assert samples.metrics(alone.out) == samples.metrics(staged.out)
    whole = samples.job(model, tmp_path / "whole", examples=samples.pairs(6))
    train(whole)
    assert samples.metrics(whole.out)[0]["logps/chosen"] < samples.metrics(alone.out)[0]["logps/chosen"]
