"""A million completions written, scored, grouped and selected: rows per second and peak memory, beside `datasets`.

    python benchmarks/store.py [--prompts 125000] [--repeats 3] [--out benchmarks/results/store.json]

Both sides make the same rows (8 completions of 40 token ids per prompt), the same votes and the same pairs, in one
process each, and leave them on disk; every measurement is a process of its own. `datasets` is used as its
documentation advises: `from_generator`, then batched `map` over whole groups, with the cache on disk. It hands columns
to functions and keeps no row of its own for a score; the store hands over typed rows, each with an id and parents.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

K = 8
TOKENS = 40
STEPS = ("write", "score", "select")


def raw_rows(prompts: int) -> Iterator[tuple[int, int, str, list[int]]]:
    """Yield (prompt, k, text, token ids): cheap to make, and neither constant nor too easy to compress."""
    state = 12345
    pool = []
    for _ in range(100_000):
        state = (state * 1103515245 + 12345) % 2**31
        pool.append(state % 32_000)
    for prompt in range(prompts):
        for k in range(K):
            start = (prompt * 7919 + k * 104729) % (len(pool) - TOKENS)
            ids = pool[start : start + TOKENS]
            yield prompt, k, f"step {ids[0]} then {ids[1]} and {ids[2]} so {ids[3]} #### {ids[4] % 3}", ids


def votes(texts: list[str]) -> list[float]:
    """Return for every text how many of them end in its answer."""
    answers = [text.rpartition("#### ")[2] for text in texts]
    counts = Counter(answers)
    return [float(counts[answer]) for answer in answers]


def extremes(values: list[float]) -> tuple[int, int]:
    """Return the places of the most and the least voted."""
    return max(range(K), key=values.__getitem__), min(range(K), key=values.__getitem__)


def ours(step: str, prompts: int, root: Path) -> int:
    """Run one step through the store and return the number of rows it read or wrote."""
    from selftaught.store.groups import Groups
    from selftaught.store.stage import Store
    from selftaught.types import Completion, Pair, Prompt, Score, completion_id

    store = Store(root)
    keys = {name: f"{number:024x}" for number, name in enumerate(("prompts", "completions", "scores", "pairs"))}

    def save(name: str, row_type: type, rows: Iterator[Any]) -> int:
        with store.writer(name, keys[name], row_type) as writer:
            writer.write(0, rows)
            return len(writer.commit())

    def completions() -> Iterator[Completion]:
        asked = iter(store.get(keys["prompts"]) or ())
        for _, k, text, ids in raw_rows(prompts):
            if k == 0:
                prompt_id = next(asked).id
            row_id = completion_id(keys["completions"], prompt_id, k)
            yield Completion(prompt_id=prompt_id, k=k, text=text, token_ids=tuple(ids), id=row_id)

    def groups(*scores: str) -> Groups:
        tables = [store.get(keys[name]) for name in ("prompts", "completions", *scores)]
        return Groups(prompts=tables[0], completions=(tables[1],), scores=tuple(tables[2:]))  # type: ignore[arg-type]

    def scores() -> Iterator[Score]:
        for group in groups().without("token_ids", "logprobs", "latents"):
            values = votes([c.text for c in group.completions])
            for completion, value in zip(group.completions, values, strict=True):
                yield Score(completion_id=completion.id, scorer="votes", value=value)

    def pairs() -> Iterator[Pair]:
        for group in groups("scores"):
            values = [score.value or 0.0 for score in group.scores]
            best, worst = extremes(values)
            weight = (values[best] - values[worst]) / K
            chosen, rejected = group.completions[best], group.completions[worst]
            yield Pair(prompt=group.prompt, chosen=chosen, rejected=rejected, weight=weight)

    if step == "write":
        save("prompts", Prompt, (Prompt.from_text(f"What is {i}?", gold=str(i)) for i in range(prompts)))
        return save("completions", Completion, completions())
    return save("scores", Score, scores()) if step == "score" else K * save("pairs", Pair, pairs())


def peer(step: str, prompts: int, root: Path) -> int:
    """Run the same step through Hugging Face `datasets`."""
    os.environ["HF_HOME"] = os.environ["HF_DATASETS_CACHE"] = str(root / "hf")
    import datasets

    datasets.disable_progress_bars()

    def rows(prompts: int) -> Iterator[dict[str, Any]]:
        for prompt, k, text, ids in raw_rows(prompts):
            row_id = f"{prompt:020x}{k:04x}"
            yield {"id": row_id, "prompt": f"What is {prompt}?", "k": k, "completion": text, "token_ids": ids}

    def score(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = batch["completion"]
        return {"votes": [v for i in range(0, len(texts), K) for v in votes(texts[i : i + K])]}

    def select(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {name: [] for name in ("prompt", "chosen", "rejected", "weight")}
        out |= {f"{side}_{name}": [] for side in ("chosen", "rejected") for name in ("id", "token_ids")}
        for i in range(0, len(batch["k"]), K):
            values = batch["votes"][i : i + K]
            best, worst = extremes(values)
            out["prompt"].append(batch["prompt"][i])
            out["weight"].append((values[best] - values[worst]) / K)
            for side, place in (("chosen", i + best), ("rejected", i + worst)):
                out[side].append(batch["completion"][place])
                out[f"{side}_id"].append(batch["id"][place])
                out[f"{side}_token_ids"].append(batch["token_ids"][place])
        return out

    if step == "write":
        features = {"id": datasets.Value("string"), "prompt": datasets.Value("string"), "k": datasets.Value("int64")}
        features |= {"completion": datasets.Value("string"), "token_ids": datasets.List(datasets.Value("int32"))}
        made = datasets.Dataset.from_generator(
            rows, gen_kwargs={"prompts": prompts}, features=datasets.Features(features), cache_dir=str(root / "hf")
        )
        made.save_to_disk(str(root / "completions"))
        return len(made)
    before, after = ("completions", "scores") if step == "score" else ("scores", "pairs")
    table = datasets.load_from_disk(str(root / before))
    if step == "score":
        made = table.map(score, batched=True, batch_size=125 * K)
    else:
        made = table.map(select, batched=True, batch_size=125 * K, remove_columns=table.column_names)
    made.save_to_disk(str(root / after))
    return len(table)


def measure(side: str, step: str, prompts: int, root: Path) -> dict[str, float]:
    """Run one step in a process of its own; return rows per second (imports left out) and peak memory in MiB."""
    command = [sys.executable, __file__, "--side", side, "--step", step, "--prompts", str(prompts), "--root", str(root)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def run_step(side: str, step: str, prompts: int, root: Path) -> None:
    """What the process of `measure` does."""
    import pyarrow.parquet  # noqa: F401

    if side == "peer":
        import datasets  # noqa: F401
    start = time.perf_counter()
    rows = (ours if side == "ours" else peer)(step, prompts, root)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "seconds": seconds, "peak": peak}))


def run_all(prompts: int, repeats: int) -> dict[tuple[str, str, int], dict[str, float]]:
    """Measure every step at a tenth of the size and at the whole, both sides in turn; return medians."""
    found: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    for count in (prompts // 10, prompts):
        for side in ("ours", "peer") * repeats:
            root = Path(tempfile.mkdtemp(prefix="store-benchmark-"))
            for step in STEPS:
                found.setdefault((side, step, count), []).append(measure(side, step, count, root))
                print(side, step, count * K, found[side, step, count][-1], file=sys.stderr)
            shutil.rmtree(root)
    return {case: {k: median(run[k] for run in runs) for k in runs[0]} for case, runs in found.items()}


def report(prompts: int, repeats: int) -> dict[str, Any]:
    """Measure, and return the results in the shape of all benchmarks; `ratio` above 1 is better for ours."""
    found = run_all(prompts, repeats)
    cases = []

    def case(name: str, ours: float, peer: float, unit: str, ratio: float) -> None:
        cases.append({"case": name, "ours": round(ours), "peer": round(peer), "unit": unit, "ratio": round(ratio, 2)})

    rows = prompts * K
    seconds = {side: [found[side, step, prompts]["seconds"] for step in STEPS] for side in ("ours", "peer")}
    for i, step in enumerate(STEPS):
        a, b = rows / seconds["ours"][i], rows / seconds["peer"][i]
        case(f"{step} {rows} completions", a, b, "rows/s", a / b)
    a, b = rows / sum(seconds["ours"]), rows / sum(seconds["peer"])
    case(f"write, score and select {rows} completions", a, b, "rows/s", a / b)
    for count in (prompts // 10, prompts):
        a, b = (max(found[side, step, count]["peak"] for step in STEPS) for side in ("ours", "peer"))
        case(f"peak memory at {count * K} completions", a, b, "MiB", b / a)
    packages = ("pyarrow", "datasets", "numpy")
    return {
        "name": "store",
        "cases": cases,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, one process",
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "date": date.today().isoformat(),
    }


def main() -> None:
    """Run the benchmark, or one step of it where `--step` is given."""
    parser = argparse.ArgumentParser(description="The store beside Hugging Face datasets.")
    parser.add_argument("--prompts", type=int, default=125_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "store.json")
    for name in ("--side", "--step", "--root"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        run_step(given.side, given.step, given.prompts, Path(given.root))
        return
    results = report(given.prompts, given.repeats)
    text = json.dumps(results, indent=1) + "\n"
    print(text, end="")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text)


if __name__ == "__main__":
    main()
