"""What the console shows of a run: plain text of fixed width, without colours."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selftaught.report import figures
from selftaught.report.reading import Run, read_run
from selftaught.store.manifest import MANIFEST


def format_table(summary: Mapping[str, Any], width: int | None = None) -> str:
    """Return a summary as text: its arms by metrics with standard errors, then its claims.

    `width` in characters is the terminal's where it is not given; metrics that do not fit are counted, not broken.
    """
    return "\n".join(_summary_lines(summary, width or shutil.get_terminal_size(fallback=(100, 24)).columns))


def show_run(run_dir: Path, width: int | None = None) -> str:
    """Return the state of a run directory as text: its stages, its last training step and its figures so far.

    Raises:
        InputError: `run_dir` is not a run directory.
    """
    run = read_run(run_dir)
    lines = [f"{run_dir}: {'finished' if run.summary else 'not finished'}"]
    lines += [f"  {note}" for note in run.notes]
    lines += ["", *_stage_lines(run)]
    if unfinished := _unfinished(run_dir / "stages"):
        lines += ["", "begun, not finished (resume goes on with them):", *(f"  {name}" for name in unfinished)]
    if training := _training_line(run):
        lines += ["", training]
    summary = run.summary or {"arms": run.arms}
    if summary["arms"]:
        lines += ["", format_table(summary, width)]
    if run.summary is None:
        lines += ["", f"go on with: selftaught resume {run_dir}"]
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """Return `rows` as lines with their cells aligned in columns, those in `right` to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  ".join(cells).rstrip())
    return lines


def _summary_lines(summary: Mapping[str, Any], width: int) -> Iterator[str]:
    seeds = summary.get("seeds") or []
    facts = [str(summary.get(key) or "") for key in ("method", "recipe")]
    facts += [f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"] if seeds else []
    facts += [figures.duration(summary.get("wall_seconds"))]
    if any(facts):
        yield ", ".join(fact for fact in facts if fact)
        yield ""
    yield from _arm_lines(summary.get("arms", {}), width)
    claims = summary.get("claims") or []
    if claims:
        yield ""
        yield "Claims (difference, share of a gain or value, 95% interval)"
        yield from columns([_claim_row(claim) for claim in claims])


def _arm_lines(arms: Mapping[str, Mapping[str, Any]], width: int) -> Iterator[str]:
    metrics = figures.metrics_of(arms)
    metrics.sort(key=lambda name: not name.startswith("accuracy"))
    shown = list(metrics)
    while True:
        rows = [["arm", *(figures.heading(m) for m in shown)]]
        rows += [[arm, *(figures.with_error(m, cells.get(m)) for m in shown)] for arm, cells in arms.items()]
        lines = columns(rows, frozenset(range(1, len(shown) + 1)))
        if len(shown) <= 1 or max(map(len, lines)) <= width:
            break
        shown.pop()
    yield lines[0]
    yield "-" * max(map(len, lines))
    yield from lines[1:]
    hidden = len(metrics) - len(shown)
    yield "mean ± one standard error" + (f"; {hidden} more metrics in report.html" if hidden else "")


def _claim_row(claim: Mapping[str, Any]) -> list[str]:
    over = f"over {claim['over']}" if claim.get("over") else ""
    evidence = f"{figures.estimate(claim)} {figures.interval(claim)} {over}".strip()
    return [f"  [{figures.verdict(claim)}]", str(claim.get("text", "")), evidence]


def _stage_lines(run: Run) -> list[str]:
    if not run.stages:
        return ["no stage has been reported yet"]
    rows = [["arm and round", "step", "rows", "time", "stage"]]
    for stage in run.stages:
        rows_text = "" if stage.rows is None else figures.plain(stage.rows)
        time = figures.duration(stage.seconds) + (" (cached)" if stage.cached else "")
        rows.append([stage.label, stage.verb, rows_text, time, stage.name])
    return columns(rows, frozenset({2, 3}))


def _unfinished(stages: Path) -> list[str]:
    if not stages.is_dir():
        return []
    return sorted(p.name for p in stages.iterdir() if p.is_dir() and not (p / MANIFEST).exists())


def _training_line(run: Run) -> str:
    """Return the last training step that the run reported."""
    last = next((e for e in reversed(run.events) if e.get("event") == "train"), None)
    if last is None:
        return ""
    where = [str(last.get("arm") or "seed_model")] + ([f"round {last['round']}"] if last.get("round") else [])
    names = [n for n in ("loss", "rewards/margins", "learning_rate") if figures.is_number(last.get(n))]
    values = ", ".join(f"{name} {figures.plain(last[name])}" for name in names)
    return f"last training step: {', '.join(where)}, step {last.get('step', '?')}: {values}"
