"""Judges: what a judging model is shown, what is read from its text, and judges that are programs.

A judge is shown responses only: `responses` takes the thought out of every completion before anything else looks at
it, and gives back the bare question in place of the prompt that asked for a thought. What cannot be judged or read has
no value, and a note that says why.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from statistics import NormalDist
from typing import Any, get_args

from selftaught.errors import InputError
from selftaught.scorers.base import Scorer
from selftaught.specs import ModelSpec, Sampling
from selftaught.tasks import Task, load_task
from selftaught.tasks.sources import code_of, load_function
from selftaught.tasks.task import TaskSpec
from selftaught.text.rubrics import Rubric, fill, load_rubric, question_of, read_score, read_winner
from selftaught.text.thoughts import Parts, ThoughtFormat, split
from selftaught.types import Completion, Group, Message, Prompt, Score, Verdict, Winner, content_id, number_repeats

UNDECIDED = "the judge's program could not decide"
_CUT = "cut off before its verdict"
_SILENT = "the judge gave no answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Who judges: a `model` with a `rubric` (a name or a file), a `function` ("module:function"), else the task itself.

    A pointwise function gets (prompt, response) and returns a number or None; with `pairwise` it gets (prompt, first,
    second) and returns "first", "second", "tie" or None. The task's grade is 1 for a right response and 0 for a wrong
    one. To a number, of task or function, is added `length_bias` per character and Gaussian noise of standard
    deviation `noise`; in pairs of the task's grading, the first response gets `position_bias` and the noise is
    logistic, so that it wins with probability sigmoid(difference / noise). Whether a model judges in pairs is said by
    its rubric.
    """

    model: ModelSpec | None = None
    rubric: str = ""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0, max_tokens=1024))
    function: str | None = None
    pairwise: bool = False
    length_bias: float = 0.0
    position_bias: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if (self.model is None) != (not self.rubric):
            raise InputError(
                f"judge: model={self.model and self.model.source!r} rubric={self.rubric!r}: a judging model needs both"
            )
        if self.model is not None and self.function is not None:
            raise InputError(f"judge: model {self.model.source!r} and function {self.function!r}: give one of them")
        if not 0 <= self.noise < math.inf:
            raise InputError(f"judge: noise={self.noise} is a standard deviation; give 0 or more")
        if not (math.isfinite(self.length_bias) and math.isfinite(self.position_bias)):
            raise InputError(
                f"judge: length_bias={self.length_bias}, position_bias={self.position_bias}: give finite numbers"
            )

    @property
    def name(self) -> str:
        """What `Score.scorer` and `Verdict.scorer` say."""
        return f"judge/{Path(self.rubric).stem or self.function or 'task'}"

    @property
    def code(self) -> str:
        """A hash of the function's source, empty without a function."""
        return code_of(self.function) if self.function else ""

    @property
    def in_pairs(self) -> bool:
        """Whether it gives verdicts on pairs, not scores."""
        return load_rubric(self.rubric).kind == "pairwise" if self.rubric else self.pairwise


# --- what a judge is shown -------------------------------------------------------------------------------------------


def responses(group: Group, form: ThoughtFormat | None) -> tuple[Group, dict[str, str]]:
    """Return the group with bare responses to the bare question, and why other completions have none, by id.

    Ids stay what they are; completions without a response are left out of the group. Without a `form` every completion
    is a response as it stands, an empty one too.
    """
    parts = {c.id: Parts(response=c.text) if form is None else split(form, c) for c in group.completions}
    shown = tuple(replace(c, text=parts[c.id].response) for c in group.completions if not parts[c.id].error)
    prompt = group.prompt
    if "problem" in prompt.meta:
        prompt = replace(prompt, messages=(Message(role="user", content=question_of(prompt)),))
    return replace(group, prompt=prompt, completions=shown), {i: p.error for i, p in parts.items() if p.error}


def pointwise_prompts(
    groups: Iterable[Group], counts: Counter[str], *, rubric: Rubric, form: ThoughtFormat | None = None
) -> Iterator[Prompt]:
    """Yield one judge prompt per response, in order; `counts` gets the completions without one, by reason."""

    def prompts() -> Iterator[Prompt]:
        for group in groups:
            shown, errors = responses(group, form)
            counts.update(errors.values())
            for c in shown.completions:
                text = fill(rubric, question=question_of(shown.prompt), response=c.text)
                yield Prompt.from_text(text, parents=(group.id, c.id))

    return number_repeats(prompts())


