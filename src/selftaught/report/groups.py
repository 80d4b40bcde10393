"""The groups a report lets its reader browse: prompts with every completion, its votes and scores, and what was chosen.

Only a bounded number is taken, kept and dropped prompts in equal parts, so that a report of a million prompts stays a
file one can open.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from selftaught.errors import SelftaughtError
from selftaught.report.figures import is_number
from selftaught.report.reading import Run, StageLine
from selftaught.store.groups import Groups
from selftaught.store.stage import Stage, open_stage
from selftaught.types import Answered, Completion, Demonstration, Group, Pair, Score

LONGEST_TEXT = 4000
MOST_SCANNED = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Browsed:
    """Groups as plain data for the page's script, and a line for each stage that could not be read."""

    groups: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def browse(run: Run, most: int = 200) -> Browsed:
    """Return at most `most` groups, spread evenly over the run's select stages."""
    lines = [line for line in run.stages if line.verb == "select" and line.groups]
    found: list[dict[str, Any]] = []
    notes: list[str] = []
    for index, line in enumerate(lines):
        budget = (most - len(found)) // (len(lines) - index)
        try:
            found.extend(_groups_of(run.path / "stages", line, budget))
        except (SelftaughtError, OSError) as error:
            notes.append(f"The groups of {line.label} could not be read: {error}")
    return Browsed(groups=tuple(found), notes=tuple(notes))


def _groups_of(stages: Path, line: StageLine, budget: int) -> Iterator[dict[str, Any]]:
    selected = open_stage(stages / line.name)
    prompts = open_stage(stages / line.groups["prompts"])
    groups = Groups(
        prompts=prompts,
        completions=tuple(open_stage(stages / name) for name in line.groups.get("completions", ())),
        scores=tuple(open_stage(stages / name) for name in line.groups.get("scores", ())),
    )
    first = chain.from_iterable(ids for (ids,) in prompts.columns("id", stop=MOST_SCANNED))
    places = _places(selected, frozenset(first))
    sampled = sample(groups, places, budget)
    examples = _examples(selected, sorted(place for group in sampled for place in places.get(group.id, ())))
    for group in sampled:
        yield describe_group(group, examples.get(group.id, ()), line.label)


def _places(selected: Stage, prompts: frozenset[str]) -> dict[str, list[int]]:
    """Return where each of `prompts` has its examples, reading one column."""
    places: dict[str, list[int]] = {}
    ids = chain.from_iterable(batch for (batch,) in selected.columns("prompt_id"))
    for place, prompt_id in enumerate(ids):
        if prompt_id in prompts:
            places.setdefault(prompt_id, []).append(place)
    return places


def _examples(selected: Stage, places: Sequence[int]) -> dict[str, list[Answered]]:
    """Return the examples at `places` (ascending) by prompt id."""
    examples: dict[str, list[Answered]] = {}
    wanted = frozenset(places)
    for place, example in enumerate(selected.slice(0, places[-1] + 1 if places else 0)):
        if place in wanted:
            examples.setdefault(example.prompt.id, []).append(example)
    return examples


def sample(groups: Iterable[Group], kept: Iterable[str], budget: int) -> list[Group]:
    """Return at most `budget` of the first groups in their order: half of them kept, or more where few were dropped."""
    kept = set(kept)
    first: dict[bool, list[tuple[int, Group]]] = {True: [], False: []}
    for index, group in enumerate(islice(groups, MOST_SCANNED)):
        pile = first[group.id in kept]
        if len(pile) < budget:
            pile.append((index, group))
        elif all(len(p) >= budget for p in first.values()):
            break
    dropped = max(budget // 2, budget - len(first[True]))
    chosen = first[False][:dropped]
    chosen += first[True][: budget - len(chosen)]
    return [group for _, group in sorted(chosen, key=lambda pair: pair[0])]


def describe_group(group: Group, examples: Iterable[Answered], stage: str) -> dict[str, Any]:
    """Return one group as the plain data that the page's script shows."""
    examples = tuple(examples)
    roles = _roles(examples)
    votes = group.scores_by("votes")
    scores: dict[str, list[Score]] = {}
    for score in group.scores:
        if score.scorer != "votes" and score.span is None:
            scores.setdefault(score.completion_id, []).append(score)
    return {
        "stage": stage,
        "id": group.id,
        "prompt": [{"role": m.role, "text": _cut(m.content)} for m in group.prompt.messages],
        "gold": group.prompt.gold,
        "kept": bool(examples),
        "weight": next((e.weight for e in examples if is_number(e.weight)), None),
        "tally": _tally(votes.values()),
        "completions": [
            _completion(c, roles.get(c.id, []), votes.get(c.id), scores.get(c.id, [])) for c in group.completions
        ],
    }


def _roles(examples: Iterable[Answered]) -> Mapping[str, list[str]]:
    roles: dict[str, list[str]] = {}
    for example in examples:
        if isinstance(example, Pair):
            roles.setdefault(example.chosen.id, []).append("chosen")
            roles.setdefault(example.rejected.id, []).append("rejected")
        elif isinstance(example, Demonstration):
            roles.setdefault(example.completion.id, []).append("chosen")
        else:
            roles.setdefault(example.completion.id, []).append("good" if example.label else "bad")
    return roles


def _completion(completion: Completion, roles: list[str], vote: Score | None, scores: list[Score]) -> dict[str, Any]:
    answered = vote is not None and vote.value is not None
    return {
        "k": completion.k,
        "text": _cut(completion.text),
        "tokens": None if completion.token_ids is None else len(completion.token_ids),
        "finish": completion.finish,
        "roles": roles,
        "answer": vote.note if vote and answered else None,
        "unanswered": vote.note if vote and not answered else None,
        "votes": _value(vote),
        "scores": [{"scorer": s.scorer, "value": _value(s), "note": _cut(s.note)} for s in scores],
    }


def _tally(votes: Iterable[Score]) -> list[dict[str, Any]]:
    """Return the answers with their votes, the most voted first."""
    counts: dict[str, float] = {}
    for vote in votes:
        if is_number(vote.value) and vote.note:
            counts[vote.note] = max(counts.get(vote.note, 0.0), float(vote.value or 0.0))
    return [{"answer": answer, "votes": n} for answer, n in sorted(counts.items(), key=lambda item: -item[1])]


def _value(score: Score | None) -> float | None:
    return score.value if score is not None and is_number(score.value) else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} […{len(text) - LONGEST_TEXT} more characters]"
