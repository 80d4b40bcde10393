"""A language model as the judge of steps (Step-KTO, arXiv 2501.10799): its questions, and the labels its votes make.

The questions are ordinary prompts, so any model answers them; k samples of an answer are k votes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from selftaught.scorers.judges import unread_note, why_unread
from selftaught.select.feedback import FeedbackRows
from selftaught.text.rubrics import question_of
from selftaught.text.step_judgments import majority, read_labels, reference_of, step_question
from selftaught.text.steps import Segmentation
from selftaught.types import Completion, Group, Prompt, Score, number_repeats

SCORER = "steps"
TIED = "the votes are tied"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepQuestions:
    """One question for every completion that `rule` makes a row of: are its steps right?

    A judge sees the problem, the reference where the prompt has one, and the steps; never what other scorers said.
    """

    rule: FeedbackRows
    segmentation: Segmentation

    def __call__(self, groups: Iterable[Group], counts: Counter[str]) -> Iterator[Prompt]:
        """Yield the questions in the order of the groups; `counts` gets the completions without a step.

        Raises:
            InputError: a completion has no score by the rule's scorer.
        """
        return number_repeats(self._asked(groups, counts))

    def _asked(self, groups: Iterable[Group], counts: Counter[str]) -> Iterator[Prompt]:
        for group, choices in self.rule.choose(groups, Counter()):
            question, reference = question_of(group.prompt), reference_of(group.prompt)
            for completion, _ in choices:
                steps = [completion.text[start:end] for start, end in self.segmentation(completion.text)]
                if not steps:
                    counts["there is no step"] += 1
                    continue
                text = step_question(question, steps, reference)
                yield Prompt.from_text(text, parents=(group.id, completion.id))


def step_scores(
    groups: Iterable[Group], judged: Iterable[Group], counts: Counter[str], *, segmentation: Segmentation
) -> Iterator[Score]:
    """Yield for every step that was judged 1, 0 or, where its votes are tied, None.

    `judged` are the answers to `StepQuestions` on the same groups, with the same segmentation. A vote that cannot be
    read, or has not one label for each step, is no vote; a completion without any has one score, without span and
    value, whose note says why. The answers are the scores' parents, behind the completion.
    """
    answers = iter(judged)
    answer = next(answers, None)
    for group in groups:
        completions = {c.id: c for c in group.completions}
        while answer is not None and answer.prompt.parents[0] == group.id:
            completion = completions[answer.prompt.parents[1]]
            yield from _labelled(completion, answer.completions, segmentation, counts)
            answer = next(answers, None)


def _labelled(
    completion: Completion, judgments: tuple[Completion, ...], segmentation: Segmentation, counts: Counter[str]
) -> Iterator[Score]:
    spans = segmentation(completion.text)
    read = [read_labels(judgment.text, len(spans)) for judgment in judgments]
    votes = [labels for labels, _ in read if labels is not None]
    reasons = [why_unread(j, why) for j, (labels, why) in zip(judgments, read, strict=True) if labels is None]
    note = unread_note(reasons, len(read), "votes")
    parents = (completion.id, *(judgment.id for judgment in judgments))
    if not votes:
        counts[f"unscored: {reasons[0] if reasons else note}"] += 1
        yield Score(completion_id=completion.id, scorer=SCORER, value=None, note=note, parents=parents)
        return
    for span, label in zip(spans, majority(votes), strict=True):
        if label is None:
            counts[f"unscored: {TIED}"] += 1
        yield Score(
            completion_id=completion.id,
            scorer=SCORER,
            value=None if label is None else float(label),
            span=span,
            note=TIED if label is None else note,
            parents=parents,
        )
