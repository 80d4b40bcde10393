"""HH-RLHF (Bai et al. 2022, arXiv 2204.05862), the harmless part: two answers to a conversation, and the less harmful.

The conversations are upsetting; they are for research on safety. An example is the turns up to the last one, which is
an answer of the assistant: that of `chosen` is preferred to that of `rejected`.

Two layouts are read: rows `prompt` (a list of turns), `chosen` and `rejected` (texts); and the published one, rows
`chosen` and `rejected` with whole transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ..."), in which case the files of the
harmless part lie in `harmless-base`. Rows that make no pair are left out, and `dropped` counts them by reason.

Splits are fixed by a hash of the prompt, so that no prompt is in two of them: a fifth is `test`, a tenth `dev`. Where
the data have a test split of their own, that is `test`, and its prompts are in no other. `demonstrations` are the
chosen answers of the training pairs: these two share their prompts.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from selftaught.errors import InputError
from selftaught.store.tables import Record, read_table
from selftaught.tasks.sources import read_hub, split_file
from selftaught.types import Completion, Demonstration, Message, Pair, Prompt, content_id, content_share

HARMLESS = "harmless-base"
Split = Literal["train", "dev", "test"]
_ANSWERS = {"chosen": str, "rejected": str}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES: dict[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}
Row = tuple[tuple[Message, ...], str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HHRLHF:
    """The data set in `data`: a file, a directory with pairs.jsonl.gz or with train and test files, or a Hub id.

    `limit` bounds the training pairs.
    """

    name: ClassVar[str] = "hh_rlhf"
    stop: ClassVar[tuple[str, ...]] = ("\n\nHuman:",)  # How transcripts of this set go on to the next turn.
    near_duplicate: ClassVar[float | None] = None  # Nothing is generated.

    data: str = "Anthropic/hh-rlhf"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"hh_rlhf: limit={self.limit} leaves no training pair; give 1 or more")

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows were left out, by reason."""
        return dict(_read(self.data)[1])

    def pairs(self, split: Split = "train", count: int | None = None, *, seed: int = 0) -> list[Pair]:
        """Return up to `count` pairs of a split; those of `train` in the seed's order, others in the data's."""
        pairs = list(_read(self.data)[0][split])
        if split == "train":
            pairs = pairs[: self.limit]
            pairs.sort(key=lambda pair: content_id("order", seed, pair.id))
        return pairs[:count]

    def demonstrations(self, count: int | None = None, *, seed: int = 0) -> list[Demonstration]:
        """Return the chosen answers of training pairs, in the seed's order."""
        return [Demonstration(prompt=p.prompt, completion=p.chosen) for p in self.pairs("train", count, seed=seed)]

    def train(self, count: int | None = None, *, seed: int = 0, start: int = 0) -> list[Prompt]:
        """Return the prompts of training pairs from position `start` of the seed's order; fewer where the data end."""
        return [pair.prompt for pair in self.pairs("train", seed=seed)[start:][:count]]

    def dev(self, count: int | None = None) -> list[Prompt]:
        """Return the prompts of dev pairs."""
        return [pair.prompt for pair in self.pairs("dev", count)]

    def test(self, count: int | None = None) -> list[Prompt]:
        """Return the prompts of test pairs."""
        return [pair.prompt for pair in self.pairs("test", count)]

    def answer(self, text: str) -> str | None:
        """Return None: there is no final answer to vote on."""
        return None

    def verify(self, prompt: Prompt, text: str) -> bool | None:
        """Return None: whether an answer is harmless takes a classifier."""
        return None

    def problem_prompts(self, seeds: Sequence[Prompt], count: int, *, seed: int = 0) -> list[Prompt]:
        """Return nothing: no new requests are asked for."""
        return []

    def parse_problem(self, text: str) -> Prompt | None:
        """Return None: no new requests are asked for."""
        return None


