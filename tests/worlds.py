"""Groups and data that the tests of tasks, scorers, selection and evaluation share."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from selftaught.types import Completion, Group, Prompt, Score


def shared_data(name: str) -> Path:
    """Return a folder of real data, or skip the test: SELFTAUGHT_DATA or ../shared/data holds them."""
    root = Path(os.environ.get("SELFTAUGHT_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (root / name).is_dir():
        pytest.skip(f"{root / name} is not there: set SELFTAUGHT_DATA to a directory that holds {name}/")
    return root / name


def group_of(answers: Sequence[str | None], k: int | None = None, name: str = "p", gold: str | None = None) -> Group:
    """Return a group whose completions have these answers (None: unreadable), voted on by the first `k`."""
    prompt = Prompt.from_text(name, gold=gold)
    texts = [f"#### {answer}" if answer else "?" for answer in answers]
    completions = tuple(Completion(prompt_id=prompt.id, k=i, text=t, model=f"m{i}") for i, t in enumerate(texts))
    base = answers[: len(answers) if k is None else k]
    scores = [
        Score(completion_id=c.id, scorer="votes", value=None, note="no answer could be read")
        if a is None
        else Score(completion_id=c.id, scorer="votes", value=float(base.count(a)), note=a)
        for c, a in zip(completions, answers, strict=True)
    ]
    if gold is not None:
        scores += [
            Score(completion_id=c.id, scorer="verifier", value=float(a == gold))
            for c, a in zip(completions, answers, strict=True)
        ]
    return Group(prompt=prompt, completions=completions, scores=tuple(scores))


def scored(group: Group, scorer: str, values: Iterable[float | None]) -> Group:
    """Return the group with these scores added, one per completion."""
    rows = zip(group.completions, values, strict=True)
    scores = (Score(completion_id=c.id, scorer=scorer, value=value) for c, value in rows)
    return replace(group, scores=(*group.scores, *scores))
