"""Supervised updates of a 0.8M Llama on 64 x ~65 tokens: tokens per second, beside transformers' Trainer.

    python benchmarks/tiny_training.py [--repeats 5] [--out benchmarks/results/tiny_training.json]

The workload of every reproduction: 4 layers x 128, a vocabulary of 64, a loss on completions of 20-50 tokens after
prompts of 20-40. Both sides see the same batches in the same order and make the same 60 updates, the first 10 of them
warm-up; time runs from the end of one update to the end of another, batching and logging included.
The peer is the faster of batches as they come and padded to a multiple of 8, each with the fused AdamW.
"""

import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from sides import (
    alternate,
    as_words,
    case,
    command_line,
    largest_difference,
    matmul_gflops,
    median_of,
    median_rate,
    noting_times,
    peak_gigabytes,
    save_llama,
    visiting_order,
)

VOCABULARY, BATCH, UPDATES, WARM_UP = 64, 64, 60, 10
CASES = ("train fp32", "train bf16")


def sequences() -> list[tuple[list[int], list[int]]]:
    """Return (prompt, completion) ids; the last id of a completion is the end-of-turn token, 1."""
    draw = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(low, high))]

    return [(ids(20, 40), [*ids(19, 49), 1]) for _ in range(BATCH * UPDATES)]


def save_model(out: Path) -> None:
    """Save a random Llama of 0.8M parameters and its tokenizer."""
    save_llama(out, VOCABULARY, layers=4, width=128, intermediate=341, context=256)


def ours(model: Path, precision: str, work: Path) -> tuple[list[float], list[float]]:
    """Train with this library and return when each update ended and its loss."""
    from selftaught.specs import SFT, ModelSpec, Training
    from selftaught.train.loop import TrainJob, train
    from selftaught.types import Completion, Demonstration, Prompt

    rows = []
    for prompt_ids, completion_ids in sequences():
        prompt = Prompt.from_text(as_words(prompt_ids))
        completion = Completion(prompt_id=prompt.id, k=0, text=as_words(completion_ids[:-1]))
        rows.append(Demonstration(prompt=prompt, completion=completion))
    settings = Training(
        lr=1e-3, schedule="linear", warmup_ratio=0.0, batch_size=BATCH, betas=(0.9, 0.999), precision=precision
    )
    spec = ModelSpec(source=str(model))
    job = TrainJob(model=spec, examples=rows, objective=SFT(), settings=settings, out=work / "run", seed=0)
    with noting_times() as (_, ended):
        train(job)
    lines = (work / "run" / "metrics.jsonl").read_text().splitlines()
    return ended, [json.loads(line)["loss"] for line in lines]


def peer(model: Path, precision: str, work: Path, multiple: int | None) -> tuple[list[float], list[float]]:
    """Train with transformers' Trainer and return when each update ended and its loss."""
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    ended: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ended.append(time.perf_counter())

    rows = sequences()
    chosen = [rows[i] for i in visiting_order(len(rows), BATCH)]
    data = {"input_ids": [p + c for p, c in chosen], "labels": [[-100] * len(p) + c for p, c in chosen]}
    arguments = TrainingArguments(
        output_dir=str(work),
        use_cpu=True,
        bf16=precision == "bf16",
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=1e-3,
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        train_sampling_strategy="sequential",
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=Dataset.from_dict(data),
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=multiple),
        callbacks=[Clock()],
    )
    trainer.train()
    return ended, [line["loss"] for line in trainer.state.log_history if "loss" in line]


def measure(side: str, case_name: str) -> None:
    """Print one measurement as JSON."""
    precision = case_name.split()[1]
    with tempfile.TemporaryDirectory() as work:
        os.environ["HF_DATASETS_CACHE"] = work
        model = Path(work) / "model"
        save_model(model)
        if side == "ours":
            ended, losses = ours(model, precision, Path(work))
        else:
            ended, losses = peer(model, precision, Path(work), 8 if side == "padded peer" else None)
    rows = sequences()
    tokens = sum(len(rows[i][0]) + len(rows[i][1]) for i in visiting_order(len(rows), BATCH)[WARM_UP * BATCH :])
    seconds = ended[-1] - ended[WARM_UP - 1]
    print(json.dumps({"tokens": tokens, "seconds": seconds, "losses": losses, "gigabytes": peak_gigabytes()}))


def report(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure everything and return the rows of the result and the matmul peaks."""
    import torch

    peaks = {"fp32": matmul_gflops(torch.float32), "bf16": matmul_gflops(torch.bfloat16)}
    found = alternate(__file__, CASES, repeats, ("ours", "peer", "padded peer"))
    rows = []
    for name in CASES:
        own = found[name, "ours"]
        rival = max((found[name, side] for side in ("peer", "padded peer")), key=median_rate)
        difference = largest_difference(own[0]["losses"], rival[0]["losses"])
        facts = {"largest relative difference of losses": difference}
        rows.append(case(name, median_rate(own), median_rate(rival), "tokens/s", **facts))
        memory = [median_of(m, "gigabytes") for m in (own, rival)]
        rows.append(case(f"{name}, peak memory", *memory, "GB", more_is_better=False))
    return rows, {"matmul_gflops": peaks}


if __name__ == "__main__":
    command_line(__file__, __doc__, 5, measure, report)
