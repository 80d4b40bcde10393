"""`report.html`: one file that shows a run, with nothing fetched from anywhere.

Everything a model wrote is untrusted: the template escapes it, data for the script is JSON without a single character
that HTML or JavaScript could take for markup, the script builds text nodes only, and a content security policy lets the
browser run nothing but that script, by its hash.
"""

import base64
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from selftaught.report import charts, figures
from selftaught.report.charts import COLOURS, Line
from selftaught.report.groups import browse
from selftaught.report.patches import patch_section
from selftaught.report.reading import Point, Run, StageLine, read_run
from selftaught.report.temperatures import temperature_section

ASSETS = Path(__file__).parent / "assets"
MOST_GROUPS = 200
SEED_ARM = "seed_model"
TRAINING_METRICS = (
    "loss",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "kl",
    "grad_norm",
)


def build_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html from what the run has written so far, and return its path.

    A run that has not finished, or was killed, gives a report of the part there is.

    Raises:
        InputError: `run_dir` is not a run directory.
    """
    page = render(read_run(run_dir))
    path = run_dir / "report.html"
    aside = run_dir / f".report-{os.getpid()}.html"
    aside.write_bytes(page.encode("utf-8", "replace"))  # text of models may hold lone surrogates
    aside.replace(path)
    return path


def render(run: Run) -> str:
    """Return the whole page."""
    browsed = browse(run, MOST_GROUPS)
    script = asset("page.js")
    return fill_template(
        "page.html",
        scripts=f"; script-src '{_digest(script)}'",
        script=script,
        title=run.title,
        facts=list(_facts(run)),
        notes=(*run.notes, *browsed.notes),
        results=_results(run),
        claims=list(_claims(run)),
        per_seed=_per_seed(run),
        legend=_colours(run),
        rounds=list(_round_charts(run)),
        training=list(_training_charts(run)),
        measurements=run.measurements,
        temperatures=temperature_section(run),
        patches=patch_section(run, _colours(run)),
        stages=_stage_table(run.stages),
        groups=len(browsed.groups),
        data=script_json({"groups": browsed.groups}),
        config=run.config,
        versions=(run.summary or {}).get("versions", {}),
    )


def fill_template(name: str, *, scripts: str = "", **values: Any) -> str:
    """Return a page made of a template, with the style sheet and a policy that lets nothing else in.

    `scripts` is the policy's part on scripts, with the semicolon before it.
    """
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(figures=figures, share_bar=charts.share_bar)
    style = asset("page.css")
    policy = f"default-src 'none'; style-src '{_digest(style)}'{scripts}; base-uri 'none'"
    return environment.get_template(name).render(style=style, policy=policy, **values)


def asset(name: str) -> Markup:
    """Return a file of this package that goes into pages as it is."""
    return Markup((ASSETS / name).read_text(encoding="utf-8"))


def script_json(value: Any) -> Markup:
    """Return `value` as JSON that is safe inside `<script>`: ASCII only, with `<`, `>` and `&` written as escapes."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    summary = run.summary or {}
    yield "Status", "finished" if run.summary else "not finished"
    seeds = summary.get("seeds") or []
    if seeds:
        yield "Seeds" if len(seeds) > 1 else "Seed", ", ".join(str(seed) for seed in seeds)
    if figures.is_number(summary.get("wall_seconds")):
        yield "Wall time", figures.duration(summary["wall_seconds"])
    stages = run.stages
    if stages:
        cached = sum(stage.cached for stage in stages)
        yield "Stages", f"{len(stages)}" + (f", {cached} from the cache" if cached else "")
    if summary.get("tried"):
        yield "Settings tried", str(summary["tried"])


def _colours(run: Run) -> dict[str, int]:
    """Return every trained arm with the number of its colour; the seed model is drawn as a reference line."""
    names = [*run.arms, *(arm for metric in run.round_metrics() for arm in run.rounds(metric))]
    return {arm: i % COLOURS for i, arm in enumerate(dict.fromkeys(name for name in names if name != SEED_ARM))}


def _results(run: Run) -> dict[str, Any]:
    arms, colours = run.arms, _colours(run)
    metrics = figures.metrics_of(arms)
    best = {m: _best(_means(arms, m).values()) for m in metrics if m.startswith("accuracy")}
    rows = []
    for arm, cells in arms.items():
        row = [{"cell": cells.get(m), "metric": m, "best": _is_best(cells.get(m), best.get(m))} for m in metrics]
        rows.append({"arm": arm, "colour": colours.get(arm), "cells": row})
    drawn = [_final_chart(arms, metric, colours) for metric in metrics if metric.startswith("accuracy")]
    return {"metrics": metrics, "rows": rows, "charts": drawn}


def _means(arms: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, float]:
    means = ((arm, (cells.get(metric) or {}).get("mean")) for arm, cells in arms.items())
    return {arm: float(mean) for arm, mean in means if figures.is_number(mean)}


def _best(means: Collection[float]) -> float | None:
    return max(means) if len(set(means)) > 1 else None


def _is_best(cell: Mapping[str, Any] | None, best: float | None) -> bool:
    return bool(cell) and best is not None and cell.get("mean") == best  # type: ignore[union-attr]


