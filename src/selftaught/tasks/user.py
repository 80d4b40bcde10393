"""A user's own task: rows with `prompt` or `messages`, and optionally `answer` (gold) and `completion`.

`data` is a file, a stage, or a directory with train, and optionally dev and test, as .jsonl, .jsonl.gz, .json, .csv or
.parquet. What the directory lacks is held out of the train rows: a tenth for test, at most 500, and a tenth for dev, at
most 200. Which rows is fixed by a hash of their messages, so that a repeated prompt is in one split only. Rows of train
with a `completion` are demonstrations and, as in TRL, also prompts.

`answer` names a function `(text) -> str | None`: the vote key of a completion. Without it, the last `\\boxed{}` or the
number behind the last `####` is read. `verifier` names a function `(prompt, text) -> True | False | None`; without it,
the answer is compared with gold, and where there is no gold nothing is decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from selftaught.errors import InputError
from selftaught.store.datafiles import read_prompts
from selftaught.store.manifest import MANIFEST
from selftaught.tasks.sources import code_of, load_function, split_file
from selftaught.tasks.task import demonstrate
from selftaught.text.answers import canonical, compare_keys, final_answer
from selftaught.text.dedup import normalise
from selftaught.text.problems import Style, ask_for_problem, parse_problem
from selftaught.types import Demonstration, Prompt, content_id, number_repeats

_MOST_TEST, _MOST_DEV = 500, 200
Splits = dict[str, tuple[Prompt, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserTask:
    """The task in `data`. Requests for new problems show `shots` prompts as examples, in `style`.

    `any_number` takes the last number of a completion that marks no answer. `code` identifies the functions' source.
    """

    data: str
    answer_function: str | None = None
    verifier_function: str | None = None
    limit: int | None = None
    style: Style = "instruct"
    shots: int = 4
    any_number: bool = False
    code: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        named = [f for f in (self.answer_function, self.verifier_function) if f is not None]
        object.__setattr__(self, "code", tuple(code_of(function) for function in named))

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return "user"

    @property
    def stop(self) -> tuple[str, ...]:
        """Nothing is known of the prompts' form."""
        return ()

    @property
    def near_duplicate(self) -> float | None:
        """Self-Instruct's ROUGE-L threshold."""
        return 0.7

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return the train rows that have a `completion`."""
        rows = [row for row in self._ordered(seed) if isinstance(row.meta.get("completion"), str)]
        return [demonstrate(row, row.meta["completion"]) for row in rows[:count]]

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return training prompts from position `start` of the seed's order; fewer where the data end."""
        return self._ordered(seed)[start:][:count]

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return the dev prompts."""
        return list(read_splits(self.data)["dev"][:count])

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return the test prompts."""
        return list(read_splits(self.data)["test"][:count])

    def answer(self, text: str) -> str | None:
        """Return the vote key of a completion."""
        if self.answer_function is None:
            return final_answer(text, fallback=self.any_number)
        key = _call(self.answer_function, text, text)
        if key is not None and not isinstance(key, str):
            raise InputError(f"{self.answer_function} returned {key!r:.60}; it must return text, or None for no answer")
        return key or None

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Ask the verifier, else compare the answer with gold."""
        if self.verifier_function is not None:
            right = _call(self.verifier_function, text, prompt, text)
            if right not in (True, False, None):
                raise InputError(f"{self.verifier_function} returned {right!r:.60}; it must return True, False or None")
            return None if right is None else bool(right)
        answer = self.answer(text)
        if prompt.gold is None or answer is None or answer == prompt.gold:
            return None if prompt.gold is None else answer is not None
        return compare_keys(canonical(prompt.gold), canonical(answer))

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return `count` requests, each with `shots` examples drawn from `seeds`."""
        asked = []
        for i in range(count):
            picks = [int(content_id("shot", seed, i, j), 16) % len(seeds) for j in range(self.shots) if seeds]
            examples = [seeds[pick].messages[-1].content for pick in dict.fromkeys(picks)]
            asked.append(Prompt.from_text(ask_for_problem(examples, self.style)))
        return list(number_repeats(asked))

    def parse_problem(self, text: str) -> Prompt | None:
        """Return a generated problem unless it is a dev or test prompt."""
        problem = parse_problem(text)
        if problem is None or normalise(problem) in _held_out(self.data):
            return None
        return Prompt.from_text(problem, meta={"generated": True})

    def _ordered(self, seed: int) -> list[Prompt]:
        rows = read_splits(self.data)["train"][: self.limit]
        return sorted(rows, key=lambda row: content_id("order", seed, row.id))


@lru_cache(maxsize=4)
def read_splits(data: str) -> Splits:
    """Return train, dev and test prompts. Raises InputError naming the file and line of a bad row."""
    path = Path(data)
    if not path.is_dir() or (path / MANIFEST).exists():
        found = {"train": tuple(read_prompts(path))}
    else:
        files = {split: split_file(path, split) for split in ("train", "dev", "test")}
        if files["train"] is None:
            raise InputError(f"{data} holds no train.jsonl or train.parquet: name one file so, or pass the file itself")
        found = {split: tuple(read_prompts(file)) for split, file in files.items() if file is not None}
    _check_disjoint(data, found)
    return _hold_out(found)


def _hold_out(found: Splits) -> Splits:
    rows = found["train"]
    order = sorted({_conversation(row) for row in rows})
    splits = dict(found)
    for split, most in (("test", _MOST_TEST), ("dev", _MOST_DEV)):
        if split in found:
            continue
        held = set(order[: min(most, len(rows) // 10)])
        order = order[len(held) :]
        splits[split] = tuple(row for row in rows if _conversation(row) in held)
    left = set(order)
    return splits | {"train": tuple(row for row in rows if _conversation(row) in left)}


def _check_disjoint(data: str, found: Splits) -> None:
    seen: dict[str, str] = {}
    for split, rows in found.items():
        for row in rows:
            other = seen.setdefault(_conversation(row), split)
            if other != split:
                raise InputError(f"{data}: the prompt {row.text[:60]!r} is in {other} and in {split}; keep one of them")


@lru_cache(maxsize=4)
def _held_out(data: str) -> frozenset[str]:
    splits = read_splits(data)
    return frozenset(normalise(row.messages[-1].content) for split in ("dev", "test") for row in splits[split])


def _conversation(prompt: Prompt) -> str:
    return content_id("user", [(turn.role, turn.content) for turn in prompt.messages])


def _call(function: str, text: str, *arguments: Any) -> Any:
    try:
        return load_function(function)(*arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{function} failed on the completion {text[:60]!r} with {reason}; let it return None"
        ) from error
