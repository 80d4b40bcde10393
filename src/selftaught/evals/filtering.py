"""How well a prompt filter finds the prompts that are known to be corrupted, and how sound written prompts are."""

from collections.abc import Callable, Mapping, Sequence
from math import nan, sqrt

from selftaught.evals.evaluate import summarise
from selftaught.evals.metrics import PerProblem
from selftaught.select.prompt_measures import SIDES, Measured
from selftaught.select.rip import Ruling
from selftaught.types import Prompt, Report


def removal_auc(margins: Mapping[str, float | None], corrupted: Mapping[str, bool]) -> float | None:
    """Return the probability that a corrupted prompt has a lower margin than a clean one, ties counting half.

    `margins` and `corrupted` are by prompt id; prompts without a margin are left out. None with one class only.

    Worked: corrupted at -1 and -1, clean at 1 and -1: two of four pairs in order, two tied, so (2 + 1) / 4.

    >>> removal_auc({"a": -1, "b": -1, "c": 1, "d": -1}, {"a": True, "b": True, "c": False, "d": False})
    0.75
    """
    known = [(margin, corrupted[name]) for name, margin in margins.items() if margin is not None]
    clean = sum(not bad for _, bad in known)
    bad = len(known) - clean
    if not clean or not bad:
        return None
    # Methods import this module: scipy would take a third of a second of every command.
    from scipy.stats import rankdata

    ranks = rankdata([margin for margin, _ in known])
    of_clean = sum(rank for rank, (_, is_bad) in zip(ranks, known, strict=True) if not is_bad)
    return float(of_clean - clean * (clean + 1) / 2) / (clean * bad)


def auc_report(name: str, margins: Mapping[str, float | None], corrupted: Mapping[str, bool]) -> Report:
    """Return the AUC of removal with the standard error of Hanley and McNeil (1982); NaN with one class only."""
    known = [corrupted[prompt] for prompt, margin in margins.items() if margin is not None]
    auc, n, unscored = removal_auc(margins, corrupted), len(known), len(margins) - len(known)
    if auc is None:
        return Report(name=name, mean=nan, stderr=nan, n=n, unscored=unscored)
    bad = sum(known)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (bad - 1) * (q1 - auc**2) + (n - bad - 1) * (q2 - auc**2)
    stderr = sqrt(max(0.0, spread) / (bad * (n - bad)))
    return Report(name=name, mean=auc, stderr=stderr, n=n, unscored=unscored)


def audit_removal(rulings: Mapping[str, Ruling], labels: Mapping[str, str], unseen: str = "") -> dict[str, Report]:
    """Report a filter's rulings on prompts with labels: how each is corrupted, "" for a clean one.

    `auc_removed` (by the margin), `precision_removed` (corrupted among the removed; NaN where none is) and
    `recall_removed` (removed among the corrupted); and, against the label `unseen` alone, `auc_unseen`.
    """
    removed = {name: bool(ruling.failed) for name, ruling in rulings.items()}
    corrupted = {name: bool(labels[name]) for name in rulings}
    values: dict[str, PerProblem] = {
        "precision_removed": {name: float(corrupted[name]) for name in removed if removed[name]},
        "recall_removed": {name: float(removed[name]) for name in removed if corrupted[name]},
    }
    margins = {name: ruling.margin for name, ruling in rulings.items()}
    reports = [auc_report("auc_removed", margins, corrupted)]
    if unseen:
        part = {name: margin for name, margin in margins.items() if labels[name] in ("", unseen)}
        reports.append(auc_report("auc_unseen", part, corrupted))
    reports += [summarise(name, per_prompt) for name, per_prompt in values.items()]
    return {report.name: report for report in reports}


def audit_prompts(
    prompts: Sequence[Prompt], kept: Sequence[Prompt], well_formed: Callable[[str], bool] | None = None
) -> dict[str, Report]:
    """Report the share `kept` of `prompts` and, by `well_formed`, how many are well formed before and after."""
    used = {prompt.id for prompt in kept}
    values: dict[str, PerProblem] = {"kept": {prompt.id: float(prompt.id in used) for prompt in prompts}}
    if well_formed is not None:
        values["well_formed"] = {prompt.id: float(well_formed(prompt.text)) for prompt in prompts}
        values["well_formed_kept"] = {prompt.id: float(well_formed(prompt.text)) for prompt in kept}
    return {name: summarise(name, per_prompt) for name, per_prompt in values.items()}


def measure_reports(pool: Sequence[Measured], corrupted: Mapping[str, bool]) -> list[Report]:
    """Report how well each measure alone would remove the corrupted prompts: `auc_` and its name."""
    names = dict.fromkeys(name for row in pool for name in row.values)
    return [auc_report(f"auc_{name}", {row.id: _goodness(row, name) for row in pool}, corrupted) for name in names]


def _goodness(row: Measured, name: str) -> float | None:
    value = row.values.get(name)
    return value if value is None or SIDES[name] == "above" else -value
