"""Prompts that a model writes after examples, and what Self-Instruct (arXiv 2212.10560) keeps of them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from selftaught.tasks.registry import load_task
from selftaught.tasks.task import Task, TaskSpec
from selftaught.text.dedup import find_duplicates
from selftaught.text.self_instruct import UNSERVABLE, ask_for_task, asks_for_other_media, parse_task
from selftaught.types import Group, Prompt, content_id, number_repeats

Form = Literal["task", "tags"]
"""How prompts are asked for: in the task's own way, or as a numbered list of tasks between tags."""


def ask_for_prompts(
    task: Task, known: Sequence[Prompt], count: int, *, form: Form, shots: int, seed: int
) -> list[Prompt]:
    """Return `count` prompts that ask for a new prompt after examples drawn from `known`, `shots` of them in tags."""
    if form == "task":
        return task.problem_prompts(known, count, seed=seed)
    asked = []
    for i in range(count):
        picks = [int(content_id("shot", seed, i, j), 16) % len(known) for j in range(shots)]
        examples = [known[pick].messages[-1].content for pick in dict.fromkeys(picks)]
        asked.append(Prompt.from_text(ask_for_task(examples)))
    return list(number_repeats(asked))


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUp:
    """Keeps written prompts that can be read, repeat no other, and ask for nothing but text.

    A prompt repeats another where their ROUGE-L is above `near_duplicate`; None finds exact repeats only. `keywords`
    are words of prompts that ask for more than text.
    """

    task: Task | TaskSpec
    form: Form
    near_duplicate: float | None = 0.7
    keywords: tuple[str, ...] = UNSERVABLE

    def __call__(
        self, groups: Iterable[Group], known: Iterable[Prompt], dropped: Counter[str] | None = None
    ) -> Iterator[Prompt]:
        """Yield new prompts, whose parents are the completions that state them; `dropped` counts the others."""
        dropped = Counter() if dropped is None else dropped
        task = load_task(self.task)
        written = list(self._readable(groups, task, dropped))
        against = [prompt.text for prompt in (*known, *task.dev(), *task.test())]
        found = find_duplicates([prompt.text for prompt in written], against, self.near_duplicate)
        for prompt, status in zip(written, found, strict=True):
            if status == "kept":
                yield prompt
            else:
                dropped[status] += 1

    def _readable(self, groups: Iterable[Group], task: Task, dropped: Counter[str]) -> Iterator[Prompt]:
        for completion in (completion for group in groups for completion in group.completions):
            # Between tags a prompt is whole, wherever the completion was cut off.
            whole = self.form == "tags" or completion.finish == "stop"
            prompt = self._read(task, completion.text) if whole else None
            if prompt is None:
                dropped["no prompt, or a held-out one"] += 1
            elif asks_for_other_media(prompt.text, self.keywords):
                dropped["asks for more than text"] += 1
            else:
                yield replace(prompt, parents=(completion.id,))

    def _read(self, task: Task, text: str) -> Prompt | None:
        if self.form == "task":
            return task.parse_problem(text)
        stated = parse_task(text)
        return None if stated is None else Prompt.from_text(stated, meta={"generated": True})
