"""Examples -> ids: the prompt, the completions, and what of them is a target."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selftaught.errors import InputError
from selftaught.text.steps import Span, check_spans, first_token, token_starts, token_steps
from selftaught.text.templates import encode_completion, encode_prompt
from selftaught.types import Answered, Completion, Demonstration, Document, Example, Feedback, Pair

Ids = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An example as ids: its prompt, its completions in order (chosen before rejected), and what the loss needs.

    `context` counts the tokens at the start of each completion that are inputs and no targets, and `target_spans` are
    the characters of its text that are targets (None: all); both are empty where everything is a target.

    Feedback has a `label`; `steps` holds the number of each token's labelled step, from 1 to S and 0 outside of them,
    `step_labels` and `step_spans` (in characters of the text) are the steps' own.

    `choices` are the indices of each completion's choices, one or one per token; none for what was not decoded so.

    A document is one completion with its own id, after a prompt of the one token that begins a text. `patch_lengths`
    are those stored with it: of the prompt and the whole text, one token more than are inputs.
    """

    id: str
    weight: float
    prompt: Ids
    completions: tuple[Ids, ...]
    completion_ids: tuple[str, ...]
    finished: tuple[bool, ...]
    retokenised: int
    context: tuple[int, ...] = ()
    target_spans: tuple[Span | None, ...] = ()
    label: bool | None = None
    steps: Ids | None = None
    step_labels: tuple[bool, ...] = ()
    step_spans: tuple[Span, ...] = ()
    choices: tuple[Ids, ...] = ()
    patch_lengths: Ids | None = None

    @property
    def is_document(self) -> bool:
        """Whether it is text that nothing asked for."""
        return self.completion_ids == (self.id,)

    @property
    def first_targets(self) -> tuple[int, ...]:
        """The index of the first target among each completion's tokens."""
        return self.context or (0,) * len(self.completions)

    @property
    def target_counts(self) -> tuple[int, ...]:
        """How many targets each completion has."""
        return tuple(len(c) - first for c, first in zip(self.completions, self.first_targets, strict=True))

    @property
    def scored_spans(self) -> tuple[tuple[str, Span | None], ...]:
        """What the reference scores: id and characters (None: all) of each completion, then of each step."""
        wholes = zip(self.completion_ids, self.target_spans or (None,) * len(self.completion_ids), strict=True)
        return (*wholes, *((self.completion_ids[0], span) for span in self.step_spans))

    @property
    def completion_keys(self) -> tuple[str, ...]:
        """The names under which the reference keeps the log-prob of each completion's targets."""
        return tuple(reference_key(*scored) for scored in self.scored_spans[: len(self.completion_ids)])

    @property
    def step_keys(self) -> tuple[str, ...]:
        """The names under which the reference keeps the log-prob of each step."""
        return tuple(reference_key(self.completion_ids[0], span) for span in self.step_spans)

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens of all sequences, the prompt counted with each."""
        return sum(len(self.prompt) + len(c) for c in self.completions)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest completion, the last token included."""
        return len(self.prompt) + max(len(c) for c in self.completions)


def reference_key(completion_id: str, span: Span | None) -> str:
    """Return the name under which the reference keeps the log-prob of a completion or, given a span, of that part."""
    return completion_id if span is None else f"{completion_id}[{span[0]}:{span[1]}]"


def completions_of(example: Answered) -> tuple[Completion, ...]:
    """Return the completions an example is about, chosen before rejected."""
    return (example.chosen, example.rejected) if isinstance(example, Pair) else (example.completion,)


def encode(tokenizer: Any, examples: Sequence[Example], template: str, fingerprint: str) -> list[Encoded]:
    """Return `examples` as ids.

    Raises:
        InputError: a prompt, a completion or a document has no token, or no target behind its context; patch lengths
            do not fit their document, or only some examples have them. Names the example.
    """
    encoded = [
        _encode_document(tokenizer, example)
        if isinstance(example, Document)
        else _encode_one(tokenizer, example, template, fingerprint)
        for example in examples
    ]
    bare = [e.id for e in encoded if e.patch_lengths is None]
    if 0 < len(bare) < len(encoded):
        raise InputError(f"example {bare[0]} has no patch_lengths, and others have: store them for all or for none")
    return encoded


