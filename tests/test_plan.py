import pytest

from selftaught.plan import (
    H100,
    PROMPT_TOKENS,
    Device,
    Work,
    evaluation_plan,
    format_plan,
    hours,
    round_plan,
    scratch_parameters,
    seed_model_plan,
    training_bytes,
)
from selftaught.specs import Evaluation, Lora, Phase, Scratch, SeedModel, Training

DEVICE = Device(name="test", peak_flops=1e12, memory_bytes=1e9, training_share=0.5, decoding_share=0.25)


def test_hours():
    """6 FLOPs x 1e6 parameters x 3e8 tokens / (1e12 x 0.5) = 3,600 s; forward 2 x 1e6 x 4.5e8 / 2.5e11 = 3,600 s."""
    assert hours(Work(name="training", rows=1, tokens=300_000_000, passes=6), 1e6, DEVICE, 1) == pytest.approx(1.0)
    assert hours(Work(name="sampling", rows=1, tokens=450_000_000, passes=2), 1e6, DEVICE, 1) == pytest.approx(1.0)
    assert hours(Work(name="sampling", rows=1, tokens=450_000_000, passes=2), 1e6, DEVICE, 4) == pytest.approx(0.25)


def test_memory():
    """18 bytes a parameter (fp32 weight, gradient, two moments; bf16 copy); FSDP2 divides them; LoRA keeps 2."""
    assert training_bytes(1e6, Training(), 4) == 18e6
    assert training_bytes(1e6, Training(strategy="fsdp2"), 4) == 4.5e6
    assert training_bytes(1e6, Training(lora=Lora()), 4) == 2e6


def test_parameters_of_a_model_from_scratch():
    """One layer of width 8: 4 x 64 for attention, 3 x 8 x 16 for the MLP, 10 x 8 for embeddings: 720."""
    assert scratch_parameters(Scratch(layers=1, width=8, intermediate=16, vocab_size=10)) == 720


def test_the_training_of_a_seed_model():
    """30 demonstrations twice, then 5 updates of 4; each 128 prompt tokens and 10 more."""
    phases = (
        Phase(demonstrations=30, training=Training(epochs=2.0)),
        Phase(demonstrations=30, training=Training(max_steps=5, batch_size=4)),
    )
    works = seed_model_plan(SeedModel(phases=phases), tokens=10)
    assert [(w.name, w.rows, w.tokens, w.passes) for w in works] == [
        ("seed model: phase 1", 60, 60 * 138, 6),
        ("seed model: phase 2", 20, 20 * 138, 6),
    ]


def test_the_work_of_a_round():
    """10 problems of 128 + 5 tokens, 4 samples each: 10 x (128 + 20) = 1,480 tokens; pairs: 10 x (128 + 10) = 1,380."""
    works = round_plan("scpo 1", problems=10, samples=4, tokens=5, completions=2, training=Training(epochs=2.5))
    assert [(w.name, w.rows, w.tokens, w.passes) for w in works] == [
        ("scpo 1: samples", 40, 1480, 2),
        ("scpo 1: reference", 10, 1380, 2),
        ("scpo 1: training", 10, 3450, 6),
    ]
    assert PROMPT_TOKENS == 128


def test_new_problems_and_the_choice_of_an_epoch_are_work_too():
    works = round_plan(
        "a", problems=10, samples=4, tokens=5, completions=1, training=Training(epochs=2), dev=3, written=4,
        written_tokens=60,
    )  # fmt: skip
    found = {w.name: (w.rows, w.tokens) for w in works}
    assert found["a: new problems"] == (4, 4 * (5 * 128 + 60))
    assert found["a: choice of epoch"] == (6, 6 * 133)
    # Imitation needs no reference.
    assert "a: reference" not in found


def test_the_work_of_an_evaluation():
    work = evaluation_plan("seed model", 10, Evaluation(k=8, max_tokens=5))
    assert (work.name, work.rows, work.tokens, work.passes) == ("seed model: evaluation", 90, 10 * (128 + 45), 2)


def test_the_table_adds_up_and_says_what_it_assumes():
    works = [Work(name="a", rows=1000, tokens=2_000_000, passes=2), Work(name="b", rows=5, tokens=1_000_000, passes=6)]
    text = format_plan(works, 8.03e9, Training(), 8)
    lines = [line.split() for line in text.splitlines()]
    assert lines[1][:3] == ["a", "1,000", "2.0M"]
    assert lines[3][:2] == ["total", "3.0M"]
    assert "40% of 989 TFLOP/s in training, 10% in generation" in text
    assert f"8,030M parameters on 8 x {H100.name}" in text
    assert "does not fit: --training.strategy fsdp2 with more --processes, or --training.lora.rank 16" in text
    assert ", fits" in format_plan(works, 1e6, Training(), 1)
    assert "upper bound" in text
