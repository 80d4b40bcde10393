"""Selection over 100,000 groups of 16 candidates: seconds and peak memory of every rule.

    python benchmarks/selection.py [--groups 100000] [--repeats 1] [--out benchmarks/results/selection.json]

Candidates have 24 token ids with log-probs, three steps and an answer. They, their rewards, votes, verdicts and step
labels are stored beforehand, which is not timed. Each rule then runs in a process of its own: it reads its groups from
disk, selects, and leaves what it makes on disk. `reading alone` reads what the rules of DivPO and RIP read, once. RIP
reads its groups three times (to set its thresholds, to rule, to make pairs), ScPO and Step-KTO twice (the first time
for their caps). To be met by each rule at the full size: `bound`, 60 seconds and 2 GB (1907 MiB).
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from selftaught.select.diverse_pairs import DiversePairs
from selftaught.select.diversity import WINDOW, Frequency, Probability, Scored, WindowFrequency
from selftaught.select.feedback import FeedbackRows
from selftaught.select.pairs import ConsistencyPairs
from selftaught.select.prompt_measures import MEDIANS, Ranking, measure_groups
from selftaught.select.rip import Filtered, RankedPairs, fit_thresholds
from selftaught.store.groups import Groups
from selftaught.store.stage import Store
from selftaught.types import Completion, Feedback, Group, Pair, Prompt, Score, completion_id, content_id

K = 16
TOKENS = 24
STEPS = 4
MOST_SECONDS = 60
MOST_MEMORY = round(2e9 / 2**20)
PREPARE = "prepare"
TABLES = ("prompts", "completions", "reward", "votes", "verifier", "steps")


# --- the groups ------------------------------------------------------------------------------------------------------


def key_of(name: str) -> str:
    """Return the key under which a table is stored."""
    return content_id("selection benchmark", name)


def candidates(groups: int) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """Yield the (text, token ids) of each group's candidates; about half of them give the answer 0."""
    pool, state = [], 12345
    for _ in range(100_000):
        state = (state * 1103515245 + 12345) % 2**31
        pool.append(state >> 8)
    for group in range(groups):
        rows = []
        for k in range(K):
            start = (group * 7919 + k * 104729) % (len(pool) - TOKENS)
            drawn = pool[start : start + TOKENS]
            lines = (
                f"{a % 997} boxes of {b % 89} make {c % 9973}" for a, b, c in (drawn[i : i + 3] for i in (0, 3, 6))
            )
            rows.append(("\n".join((*lines, f"#### {max(drawn[9] % 8 - 3, 0)}")), tuple(i % 32_000 for i in drawn)))
        yield rows


def whole_scores(group: Group) -> dict[str, list[Score]]:
    """Return a group's rewards, votes, verdicts and step labels, cheaply made."""
    answers = [c.text.rpartition(" ")[2] for c in group.completions]
    counts = Counter(answers)
    scores: dict[str, list[Score]] = {name: [] for name in TABLES[2:]}
    for completion, answer in zip(group.completions, answers, strict=True):
        ids = completion.token_ids or ()
        whole = {"reward": ids[10] / 32_000, "votes": float(counts[answer]), "verifier": float(answer == "0")}
        for name, value in whole.items():
            note = answer if name == "votes" else ""
            scores[name].append(Score(completion_id=completion.id, scorer=name, value=value, note=note))
        start = 0
        for step, line in enumerate(completion.text.splitlines(keepends=True)):
            span, label = (start, start + len(line)), float(ids[11 + step] % 4 > 0)
            scores["steps"].append(Score(completion_id=completion.id, scorer="steps", value=label, span=span))
            start += len(line)
    return scores


def prepare(groups: int, store: Store) -> None:
    """Store all tables."""
    asked = [Prompt.from_text(f"What is {i}?") for i in range(groups)]

    def completions() -> Iterator[Completion]:
        for prompt, rows in zip(asked, candidates(groups), strict=True):
            for k, (text, ids) in enumerate(rows):
                row_id = completion_id(key_of("completions"), prompt.id, k)
                logprobs = tuple(-i / 32_000 for i in ids)
                yield Completion(prompt_id=prompt.id, k=k, text=text, token_ids=ids, logprobs=logprobs, id=row_id)

    save(store, "prompts", Prompt, asked)
    save(store, "completions", Completion, completions())
    for name in TABLES[2:]:
        rows = (score for group in read(store) for score in whole_scores(group)[name])
        save(store, name, Score, rows)


def save(store: Store, name: str, row_type: type, rows: Iterable[Any]) -> int:
    """Store a table and return its number of rows."""
    with store.writer(name, key_of(name), row_type) as writer:
        writer.write(0, iter(rows))
        return len(writer.commit())


def read(store: Store, *scores: str) -> Groups:
    """Return the groups with some of their scores."""
    prompts, completions, *tables = (store.get(key_of(name)) for name in ("prompts", "completions", *scores))
    return Groups(prompts=prompts, completions=(completions,), scores=tuple(tables))  # type: ignore[arg-type]


# --- the rules -------------------------------------------------------------------------------------------------------


