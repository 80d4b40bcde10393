"""The same global batch gives the same update, however it is cut, ordered and packed."""

import copy
import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from tests import architectures
from tests.train import samples
from transformers import PreTrainedModel

from selftaught.errors import InputError, TrainingDiverged
from selftaught.objectives import build_objective
from selftaught.specs import SFT, ObjectiveSpec, Preference
from selftaught.train.batching import Batcher, Item, make_items, with_reference
from selftaught.train.distributed import Ranks
from selftaught.train.forward import TargetLogps
from selftaught.train.layout import fillers
from selftaught.train.precision import Weights
from selftaught.train.probe import Mode
from selftaught.train.setup import make_policy
from selftaught.train.update import Updater, clip_gradients

CPU = torch.device("cpu")
PREFERENCE = Preference(beta=0.5, nll_alpha=1.0, label_smoothing=0.1)
PAIRS = samples.pairs(6)
REFERENCE = {c.id: -20.0 - i for i, p in enumerate(PAIRS) for c in (p.chosen, p.rejected)}


def updater(
    model: PreTrainedModel, spec: ObjectiveSpec = PREFERENCE, *, packed: bool = True, dtype=torch.float32, **changes
):
    settings = samples.settings(**changes)
    model = copy.deepcopy(model).train()
    policy = make_policy(model, Mode(packed=packed, chunked=True), settings)
    weights = Weights(policy, dtype)
    return Updater(
        policy=policy,
        objective=build_objective(spec),
        weights=weights,
        optimizer=torch.optim.AdamW(weights.masters, weight_decay=0.0, fused=True),
        settings=settings,
        ranks=Ranks(rank=0, world=1, device=CPU),
        batcher=Batcher(packed=packed, pad_id=0, device=CPU),
    )


def items(spec: ObjectiveSpec = PREFERENCE, *, tree: bool = True, pairs: Sequence = PAIRS) -> list[Item]:
    if isinstance(spec, SFT):
        return make_items(samples.encoded(samples.demonstrations(6)), tree)
    return [with_reference(item, REFERENCE) for item in make_items(samples.encoded(pairs), tree)]


def gradients(made: Updater, batch: Sequence[Item]) -> dict[str, torch.Tensor]:
    """Return the gradients of one update before clipping, by parameter, and the loss."""
    counts = made._counts(made._batches(batch))
    made._accumulate(made._batches(batch), counts, batch)
    names = {id(p): name for name, p in made.policy.named_parameters()}
    return {
        names[id(p)]: torch.zeros_like(m) if m.grad is None else m.grad.clone()
        for p, m in zip(made.weights.params, made.weights.masters, strict=True)
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 2e-5) -> None:
    scale = max(g.abs().max().item() for g in expected.values())
    assert scale > 0
    for name, wanted in expected.items():
        assert (found[name] - wanted).abs().max().item() <= tolerance * scale, name


