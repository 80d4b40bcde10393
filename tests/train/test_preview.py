import dataclasses

import pytest
from tests import architectures
from tests.train import samples

from selftaught.errors import InputError
from selftaught.train.preview import check_ends, preview
from selftaught.types import Completion, Demonstration, Prompt


def one(finish: str = "stop", token_ids: tuple[int, ...] = (5, 1)):
    prompt = Prompt.from_text("ab\nc")
    completion = Completion(prompt_id=prompt.id, k=0, text="x", token_ids=token_ids, finish=finish)
    (row,) = samples.encoded([Demonstration(prompt=prompt, completion=completion, weight=0.5)])
    return row


def test_the_targets_of_the_loss_are_marked_with_the_end_of_turn_token():
    shown = preview([one()], architectures.tokenizer())
    assert shown.splitlines() == [
        f"example {one().id} (weight 0.5): 4 prompt tokens, no loss",
        "  ab\\nc",
        "  ⟦c<eos>⟧ 2 targets",
    ]


def test_a_pair_shows_both_completions():
    shown = preview(samples.encoded(samples.pairs(1)), architectures.tokenizer())
    assert shown.count("⟦") == shown.count("<eos>⟧") == 2


def test_context_stands_before_the_targets():
    (row,) = samples.encoded(samples.pairs(1, completion=(4, 4)))
    masked = dataclasses.replace(row, context=(3, 0))
    shown, plain = (preview([e], architectures.tokenizer()).splitlines() for e in (masked, row))
    text = plain[2].removeprefix("  ⟦").removesuffix("<eos>⟧ 5 targets")
    assert shown[2] == f"  {text[:3]}⟦{text[3:]}<eos>⟧ 2 targets behind 3 tokens without loss"
    assert shown[3] == plain[3]
    check_ends([masked], [1])


def test_a_finished_completion_without_its_end_is_an_error():
    row = one()
    check_ends([row], [1])
    broken = dataclasses.replace(row, completions=(row.completions[0][:-1],))
    with pytest.raises(InputError, match=rf"example {row.id}: .* token 5 and not with an end-of-turn token \[1\]"):
        check_ends([broken], [1])


def test_a_completion_that_ran_out_of_length_needs_no_end():
    row = one(finish="length", token_ids=(5, 6))
    assert row.completions[0].tolist() == [5, 6]
    check_ends([row], [1])
