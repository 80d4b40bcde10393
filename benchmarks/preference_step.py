"""DPO over 256 triples on a 5.8M Llama: tokens per second and peak memory, beside TRL's DPOTrainer.

    python benchmarks/preference_step.py [--repeats 3] [--out benchmarks/results/preference_step.json]

Prompts of 64-192 tokens, completions of 16-160, batches of 8 triples, the pass over the reference included; tokens are
prompt + completion over both completions. Both sides see the same batches in the same order and make the same
updates. Loading, tokenising and a warm-up on 16 triples are left out on both sides. Cases: `fp32 default` is DPOConfig
as it comes, on CPU without bf16; `best` is with reference log-probs computed beforehand, no activation checkpointing,
and the faster of padding as it comes and to a multiple of 8.
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

from sides import alternate, case, command_line, matmul_gflops, median_of, median_rate, peak_gigabytes, timed

VOCABULARY, TRIPLES, BATCH = 4096, 256, 8
CASES = ("fp32 default", "fp32 best", "bf16 best")


def triples(count: int, seed: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Return (prompt, chosen, rejected) ids; the last id of a completion is the end-of-turn token, 1."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(low, high))]

    return [(ids(64, 192), [*ids(15, 159), 1], [*ids(15, 159), 1]) for _ in range(count)]


def words(ids: list[int]) -> str:
    """Return ids as text that the tokenizer reads back as these ids."""
    return " ".join(f"w{i}" if i != 1 else "<eos>" for i in ids)


def save_model(out: Path) -> None:
    """Save a random 6 x 256 Llama (5.8M parameters) and a tokenizer of one token per word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **specials).save_pretrained(out)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(out)


def ours(model: Path, precision: str, work: Path) -> dict[str, Any]:
    """Train with this library and return what was measured."""
    from selftaught.specs import ModelSpec, Preference, Training
    from selftaught.train.loop import TrainJob, train
    from selftaught.types import Completion, Pair, Prompt

    def pairs(rows: list) -> list[Pair]:
        made = []
        for prompt_ids, chosen, rejected in rows:
            prompt = Prompt.from_text(words(prompt_ids))
            sides = [
                Completion(prompt_id=prompt.id, k=k, text=words(ids[:-1])) for k, ids in enumerate((chosen, rejected))
            ]
            made.append(Pair(prompt=prompt, chosen=sides[0], rejected=sides[1]))
        return made

    settings = Training(
        lr=1e-6, schedule="linear", warmup_ratio=0.0, batch_size=BATCH, betas=(0.9, 0.999), precision=precision
    )

    def run(rows: list, out: Path) -> None:
        spec = ModelSpec(source=str(model))
        train(TrainJob(model=spec, examples=pairs(rows), objective=Preference(), settings=settings, out=out, seed=0))

    run(triples(16, 1), work / "warm-up")
    opened, updated = note_times()
    run(triples(TRIPLES, 0), work / "run")
    seconds = updated[-1] - opened[-1]
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    return {"seconds": seconds, "losses": [line["loss"] for line in lines]}


def note_times() -> tuple[list[float], list[float]]:
    """Note when a model has been opened for training, and when each update has ended."""
    from selftaught.train import loop
    from selftaught.train.trackers import Metrics

    prepare, log = loop.prepare, Metrics.log
    opened: list[float] = []
    updated: list[float] = []

    def preparing(*args: Any) -> Any:
        prepared = prepare(*args)
        opened.append(time.perf_counter())
        return prepared

    def noting(self: Metrics, step: int, values: dict[str, float]) -> None:
        log(self, step, values)
        updated.append(time.perf_counter())

    loop.prepare, Metrics.log = preparing, noting  # type: ignore[assignment, method-assign]
    return opened, updated


