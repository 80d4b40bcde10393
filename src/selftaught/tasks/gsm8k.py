"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school word problems with a number as answer.

Rows are `question` and `answer`; the answer is a solution with one step a line and `#### <number>` last. Calculator
annotations such as `<<48/2=24>>` were made for a tool that no model here has: they are stripped unless asked for.

Splits: `test` is the test file. Of the train file 800 problems are `dev`, as in ScPO's runs; with `limit`, that many
others are `train` and the rest `demonstrations`. Without `limit`, `train` and `demonstrations` share all that remains:
then do not train the seed model on demonstrations. Which problem goes where depends on the problems only.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from selftaught.errors import InputError
from selftaught.store.tables import Record, read_table
from selftaught.tasks.sources import read_hub, split_file
from selftaught.tasks.task import demonstrate
from selftaught.text.answers import compare_keys, last_number, marked_number
from selftaught.text.dedup import normalise
from selftaught.text.problems import Style, ask_for_problem, parse_problem
from selftaught.types import Demonstration, Prompt, content_id, content_share, number_repeats

DEV_PROBLEMS = 800
_COLUMNS = {"question": str, "answer": str}
_ANNOTATION = re.compile(r"<<[^<>]*>>")
_SOLVE = (
    "Solve this problem step by step. End with a line that holds the marker #### and the final number, nothing else."
)


class Row(NamedTuple):
    """A problem, its worked solution without the last line, and the key of its answer."""

    question: str
    solution: str
    gold: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GSM8K:
    """The data set in `data`: a directory with train.jsonl and test.jsonl (or .parquet), or a Hub id.

    `style` "plain" asks as "Question: ...\\nAnswer:", "instruct" with an instruction. Requests for new problems show
    `shots` examples; `new_problems` is the share of demonstrations that answer such a request. `any_number` takes the
    last number of a completion that has no `####`.
    """

    data: str = "openai/gsm8k"
    limit: int | None = None
    style: Style = "plain"
    shots: int = 4
    new_problems: float = 0.0
    annotations: bool = False
    any_number: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"gsm8k: limit={self.limit} leaves no training problem; give 1 or more")
        if not 0 <= self.new_problems <= 1:
            raise InputError(f"gsm8k: new_problems={self.new_problems} is not a share; give 0 to 1")

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return "gsm8k"

    @property
    def stop(self) -> tuple[str, ...]:
        """What a base model writes when it goes on to a next problem."""
        return ("\nQuestion:",) if self.style == "plain" else ()

    @property
    def near_duplicate(self) -> float | None:
        """Self-Instruct's ROUGE-L threshold."""
        return 0.7

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return solved problems, and requests for new problems with their answers, in the seed's order."""
        rows = _shuffled(self._pools()[2], seed)[:count]
        requests = self._requests([row.question for row in rows], len(rows), seed)
        shown: list[tuple[Prompt, str]] = []
        for row, request in zip(rows, requests, strict=True):
            if content_share("asked", seed, row.question) < self.new_problems:
                shown.append((request, f" {row.question}"))
            else:
                shown.append((self._prompt(row), self._solution(row)))
        prompts = number_repeats(prompt for prompt, _ in shown)
        return [demonstrate(prompt, text) for prompt, (_, text) in zip(prompts, shown, strict=True)]

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return training prompts from position `start` of the seed's order; fewer where the data end."""
        rows = _shuffled(self._pools()[1], seed)[start:]
        return [self._prompt(row) for row in rows[:count]]

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return the held-out part of the train file."""
        return [self._prompt(row) for row in self._pools()[0][:count]]

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return the test file, in its order."""
        return [self._prompt(row) for row in read_rows(self.data, "test")[:count]]

    def answer(self, text: str) -> str | None:
        """Return the key of the number behind the last `####`."""
        return marked_number(text) or (last_number(text) if self.any_number else None)

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Compare the answer with gold; None where the prompt has none."""
        return compare_keys(prompt.gold, self.answer(text))

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return `count` requests, each with `shots` examples drawn from `seeds`."""
        questions = [str(prompt.meta["problem"]) for prompt in seeds if "problem" in prompt.meta]
        return list(number_repeats(self._requests(questions, count, seed)))

    def parse_problem(self, text: str) -> Prompt | None:
        """Return a generated problem unless it is a dev or test problem."""
        question = parse_problem(text)
        if question is None or normalise(question) in _held_out(self.data):
            return None
        return self._prompt(Row(question, "", ""), generated=True)

    def _prompt(self, row: Row, generated: bool = False) -> Prompt:
        plain = self.style == "plain"
        text = f"Question: {row.question}\nAnswer:" if plain else f"{_SOLVE}\n\nProblem: {row.question}"
        meta = {"problem": row.question} | ({"generated": True} if generated else {})
        if row.solution:
            meta["solution"] = _ANNOTATION.sub("", row.solution)
        return Prompt.from_text(text, gold=row.gold or None, meta=meta)

    def _solution(self, row: Row) -> str:
        steps = row.solution if self.annotations else _ANNOTATION.sub("", row.solution)
        return f"{' ' if self.style == 'plain' else ''}{steps}\n#### {row.gold}"

    def _requests(self, questions: Sequence[str], count: int, seed: int) -> Iterator[Prompt]:
        for i in range(count):
            picks = [int(content_id("shot", seed, i, j), 16) % len(questions) for j in range(self.shots) if questions]
            examples = [questions[pick] for pick in dict.fromkeys(picks)]
            yield Prompt.from_text(ask_for_problem(examples, self.style))

    def _pools(self) -> tuple[list[Row], list[Row], list[Row]]:
        """Return dev, train and demonstrations."""
        tested = {row.question for row in read_rows(self.data, "test")}
        rows = [row for row in read_rows(self.data, "train") if row.question not in tested]
        rows.sort(key=lambda row: content_id("gsm8k", row.question))
        held_out = min(DEV_PROBLEMS, len(rows) // 5)
        dev, rest = rows[:held_out], rows[held_out:]
        return (dev, rest, rest) if self.limit is None else (dev, rest[: self.limit], rest[self.limit :])


@lru_cache(maxsize=4)
def read_rows(data: str, split: str) -> tuple[Row, ...]:
    """Return a split's rows, a repeated question once.

    Raises InputError naming file and line of a row without a readable answer.
    """
    if Path(data).is_dir():
        file = split_file(Path(data), split)
        if file is None:
            raise InputError(
                f"{data} holds no {split}.jsonl or {split}.parquet: give a directory with GSM8K's two files"
            )
        records = read_table(file, _COLUMNS)
    else:
        records = read_hub(data, "main", split, _COLUMNS)
    return tuple({row.question: row for row in map(_row, records)}.values())


def _row(record: Record) -> Row:
    solution, marker, last = record.fields["answer"].rpartition("####")
    gold = marked_number(marker + last)
    if gold is None:
        raise InputError(f"{record.where}: the answer ends in {last.strip()[-40:]!r}; end it in '#### <number>'")
    return Row(record.fields["question"].strip(), solution.strip(), gold)


@lru_cache(maxsize=4)
def _held_out(data: str) -> frozenset[str]:
    rows = [*read_rows(data, "test"), *GSM8K(data=data)._pools()[0]]
    return frozenset(normalise(row.question) for row in rows)


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    return sorted(rows, key=lambda row: content_id("order", seed, row.question))
