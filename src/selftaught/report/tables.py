"""Markdown tables made from committed result files, so that no measured figure is ever typed by hand.

    python -m selftaught.report.tables [--check] README.md docs/*.md

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`, each alone on its line. NAME is
`reproductions/METHOD` or `benchmarks/NAME`, which reads COLLECTION/results/NAME.json below the current directory, or of
all files there `reproductions/claims`, `benchmarks/all` or, in short, `reproductions/headlines`, `benchmarks/ratios`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selftaught.errors import InputError
from selftaught.report import figures

_BEGIN = re.compile(r"<!-- table: (\S+) -->")
_END = "<!-- end table -->"
_CLAIM_HEADS = ("claim", "metric", "difference or share", "95% interval", "over", "verdict")
_MEMORY = ("GB", "GiB", "MB", "MiB")


def reproduction_table(result: Mapping[str, Any]) -> str:
    """Return a reproduction's result file as Markdown: arms by metrics, then claims, then how it was obtained."""
    arms: Mapping[str, Mapping[str, Any]] = result.get("arms", {})
    metrics = figures.metrics_of(arms)
    rows = [[f"`{arm}`", *(figures.with_error(m, cells.get(m)) for m in metrics)] for arm, cells in arms.items()]
    parts = [markdown_table(["arm", *map(figures.heading, metrics)], rows, right=range(1, len(metrics) + 1))]
    if claims := result.get("claims"):
        parts.append(markdown_table(_CLAIM_HEADS, [_claim_row(claim) for claim in claims], right=(2, 3)))
    parts.append(_origin(result))
    return "\n\n".join(parts)


def claims_table(results: Iterable[Mapping[str, Any]]) -> str:
    """Return the claims of several reproductions as one Markdown table, those that do not hold among them."""
    results = list(results)
    rows = [[f"`{r.get('method', '')}`", *_claim_row(claim)] for r in results for claim in r.get("claims", ())]
    heads = ["method", *_CLAIM_HEADS]
    return "\n\n".join([markdown_table(heads, rows, right=(3, 4)), _over_seeds(results)])


def headlines_table(results: Iterable[Mapping[str, Any]]) -> str:
    """Return the first claim of every reproduction, and how many of its claims hold."""
    rows, results = [], list(results)
    for result in results:
        claims = result.get("claims") or ()
        if claims:
            held = sum(claim.get("holds") is True for claim in claims)
            text, metric, estimate, interval, *_ = _claim_row(claims[0])
            rows.append([f"`{result.get('method', '')}`", text, metric, estimate, interval, f"{held} of {len(claims)}"])
    heads = ["method", "first claim", *_CLAIM_HEADS[1:4], "claims that hold"]
    return "\n\n".join([markdown_table(heads, rows, right=(3, 4, 5)), _over_seeds(results)])


def _over_seeds(results: Iterable[Mapping[str, Any]]) -> str:
    seeds = " or ".join(sorted({str(len(r.get("seeds") or ())) for r in results}))
    return f"Means and paired intervals over {seeds} seeds."


def benchmark_table(result: Mapping[str, Any]) -> str:
    """Return a benchmark's result file as Markdown: a row per case, ours beside the peer."""
    rows = [_case_row(case) for case in result.get("cases", ())]
    heads = ["case", "ours", "peer", "unit", "ratio"]
    return "\n\n".join([markdown_table(heads, rows, right=(1, 2, 4)), *_origins([result])])


def benchmarks_table(results: Iterable[Mapping[str, Any]]) -> str:
    """Return several benchmarks as one Markdown table."""
    results = list(results)
    rows = [[f"`{r.get('name', '')}`", *_case_row(case)] for r in results for case in r.get("cases", ())]
    heads = ["benchmark", "case", "ours", "peer", "unit", "ratio"]
    return "\n\n".join([markdown_table(heads, rows, right=(2, 3, 5)), *_origins(results)])


