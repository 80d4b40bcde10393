"""Worked example, step_beta 1, z = 0: a good completion in steps (-1) right, (-1, -1) wrong, references -2 and -3,
so r = 1 and 1; the losses are sigmoid(-1) = 0.268941 and sigmoid(1) = 0.731059, their mean 0.5 and their sum 1.
A bad completion (-3) has one step, right, reference -3: r = 0, loss 0.5. The mean over completions is 0.5.
"""

import dataclasses

import pytest
import torch
from tests.objectives.batches import batch

from selftaught.objectives import Steps, build_objective
from selftaught.specs import KTO, StepKTO

SPEC = StepKTO(beta=0.5, step_beta=1.0, gamma=2.0, step_reference_point="zero")


def make(labels=(1.0, 0.0, 1.0), references=(-2.0, -3.0, -3.0)):
    made, logps = batch([[-1.0, -1.0, -1.0], [-3.0]], [1.0, 1.0], [-5.0, -3.0])
    steps = Steps(
        owner=torch.tensor([0, 1, 1, 2]),
        labels=torch.tensor(labels),
        example=torch.tensor([0, 0, 1]),
        lengths=torch.tensor([1.0, 2.0, 1.0]),
        reference=torch.tensor(references),
        right=int(sum(labels)),
        examples=2,
    )
    outcomes = {"labels": torch.tensor([1.0, 0.0]), "example_labels": (True, False)}
    return dataclasses.replace(made, steps=steps, **outcomes), logps


def evaluate(spec=SPEC, baseline=None, **options):
    objective = build_objective(spec)
    made, logps = make(**options)
    terms, counts = objective(lambda _: logps, made, baseline), objective.counts(made)
    assert terms.keys() == counts.keys() == set(objective.terms)
    loss = sum(t.sum * t.weight / counts[name] for name, t in terms.items() if t.weight and counts[name])
    loss.backward()
    return loss.item(), {name: t.sum.item() / counts[name] for name, t in terms.items() if counts[name]}, logps.grad


def test_worked_values():
    loss, means, _ = evaluate()
    assert means["step_loss"] == pytest.approx(0.5)
    assert loss == pytest.approx(means["kto_loss"] + 2 * 0.5)
    assert means["step_rewards/chosen"] == pytest.approx((1 + 0) / 2)
    assert means["step_rewards/rejected"] == pytest.approx(1.0)
    assert means["step_conflicts"] == pytest.approx(2 / 3)  # wrong in the good completion, right in the bad one


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 0.5), ("sum", (1 + 0.5) / 2), ("batch", 1.5 / 3)])
def test_reductions(reduction, expected):
    assert evaluate(dataclasses.replace(SPEC, step_reduction=reduction))[1]["step_loss"] == pytest.approx(expected)


@pytest.mark.parametrize(("point", "expected"), [("batch", 6.0 / 3), ("outcome", 4.0 / 2 * 2 / 3), ("zero", 0.0)])
def test_reference_points(point, expected):
    """Mismatched ratios 4 over 2 give z = 2; step ratios 6 over 3 steps of 2 completions."""
    baseline = torch.tensor([4.0, 2.0, 6.0, 3.0, 2.0], dtype=torch.float64)
    means = evaluate(dataclasses.replace(SPEC, step_reference_point=point), baseline)[1]
    assert (means["kl"], means["step_kl"]) == (pytest.approx(2.0), pytest.approx(expected))


def test_a_flipped_label_turns_the_push_on_its_own_tokens_only():
    """Token by token: the difference of both gradients is zero outside of the second step, where it changes sign."""
    spec = dataclasses.replace(SPEC, outcome=False)
    before, after = evaluate(spec)[2], evaluate(spec, labels=(1.0, 1.0, 1.0))[2]
    assert torch.equal(before[[0, 3]], after[[0, 3]])
    torch.testing.assert_close(before[1:3], -after[1:3])
    assert before[1] > 0
    both, flipped = evaluate()[2], evaluate(labels=(1.0, 1.0, 1.0))[2]
    assert torch.equal(both[[0, 3]], flipped[[0, 3]]) and both[1] > flipped[1]


def test_gamma_zero_is_kto():
    made, logps = make()
    step, plain = build_objective(dataclasses.replace(SPEC, gamma=0.0)), build_objective(KTO(beta=0.5))
    terms, wanted = step(lambda _: logps, made, None), plain(lambda _: logps, made, None)
    assert all(torch.equal(terms[name].sum, wanted[name].sum) for name in wanted)
    assert terms["step_loss"].weight == 0


def test_process_only_leaves_the_outcome_out():
    loss, means, _ = evaluate(dataclasses.replace(SPEC, outcome=False))
    assert loss == pytest.approx(2 * means["step_loss"])


def test_what_is_looked_at_beforehand():
    def prepare(**changes):
        objective = build_objective(dataclasses.replace(SPEC, **changes))
        made, logps = make()
        passes = []
        sums = objective.prepare(lambda given: passes.append(given) or logps, [made])
        return (None if sums is None else sums.tolist()), len(passes)

    assert prepare(step_reference_point="batch") == ([0.0, 0.0, 2.0, 3.0, 2.0], 1)
    assert prepare(step_reference_point="batch", gamma=0.0)[1] == 0
    assert prepare(outcome=False) == (None, 0)
    assert not build_objective(dataclasses.replace(SPEC, outcome=False)).needs_mismatched
    assert build_objective(StepKTO(outcome=False, step_reference_point="outcome")).needs_mismatched


@pytest.mark.parametrize(("label", "missing"), [(1.0, "rejected"), (0.0, "chosen")])
def test_steps_of_one_class_report_nothing_of_the_other(label, missing):
    loss, found, gradient = evaluate(dataclasses.replace(SPEC, outcome=False), labels=(label,) * 3)
    assert f"step_rewards/{missing}" not in found and loss == pytest.approx(2 * found["step_loss"])
    assert gradient.isfinite().all() and ((gradient < 0) == bool(label)).all()


def test_a_batch_without_labelled_steps_has_no_step_loss():
    made, logps = make()
    none = dataclasses.replace(
        made.steps,
        owner=torch.zeros(4, dtype=torch.int64),
        labels=torch.zeros(0),
        example=torch.zeros(0, dtype=torch.int64),
        lengths=torch.zeros(0),
        reference=torch.zeros(0),
        right=0,
        examples=0,
    )
    objective = build_objective(SPEC)
    empty = dataclasses.replace(made, steps=none)
    terms = objective(lambda _: logps, empty, None)
    assert terms["step_loss"].sum.item() == 0 and objective.counts(empty)["step_loss"] == 0


def test_a_batch_without_steps_is_refused():
    made, logps = make()
    with pytest.raises(ValueError, match="needs steps"):
        build_objective(SPEC)(lambda _: logps, dataclasses.replace(made, steps=None), None)
