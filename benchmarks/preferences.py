"""What preference_step and kto_step share: triples, a 5.8M Llama, and a training of each side that is measured."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sides import as_words, noting_times, save_llama, timed

VOCABULARY, TRIPLES, BATCH, WARM_UP = 4096, 256, 8, 16
LR = 1e-6

Triple = tuple[list[int], list[int], list[int]]


def triples(count: int, seed: int) -> list[Triple]:
    """Return (prompt, chosen, rejected) ids; the last id of a completion is the end-of-turn token, 1."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(low, high))]

    return [(ids(64, 192), [*ids(15, 159), 1], [*ids(15, 159), 1]) for _ in range(count)]


def save_model(out: Path) -> None:
    """Save a random Llama of 5.8M parameters and its tokenizer."""
    save_llama(out, VOCABULARY, layers=6, width=256, intermediate=688, context=1024)


def prompt_and_sides(row: Triple) -> tuple[Any, list[Any]]:
    """Return a triple's prompt and its two completions, as this library's rows."""
    from selftaught.types import Completion, Prompt

    prompt_ids, *sides = row
    prompt = Prompt.from_text(as_words(prompt_ids))
    return prompt, [Completion(prompt_id=prompt.id, k=k, text=as_words(ids[:-1])) for k, ids in enumerate(sides)]


def pairs(rows: Sequence[Triple]) -> list[Any]:
    """Return triples as this library's pairs."""
    from selftaught.types import Pair

    made = []
    for row in rows:
        prompt, (chosen, rejected) = prompt_and_sides(row)
        made.append(Pair(prompt=prompt, chosen=chosen, rejected=rejected))
    return made


def train_ours(
    model: Path,
    objective: Any,
    examples: Callable[[Sequence[Triple]], list[Any]],
    rows: Sequence[Triple],
    work: Path,
    **settings: Any,
) -> dict[str, Any]:
    """Train with this library on `examples(rows)`, after a warm-up on other rows, and return what was measured.

    `seconds` run from the opened model to the end of the last update, reference log-probs included; `updates` holds
    the seconds of each update.
    """
    from selftaught.specs import ModelSpec, Training
    from selftaught.train.loop import TrainJob, train

    training = Training(lr=LR, schedule="linear", warmup_ratio=0.0, betas=(0.9, 0.999), **settings)
    spec = ModelSpec(source=str(model))

    def run(rows: Sequence[Triple], out: Path) -> None:
        train(TrainJob(model=spec, examples=examples(rows), objective=objective, settings=training, out=out, seed=0))

    run(triples(WARM_UP, 1), work / "warm-up")
    with noting_times() as (opened, updated):
        run(rows, work / "run")
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "seconds": updated[-1] - opened[-1],
        "updates": [line["seconds"] for line in lines],
        "losses": [line["loss"] for line in lines],
        "kl": [line["kl"] for line in lines if "kl" in line],
    }


def train_peer(
    trainer_class: Any,
    config_class: Any,
    columns: Callable[[Sequence[Triple]], dict[str, list]],
    model: Path,
    rows: Sequence[Triple],
    work: Path,
    **options: Any,
) -> dict[str, Any]:
    """Train with a trainer of TRL on `columns(rows)`, in their order, and return what was measured.

    `seconds` are those of `training` alone and of computing reference log-probs before it.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer

    def trainer(rows: Sequence[Triple], out: Path) -> Any:
        config = config_class(
            output_dir=str(out),
            use_cpu=True,
            learning_rate=LR,
            num_train_epochs=1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            train_sampling_strategy="sequential",
            **options,
        )
        return trainer_class(
            model=str(model),
            args=config,
            train_dataset=Dataset.from_dict(columns(rows)),
            processing_class=AutoTokenizer.from_pretrained(model),
        )

    trainer(triples(WARM_UP, 1), work / "warm-up").train()
    with noting_reference_passes(trainer_class) as reference:
        built = trainer(rows, work / "run")
    training, _ = timed(built.train)
    lines = [line for line in built.state.log_history if "loss" in line]
    return {
        "seconds": training + sum(reference),
        "training": training,
        "losses": [line["loss"] for line in lines],
        "kl": [line["kl"] for line in lines if "kl" in line],
    }


def best_options(multiple: int | None) -> dict[str, Any]:
    """Return what makes TRL's trainers fastest, with batches padded to a multiple of `multiple`, or as they come."""
    return {"precompute_ref_log_probs": True, "gradient_checkpointing": False, "pad_to_multiple_of": multiple}


@contextmanager
def noting_reference_passes(trainer_class: Any) -> Iterator[list[float]]:
    """Note how long a trainer computes reference log-probs in its constructor."""
    original, noted = trainer_class._precompute_ref_logps, []

    def noting(*args: Any, **kwargs: Any) -> Any:
        seconds, result = timed(lambda: original(*args, **kwargs))
        noted.append(seconds)
        return result

    trainer_class._precompute_ref_logps = noting
    try:
        yield noted
    finally:
        trainer_class._precompute_ref_logps = original


def tokens_of(rows: Sequence[Triple]) -> int:
    """Return the tokens of prompt + completion over both completions: the prompt counts with each."""
    return sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in rows)
