"""Feedback rows from scored samples: right and wrong completions of each prompt, with labels for their steps.

Choices are fixed by (seed, prompt, text), so arms that differ in labels alone train on the same completions.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal, NamedTuple

from selftaught.errors import InputError
from selftaught.store.groups import Groups
from selftaught.text.steps import check_spans, cover
from selftaught.types import Completion, Demonstration, Feedback, Group, Score, content_id, content_share

Tally = Counter[str]
Policy = Literal["independent", "first_error", "propagate"]
StepLabel = tuple[int, int, bool]


class _Choice(NamedTuple):
    """A completion that may become a row. `draw` is uniform over (seed, prompt, text)."""

    draw: str
    completion: Completion
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRows:
    """At most `per_class` right and `per_class` wrong completions of every prompt, each text once.

    `scorer` gives 1 to a right and 0 to a wrong completion; an undecided one (None) is neither. With `balanced`, rows
    of the larger class are left out, by lot over all prompts, until both are equal; the groups are then read twice.

    `steps` names the scorer of the steps (scores with spans); a step is right from `threshold` on, and one without a
    value has no label. `policy` says what follows a wrong step: "independent" keeps every label, "first_error" keeps
    none after the first wrong one, "propagate" makes all after it wrong. `flip` turns that share of labels round first,
    like a process reward model's errors: the same step of the same text every time.
    """

    per_class: int = 2
    scorer: str = "verifier"
    balanced: bool = False
    steps: str | None = None
    threshold: float = 0.5
    policy: Policy = "independent"
    flip: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_class < 1 or not 0 <= self.flip <= 1:
            raise InputError(f"per_class={self.per_class}, flip={self.flip}: give 1 or more, and a share of 0 to 1")
        if not isfinite(self.threshold):
            raise InputError(f"threshold={self.threshold} divides no scores; give a finite number, such as 0.5")

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Feedback]:
        """Yield the rows of each group in the order of its completions.

        Raises:
            InputError: a completion has not been scored, a score is not finite, or steps overlap or lie outside of
                their text.
        """
        for group, choices in self.choose(groups, dropped):
            steps = self._step_scores(group)
            for completion, right in choices:
                labels = self._step_labels(group.id, completion, steps)
                yield Feedback(prompt=group.prompt, completion=completion, label=right, step_labels=labels)

    def choose(
        self, groups: Iterable[Group], dropped: Tally | None = None
    ) -> Iterator[tuple[Group, list[tuple[Completion, bool]]]]:
        """Yield every group with the (completion, right) that become its rows, in order; no step need be scored yet.

        Raises:
            InputError: a completion has not been scored.
        """
        dropped = Counter() if dropped is None else dropped
        kept = self._balanced(groups, dropped) if self.balanced else None
        for group in groups:
            if kept is None:
                yield group, [(choice.completion, choice.right) for choice in self._choices(group, dropped)]
            else:
                staying = sorted((c for c in group.completions if c.id in kept), key=lambda c: c.k)
                yield group, [(c, kept[c.id]) for c in staying]

    def _choices(self, group: Group, dropped: Tally) -> list[_Choice]:
        scores = group.scores_by(self.scorer)
        texts: set[str] = set()
        found: dict[bool, list[_Choice]] = {True: [], False: []}
        for completion in group.completions:
            if completion.id not in scores:
                raise InputError(
                    f"completion {completion.id} of prompt {group.id} has no score by {self.scorer!r}: score it first"
                )
            value = _finite(scores[completion.id], group.id)
            if value is None:
                dropped["not decided"] += 1
            elif completion.text in texts:
                dropped["the same text again"] += 1
            else:
                texts.add(completion.text)
                draw = content_id("feedback", self.seed, group.id, completion.text)
                found[value >= self.threshold].append(_Choice(draw, completion, value >= self.threshold))
        kept = [choice for side in found.values() for choice in sorted(side)[: self.per_class]]
        return sorted(kept, key=lambda choice: choice.completion.k)

    def _balanced(self, groups: Iterable[Group], dropped: Tally) -> dict[str, bool]:
        """Return the completions that stay, as many right as wrong ones: whether each is right, by id."""
        if iter(groups) is groups:
            raise TypeError("groups is a one-shot iterator; this selector reads it twice: pass a list or a Groups view")
        sides: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
        if isinstance(groups, Groups):
            # The lot goes by text and verdict: what else is long to read can wait for the second pass.
            groups = groups.scored_by(self.scorer).without("token_ids", "logprobs", "latents")
        for group in groups:
            for choice in self._choices(group, dropped):
                sides[choice.right].append((choice.draw, choice.completion.id))
        size = min(len(sides[True]), len(sides[False]))
        if more := sum(map(len, sides.values())) - 2 * size:
            dropped["more of its class than of the other"] += more
        return {name: right for right, side in sides.items() for _, name in sorted(side)[:size]}

    def _step_scores(self, group: Group) -> dict[str, list[Score]]:
        found: dict[str, list[Score]] = defaultdict(list)
        for score in group.scores if self.steps is not None else ():
            if score.scorer == self.steps:
                found[score.completion_id].append(score)
        return found

    def _step_labels(
        self, prompt_id: str, completion: Completion, steps: Mapping[str, list[Score]]
    ) -> tuple[StepLabel, ...]:
        if self.steps is None:
            return ()
        scores = steps.get(completion.id, [])
        if not scores and completion.text:
            raise InputError(
                f"completion {completion.id} of prompt {prompt_id} has no score by {self.steps!r}: score it first"
            )
        spans = sorted(((s.span, s) for s in scores if s.span is not None), key=lambda found: found[0])
        bounds = [span for span, _ in spans]
        check_spans(bounds, completion.text, f"completion {completion.id}")
        labels = [self._label(prompt_id, completion.text, score) for _, score in spans]
        covered = zip(cover(bounds, completion.text), follow(labels, self.policy), strict=True)
        return tuple((start, end, label) for (start, end), label in covered if label is not None)

    def _label(self, prompt_id: str, text: str, score: Score) -> bool | None:
        value = _finite(score, prompt_id)
        if value is None:
            return None
        label = value >= self.threshold
        if not self.flip:
            return label
        return label != (content_share("flip", self.seed, prompt_id, text, score.span) < self.flip)


def _finite(score: Score, prompt_id: str) -> float | None:
    # No comparison with NaN is true: it would pass for a wrong completion, or a wrong step.
    if score.value is not None and not isfinite(score.value):
        raise InputError(
            f"completion {score.completion_id} of prompt {prompt_id} has the score {score.value} by {score.scorer!r}: "
            "mend the scorer"
        )
    return score.value


def follow(labels: Iterable[bool | None], policy: Policy) -> list[bool | None]:
    """Return the labels of a completion's steps under a policy; None is a step without one, and stays so.

    >>> follow([True, False, True, None, False], "first_error")
    [True, False, None, None, None]
    >>> follow([True, False, True, None, False], "propagate")
    [True, False, False, None, False]
    """
    kept: list[bool | None] = []
    wrong = False
    for label in labels:
        after = {"independent": label, "first_error": None, "propagate": None if label is None else False}[policy]
        kept.append(after if wrong else label)
        wrong = wrong or label is False
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class RightDemonstrations:
    """Rejection fine-tuning's data: the completions that `rows` keeps as right."""

    rows: FeedbackRows

    def __call__(self, groups: Iterable[Group], dropped: Tally | None = None) -> Iterator[Demonstration]:
        """Yield at most `rows.per_class` demonstrations per group."""
        for row in self.rows(groups, dropped):
            if row.label:
                yield Demonstration(prompt=row.prompt, completion=row.completion)


def class_weights(good: int, bad: int, low: float = 0.5, high: float = 2.0) -> tuple[float, float]:
    """Return (lambda_D, lambda_U), n / 2 over the count of each class, within [low, high]; 1 where a class is empty.

    KTO (arXiv 2402.01306, eq. 9) wants lambda_D n_D / lambda_U n_U near 1: these weights make it 1 unless a limit
    stops them.

    >>> class_weights(30, 10)
    (0.6666666666666666, 2.0)
    """
    if not good or not bad:
        return 1.0, 1.0
    half = (good + bad) / 2
    return min(max(half / good, low), high), min(max(half / bad, low), high)