def pairwise_prompts(
    groups: Iterable[Group],
    counts: Counter[str],
    *,
    rubric: Rubric,
    form: ThoughtFormat | None = None,
    pairs: Sequence[tuple[int, int]] = (),
) -> Iterator[Prompt]:
    """Yield a judge prompt for both orders of all pairs of responses, or of those numbered (k, k') in `pairs`."""

    def prompts() -> Iterator[Prompt]:
        for group in groups:
            shown, errors = responses(group, form)
            counts.update(errors.values())
            for a, b in ordered_pairs(shown.completions, pairs):
                text = fill(rubric, question=question_of(shown.prompt), first=a.text, second=b.text)
                yield Prompt.from_text(text, parents=(group.id, a.id, b.id))

    return number_repeats(prompts())


def ordered_pairs(
    completions: Sequence[Completion], pairs: Sequence[tuple[int, int]] = ()
) -> list[tuple[Completion, Completion]]:
    """Return both orders of all pairs, or of those whose numbers k stand in `pairs` in either order."""
    wanted = {frozenset(pair) for pair in pairs}
    return [(a, b) for a, b in permutations(completions, 2) if not pairs or frozenset((a.k, b.k)) in wanted]


# --- what is read from its text --------------------------------------------------------------------------------------


def read_scores(
    groups: Iterable[Group],
    judgments: Iterable[Group],
    counts: Counter[str],
    *,
    rubric: Rubric,
    scorer: str,
    form: ThoughtFormat | None = None,
) -> Iterator[Score]:
    """Yield a score for every completion: the mean of the numbers read from the judgments of its response.

    `judgments` are the completions of `pointwise_prompts`. They are the score's parents, behind the completion.

    Raises:
        InputError: they are those of other completions, or in another order.
    """
    judged = iter(judgments)
    for group in groups:
        errors = responses(group, form)[1]
        for c in group.completions:
            if c.id in errors:
                score = Score(completion_id=c.id, scorer=scorer, value=None, note=f"no response: {errors[c.id]}")
            else:
                score = _mean_score(c, next(judged, None), rubric, scorer)
            if score.value is None:
                counts[f"unscored: {score.note}"] += 1
            yield score


def _mean_score(completion: Completion, judgments: Group | None, rubric: Rubric, scorer: str) -> Score:
    if judgments is None or judgments.prompt.parents[-1:] != (completion.id,):
        raise InputError(
            f"completion {completion.id} has no judgment in its place: judge these groups, by the same form"
        )
    read = [read_score(rubric, j.text) for j in judgments.completions]
    values = [value for value, _ in read if value is not None]
    reasons = [why_unread(j, why) for j, (value, why) in zip(judgments.completions, read, strict=True) if value is None]
    return Score(
        completion_id=completion.id,
        scorer=scorer,
        value=sum(values) / len(values) if values else None,
        note=unread_note(reasons, len(read), "judgments"),
        parents=(completion.id, *(j.id for j in judgments.completions)),
    )


def read_verdicts(
    judgments: Iterable[Group], counts: Counter[str], *, rubric: Rubric, scorer: str
) -> Iterator[Verdict]:
    """Yield a verdict for every judgment of `pairwise_prompts`; `judge_completion_id` leads to its text."""
    for group in judgments:
        prompt_id, first, second = group.prompt.parents
        for judgment in group.completions:
            winner, why = read_winner(rubric, judgment.text)
            note = why_unread(judgment, why) if winner is None else ""
            if winner is None:
                counts[f"unread: {note}"] += 1
            yield Verdict(
                prompt_id=prompt_id,
                first=first,
                second=second,
                winner=winner,
                scorer=scorer,
                judge_completion_id=judgment.id,
                note=note,
                parents=(first, second, judgment.id),
            )


def why_unread(judgment: Completion, why: str) -> str:
    """Return why a judgment could not be read: `why`, unless it was cut off."""
    return why if judgment.finish == "stop" else _CUT


def unread_note(reasons: Sequence[str], answers: int, what: str) -> str:
    """Return the note on answers (called `what`) of which some could not be read, empty where all could."""
    if not answers:
        return _SILENT
    return f"{len(reasons)} of {answers} {what} unread: {reasons[0]}" if reasons else ""