def ratios_table(results: Iterable[Mapping[str, Any]]) -> str:
    """Return of every benchmark the cases with the smallest and the largest ratio, memory left out."""
    rows, measured = [], []
    for result in results:
        cases = [
            c for c in result.get("cases", ()) if figures.is_number(c.get("ratio")) and c.get("unit") not in _MEMORY
        ]
        if cases:
            ends = (choose(cases, key=lambda case: case["ratio"]) for choose in (min, max))
            rows.append([f"`{result.get('name', '')}`", *(f"{c['ratio']:.2f}x ({c.get('case', '')})" for c in ends)])
            measured.append(result)
    return "\n\n".join([markdown_table(["benchmark", "smallest ratio", "largest ratio"], rows), *_origins(measured)])


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Return a Markdown table; columns in `right` are aligned to the right, and cells cannot break out of it."""
    right = set(right)
    rule = ["---:" if i in right else "---" for i in range(len(heads))]
    body = [[_cell(c) for c in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(map(_cell, heads)), rule, *body])


def render_table(name: str, root: Path) -> str:
    """Return the table called `name`, or a line that says how to measure it where there is no result file yet.

    Raises:
        InputError: the name is of no known collection, or a result file is not JSON.
    """
    collection, _, rest = name.partition("/")
    if collection not in _TABLES or not rest:
        raise InputError(
            f"table {name!r} is unknown: write reproductions/METHOD, benchmarks/NAME or {', '.join(_OF_ALL)}"
        )
    table, command = _TABLES[collection]
    folder = root / collection / "results"
    if name in _OF_ALL:
        of_all, make = _OF_ALL[name]
        files = sorted(folder.glob("*.json"))
        return of_all(map(_load, files)) if files else f"_Not measured yet: `{make}` does it._"
    file = folder / f"{rest}.json"
    if not file.is_file():
        return f"_Not measured yet: `{command.format(rest)}` does it._"
    return table(_load(file))


def fill(text: str, root: Path, where: str = "text") -> str:
    """Return Markdown `text` with every marked table made anew from the result files below `root`.

    Raises:
        InputError: a marker has no end, or names no known table; `where` and the line are named.
    """
    lines = text.split("\n")
    out: list[str] = []
    at = 0
    while at < len(lines):
        out.append(lines[at])
        begin = _BEGIN.fullmatch(lines[at].strip())
        at += 1
        if begin is None:
            continue
        try:
            end = next(i for i in range(at, len(lines)) if lines[i].strip() == _END)
        except StopIteration:
            raise InputError(f"{where}:{at}: table {begin[1]} has no end: add a line {_END}") from None
        out += ["", *render_table(begin[1], root).split("\n"), ""]
        at = end
    return "\n".join(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the tables of the given files, or with `--check` only say which are out of date (exit code 1)."""
    parser = argparse.ArgumentParser(prog="python -m selftaught.report.tables", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is out of date")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        stale = list(_stale(options.files))
        for file, text in stale:
            print(f"{file}: {'out of date' if options.check else 'written'}")
            if not options.check:
                file.write_text(text, encoding="utf-8")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.check and stale:
        print(f"run: python -m selftaught.report.tables {' '.join(str(file) for file, _ in stale)}", file=sys.stderr)
    return 1 if options.check and stale else 0


def _stale(files: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}: give Markdown files that exist") from None
        if (new := fill(text, Path(), str(file))) != text:
            yield file, new


def _load(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): measure it again") from None
    if not isinstance(result, dict):
        raise InputError(f"{file} must hold an object, not {type(result).__name__}: measure it again")
    return result


def _claim_row(claim: Mapping[str, Any]) -> list[str]:
    metric = str(claim.get("metric", ""))
    over = str(claim.get("over", ""))
    verdict = figures.verdict(claim)
    return [
        str(claim.get("text", "")),
        figures.heading(metric),
        figures.estimate(claim),
        figures.interval(claim),
        over,
        verdict,
    ]


def _case_row(case: Mapping[str, Any]) -> list[str]:
    ours, peer, ratio = (case.get(key) for key in ("ours", "peer", "ratio"))
    numbers = [figures.plain(v) if figures.is_number(v) else "" for v in (ours, peer)]
    times = f"{ratio:.2f}x" if figures.is_number(ratio) else ""
    return [str(case.get("case", "")), *numbers, str(case.get("unit", "")), times]


def _origin(result: Mapping[str, Any]) -> str:
    seeds = result.get("seeds") or []
    parts = [f"Recipe `{result.get('recipe', '')}`", f"seeds {', '.join(map(str, seeds))}" if seeds else ""]
    parts += [f"data `{result['data']}`"] if result.get("data") else []
    parts += [figures.duration(result.get("wall_seconds")), _versions(result)]
    sentence = "Mean ± one standard error. " + "; ".join(part for part in parts if part) + "."
    tried = result.get("tried")
    return sentence + (f" Settings tried on development seeds beforehand: {tried}." if tried else "")


def _origins(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each machine and its versions, with the dates of what was measured there."""
    dates: dict[str, list[str]] = {}
    for result in results:
        machine = result.get("machine", "")
        if isinstance(machine, dict):
            machine = ", ".join(str(value) for value in machine.values())
        where = "; ".join(part for part in (str(machine), _versions(result)) if part)
        dates.setdefault(where, []).append(str(result.get("date", "")))
    places = ((where, ", ".join(sorted({*days} - {""}))) for where, days in dates.items())
    return ["; ".join(filter(None, place)) + ". A ratio above 1 means that ours is better." for place in places]


def _versions(result: Mapping[str, Any]) -> str:
    versions = result.get("versions") or {}
    named = [f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if name in versions]
    return ", ".join(named)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").strip()


_TABLES: dict[str, tuple[Callable[[Mapping[str, Any]], str], str]] = {
    "reproductions": (reproduction_table, "selftaught reproduce {} --seeds 5"),
    "benchmarks": (benchmark_table, "python benchmarks/{}.py"),
}

_OF_ALL: dict[str, tuple[Callable[[Iterable[Mapping[str, Any]]], str], str]] = {
    "reproductions/claims": (claims_table, "selftaught reproduce all"),
    "reproductions/headlines": (headlines_table, "selftaught reproduce all"),
    "benchmarks/all": (benchmarks_table, "make bench"),
    "benchmarks/ratios": (ratios_table, "make bench"),
}

if __name__ == "__main__":
    sys.exit(main())