def peer(model: Path, case_name: str, work: Path, multiple: int | None) -> dict[str, Any]:
    """Train with TRL's DPOTrainer and return what was measured."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from selftaught.specs import Training
    from selftaught.train.schedule import batch_indices

    settings = Training(batch_size=BATCH)
    best = {"precompute_ref_log_probs": True, "gradient_checkpointing": False, "pad_to_multiple_of": multiple}
    options = {} if case_name.endswith("default") else best

    def trainer(rows: list, out: Path) -> DPOTrainer:
        steps = len(rows) // BATCH
        order = [i for step in range(steps) for i in batch_indices(step, len(rows), settings, 0)]
        columns = {"prompt": [], "chosen": [], "rejected": []}
        for i in order:
            for name, ids in zip(columns, rows[i], strict=True):
                # The space is where the prompt ends, so that prompt + completion reads back as the same ids.
                columns[name].append(words(ids) + (" " if name == "prompt" else ""))
        config = DPOConfig(
            output_dir=str(out),
            use_cpu=True,
            bf16=case_name.startswith("bf16"),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            train_sampling_strategy="sequential",
            **options,
        )
        return DPOTrainer(
            model=str(model),
            args=config,
            train_dataset=Dataset.from_dict(columns),
            processing_class=AutoTokenizer.from_pretrained(model),
        )

    trainer(triples(16, 1), work / "warm-up").train()
    reference = time_reference_passes(DPOTrainer)
    built = trainer(triples(TRIPLES, 0), work / "run")
    training, _ = timed(built.train)
    losses = [line["loss"] for line in built.state.log_history if "loss" in line]
    return {"seconds": training + sum(reference), "losses": losses}


def time_reference_passes(trainer_class: Any) -> list[float]:
    """Make the trainer note how long computing reference log-probs takes in its constructor."""
    original, noted = trainer_class._precompute_ref_logps, []

    def noting(*args: Any, **kwargs: Any) -> Any:
        seconds, result = timed(lambda: original(*args, **kwargs))
        noted.append(seconds)
        return result

    trainer_class._precompute_ref_logps = noting
    return noted


def measure(side: str, case_name: str) -> None:
    """Print one measurement as JSON."""
    with tempfile.TemporaryDirectory() as work:
        os.environ["HF_DATASETS_CACHE"] = work
        model = Path(work) / "model"
        save_model(model)
        if side == "ours":
            facts = ours(model, case_name[:4], Path(work))
        else:
            facts = peer(model, case_name, Path(work), 8 if side == "padded peer" else None)
    tokens = sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in triples(TRIPLES, 0))
    print(json.dumps({**facts, "tokens": tokens, "gigabytes": peak_gigabytes()}))


def flops_per_token() -> float:
    """Return the arithmetic a token costs: 6 per weight in training, 2 in the pass over the reference."""
    layer = 4 * 256 * 256 + 3 * 256 * 688
    return 8 * (6 * layer + VOCABULARY * 256)


def report(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure everything and return the rows of the result and the matmul peaks."""
    import torch

    peaks = {"fp32": matmul_gflops(torch.float32), "bf16": matmul_gflops(torch.bfloat16)}
    found = alternate(__file__, CASES, repeats)
    found |= alternate(__file__, CASES[1:], repeats, ("padded peer",))
    rows = []
    for name in CASES:
        own = found[name, "ours"]
        rival = max((found[k] for k in found if k[0] == name and k[1] != "ours"), key=median_rate)
        share = {
            s: median_rate(m) * flops_per_token() / 1e9 / peaks[name[:4]] for s, m in (("ours", own), ("peer", rival))
        }
        differences = [abs(a - b) / abs(b) for a, b in zip(own[0]["losses"], rival[0]["losses"], strict=True)]
        facts = {"largest relative difference of losses": max(differences), "share of the matmul peak": share}
        rows.append(case(name, median_rate(own), median_rate(rival), "tokens/s", **facts))
        memory = [median_of(m, "gigabytes") for m in (own, rival)]
        rows.append(case(f"{name}, peak memory", *memory, "GB", more_is_better=False))
    return rows, {"matmul_gflops": peaks}


if __name__ == "__main__":
    command_line(__file__, __doc__, 3, measure, report)
