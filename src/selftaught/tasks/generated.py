"""New problems out of what a model wrote."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from selftaught.tasks.registry import load_task
from selftaught.tasks.task import Task, TaskSpec
from selftaught.text.dedup import find_duplicates
from selftaught.types import Group, Prompt


def fresh_prompts(
    groups: Iterable[Group],
    known: Iterable[Prompt],
    dropped: Counter[str] | None = None,
    *,
    task: Task | TaskSpec,
) -> Iterator[Prompt]:
    """Yield the problems in the completions of problem prompts, without repeats.

    A problem is dropped where it repeats another, one of `known`, or a dev or test problem of the task: exactly, or
    beyond the task's ROUGE-L threshold. `dropped` counts them by reason. The completion is the new prompt's parent.
    """
    dropped = Counter() if dropped is None else dropped
    task = load_task(task)
    written: list[Prompt] = []
    for group in groups:
        for completion in group.completions:
            prompt = task.parse_problem(completion.text) if completion.finish == "stop" else None
            if prompt is None:
                dropped["no problem, or a held-out one"] += 1
            else:
                written.append(replace(prompt, parents=(completion.id,)))
    against = [_problem(prompt) for prompt in (*known, *task.dev(), *task.test())]
    found = find_duplicates([_problem(prompt) for prompt in written], against, task.near_duplicate)
    for prompt, status in zip(written, found, strict=True):
        if status == "kept":
            yield prompt
        else:
            dropped[status] += 1


def _problem(prompt: Prompt) -> str:
    return str(prompt.meta.get("problem", prompt.messages[-1].content))