def _final_chart(arms: Mapping[str, Mapping[str, Any]], metric: str, colours: Mapping[str, int]) -> dict[str, Any]:
    rows = []
    for arm, mean in _means(arms, metric).items():
        error = arms[arm][metric].get("stderr")
        error = figures.scaled(metric, error) if figures.is_number(error) else None
        rows.append((arm, figures.scaled(metric, mean), error, colours.get(arm, COLOURS - 1)))
    name = figures.heading(metric)
    return {"name": name, "chart": charts.dot_chart(f"{name} of every arm", rows, name)}


_KINDS = {"ratio": "share of the gain of {gold}", "difference": "difference", "value": "value"}


def _claims(run: Run) -> Iterator[dict[str, Any]]:
    claims = (run.summary or {}).get("claims", [])
    for claim in claims:
        alike = [_span(c) for c in claims if _scale(c) == _scale(claim)]
        # What the interval must lie beyond.
        mark = float(claim.get("share") or claim.get("margin") or 0.0) * (-1 if claim.get("lower_is_better") else 1)
        ends = [mark, 0.0, *(value for span in alike for value in span)]
        title = f"{claim.get('text', '')}: {figures.estimate(claim)}, 95% interval {figures.interval(claim)}"
        bar = Markup("")
        if span := _span(claim):
            bar = charts.interval_bar(title, *span, limits=(min(ends), max(ends)), mark=mark)
        kind = _KINDS[_scale(claim)[0]].format(gold=claim.get("gold"))
        yield {"text": "", "over": "", "metric": "", **claim, "kind": kind, "bar": bar, "figures": claim}


def _scale(claim: Mapping[str, Any]) -> tuple[str, Any]:
    """Return what claims must share to be drawn on one scale."""
    kind = next((kind for kind in _KINDS if kind in claim), "difference")
    return kind, None if kind == "ratio" else claim.get("metric")


def _span(claim: Mapping[str, Any]) -> tuple[float, ...]:
    """Return a claim's lower end, estimate and upper end, or nothing where one is unknown."""
    low, high = claim.get("ci95") or (None, None)
    span = (low, figures.evidence(claim), high)
    known = tuple(value for value in span if figures.is_number(value))
    return known if len(known) == len(span) else ()


def _per_seed(run: Run) -> dict[str, Any] | None:
    seeds: Mapping[str, Mapping[str, Mapping[str, Any]]] = (run.summary or {}).get("per_seed", {})
    if len(seeds) < 2:
        return None
    metrics = [m for m in figures.metrics_of(run.arms) if m.startswith("accuracy")]
    rows = [
        (arm, metric, [figures.figure(metric, seeds[seed].get(arm, {}).get(metric)) for seed in seeds])
        for arm in run.arms
        for metric in metrics
    ]
    return {"seeds": list(seeds), "rows": rows}


def _round_charts(run: Run) -> Iterator[dict[str, Any]]:
    colours, arms = _colours(run), run.arms
    for metric in run.round_metrics():
        curves = run.rounds(metric)
        seed = _means(arms, metric).get(SEED_ARM)
        lines = [
            Line(label=arm, points=[_scaled(metric, p) for p in points], colour=colours[arm])
            for arm, points in curves.items()
            if arm in colours
        ]
        name = figures.heading(metric)
        reference = None if seed is None else ("seed model", figures.scaled(metric, seed))
        chart = charts.line_chart(f"{name} by round", lines, x_label="round", reference=reference)
        if chart:
            values = [(arm, p.x, {"mean": p.y, "stderr": p.stderr}) for arm in colours for p in curves.get(arm, ())]
            yield {"name": name, "chart": chart, "metric": metric, "values": values}


def _scaled(metric: str, point: Point) -> Point:
    error = None if point.stderr is None else figures.scaled(metric, point.stderr)
    return Point(x=point.x, y=figures.scaled(metric, point.y), stderr=error)


def _training_charts(run: Run) -> Iterator[dict[str, Any]]:
    """Yield a chart per training metric; the seed model's training is drawn apart, its scale being another."""
    colours = _colours(run)
    for metric in TRAINING_METRICS:
        curves = run.training(metric)
        for seed_model in (True, False):
            lines = [
                Line(
                    label=f"{arm}, round {number}" if number else arm,
                    points=points,
                    colour=colours.get(arm, COLOURS - 1),
                    dash=max(0, (number or 1) - 1),
                )
                for (arm, number), points in curves.items()
                if (arm == SEED_ARM) == seed_model
            ]
            name = f"{metric}, seed model" if seed_model else metric
            chart = charts.line_chart(f"{name} over training steps", lines, x_label="optimizer step")
            if chart:
                yield {"name": name, "chart": chart, "rounds": max(line.dash for line in lines) + 1}


def _stage_table(stages: Sequence[StageLine]) -> dict[str, list[dict[str, Any]]]:
    table: dict[str, list[dict[str, Any]]] = {}
    for stage in stages:
        counts = dict(stage.counts)
        # what a scorer could not score is among its rows; what other steps count is missing from theirs
        if counts and stage.verb != "score":
            counts = {"kept": stage.rows or 0, **counts}
        bar = charts.share_bar(list(counts.items())) if "kept" in counts else Markup("")
        table.setdefault(stage.label, []).append({"stage": stage, "counts": counts.items(), "bar": bar})
    return table
