"""Rows from users' own data files in the ecosystem's columns.

A prompt is a text or a list of messages (`{"role": ..., "content": ...}`); a completion is a text or a list of one
assistant message. Every other column is kept in `meta`.
"""

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, get_args

from selftaught.errors import InputError
from selftaught.store.manifest import MANIFEST, read_manifest
from selftaught.store.tables import Fields, Record, read_table
from selftaught.types import (
    Completion,
    Demonstration,
    Document,
    Feedback,
    Message,
    Pair,
    Prompt,
    content_id,
    number_repeats,
)

Row = TypeVar("Row")

SCORES = {
    "score_chosen": ("score_chosen", "chosen_score", "chosen_rating"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected_rating"),
}
"""The columns in which preference sets keep the scores of the two sides."""

_TALK = (str, list)
_ROLES = get_args(Message.__annotations__["role"])


def read_prompts(path: Path | str, limit: int | None = None) -> Iterator[Prompt]:
    """Yield prompts from columns `prompt` or `messages`, with `answer` as gold where it is there."""
    optional: Fields = {"prompt": _TALK, "messages": list, "answer": (str, int, float)}
    return number_repeats(_read(Prompt, path, {}, optional, _prompt_row, limit))


def read_demonstrations(path: Path | str, limit: int | None = None) -> Iterator[Demonstration]:
    """Yield demonstrations from columns `prompt` and `completion`, with `loss_from` where it is there."""

    def row(record: Record) -> Demonstration:
        prompt = _prompt(record, ("completion", "loss_from"))
        completion = _completion(record, prompt, "completion", 0)
        return Demonstration(prompt=prompt, completion=completion, loss_from=_loss_from(record, completion))

    required: Fields = {"prompt": _TALK, "completion": _TALK}
    return _read(Demonstration, path, required, {"loss_from": list}, row, limit)


def holds_documents(path: Path | str) -> bool:
    """Return whether a stage holds documents, or the first row of a data file has `text` and no `completion`."""
    if (Path(path) / MANIFEST).exists():
        return read_manifest(Path(path)).get("row_type") == Document.__name__
    first = next(iter(read_table(path, {})))
    return "text" in first.fields and "completion" not in first.fields


def read_documents(path: Path | str, limit: int | None = None) -> Iterator[Document]:
    """Yield documents from the column `text`."""

    def row(record: Record) -> Document:
        meta = {k: v for k, v in record.fields.items() if k != "text" and _is_plain(v)}
        return Document(text=record.fields["text"], meta=meta)

    return _read(Document, path, {"text": str}, {}, row, limit)


def read_pairs(path: Path | str, limit: int | None = None) -> Iterator[Pair]:
    """Yield pairs from columns `prompt`, `chosen` and `rejected`, with `weight` and `loss_from` where they are there.

    Scores of both sides, under any of the names in `SCORES`, become the pair's meta `score_chosen` and
    `score_rejected`.
    """

    def row(record: Record) -> Pair:
        taken = ("chosen", "rejected", "weight", "loss_from", *SCORES["score_chosen"], *SCORES["score_rejected"])
        prompt = _prompt(record, taken)
        chosen, rejected = (_completion(record, prompt, name, k) for k, name in enumerate(("chosen", "rejected")))
        return Pair(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            weight=_weight(record),
            loss_from=_loss_from(record, chosen, rejected),
            meta=_scores(record),
        )

    scores: Fields = dict.fromkeys((name for names in SCORES.values() for name in names), float)
    required: Fields = {"prompt": _TALK, "chosen": _TALK, "rejected": _TALK}
    return _read(Pair, path, required, {"weight": float, "loss_from": list, **scores}, row, limit)


def read_feedback(path: Path | str, limit: int | None = None, separator: str = "\n") -> Iterator[Feedback]:
    """Yield feedback from columns `prompt`, `completion` and `label`, or `prompt`, `completions` and `labels`.

    `completions` are the steps of one completion and `labels` theirs (true, false, or null where unknown). Where both
    forms are there, the steps are looked for in `completion`; where there is no `completion`, they are joined with
    `separator`. Without a `label`, a completion is good where all labels of its steps are true.
    """

    def row(record: Record) -> Feedback:
        prompt = _prompt(record, ("completion", "label", "completions", "labels"))
        steps = _given_steps(record)
        if steps and "completion" not in record.fields:
            record.fields["completion"] = separator.join(text for text, _ in steps)
        completion = _completion(record, prompt, "completion", 0)
        return Feedback(
            prompt=prompt,
            completion=completion,
            label=record.fields.get("label", all(label for _, label in steps)),
            step_labels=_placed(record, completion.text, steps),
        )

    optional: Fields = {"completion": _TALK, "label": bool, "completions": list, "labels": list}
    return _read(Feedback, path, {"prompt": _TALK}, optional, row, limit)


def _given_steps(record: Record) -> list[tuple[str, bool | None]]:
    fields, found = record.fields, ", ".join(record.fields)
    if "completions" not in fields and "labels" not in fields:
        if "completion" not in fields or "label" not in fields:
            raise InputError(f"{record.where}: fields {found}; give completion and label, or completions and labels")
        return []
    steps, labels = fields.get("completions"), fields.get("labels")
    if not isinstance(steps, list) or not isinstance(labels, list) or not steps or len(steps) != len(labels):
        raise InputError(f"{record.where}: completions and labels must be two lists of equal length, one label a step")
    for i, (step, label) in enumerate(zip(steps, labels, strict=True)):
        if not isinstance(step, str) or not step or not isinstance(label, bool | None):
            raise InputError(
                f"{record.where}: step {i} = {step!r:.60}, {label!r:.20}: give text and true, false or null"
            )
    if "label" not in fields and None in labels:
        raise InputError(f"{record.where}: without a label every step must have one; add label, true or false")
    return list(zip(steps, labels, strict=True))


def _placed(record: Record, text: str, steps: list[tuple[str, bool | None]]) -> tuple[tuple[int, int, bool], ...]:
    spans, at = [], 0
    for i, (step, label) in enumerate(steps):
        start = text.find(step, at)
        if start < 0:
            raise InputError(
                f"{record.where}: step {i} = {step!r:.60} is not in the completion after the one before it"
            )
        at = start + len(step)
        if label is not None:
            spans.append((start, at, label))
    return tuple(spans)


def _read(
    row_type: type[Row],
    path: Path | str,
    required: Fields,
    optional: Fields,
    build: Callable[[Record], Row],
    limit: int | None,
) -> Iterator[Row]:
    rows: Iterator[Row]
    if (Path(path) / MANIFEST).exists():
        # Imported late: tasks import this module, and the command line must answer at once.
        from selftaught.store.stage import open_stage

        stage = open_stage(path)
        if stage.row_type is not row_type:
            raise InputError(f"{path} holds {stage.row_type.__name__} rows; give a stage of {row_type.__name__} rows")
        rows = iter(stage)
    else:
        rows = map(build, read_table(path, required, optional))
    for count, row in enumerate(rows):
        if limit is not None and count >= limit:
            return
        yield row


def _prompt_row(record: Record) -> Prompt:
    if "prompt" not in record.fields and "messages" not in record.fields:
        found = ", ".join(record.fields) or "none"
        raise InputError(f"{record.where}: neither 'prompt' nor 'messages' is there (fields: {found}); add one")
    return _prompt(record, ("messages", "answer"))


def _prompt(record: Record, taken: tuple[str, ...]) -> Prompt:
    fields = record.fields
    name = "prompt" if "prompt" in fields else "messages"
    value = fields[name]
    turns = _messages(record, name) if isinstance(value, list) else (Message(role="user", content=value),)
    gold = str(fields["answer"]) if "answer" in taken and "answer" in fields else None
    meta = {k: v for k, v in fields.items() if k != name and k not in taken and _is_plain(v)}
    return Prompt(messages=turns, gold=gold, meta=meta)


def _completion(record: Record, prompt: Prompt, name: str, k: int) -> Completion:
    value = record.fields[name]
    if isinstance(value, list):
        turns = _messages(record, name)
        if len(turns) != 1 or turns[0].role != "assistant":
            raise InputError(f"{record.where}: {name!r} has {len(turns)} messages; give one, with role assistant")
        value = turns[0].content
    return Completion(prompt_id=prompt.id, k=k, text=value, id=content_id("given", prompt.id, k, value))


def _weight(record: Record) -> float:
    weight = float(record.fields.get("weight", 1.0))
    if not (isfinite(weight) and weight >= 0):
        # Below 0 the loss would prefer what was rejected.
        raise InputError(f"{record.where}: 'weight' = {weight} is no share of the loss; give 0 or more")
    return weight


def _loss_from(record: Record, *completions: Completion) -> tuple[int, ...]:
    values = record.fields.get("loss_from", [])
    lengths = [len(completion.text) for completion in completions]
    whole = all(type(value) is int for value in values) and len(values) in (0, len(lengths))
    if not whole or not all(0 <= value <= length for value, length in zip(values, lengths, strict=False)):
        raise InputError(
            f"{record.where}: 'loss_from' = {values!r:.60} must be a list of one number of characters per completion, "
            f"at most {' and '.join(map(str, lengths))} here; mend or remove it"
        )
    return tuple(values)


def _scores(record: Record) -> dict[str, float]:
    found = {side: [record.fields[n] for n in names if n in record.fields] for side, names in SCORES.items()}
    for side, values in found.items():
        if len(values) > 1:
            raise InputError(f"{record.where}: two columns hold the {side} ({', '.join(SCORES[side])}); keep one")
    return {side: float(values[0]) for side, values in found.items() if values}


def _messages(record: Record, name: str) -> tuple[Message, ...]:
    turns = []
    for i, turn in enumerate(record.fields[name]):
        where = f"{record.where}: {name}[{i}]"
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise InputError(f'{where} = {turn!r:.60} is no message; write {{"role": "user", "content": "..."}}')
        if turn.get("role") not in _ROLES:
            raise InputError(f"{where} has the role {turn.get('role')!r}; use one of {', '.join(_ROLES)}")
        turns.append(Message(role=turn["role"], content=turn["content"]))
    if not turns:
        raise InputError(f"{record.where}: {name!r} is an empty list; give at least one message")
    return tuple(turns)


def _is_plain(value: Any) -> bool:
    """Whether `meta` can hold the value (Parquet also has dates and bytes)."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)