def reading(store: Store) -> int:
    """Read completions and rewards, and select nothing."""
    return sum(1 for _ in read(store, "reward"))


def divpo_frequency(store: Store) -> int:
    """Make DivPO's pairs by word frequency among the samples of the prompt."""
    return save(store, "made", Pair, DiversePairs(diversity=Frequency())(read(store, "reward")))


def divpo_window(store: Store) -> int:
    """Make DivPO's pairs by word frequency in a window of 64 prompts, whose scores are stored first."""
    scorer = WindowFrequency(words=Frequency(), window=64)
    texts = read(store).without("token_ids", "logprobs", "latents")
    save(store, "window", Score, chain.from_iterable(scorer(texts)))
    rule = DiversePairs(diversity=Scored(scorer=WINDOW))
    return save(store, "made", Pair, rule(read(store, "reward", "window")))


def divpo_probability(store: Store) -> int:
    """Make DivPO's pairs by log-probability."""
    return save(store, "made", Pair, DiversePairs(diversity=Probability())(read(store, "reward")))


def rip(store: Store) -> int:
    """Keep prompts by the medians of three measures, and make a pair of each that is kept."""
    groups, ranking = read(store, "reward"), Ranking()
    thresholds = fit_thresholds(measure_groups(groups, ranking), MEDIANS)
    rule = Filtered(ranking=ranking, filter=thresholds, then=RankedPairs(ranking=ranking))
    return save(store, "made", Pair, rule(groups))


def scpo(store: Store) -> int:
    """Make ScPO's pairs by votes, at a threshold of half the samples."""
    return save(store, "made", Pair, ConsistencyPairs(k=K, threshold=K / 2)(read(store, "votes")))


def step_kto(store: Store) -> int:
    """Make Step-KTO's rows: at most two right and two wrong ones of a prompt, equally many in all, with step labels."""
    rule = FeedbackRows(per_class=2, balanced=True, steps="steps")
    return save(store, "made", Feedback, rule(read(store, "verifier", "steps")))


RULES: dict[str, Callable[[Store], int]] = {
    "reading alone": reading,
    "DivPO by word frequency": divpo_frequency,
    "DivPO by word frequency in a window of 64": divpo_window,
    "DivPO by probability": divpo_probability,
    "RIP": rip,
    "ScPO": scpo,
    "Step-KTO": step_kto,
}


# --- measuring -------------------------------------------------------------------------------------------------------


def run_rule(name: str, groups: int, root: Path) -> None:
    """Run one rule and print its seconds (imports left out), peak memory in MiB and the rows it made.

    Or make the tables: the process that starts the others must stay small, for they take over its peak.
    """
    import pyarrow.parquet  # noqa: F401

    if name == PREPARE:
        prepare(groups, Store(root))
        return
    start = time.perf_counter()
    rows = RULES[name](Store(root))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "rows": rows}))


def in_a_process(name: str, groups: int, root: Path) -> str:
    """Run one rule in a process of its own, and return what it prints."""
    command = [sys.executable, __file__, "--rule", name, "--groups", str(groups), "--root", str(root)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(name: str, groups: int, tables: Path) -> dict[str, float]:
    """Run one rule on a copy of the tables."""
    root = tables.with_name("run")
    shutil.copytree(tables, root, copy_function=os.link)
    found: dict[str, float] = json.loads(in_a_process(name, groups, root))
    shutil.rmtree(root)
    print(f"{name}: {found['seconds']:.1f} s, {found['peak']:.0f} MiB, {found['rows']} rows", file=sys.stderr)
    return found


def measure_all(groups: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Measure every rule in turn, `repeats` times, on the same stored groups."""
    with tempfile.TemporaryDirectory(prefix="selection-benchmark-") as directory:
        tables = Path(directory) / "tables"
        in_a_process(PREPARE, groups, tables)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in RULES}
        for _ in range(repeats):
            for name in RULES:
                found[name].append(measure(name, groups, tables))
    return found


def report(groups: int, repeats: int) -> dict[str, Any]:
    """Measure, and return the results in the shape of all benchmarks, without another side."""
    cases = []
    for name, runs in measure_all(groups, repeats).items():
        for what, unit, bound in (("seconds", "s", MOST_SECONDS), ("peak", "MiB", MOST_MEMORY)):
            label = f"{name}, {groups} groups of {K}" + (": peak memory" if what == "peak" else "")
            value = median(run[what] for run in runs)
            cases.append({"case": label, "ours": round(value, 2), "unit": unit, "bound": bound})
    packages = ("pyarrow", "numpy")
    return {
        "name": "selection",
        "cases": cases,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, one process",
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "date": date.today().isoformat(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or one rule of it where `--rule` is given."""
    parser = argparse.ArgumentParser(description="Selection over groups of 16 candidates.")
    parser.add_argument("--groups", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "selection.json")
    for name in ("--rule", "--root"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.rule:
        run_rule(given.rule, given.groups, Path(given.root))
        return
    text = json.dumps(report(given.groups, given.repeats), indent=1) + "\n"
    print(text, end="")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text)


if __name__ == "__main__":
    main()
