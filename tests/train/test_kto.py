"""KTO and Step-KTO through the trainer, against the published formulas written out on the model's own logits."""

import copy
import dataclasses
import json
from collections.abc import Sequence

import pytest
import torch
from tests import architectures
from tests.train import samples
from tests.train.test_update import OutOfMemory, assert_same, updater

from selftaught.errors import InputError
from selftaught.functional.nll import sequence_sums
from selftaught.specs import KTO, ObjectiveSpec, StepKTO
from selftaught.store.stage import Store
from selftaught.train.batching import Item, collate, make_items, with_reference
from selftaught.train.encoding import as_steps, encode, reference_key
from selftaught.train.examples import for_objective
from selftaught.train.forward import TargetLogps
from selftaught.train.loop import train
from selftaught.train.mismatched import mismatched_pairs, with_mismatched
from selftaught.train.reference import reference_logps, reference_shards
from selftaught.train.update import Updater
from selftaught.types import Completion, Feedback, Prompt, Score

ROWS = samples.feedback(6)
STEP_KTO = StepKTO(beta=0.3, step_beta=0.7, gamma=1.5, step_undesirable_weight=1.4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return samples.save_model(tmp_path_factory.mktemp("model"))


class Reference(dict):
    """Log-probs that no model gave: a value for any name."""

    def get(self, name, default=None):
        return self[name]

    def __missing__(self, name):
        return -12.0 - sum(map(ord, name)) % 7


def items(spec: ObjectiveSpec, rows: Sequence[Feedback] = ROWS, tree: bool = True) -> list[Item]:
    """Return the items of one global batch."""
    made = make_items(for_objective(spec, samples.encoded(rows)), tree)
    longest = max(item.example.longest for item in made)
    return with_mismatched([with_reference(item, Reference()) for item in made], Reference(), longest)


def written_out(model, spec: StepKTO, batch: Sequence[Item]) -> torch.Tensor:
    """Return the loss of section 3 of the method's description, one row after the other."""

    def logps(example):
        ids = torch.tensor([[*example.prompt, *example.completions[0]]])
        table = model(ids).logits[0, len(example.prompt) - 1 : -1].log_softmax(-1)
        return table.gather(1, torch.tensor(example.completions[0])[:, None])[:, 0]

    foreign = [logps(i.mismatched.example).sum() - i.mismatched.reference[0] for i in batch]
    z = max(0.0, torch.stack(foreign).mean().item())
    own = [logps(i.example) for i in batch]
    ratios = [
        [
            token_logps[torch.tensor(i.example.steps) == h + 1].sum() - i.step_reference[h]
            for h in range(len(i.example.step_labels))
        ]
        for token_logps, i in zip(own, batch, strict=True)
    ]
    z_s = max(0.0, torch.stack([r for row in ratios for r in row]).mean().item())
    outcome = step = 0.0
    for i, token_logps, row in zip(batch, own, ratios, strict=True):
        sign = 1 if i.example.label else -1
        value = torch.sigmoid(sign * spec.beta * (token_logps.sum() - i.reference[0] - z))
        outcome = outcome + i.example.weight * (1 - value) / len(batch)
        for ratio, right in zip(row, i.example.step_labels, strict=True):
            weight = 1.0 if right else spec.step_undesirable_weight
            value = weight * torch.sigmoid((1 if right else -1) * spec.step_beta * (ratio - z_s))
            step = step + i.example.weight * (weight - value) / len(row) / len(batch)
    return outcome + spec.gamma * step


def gradients_of(made, batch: Sequence[Item]) -> dict[str, torch.Tensor]:
    parts, baseline = made._baseline(made._batches(batch), batch)
    made._accumulate(parts, made._counts(parts), batch, baseline)
    names = {id(p): name for name, p in made.policy.named_parameters()}
    pairs = zip(made.weights.params, made.weights.masters, strict=True)
    return {names[id(p)]: torch.zeros_like(m) if m.grad is None else m.grad.clone() for p, m in pairs}


def test_the_gradient_is_that_of_the_published_loss():
    model, batch = copy.deepcopy(architectures.model("llama")), items(STEP_KTO)
    written_out(model, STEP_KTO, batch).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    found = gradients_of(updater(architectures.model("llama"), STEP_KTO), batch)
    assert_same({name.removeprefix("model."): g for name, g in found.items()}, expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral with a window"])
@pytest.mark.parametrize("spec", [KTO(beta=0.3), KTO(per_step=True), STEP_KTO, StepKTO(length_normalize=True)], ids=str)
def test_padding_order_and_accumulation_change_nothing(family, spec):
    model, batch = architectures.model(family), items(spec)
    expected = gradients_of(updater(model, spec, packed=False), batch)
    assert_same(gradients_of(updater(model, spec), batch), expected)
    assert_same(gradients_of(updater(model, spec, micro_batch_tokens=20), batch[::-1]), expected)


def test_gamma_zero_is_kto_bit_for_bit():
    made = [updater(architectures.model("llama"), spec) for spec in (KTO(beta=0.3), StepKTO(beta=0.3, gamma=0.0))]
    batches = [items(KTO()), items(StepKTO())]
    metrics = [m.update(b, step=0, lr=1e-2) for m, b in zip(made, batches, strict=True)]
    assert metrics[0].items() <= metrics[1].items()
    for mine, wanted in zip(made[1].weights.masters, made[0].weights.masters, strict=True):
        assert torch.equal(mine, wanted)


def test_one_step_makes_the_step_term_a_kto_loss_of_the_whole_response():
    rows = [
        dataclasses.replace(r, step_labels=((0, len(r.completion.text), r.label),), id="") for r in samples.feedback(5)
    ]
    # With the reference point of the whole completion, which is divided by one step.
    spec = StepKTO(beta=0.3, step_beta=0.3, outcome=False, step_reference_point="outcome")
    batch = items(spec, rows)
    same = [dataclasses.replace(i, step_reference=i.reference) for i in batch]
    found = gradients_of(updater(architectures.model("llama"), spec), same)
    assert_same(found, gradients_of(updater(architectures.model("llama"), KTO(beta=0.3)), items(KTO(), rows)), 1e-6)


def test_the_single_pass_is_the_flattened_emulation():
    """Each step a row, what precedes it its prompt: the mean over all steps, at the same reference point."""
    spec = StepKTO(step_beta=0.4, outcome=False, step_reduction="batch", step_reference_point="zero")
    flat = KTO(beta=0.4, per_step=True)
    rows, one_by_one = items(spec), items(flat)
    assert len(one_by_one) == sum(len(i.example.step_labels) for i in rows) > len(rows)
    whole, parts = updater(architectures.model("llama"), spec), updater(architectures.model("llama"), flat)
    found = gradients_of(whole, rows)
    counts = parts._counts(parts._batches(one_by_one))
    parts._accumulate(parts._batches(one_by_one), counts, one_by_one, torch.zeros(2))
    names = {id(p): name for name, p in parts.policy.named_parameters()}
    expected = {names[id(p)]: m.grad for p, m in zip(parts.weights.params, parts.weights.masters, strict=True)}
    assert_same(found, expected)


def test_flattened_rows_continue_one_another():
    (example,) = samples.encoded([ROWS[0]])
    parts = as_steps(example)
    assert [p.label for p in parts] == list(example.step_labels)
    for number, part in enumerate(parts, 1):
        before = len(part.prompt) - len(example.prompt)
        assert part.completions[0].tolist() == example.completions[0][example.steps == number].tolist()
        assert part.prompt[len(example.prompt) :].tolist() == example.completions[0][:before].tolist()
    assert as_steps(samples.encoded(samples.feedback(1, steps=False))[0]) == []


@pytest.mark.parametrize("label", [True, False])
def test_batches_of_one_class_stay_finite(label):
    rows = [
        dataclasses.replace(r, label=label, step_labels=tuple((a, b, label) for a, b, _ in r.step_labels)) for r in ROWS
    ]
    metrics = updater(architectures.model("llama"), STEP_KTO).update(items(STEP_KTO, rows), step=0, lr=1e-3)
    assert all(abs(value) < 1e6 for value in metrics.values())
    absent = "rejected" if label else "chosen"
    assert not {f"rewards/{absent}", f"logps/{absent}", f"step_rewards/{absent}", "rewards/margins"} & metrics.keys()


def test_metrics_have_the_ecosystems_names():
    metrics = updater(architectures.model("llama"), KTO(beta=0.3)).update(items(KTO()), step=0, lr=1e-3)
    assert {"loss", "kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"} <= metrics.keys()
    assert metrics["rewards/margins"] == pytest.approx(metrics["rewards/chosen"] - metrics["rewards/rejected"])


def test_out_of_memory_beforehand_halves_the_micro_batch_and_changes_nothing(monkeypatch):
    model, batch = architectures.model("llama"), items(STEP_KTO)
    whole, halved = updater(model, STEP_KTO), updater(model, STEP_KTO)
    expected = whole.update(batch, step=0, lr=1e-3)
    hook = OutOfMemory(max(i.mismatched.tokens for i in batch) + 24)
    monkeypatch.setattr(TargetLogps, "forward", lambda self, batch: hook(self, batch))
    assert halved.update(batch, step=0, lr=1e-3) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert hook.refused > 0


def test_a_run_that_stops_in_the_middle_ends_in_the_same_bits(model, tmp_path, monkeypatch):
    told = {"examples": samples.feedback(7), "objective": STEP_KTO}
    train(samples.job(model, tmp_path / "whole", **told))
    update = Updater.update

    def stopping(self, batch, step, lr):
        if step == 3:
            raise KeyboardInterrupt
        return update(self, batch, step, lr)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Updater, "update", stopping)
        train(samples.job(model, tmp_path / "resumed", **told))
    train(samples.job(model, tmp_path / "resumed", **told))
    assert samples.metrics(tmp_path / "resumed") == samples.metrics(tmp_path / "whole")


# --- encoding --------------------------------------------------------------------------------------------------------


def feedback(text: str, *labels: tuple[int, int, bool]) -> Feedback:
    prompt = Prompt.from_text("ab")
    return Feedback(
        prompt=prompt, completion=Completion(prompt_id=prompt.id, k=0, text=text), label=True, step_labels=labels
    )


def test_tokens_of_steps_by_hand():
    """Text "abcd" and an end-of-turn token; the last step holds the end, and what no step covers has number 0."""
    (whole, part) = samples.encoded([feedback("abcd", (0, 2, True), (2, 4, False)), feedback("abcd", (1, 2, True))])
    assert (whole.steps.tolist(), whole.step_labels) == ([1, 1, 2, 2, 2], (True, False))
    assert (part.steps.tolist(), part.step_spans) == ([0, 1, 0, 0, 0], ((1, 2),))


def test_steps_of_a_batch_by_hand():
    rows = [feedback("abc", (0, 1, True), (1, 3, False)), feedback("x"), feedback("yz", (1, 2, True))]
    batch = collate(
        [with_reference(i, Reference()) for i in make_items(samples.encoded(rows), True)], packed=True, pad_id=0
    )
    assert batch.steps.owner.tolist() == [0, 1, 1, 1, 3, 3, 3, 2, 2]
    assert (batch.steps.labels.tolist(), batch.steps.example.tolist()) == ([1, 0, 1], [0, 0, 2])
    assert (batch.steps.lengths.tolist(), batch.steps.right, batch.steps.examples) == ([1, 3, 2], 2, 2)
    assert batch.steps.sums(torch.arange(9.0)).tolist() == [0.0, 6.0, 15.0]


def test_step_sums_and_the_rest_are_the_completion():
    batch = collate(make_items(samples.encoded(ROWS), True), packed=True, pad_id=0)
    values = torch.randn(batch.target_count)
    whole = sequence_sums(values, batch.steps.owner, batch.steps.count + 1)
    torch.testing.assert_close(whole[:-1], batch.steps.sums(values))
    torch.testing.assert_close(whole.sum(), values.sum())


class OneToken:
    """A tokenizer that takes every text for one token."""

    eos_token_id, is_fast, name_or_path = 1, True, "one"

    def __call__(self, text, **options):
        return {"input_ids": [5], "offset_mapping": [(0, len(text))]}


def test_a_step_without_a_token_of_its_own_is_left_out():
    (made,) = encode(OneToken(), [feedback("abcd", (0, 2, True), (2, 4, False))], "plain", "")
    assert (made.steps.tolist(), made.step_spans) == ([1, 2], ((0, 2), (2, 4)))  # the end-of-turn token is in the last
    (made,) = encode(OneToken(), [feedback("abcd", (0, 1, True), (1, 2, False))], "plain", "")
    assert (made.steps.tolist(), made.step_labels, made.step_spans) == ([1, 0], (True,), ((0, 1),))


@pytest.mark.parametrize("labels", [[(0, 9, True)], [(0, 2, True), (1, 3, True)], [(2, 2, True)]])
def test_bad_steps_are_named(labels):
    row = feedback("abcd", *labels)
    with pytest.raises(InputError, match=f"example {row.id}: step"):
        samples.encoded([row])


def test_rows_that_do_not_fit_the_objective_are_named():
    pairs, plain = samples.encoded(samples.pairs(1)), samples.encoded(samples.feedback(2, steps=False))
    for spec in (KTO(), StepKTO()):
        with pytest.raises(InputError, match=f"example {pairs[0].id} has no label"):
            for_objective(spec, pairs)
    for spec in (KTO(per_step=True), StepKTO()):
        with pytest.raises(InputError, match="none of 2 examples has step labels"):
            for_objective(spec, plain)
    assert len(for_objective(KTO(), plain)) == 2


# --- mismatched completions ------------------------------------------------------------------------------------------


def test_mismatched_pairs_rotate_and_pass_over_the_same_prompt():
    def row(prompt: str, text: str, k: int) -> Feedback:
        asked = Prompt.from_text(prompt)
        return Feedback(prompt=asked, completion=Completion(prompt_id=asked.id, k=k, text=text), label=True)

    rows = samples.encoded([row("p", "a", 0), row("q", "bbb", 0), row("q", "c", 1), row("r", "d", 0)])
    pairs = mismatched_pairs(rows, longest=5)
    decode = architectures.tokenizer().decode
    assert [decode(p.prompt) + decode(p.completions[0]) for p in pairs] == ["pd<eos>", "qa<eos>", "qa<eos>", "rc<eos>"]
    cut = mismatched_pairs([rows[1], rows[0]], longest=3)
    assert [len(p.prompt) + len(p.completions[0]) for p in cut] == [3, 3]
    assert mismatched_pairs(rows[1:3], 5) == [None, None] and mismatched_pairs(rows[:1], 5) == [None]


def test_a_batch_of_one_prompt_has_a_reference_point_of_zero(model, tmp_path):
    prompt = Prompt.from_text("ab")
    rows = [
        Feedback(prompt=prompt, completion=Completion(prompt_id=prompt.id, k=k, text="abc"[k:]), label=bool(k))
        for k in range(3)
    ]
    train(samples.job(model, tmp_path, examples=rows, objective=KTO()))
    assert all(line["kl"] == 0 for line in samples.metrics(tmp_path))


def test_the_loss_at_the_start_is_half_of_what_both_levels_weigh(model, tmp_path):
    rows = [dataclasses.replace(row, weight=1.0) for row in samples.feedback(8)]
    once = samples.settings(epochs=1, batch_size=8)
    train(samples.job(model, tmp_path, examples=rows, objective=StepKTO(gamma=0.6), settings=once))
    (line,) = samples.metrics(tmp_path)
    assert line["loss"] == pytest.approx(0.5 + 0.5 * 0.6, abs=1e-5)
    assert (line["kl"], line["step_kl"]) == (pytest.approx(0, abs=1e-4), pytest.approx(0, abs=1e-4))


def test_the_reference_of_steps_and_of_mismatched_pairs_is_the_model_before_training(model, tmp_path):
    rows = samples.feedback(7)
    train(samples.job(model, tmp_path, examples=rows, objective=STEP_KTO))
    kept = json.loads((tmp_path / "reference" / "logps.json").read_text())
    stage = {reference_key(s.completion_id, s.span): s.value for s in reference_logps(model, rows, samples.settings())}
    assert kept == pytest.approx(stage, abs=1e-4)
    foreign = json.loads((tmp_path / "reference-mismatched" / "logps.json").read_text())
    # Batches of 4 and 3 in each of two epochs.
    assert 7 <= len(foreign) <= 14
    given = tmp_path / "given"
    train(samples.job(model, given, examples=rows, objective=STEP_KTO, reference=kept))
    for name, weight in samples.weights(tmp_path / "model").items():
        assert torch.equal(samples.weights(given / "model")[name], weight)


def test_a_stage_of_reference_scores_holds_completions_and_steps(model, tmp_path):
    rows, settings = samples.feedback(5), samples.settings()
    with Store(tmp_path).writer("feedback", "rows", Feedback) as writer:
        writer.write(0, rows)
        examples = writer.commit().path
    with Store(tmp_path).writer("reference", "scores", Score, 2) as writer:
        place = {"directory": writer.directory, "shards": 2, "missing": [0, 1], "stage_key": "", "seed": 0}
        reference_shards(model=model, examples=examples, settings=settings, **place)
        stage = writer.commit()
    assert len(stage) == 5 + sum(len(row.step_labels) for row in rows)
    for out, reference in (("a", stage.path), ("b", None)):
        job = samples.job(model, tmp_path / out, examples=examples, objective=STEP_KTO, reference=reference)
        train(job)
    assert not (tmp_path / "a" / "reference").exists()
    first, second = (samples.metrics(tmp_path / out) for out in "ab")
    assert [line["loss"] for line in first] == pytest.approx([line["loss"] for line in second], abs=1e-5)


def test_training_raises_good_and_lowers_bad_completions(model, tmp_path):
    rows = samples.feedback(16, seed=3)
    settings = samples.settings(lr=3e-3, epochs=6, batch_size=8)
    train(samples.job(model, tmp_path, examples=rows, objective=StepKTO(beta=0.3, step_beta=1.0), settings=settings))
    first, last = samples.metrics(tmp_path)[0], samples.metrics(tmp_path)[-1]
    assert last["loss"] < first["loss"]
    assert last["rewards/margins"] > 0.05 and last["step_rewards/chosen"] > last["step_rewards/rejected"]
