"""The rows: everything a run reads or writes is one of these frozen dataclasses.

A row has an `id` and `parents`, the ids of the rows it was made from, so that any training pair leads back to its
prompt, to all candidates and to what every scorer said of them. This module imports neither torch nor transformers.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

Finish = Literal["stop", "length", "error"]
Winner = Literal["first", "second", "tie"]


# `json.dumps` would make an encoder at every call, which is most of an id's cost.
_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def content_id(*parts: Any) -> str:
    """Return a 24-digit hexadecimal id of JSON-serialisable `parts`, equal on every machine and Python version."""
    text = _CANONICAL.encode(parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def content_share(*parts: Any) -> float:
    """Return a number in [0, 1) that JSON-serialisable `parts` fix: a draw that needs no source."""
    return int(content_id(*parts), 16) / 2**96


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text that is neither asked nor answered: pretraining data, a web page, a table.

    `patch_lengths` are the bytes of each patch, for models that read bytes in patches: one for the symbol that stands
    before the text, then the bytes of its UTF-8, so they sum to one more than these. Empty where none are stored; they
    are no part of the id.
    """

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    patch_lengths: tuple[int, ...] = ()
    parents: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", content_id("document", self.text, self.parents))

    def __repr__(self) -> str:
        return _repr_without_empty(self, "patch_lengths")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model is asked. `gold` is the reference answer, None where there is none.

    `occurrence` counts earlier prompts with the same messages and gold, so that a repeated prompt keeps an id of its
    own; `number_repeats` sets it.
    """

    messages: tuple[Message, ...]
    gold: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    occurrence: int = 0
    parents: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            turns = [(m.role, m.content) for m in self.messages]
            object.__setattr__(self, "id", content_id("prompt", turns, self.gold, self.occurrence))

    @classmethod
    def from_text(cls, text: str, **fields: Any) -> "Prompt":
        """Return a prompt of one user turn."""
        return cls(messages=(Message(role="user", content=text),), **fields)

    @property
    def text(self) -> str:
        """The contents of all turns, joined by line breaks: what template `plain` feeds to the model."""
        return "\n".join(m.content for m in self.messages)


def number_repeats(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Yield `prompts` with `occurrence` (and so `id`) set to the number of equal prompts before each."""
    seen: dict[str, int] = {}
    for prompt in prompts:
        first = replace(prompt, occurrence=0, id="")
        count = seen.get(first.id, 0)
        seen[first.id] = count + 1
        yield replace(prompt, occurrence=count, id="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sample for a prompt.

    `token_ids` are the ids that were sampled, the end-of-turn token included where one was drawn; None for text that
    no model here has sampled. `logprobs` belong to them and are of the untempered distribution (float32, nats).
    `text` leaves out special tokens and the stop string. `discarded` holds the token spans a policy took back.
    `latents` maps a name to one value per token or one per sequence (a temperature, say).
    """

    prompt_id: str
    k: int
    text: str
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    finish: Finish = "stop"
    discarded: tuple[tuple[int, int], ...] = ()
    latents: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    model: str = ""
    tokenizer: str = ""
    parents: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", completion_id(content_id(self.model, self.text), self.prompt_id, self.k))
        if not self.parents:
            object.__setattr__(self, "parents", (self.prompt_id,))


def completion_id(stage_key: str, prompt_id: str, k: int) -> str:
    """Return the id of sample `k` of a prompt in a generation stage."""
    return content_id("completion", stage_key, prompt_id, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a scorer says of a completion. `value` None means that it could not be scored, and `note` says why.

    `span` limits the score to characters [start, end) of the completion's text: a step label.
    """

    completion_id: str
    scorer: str
    value: float | None
    span: tuple[int, int] | None = None
    note: str = ""
    parents: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not self.parents:
            object.__setattr__(self, "parents", (self.completion_id,))
        if not self.id:
            object.__setattr__(self, "id", content_id("score", self.scorer, self.completion_id, self.span))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A judge's choice between two completions. `winner` None means that no verdict could be read; `note` says why."""

    prompt_id: str
    first: str
    second: str
    winner: Winner | None
    scorer: str
    judge_completion_id: str = ""
    note: str = ""
    parents: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not self.parents:
            object.__setattr__(self, "parents", (self.first, self.second))
        if not self.id:
            parts = ("verdict", self.scorer, self.first, self.second, self.judge_completion_id)
            object.__setattr__(self, "id", content_id(*parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A prompt with all its completions and everything said of them. A view: on disk the parts are tables."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    scores: tuple[Score, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    @property
    def id(self) -> str:
        """The prompt's id."""
        return self.prompt.id

    def scores_by(self, scorer: str) -> dict[str, Score]:
        """Return this scorer's whole-completion scores by completion id."""
        return {s.completion_id: s for s in self.scores if s.scorer == scorer and s.span is None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A completion to imitate.

    `loss_from` holds one number: how many characters at the start of the completion's text are context only, which the
    model reads and is not trained to write. Empty (which a 0 becomes) means that the whole completion is a target. The
    mask is part of the id: to change it, `replace(row, loss_from=..., id="")`.
    """

    prompt: Prompt
    completion: Completion
    weight: float = 1.0
    loss_from: tuple[int, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        _drop_empty_mask(self)
        _link(self, "demonstration", self.completion, loss_from=self.loss_from)

    def __repr__(self) -> str:
        return _repr_without_empty(self, "loss_from")

    def columns(self) -> dict[str, Any]:
        """Return the ecosystem's prompt-completion columns, and `loss_from` where there is one: others ignore it."""
        return {"prompt": self.prompt.text, "completion": self.completion.text, **_mask_column(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A completion to prefer over another, with the weight of the preference in the loss.

    `loss_from` is that of a `Demonstration`, with two numbers: of the chosen and of the rejected completion.
    """

    prompt: Prompt
    chosen: Completion
    rejected: Completion
    weight: float = 1.0
    loss_from: tuple[int, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        _drop_empty_mask(self)
        _link(self, "pair", self.chosen, self.rejected, loss_from=self.loss_from)

    def __repr__(self) -> str:
        return _repr_without_empty(self, "loss_from")

    def columns(self) -> dict[str, Any]:
        """Return the ecosystem's preference columns, and `loss_from` where there is one: others ignore it."""
        texts = {"chosen": self.chosen.text, "rejected": self.rejected.text}
        return {"prompt": self.prompt.text, **texts, **_mask_column(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A completion that is good or bad, as a whole and, where `step_labels` is given, step by step."""

    prompt: Prompt
    completion: Completion
    label: bool
    step_labels: tuple[tuple[int, int, bool], ...] = ()
    weight: float = 1.0
    meta: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        _link(self, "feedback", self.completion)

    def columns(self) -> dict[str, Any]:
        """Return the ecosystem's unpaired columns, and its stepwise ones where there are step labels."""
        row = {"prompt": self.prompt.text, "completion": self.completion.text, "label": self.label}
        if self.step_labels:
            row["completions"] = [self.completion.text[start:end] for start, end, _ in self.step_labels]
            row["labels"] = [good for _, _, good in self.step_labels]
        return row


Answered = Demonstration | Pair | Feedback
"""Rows about completions of a prompt."""

Example = Answered | Document
"""Rows that a model is trained on. A document is all target."""


def _link(example: Answered, kind: str, *completions: Completion, loss_from: tuple[int, ...] = ()) -> None:
    ids = [c.id for c in completions]
    if not example.parents:
        object.__setattr__(example, "parents", (example.prompt.id, *ids))
    if not example.id:
        # Rows without a mask keep the ids they had before there were masks.
        mask = [loss_from] if loss_from else []
        object.__setattr__(example, "id", content_id(kind, example.prompt.id, *ids, *mask))


def _drop_empty_mask(example: Demonstration | Pair) -> None:
    if not any(example.loss_from):
        object.__setattr__(example, "loss_from", ())


def _mask_column(example: Demonstration | Pair) -> dict[str, list[int]]:
    return {"loss_from": list(example.loss_from)} if example.loss_from else {}


def _repr_without_empty(row: Any, later: str) -> str:
    # Stages of given rows are keyed by the rows' reprs: a field that rows got later must not show in them while empty.
    shown = [f.name for f in fields(row) if f.name != later or getattr(row, later)]
    return f"{type(row).__qualname__}({', '.join(f'{name}={getattr(row, name)!r}' for name in shown)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A measured mean with its standard error over `n` problems; `unscored` were left out of the mean."""

    name: str
    mean: float
    stderr: float
    n: int
    unscored: int = 0
    parents: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", content_id("report", self.name, self.parents))