FAMILIES = ["llama", "qwen2 with a window in some layers", "qwen3", "gpt2", "mistral with a window", "gemma3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_rows_padding_order_and_accumulation(family):
    model = architectures.model(family)
    expected = gradients(updater(model, packed=False), items(tree=False))
    assert_same(gradients(updater(model), items()), expected)
    assert_same(gradients(updater(model), items(tree=False)), expected)
    assert_same(gradients(updater(model, micro_batch_tokens=40), items()[::-1]), expected)
    assert_same(gradients(updater(model, packed=False, micro_batch_tokens=1), items(tree=False)), expected)


@pytest.mark.parametrize(
    "spec", [SFT(), SFT(per_sequence=True), Preference(loss="ipo"), Preference(weight_normalize=True)], ids=str
)
def test_every_objective_is_invariant(spec):
    model = architectures.model("llama")
    expected = gradients(updater(model, spec, packed=False), items(spec, tree=False))
    assert_same(gradients(updater(model, spec, micro_batch_tokens=30), items(spec)[::-1]), expected)


def test_activation_checkpointing_changes_nothing():
    model = architectures.model("mistral with a window")
    checkpointed = updater(model, activation_checkpointing=True)
    assert checkpointed.policy.model.is_gradient_checkpointing
    assert_same(gradients(checkpointed, items()), gradients(updater(model), items()))


def test_the_gradient_is_that_of_the_published_loss():
    """ScPO (arXiv 2411.04109) eq. 3 written out on the model's own logits, one pair at a time."""
    model, total = copy.deepcopy(architectures.model("llama")), 0.0
    for pair, item in zip(PAIRS, items(), strict=True):
        logps = []
        for completion in item.example.completions:
            ids = torch.tensor([[*item.example.prompt, *completion]])
            table = model(ids).logits[0, len(item.example.prompt) - 1 : -1].log_softmax(-1)
            logps.append(table.gather(1, torch.tensor(completion)[:, None]).sum())
        margin = 0.5 * ((logps[0] - item.reference[0]) - (logps[1] - item.reference[1]))
        dpo = -torch.nn.functional.logsigmoid(margin)
        total = total + pair.weight * (dpo - logps[0] / len(item.example.completions[0])) / len(PAIRS)
    total.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    found = gradients(updater(architectures.model("llama"), Preference(beta=0.5, nll_alpha=1.0)), items())
    assert_same({name.removeprefix("model."): g for name, g in found.items()}, expected)


# --- completions with context ----------------------------------------------------------------------------------------


def context_items(spec: ObjectiveSpec, tree: bool) -> list[Item]:
    rows = samples.demonstrations(6) if isinstance(spec, SFT) else PAIRS
    made = make_items(samples.encoded(samples.with_context(rows)), tree)
    if isinstance(spec, SFT):
        return made
    reference = {key: REFERENCE[key.partition("[")[0]] for item in made for key in item.example.completion_keys}
    return [with_reference(item, reference) for item in made]


def published(spec: ObjectiveSpec, model: PreTrainedModel, batch: Sequence[Item]) -> torch.Tensor:
    """The loss written out on the model's own logits, summed over what follows the context only."""
    total, tokens = 0.0, 0
    for item in batch:
        logps, lengths = [], []
        for completion, first in zip(item.example.completions, item.example.first_targets, strict=True):
            ids = torch.tensor([[*item.example.prompt, *completion]])
            table = model(ids).logits[0, len(item.example.prompt) - 1 + first : -1].log_softmax(-1)
            logps.append(table.gather(1, torch.tensor(completion[first:])[:, None]).sum())
            lengths.append(len(completion) - first)
        tokens += sum(lengths)
        if isinstance(spec, SFT):
            total = total - item.example.weight * logps[0]
            continue
        per = lengths if spec.length_normalize or spec.loss == "ipo" else [1, 1]
        h = (logps[0] - item.reference[0]) / per[0] - (logps[1] - item.reference[1]) / per[1]
        loss = (h - 1 / (2 * spec.beta)) ** 2 if spec.loss == "ipo" else -torch.nn.functional.logsigmoid(spec.beta * h)
        total = total + item.example.weight * (loss - spec.nll_alpha * logps[0] / lengths[0])
    return total / (tokens if isinstance(spec, SFT) else len(batch))


@pytest.mark.parametrize(
    "spec",
    [
        Preference(beta=0.5, nll_alpha=1.0),
        Preference(beta=0.5, length_normalize=True),
        Preference(beta=0.5, loss="ipo"),
        SFT(),
    ],
    ids=str,
)
def test_the_gradient_behind_context_is_that_of_the_published_loss(spec):
    model = copy.deepcopy(architectures.model("llama"))
    published(spec, model, context_items(spec, tree=True)).backward()
    expected = {f"model.{name}": p.grad for name, p in model.named_parameters()}
    for packed, tree in ((True, True), (True, False), (False, False)):
        found = gradients(updater(architectures.model("llama"), spec, packed=packed), context_items(spec, tree))
        assert_same(found, expected)


@pytest.mark.parametrize("spec", [PREFERENCE, Preference(loss="ipo"), SFT()], ids=str)
def test_weight_zero_gives_zero_gradient(spec):
    weightless = [dataclasses.replace(i, example=dataclasses.replace(i.example, weight=0.0)) for i in items(spec)]
    found = gradients(updater(architectures.model("llama"), spec), weightless)
    assert all(g.abs().max() == 0 for g in found.values())


def test_bf16_follows_float32():
    model = architectures.model("llama")
    wide, narrow = updater(model), updater(model, dtype=torch.bfloat16)
    expected = gradients(wide, items())
    assert_same(gradients(narrow, items()), expected, tolerance=0.05)
    assert all(m.dtype == torch.float32 for m in narrow.weights.masters)
    assert all(p.dtype == torch.bfloat16 for p in narrow.policy.parameters())
    assert all(b.dtype == torch.float32 for b in narrow.policy.buffers())


def test_masters_collect_what_bf16_would_round_away():
    made = updater(architectures.model("llama"), dtype=torch.bfloat16)
    before = [m.clone() for m in made.weights.masters]
    made.update(items(), step=0, lr=1e-5)
    moved = [(m - b).abs().max().item() for m, b in zip(made.weights.masters, before, strict=True)]
    assert max(moved) > 0
    for param, master in zip(made.weights.params, made.weights.masters, strict=True):
        assert torch.equal(param, master.to(torch.bfloat16))


class OutOfMemory:
    """Raises where a micro-batch holds more than `limit` input tokens, as a GPU of that size would."""

    def __init__(self, limit: int):
        self.limit, self.refused = limit, 0
        self.forward = TargetLogps.forward

    def __call__(self, policy, batch):
        if batch.inputs["input_ids"].numel() > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.forward(policy, batch)


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(monkeypatch):
    model, largest = architectures.model("llama"), max(i.tokens + fillers(i.tokens) for i in items())
    whole, halved = updater(model), updater(model)
    expected = whole.update(items(), step=0, lr=1e-3)
    hook = OutOfMemory(largest)
    monkeypatch.setattr(TargetLogps, "forward", lambda self, batch: hook(self, batch))
    found = halved.update(items(), step=0, lr=1e-3)
    assert hook.refused > 0
    assert found == pytest.approx(expected, rel=1e-4)
    for mine, wanted in zip(halved.weights.masters, whole.weights.masters, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-3)
    refused = hook.refused
    halved.update(items(), step=1, lr=1e-3)
    assert hook.refused == refused, "the smaller micro-batch is kept"


def test_one_example_that_does_not_fit_is_named(monkeypatch):
    made = updater(architectures.model("llama"))
    monkeypatch.setattr(TargetLogps, "forward", lambda self, batch: OutOfMemory(0)(self, batch))
    biggest = max(items(), key=lambda i: i.tokens)
    with pytest.raises(InputError, match=f"example {biggest.example.id} .* alone does not fit"):
        made.update(items(), step=0, lr=1e-3)


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    def broken(self, batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(TargetLogps, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        updater(architectures.model("llama")).update(items(), step=0, lr=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_rows(value):
    made = updater(architectures.model("llama"), micro_batch_tokens=1)
    batch = items()
    batch[2] = dataclasses.replace(batch[2], reference=(value, -1.0))
    before = [m.clone() for m in made.weights.masters]
    with pytest.raises(TrainingDiverged, match=f"update 8: .* on rows {batch[2].example.id}: no step was made"):
        made.update(batch, step=7, lr=1e-3)
    assert all(torch.equal(m, b) for m, b in zip(made.weights.masters, before, strict=True))


def test_clipping():
    """A gradient (3, 4) has norm 5; clipped to 1 it is (0.6, 0.8), and without a limit it stays."""
    for limit, expected in ((1.0, [0.6, 0.8]), (0.0, [3.0, 4.0]), (10.0, [3.0, 4.0])):
        param = torch.nn.Parameter(torch.zeros(2))
        param.grad = torch.tensor([3.0, 4.0])
        assert clip_gradients([param], limit).item() == pytest.approx(5.0)
        assert param.grad.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_compiled_model_gives_the_same(monkeypatch):
    model = architectures.model("llama")
    compiled = []
    monkeypatch.setattr(type(model.model), "compile", lambda self, **options: compiled.append(options))
    assert_same(gradients(updater(model, compile=True), items()), gradients(updater(model), items()))
    assert compiled == [{"dynamic": True}]
