"""What is right and wrong inside solutions, on groups scored by "verifier" and "steps" (Step-KTO, arXiv 2501.10799)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import nan, sqrt

from selftaught.evals.evaluate import summarise
from selftaught.evals.metrics import PerProblem, mean_known
from selftaught.types import Completion, Group, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solution:
    right: bool | None
    steps: int
    labelled: int
    wrong: int
    length: int


def evaluate_steps(groups: Iterable[Group], prefix: str = "") -> tuple[list[Report], dict[str, PerProblem]]:
    """Report what the steps of all samples are worth; also return the values of each problem. Names follow `prefix`.

    - `step_error_share`: of the solutions with a right answer, the share with at least one wrong step (the paper's
      table 3 under this reading of it), pooled over samples; its `n` counts these solutions. One without a wrong step
      but with an undecided one, or of whose steps nothing is known, is left out, as unscored;
    - `step_accuracy`: the share of right steps among those decided, per solution, then per problem;
    - `steps`, `length`: steps and tokens (characters where a completion has no tokens) per solution.
    """
    problems = {group.id: _solutions(group) for group in groups}
    errors, unscored = {}, 0
    for name, solutions in problems.items():
        right = [s for s in solutions if s.right]
        known = [s for s in right if s.wrong or (s.steps and s.labelled == s.steps)]
        errors[name] = (sum(s.wrong > 0 for s in known), len(known))
        unscored += len(right) - len(known)
    per_problem: dict[str, PerProblem] = {
        "step_error_share": {name: wrong / n if n else None for name, (wrong, n) in errors.items()},
        "step_accuracy": {
            name: mean_known([1 - s.wrong / s.labelled for s in solutions if s.labelled])
            for name, solutions in problems.items()
        },
        "steps": {name: mean_known([s.steps for s in solutions]) for name, solutions in problems.items()},
        "length": {name: mean_known([s.length for s in solutions]) for name, solutions in problems.items()},
    }
    reports = [pooled_share(prefix + "step_error_share", errors, unscored)]
    reports += [summarise(prefix + name, per_problem[name]) for name in ("step_accuracy", "steps", "length")]
    return reports, {prefix + name: values for name, values in per_problem.items()}


def pooled_share(name: str, counts: Mapping[str, tuple[int, int]], unscored: int = 0) -> Report:
    """Return the share of hits over all problems' (hits, n), with the standard error of a ratio of problem sums.

    Worked: (1, 2) and (0, 2) pool to 1 / 4; residuals 1 - 0.5 and 0 - 0.5, so the standard error is
    sqrt(2 / 1 * (0.25 + 0.25)) / 4 = 0.25.

    >>> report = pooled_share("x", {"a": (1, 2), "b": (0, 2)})
    >>> (report.mean, report.stderr, report.n)
    (0.25, 0.25, 4)
    """
    counted = [(hits, n) for hits, n in counts.values() if n]
    total = sum(n for _, n in counted)
    share = sum(hits for hits, _ in counted) / total if total else nan
    spread = sum((hits - share * n) ** 2 for hits, n in counted)
    clusters = len(counted)
    stderr = sqrt(spread * clusters / (clusters - 1)) / total if clusters > 1 else nan
    return Report(name=name, mean=share, stderr=stderr, n=total, unscored=unscored)


def _solutions(group: Group) -> list[_Solution]:
    verdicts = group.scores_by("verifier")
    labels: dict[str, list[float | None]] = defaultdict(list)
    for score in group.scores:
        if score.scorer == "steps" and score.span is not None:
            labels[score.completion_id].append(score.value)
    solutions = []
    for completion in group.completions:
        verdict = verdicts.get(completion.id)
        found = labels[completion.id]
        solutions.append(
            _Solution(
                right=None if verdict is None or verdict.value is None else verdict.value >= 0.5,
                steps=len(found),
                labelled=sum(value is not None for value in found),
                wrong=sum(value is not None and value < 0.5 for value in found),
                length=_length(completion),
            )
        )
    return solutions


def _length(completion: Completion) -> int:
    return len(completion.text) if completion.token_ids is None else len(completion.token_ids)