def _encode_document(tokenizer: Any, document: Document) -> Encoded:
    if not document.text:
        raise InputError(f"document {document.id} has no text: leave it out")
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if begin is None:
        raise InputError(
            f"document {document.id}: the tokenizer has neither a BOS nor an EOS token to predict its first token "
            "from: set tokenizer.bos_token and save it again"
        )
    # Without the second option, text that spells a special token's name would become that token.
    ids = tokenizer(document.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not ids:
        raise InputError(f"document {document.id} has no token: leave it out")
    return Encoded(
        id=document.id,
        weight=1.0,
        prompt=np.asarray([begin], dtype=np.int64),
        completions=(np.asarray(ids, dtype=np.int64),),
        completion_ids=(document.id,),
        finished=(False,),
        retokenised=0,
        patch_lengths=_patch_lengths(document),
    )


def _patch_lengths(document: Document) -> Ids | None:
    """Return the stored lengths; they count bytes whatever the tokenizer, so a wrong row is found before training."""
    if not document.patch_lengths:
        return None
    lengths, size = np.asarray(document.patch_lengths, dtype=np.int64), len(document.text.encode())
    if lengths.min() < 1 or lengths.sum() != size + 1:
        raise InputError(
            f"document {document.id}: patch_lengths from {lengths.min()} up sum to {lengths.sum()}, and its text has "
            f"{size} bytes: give lengths of 1 or more that sum to {size + 1}, or none"
        )
    return lengths


def _encode_one(tokenizer: Any, example: Answered, template: str, fingerprint: str) -> Encoded:
    prompt = encode_prompt(tokenizer, example.prompt, template)
    if not prompt:
        raise InputError(
            f"example {example.id}: its prompt has no token to predict the first target from: give it some text"
        )
    rows = completions_of(example)
    ids, again = zip(
        *(encode_completion(tokenizer, example.prompt, c, template, fingerprint) for c in rows), strict=True
    )
    for completion, tokens in zip(rows, ids, strict=True):
        if not tokens:
            raise InputError(f"example {example.id}: completion {completion.id} has no token: leave it out")
    return Encoded(
        id=example.id,
        weight=float(example.weight),
        prompt=np.asarray(prompt, dtype=np.int64),
        completions=tuple(np.asarray(i, dtype=np.int64) for i in ids),
        completion_ids=tuple(c.id for c in rows),
        finished=tuple(c.finish == "stop" for c in rows),
        retokenised=sum(again),
        choices=tuple(np.asarray(c.latents.get("choice", ()), dtype=np.float64) for c in rows),
        **(
            _feedback_fields(tokenizer, example, ids[0])
            if isinstance(example, Feedback)
            else _context_fields(tokenizer, example, ids)
        ),
    )


def _context_fields(tokenizer: Any, example: Demonstration | Pair, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    if not example.loss_from:
        return {}
    rows = completions_of(example)
    if len(example.loss_from) != len(rows):
        raise InputError(
            f"example {example.id}: loss_from={example.loss_from} must have {len(rows)} numbers, one for each "
            "completion: mend or empty it"
        )
    parts = list(zip(rows, ids, example.loss_from, strict=True))
    return {
        "context": tuple(_first_target(tokenizer, f"example {example.id}", *part) for part in parts),
        "target_spans": tuple((begin, len(c.text)) if begin else None for c, _, begin in parts),
    }


def _first_target(tokenizer: Any, name: str, completion: Completion, ids: Sequence[int], begin: int) -> int:
    if not begin:
        return 0
    where = f"{name}: loss_from={begin} of completion {completion.id}"
    if not 0 < begin <= len(completion.text):
        raise InputError(f"{where} lies outside of its {len(completion.text)} characters: mend or empty loss_from")
    first = first_token(tokenizer, ids, completion.text, begin)
    if first is None:
        raise InputError(f"{where} has no place in its tokens, which do not spell its text: empty loss_from")
    if first == len(ids):
        raise InputError(f"{where} leaves no target: lower it, or leave the example out")
    return first


def _feedback_fields(tokenizer: Any, example: Feedback, ids: Sequence[int]) -> dict[str, Any]:
    """Return label and steps; a step that has no token of its own, being part of a neighbour's, is left out."""
    if not example.step_labels:
        return {"label": example.label}
    text, spans = example.completion.text, [(start, end) for start, end, _ in example.step_labels]
    check_spans(spans, text, f"example {example.id}")
    starts = token_starts(tokenizer, ids, text)
    if starts is None:
        raise InputError(
            f"example {example.id}: the tokens of completion {example.completion.id} do not spell its text, so steps "
            "have no place in them: leave its step labels out"
        )
    numbers = np.asarray(token_steps(starts, text, spans), dtype=np.int64)
    kept, renumbered = np.unique(numbers, return_inverse=True)
    found = [int(number) - 1 for number in kept if number]
    return {
        "label": example.label,
        "steps": renumbered + (0 if kept[0] == 0 else 1),
        "step_labels": tuple(example.step_labels[h][2] for h in found),
        "step_spans": tuple(spans[h] for h in found),
    }


def as_steps(example: Encoded) -> list[Encoded]:
    """Return every labelled step as an example of its own: what precedes it belongs to its prompt."""
    completion, steps = example.completions[0], example.steps
    if steps is None:
        return []
    parts = []
    for number, (key, label) in enumerate(zip(example.step_keys, example.step_labels, strict=True), 1):
        places = np.flatnonzero(steps == number)
        first, last = int(places[0]), int(places[-1])
        parts.append(
            Encoded(
                id=f"{example.id}[{number}]",
                weight=example.weight,
                prompt=np.concatenate([example.prompt, completion[:first]]),
                completions=(completion[first : last + 1],),
                completion_ids=(key,),
                finished=(False,),
                retokenised=0,
                label=label,
            )
        )
    return parts