@lru_cache(maxsize=4)
def _read(data: str) -> tuple[dict[Split, tuple[Pair, ...]], Counter[str]]:
    """Return the pairs of each split, and how many rows were left out, by reason."""
    dropped: Counter[str] = Counter()
    records, test_records = _records(data)
    rest = list(_rows(records, dropped))
    held_out = [row for row in rest if _bucket(row) >= 0.8]
    test = held_out if test_records is None else list(_rows(test_records, dropped))
    tested = {row[0] for row in test}
    rest = [row for row in rest if row[0] not in tested]
    dev = [row for row in rest if _bucket(row) < 0.1]
    train = [row for row in rest if _bucket(row) >= 0.1]
    return {"train": _pairs(train), "dev": _pairs(dev), "test": _pairs(test)}, dropped


def _records(data: str) -> tuple[Iterable[Record], Iterable[Record] | None]:
    """Return the rows, and those of the test split where the data have one."""
    path = Path(data)
    if path.is_file():
        return read_table(path, _ANSWERS), None
    if not path.is_dir():
        train, test = (read_hub(data, None, split, _ANSWERS, directory=HARMLESS) for split in ("train", "test"))
        return train, test
    place = path / HARMLESS if (path / HARMLESS).is_dir() else path
    pairs, first, second = (split_file(place, name) for name in ("pairs", "train", "test"))
    if pairs is not None:
        return read_table(pairs, _ANSWERS), None
    if first is not None:
        return read_table(first, _ANSWERS), read_table(second, _ANSWERS) if second is not None else None
    raise InputError(f"{data} holds neither pairs.jsonl.gz nor train.jsonl.gz: give a directory with HH-RLHF's files")


def _rows(records: Iterable[Record], dropped: Counter[str]) -> Iterator[Row]:
    """Yield (prompt's turns, chosen, rejected) of the rows that make a pair."""
    for record in records:
        row = _given(record) if "prompt" in record.fields else _split_transcripts(record)
        reason = row if isinstance(row, str) else _flaw(*row)
        if reason:
            dropped[reason] += 1
        elif not isinstance(row, str):
            yield row


def _flaw(turns: tuple[Message, ...], chosen: str, rejected: str) -> str:
    if not turns or turns[-1].role != "user":
        return "the prompt does not end with the user"
    if not (chosen and rejected):
        return "an empty answer"
    return "two equal answers" if chosen == rejected else ""


def _given(record: Record) -> Row:
    turns = tuple(_message(record, turn) for turn in record.fields["prompt"] or ())
    return turns, record.fields["chosen"].strip(), record.fields["rejected"].strip()


def _message(record: Record, turn: Any) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise InputError(f"{record.where}: {turn!r:.60} is no turn; write a role (user, assistant) and a content")
    return Message(role=role, content=content)


def _split_transcripts(record: Record) -> Row | str:
    """Return the row of two transcripts, or why they make none."""
    chosen, rejected = (_transcript(record, name) for name in _ANSWERS)
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        return "no answer at the end"
    if chosen[:-1] != rejected[:-1]:
        return "dialogues that differ before the last turn"
    return chosen[:-1], chosen[-1].content, rejected[-1].content


def _transcript(record: Record, name: str) -> tuple[Message, ...]:
    before, *parts = _TURN.split(record.fields[name])
    if before.strip() or not parts:
        raise InputError(
            f"{record.where}: {name!r} is no transcript, it begins with {before[:40]!r}; begin turns with "
            "'\\n\\nHuman:' and '\\n\\nAssistant:', or give a column prompt"
        )
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(role=_ROLES[role], content=content.strip()) for role, content in turns)


def _bucket(row: Row) -> float:
    """Return a number in [0, 1) that the prompt fixes."""
    return content_share("hh_rlhf", [(turn.role, turn.content) for turn in row[0]])


def _pairs(rows: Iterable[Row]) -> tuple[Pair, ...]:
    # A prompt is in one split only, so its repetitions are counted within the split.
    seen: Counter[tuple[Message, ...]] = Counter()
    return tuple(_pair(row, seen) for row in rows)


def _pair(row: Row, seen: Counter[tuple[Message, ...]]) -> Pair:
    turns, *texts = row
    prompt = Prompt(messages=turns, occurrence=seen[turns])
    seen[turns] += 1
    chosen, rejected = (
        Completion(prompt_id=prompt.id, k=k, text=text, model="hh_rlhf") for k, text in enumerate(texts)
    )
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected)
