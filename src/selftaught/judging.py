"""How a judge runs: its prompts, the judgments and what is read from them are stages, like everything else."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from selftaught.evals.judging import judge_reports, win_rate
from selftaught.evals.metrics import PerProblem
from selftaught.evals.thoughts import contest
from selftaught.scorers.judges import (
    Battles,
    Grades,
    Judge,
    OfResponses,
    pairwise_prompts,
    pointwise_prompts,
    read_scores,
    read_verdicts,
)
from selftaught.store.groups import Groups
from selftaught.tasks import Task, TaskSpec
from selftaught.tasks.comparisons import read_comparisons
from selftaught.text.rubrics import load_rubric
from selftaught.text.thoughts import NONE, ThoughtFormat
from selftaught.types import Completion, Group, Prompt, Report, Score, Verdict

if TYPE_CHECKING:
    from selftaught.lab import Lab
    from selftaught.store.stage import Stage


def judge(
    lab: "Lab",
    groups: Groups,
    by: Judge,
    *,
    task: Task | TaskSpec | None = None,
    form: ThoughtFormat | None = None,
    pairs: Sequence[tuple[int, int]] = (),
) -> Groups:
    """Add the scores of a pointwise judge, or a pairwise one's verdicts on both orders of all pairs (or of `pairs`).

    It sees what `form` says is the response, never a thought; without a `form`, every completion as it stands. A judge
    that is neither model nor function grades with `task`. Scores and verdicts carry `by.name`.

    Raises:
        InputError: the judge needs a task and there is none.
    """
    if by.model is not None:
        return _ask_model(lab, groups, by, form, tuple(pairs))
    if by.in_pairs:
        battles = Battles(judge=by, task=task, form=form, pairs=tuple(pairs), seed=lab.seed)
        verdicts = lab.stage("verdicts", Verdict, verdict_rows, groups, scorer=battles)
        return _with_verdicts(groups, verdicts)
    return lab.score(groups, OfResponses(scorer=Grades(judge=by, task=task, seed=lab.seed), form=form))


def _ask_model(
    lab: "Lab", groups: Groups, by: Judge, form: ThoughtFormat | None, pairs: tuple[tuple[int, int], ...]
) -> Groups:
    assert by.model is not None
    rubric = load_rubric(by.rubric)
    if rubric.kind == "pairwise":
        asked = lab.stage("judge_prompts", Prompt, pairwise_prompts, groups, rubric=rubric, form=form, pairs=pairs)
    else:
        asked = lab.stage("judge_prompts", Prompt, pointwise_prompts, groups, rubric=rubric, form=form)
    # Where no completion has a response there is nothing to ask, and every score says why.
    written = lab.generate(by.model, asked, by.sampling) if len(asked) else Groups(prompts=asked)
    if rubric.kind == "pairwise":
        verdicts = lab.stage("verdicts", Verdict, read_verdicts, written, rubric=rubric, scorer=by.name)
        return _with_verdicts(groups, verdicts)
    scores = lab.stage("score", Score, read_scores, groups, written, rubric=rubric, scorer=by.name, form=form)
    return replace(groups, scores=(*groups.scores, scores), _starts=[])


def _with_verdicts(groups: Groups, verdicts: "Stage[Verdict]") -> Groups:
    return replace(groups, verdicts=(*groups.verdicts, verdicts), _starts=[])


def verdict_rows(
    groups: Groups, counts: Counter[str], *, scorer: Callable[[Iterable[Group]], Iterator[list[Verdict]]]
) -> Iterator[Verdict]:
    """Yield the verdicts on all groups, counting those without a winner by their note."""
    for verdict in chain.from_iterable(scorer(groups)):
        if verdict.winner is None:
            counts[f"unread: {verdict.note}"] += 1
        yield verdict


def compare(
    lab: "Lab",
    problems: Sequence[Prompt],
    baseline: tuple[Groups, ThoughtFormat],
    ours: tuple[Groups, ThoughtFormat],
    by: Judge,
    *,
    task: Task | TaskSpec | None = None,
) -> PerProblem:
    """Return by problem how often a pairwise judge prefers our response to the baseline's, each shown first once.

    Both groups answer `problems`, in their order; their first completions are compared. None where one has no response.
    """
    forms = {"baseline_form": baseline[1], "form": ours[1]}
    rivals = lab.stage("contest", Completion, contest, baseline[0], ours[0], **forms)
    rivalries = Groups(prompts=lab.table(problems), completions=(rivals,))
    return win_rate(judge(lab, rivalries, by, task=task, form=NONE), by.name)


def judge_file(lab: "Lab", data: Path, by: Judge, *, limit: int | None = None) -> tuple[Groups, dict[str, Report]]:
    """Let a judge compare the two responses of every row of `data` and measure it against the rows' labels.

    Returns the judged groups and the reports of `evals.judging.judge_reports`, over all rows and over each `subset`.

    Raises:
        InputError: the file has no comparisons, or the judge needs a task.
    """
    rows = read_comparisons(data, limit)
    groups = Groups(
        prompts=lab.table([group.prompt for group in rows]),
        completions=(lab.stage("responses", Completion, [c for group in rows for c in group.completions]),),
        scores=(lab.stage("score", Score, [s for group in rows for s in group.scores]),),
    )
    judged = judge(lab, groups, by)
    reports, _ = judge_reports(judged, by.name)
    for report in reports:
        lab.note_report(report)
    return judged, {report.name: report for report in reports}
