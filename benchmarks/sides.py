"""What the benchmarks of models share: a random model, two sides in alternating processes, medians, the result file."""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "accelerate")
SPECIALS = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}


def random_llama(
    vocabulary: int, *, layers: int, width: int, intermediate: int, context: int, specials: Mapping[str, str] = SPECIALS
) -> tuple[Any, Any]:
    """Return a random Llama of 4 heads, always the same one, and a tokenizer of one token per word.

    The words are `specials`, the ids from 0 in their order, then w3, w4, ... up to id `vocabulary` - 1.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(specials.values())}
    words = ids | {f"w{i}": i for i in range(len(ids), vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token=specials["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ids.get(specials.get("eos_token", "")),
        pad_token_id=0,
    )
    return LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=backend, **specials)


def save_llama(out: Path, vocabulary: int, **sizes: int) -> None:
    """Save the model and the tokenizer of `random_llama`."""
    for part in random_llama(vocabulary, **sizes):
        part.save_pretrained(out)


def as_words(ids: Sequence[int]) -> str:
    """Return ids as text that the tokenizer of `random_llama` with `SPECIALS` reads back; 1 is the end-of-turn token.

    Ids 0 and 2 do not occur.
    """
    return " ".join(f"w{i}" if i != 1 else SPECIALS["eos_token"] for i in ids)


def visiting_order(rows: int, batch: int) -> list[int]:
    """Return in which order this library's trainer, with seed 0, visits `rows` rows in whole batches of `batch`."""
    from selftaught.specs import Training
    from selftaught.train.schedule import batch_indices

    settings = Training(batch_size=batch)
    return [int(i) for step in range(rows // batch) for i in batch_indices(step, rows, settings, 0)]


@contextmanager
def noting_times() -> Iterator[tuple[list[float], list[float]]]:
    """Note when this library's trainer has opened a model, and when each update has ended."""
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
    try:
        yield opened, updated
    finally:
        loop.prepare, Metrics.log = prepare, log  # type: ignore[method-assign]


def alternate(script: str, cases: Sequence[str], repeats: int, sides: Sequence[str] = ("ours", "peer")) -> dict:
    """Run `script --measure SIDE CASE` in a fresh process for each case and side, `repeats` times in turn.

    Returns the measurements as {(case, side): [facts, ...]}.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for repeat in range(repeats):
        for case in cases:
            for side in sides if repeat % 2 == 0 else tuple(reversed(sides)):
                command = [sys.executable, script, "--measure", side, case]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                facts = json.loads(done.stdout.splitlines()[-1])
                found.setdefault((case, side), []).append(facts)
                print(
                    f"{repeat + 1}/{repeats} {case}, {side}: {facts['tokens'] / facts['seconds']:,.0f} tokens/s",
                    file=sys.stderr,
                )
    return found


def median_rate(measurements: Sequence[dict[str, Any]]) -> float:
    """Return the median of tokens per second."""
    return statistics.median(m["tokens"] / m["seconds"] for m in measurements)


def median_of(measurements: Sequence[dict[str, Any]], name: str) -> float:
    """Return the median of one measured fact."""
    return statistics.median(m[name] for m in measurements)


def largest_difference(ours: Sequence[float], peers: Sequence[float]) -> float:
    """Return the largest difference of two sides' losses, update by update, relative to the peer's."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, peers, strict=True))


def peak_gigabytes() -> float:
    """Return this process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def matmul_gflops(dtype: Any, seconds: float = 1.0) -> float:
    """Return the best rate of a 2048 x 2048 matmul in `dtype`, GFLOP/s, in the faster of the CPU's matmul libraries."""
    import torch

    from selftaught.models.matmul import fast_fp32_matmul

    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    with fast_fp32_matmul(torch.device("cpu")):
        while time.perf_counter() < end:
            began = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best / 1e9


def case(
    name: str, ours: float, peer: float, unit: str, *, more_is_better: bool = True, **facts: Any
) -> dict[str, Any]:
    """Return one row of the result: `ratio` is above 1 where ours is better."""
    ratio = ours / peer if more_is_better else peer / ours
    return {
        "case": name,
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "unit": unit,
        "ratio": round(ratio, 3),
        **facts,
    }


def finish(name: str, cases: Sequence[dict[str, Any]], out: Path, **facts: Any) -> None:
    """Print the result and write it to `out`."""
    import torch

    threads = torch.get_num_threads()
    result = {
        "name": name,
        "cases": list(cases),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {threads} threads, {_cpu_name()}",
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "date": date.today().isoformat(),
        **facts,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def command_line(
    script: str,
    doc: str,
    repeats: int,
    measure: Callable[[str, str], None],
    report: Callable[[int], tuple[list[dict[str, Any]], dict[str, Any]]],
) -> None:
    """Run a benchmark as `script` was called: the whole of it or, in its child processes, one measurement.

    `measure(side, case)` prints one measurement as a line of JSON; `report(repeats)` returns the rows of the result
    and further facts.
    """
    name = Path(script).stem
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--out", type=Path, default=Path(script).parent / "results" / f"{name}.json")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    rows, facts = report(arguments.repeats)
    finish(name, rows, arguments.out, **facts)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds `run()` took, and what it returned."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result