# --- programs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OfResponses:
    """A scorer that sees bare responses to bare questions.

    A completion without one is unscored or, with `as_empty`, scored as an empty response: wrong, for a verifier.
    """

    scorer: Scorer
    form: ThoughtFormat | None = None
    as_empty: bool = False

    @property
    def name(self) -> str:
        """What `Score.scorer` says: the inner scorer's name."""
        return self.scorer.name

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Yield the scores of each group's completions."""
        waiting: deque[tuple[Group, dict[str, str]]] = deque()

        def shown() -> Iterator[Group]:
            for group in groups:
                bare, errors = responses(group, self.form)
                waiting.append((group, errors))
                texts = {c.id: c.text for c in bare.completions} | (dict.fromkeys(errors, "") if self.as_empty else {})
                rows = tuple(replace(c, text=texts[c.id]) for c in group.completions if c.id in texts)
                yield replace(bare, completions=rows)

        for rows in self.scorer(shown()):
            group, errors = waiting.popleft()
            scores = {row.completion_id: row for row in rows if isinstance(row, Score)}
            yield [scores.get(c.id) or self._without(c, errors[c.id]) for c in group.completions]

    def _without(self, completion: Completion, error: str) -> Score:
        return Score(completion_id=completion.id, scorer=self.name, value=None, note=f"no response: {error}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grades:
    """A program's scores of responses, one each. `code` identifies the function's source."""

    judge: Judge
    task: Task | TaskSpec | None = None
    seed: int = 0
    code: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", self.judge.code)

    @property
    def name(self) -> str:
        """What `Score.scorer` says."""
        return self.judge.name

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Yield the grades of each group's completions."""
        task = None if self.task is None else load_task(self.task)
        for group in groups:
            yield [self._score(group.prompt, c, task) for c in group.completions]

    def _score(self, prompt: Prompt, completion: Completion, task: Task | None) -> Score:
        value = grade(self.judge, task, prompt, completion.text)
        if value is not None and self.judge.noise:
            drawn = _uniform("grade", self.seed, prompt.id, completion.text)
            value += NormalDist(0.0, self.judge.noise).inv_cdf(drawn)
        note = UNDECIDED if value is None else ""
        return Score(completion_id=completion.id, scorer=self.name, value=value, note=note)


@dataclass(frozen=True, slots=True, kw_only=True)
class Battles:
    """A program's verdicts on both orders of all pairs of responses, or of those in `pairs`."""

    judge: Judge
    task: Task | TaskSpec | None = None
    form: ThoughtFormat | None = None
    pairs: tuple[tuple[int, int], ...] = ()
    seed: int = 0
    code: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", self.judge.code)

    @property
    def name(self) -> str:
        """What `Verdict.scorer` says."""
        return self.judge.name

    def __call__(self, groups: Iterable[Group]) -> Iterator[list[Verdict]]:
        """Yield the verdicts of each group."""
        task = None if self.task is None else load_task(self.task)
        for group in groups:
            shown, _ = responses(group, self.form)
            yield [self._verdict(shown.prompt, *pair, task) for pair in ordered_pairs(shown.completions, self.pairs)]

    def _verdict(self, prompt: Prompt, first: Completion, second: Completion, task: Task | None) -> Verdict:
        winner = (
            _call_pairwise(self.judge.function, prompt, first.text, second.text)
            if self.judge.function
            else self._compare(prompt, first.text, second.text, task)
        )
        note = UNDECIDED if winner is None else ""
        return Verdict(
            prompt_id=prompt.id, first=first.id, second=second.id, winner=winner, scorer=self.name, note=note
        )

    def _compare(self, prompt: Prompt, first: str, second: str, task: Task | None) -> Winner | None:
        ours, theirs = (grade(self.judge, task, prompt, text) for text in (first, second))
        if ours is None or theirs is None:
            return None
        drawn = _uniform("battle", self.seed, prompt.id, first, second)
        lead = ours - theirs + self.judge.position_bias + self.judge.noise * math.log(drawn / (1 - drawn))
        return "first" if lead > 0 else "second" if lead < 0 else "tie"


def grade(judge: Judge, task: Task | None, prompt: Prompt, response: str) -> float | None:
    """Return the grade of a response without noise, by the judge's function or by the task, None if undecided."""
    if judge.function:
        value = _call(judge.function, prompt, response)
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise InputError(f"{judge.function} returned {value!r:.60}; it must return a finite number, or None")
    elif task is None:
        raise InputError(f"{judge.name} is neither a model nor a function, and there is no task to grade: name one")
    else:
        value = task.verify(prompt, response)
    return None if value is None else float(value) + judge.length_bias * len(response)


def _call_pairwise(function: str, prompt: Prompt, first: str, second: str) -> Winner | None:
    winner = _call(function, prompt, first, second)
    if winner is not None and winner not in get_args(Winner):
        raise InputError(f"{function} returned {winner!r:.60}; it must return 'first', 'second', 'tie' or None")
    return winner


def _call(function: str, *arguments: Any) -> Any:
    try:
        return load_function(function)(*arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{function} failed on {arguments[1][:60]!r} with {reason}; let it return None") from error


def _uniform(*parts: object) -> float:
    """Return a number in (0, 1) that `parts` fix."""
    return (int(content_id("judge", *parts), 16) + 0.5) / 2**96
