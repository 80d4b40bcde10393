"""How a prompt becomes text and ids, and a completion becomes training targets.

The sampler and the trainer both go through here, so that a model is trained on exactly what it was sampled from.
Tokenizers are passed in: any object with the interface of a transformers tokenizer.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from selftaught.errors import InputError
from selftaught.types import Completion, Message, Prompt

PLAIN, CHAT = "plain", "chat"
MODEL_ONLY = "model_only_tokens"
"""The key in a tokenizer's settings, saved with it, of the special tokens that no text of a prompt may become."""


def prefilled(prompt: Prompt, start: str) -> Prompt:
    """Return `prompt` with an answer begun by `start`, from which the model goes on; `prompt` itself without one."""
    if not start:
        return prompt
    turns = (*prompt.messages, Message(role="assistant", content=start))
    return replace(prompt, messages=turns, parents=(prompt.id,), id="")


def answer_start(prompt: Prompt) -> str:
    """Return what the answer to `prompt` begins with: the content of a last turn that is the assistant's, else ""."""
    last = prompt.messages[-1:]
    return last[0].content if last and last[0].role == "assistant" else ""


def whole_answer(prompt: Prompt, completion: Completion) -> str:
    """Return the answer as its reader sees it: begun as the prompt begins it, unless that was taken back."""
    return completion.text if completion.discarded else answer_start(prompt) + completion.text


def render(prompt: Prompt, template: str, tokenizer: Any = None) -> str:
    """Return the text a model is fed for `prompt`.

    `template` is "plain" (the turns' contents joined by line breaks), "chat" (the tokenizer's own chat template with
    an opened assistant turn) or the path of a Jinja file that sees `messages`. A last turn that is the assistant's is
    the start of the answer: it follows the text of the turns before it as it is.

    Raises:
        InputError: chat is asked for and the tokenizer has no chat template, or the template file cannot be used.
    """
    if start := answer_start(prompt):
        return render(replace(prompt, messages=prompt.messages[:-1]), template, tokenizer) + start
    if template == PLAIN:
        return prompt.text
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    if template == CHAT:
        _require_chat_template(tokenizer)
        return _apply_chat_template(tokenizer, turns, prompt.id, open_answer=True)
    with _explained(f"template {template}", prompt.id):
        return _load_jinja(template).render(messages=turns)


def encode_prompt(tokenizer: Any, prompt: Prompt, template: str) -> list[int]:
    """Return the ids a model is fed for `prompt`: a leading BOS where the tokenizer adds one, never a trailing EOS.

    An answer that the prompt begins is encoded by itself, as completions are. Tokens that only the model may write
    (`MODEL_ONLY`) never come out of a prompt: the literal text of one is encoded in two pieces.
    """
    if start := answer_start(prompt):
        before = encode_prompt(tokenizer, replace(prompt, messages=prompt.messages[:-1]), template)
        pieces = harmless_pieces(tokenizer, start)
        return [*before, *(i for p in pieces for i in tokenizer(p, add_special_tokens=False)["input_ids"])]
    text = render(prompt, template, tokenizer)
    first, *others = harmless_pieces(tokenizer, text)
    ids = list(tokenizer(first, add_special_tokens=template != CHAT)["input_ids"])
    while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not first.endswith(str(tokenizer.eos_token)):
        ids.pop()
    for piece in others:
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def harmless_pieces(tokenizer: Any, text: str) -> list[str]:
    """Cut `text` inside of every occurrence of a token that only the model may write; overlapping ones are cut too."""
    tokens = getattr(tokenizer, "init_kwargs", {}).get(MODEL_ONLY, ())
    cuts = {match.start() + 1 for token in tokens for match in re.finditer(f"(?={re.escape(token)})", text)}
    return [text[start:end] for start, end in pairwise([0, *sorted(cuts), len(text)])]


def encode_completion(
    tokenizer: Any, prompt: Prompt, completion: Completion, template: str, fingerprint: str
) -> tuple[list[int], bool]:
    """Return the target ids of `completion` and whether they had to be made from its text.

    Ids that this tokenizer sampled (`completion.tokenizer` equals `fingerprint`) are kept as they are. Text of another
    origin, and text that ended in a stop string, is encoded and closed with the end-of-turn token.

    Raises:
        InputError: the tokenizer has no end-of-turn token to close the text with.
    """
    ends = end_token_ids(tokenizer, template)
    ids = completion.token_ids
    if (
        ids is not None
        and completion.tokenizer == fingerprint
        and (completion.finish != "stop" or (ids[-1:] and ids[-1] in ends))
    ):
        return list(ids), False
    if template == CHAT:
        return _encode_chat_turn(tokenizer, prompt, completion.text), True
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{_name(tokenizer)} has no EOS token, so a completion cannot be closed: set tokenizer.eos_token"
        )
    return [*tokenizer(completion.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id], True


@lru_cache(maxsize=64)
def _chat_end_ids(tokenizer: Any) -> tuple[int, ...]:
    probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "probe"}]
    closed = _apply_chat_template(tokenizer, probe, "x", open_answer=False)
    tail = closed[closed.rindex("probe") + len("probe") :]
    specials = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    first = [i for i in tokenizer(tail, add_special_tokens=False)["input_ids"] if i in specials][:1]
    return tuple(first)


def end_token_ids(tokenizer: Any, template: str) -> tuple[int, ...]:
    """Return the ids that end a turn: EOS and, under the chat template, the special token that closes a turn."""
    ends = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    if template != CHAT:
        return ends
    _require_chat_template(tokenizer)
    return tuple(dict.fromkeys((*ends, *_chat_end_ids(tokenizer))))


def pad_id_for(tokenizer: Any, last_ids: Collection[int]) -> int:
    """Return an id to pad rows with that is none of their last ones: the tokenizer's pad id, else the smallest.

    A sequence classifier reads a row at the last token that is not the pad token.

    Raises:
        InputError: every token of the vocabulary ends some row.
    """
    found = next((i for i in (tokenizer.pad_token_id, *range(len(tokenizer))) if i not in last_ids), None)
    if found is None:
        raise InputError(
            f"each of the tokenizer's {len(tokenizer)} tokens ends some row, so none can pad: give it a pad token of "
            "its own, tokenizer.add_special_tokens"
        )
    return found


def _encode_chat_turn(tokenizer: Any, prompt: Prompt, text: str) -> list[int]:
    start = answer_start(prompt)
    turns = [{"role": m.role, "content": m.content} for m in (prompt.messages[:-1] if start else prompt.messages)]
    opened = _apply_chat_template(tokenizer, turns, prompt.id, open_answer=True)
    answered = [*turns, {"role": "assistant", "content": start + text}]
    closed = _apply_chat_template(tokenizer, answered, prompt.id, open_answer=False)
    if not closed.startswith(opened + start):
        raise InputError(
            f"the chat template of {_name(tokenizer)} rewrites earlier turns once an answer is added (prompt "
            f"{prompt.id}), so the answer's targets cannot be told apart: pass --template plain or a Jinja file"
        )
    ids = tokenizer(closed[len(opened + start) :], add_special_tokens=False)["input_ids"]
    ends = end_token_ids(tokenizer, CHAT)
    last = max((i for i, token in enumerate(ids) if token in ends), default=None)
    if last is None:
        raise InputError(
            f"the chat template of {_name(tokenizer)} does not close an answer with an end-of-turn token (prompt "
            f"{prompt.id}), so the model would never learn to stop: pass --template plain or fix the template"
        )
    return ids[: last + 1]


def _apply_chat_template(tokenizer: Any, turns: list[dict[str, str]], prompt_id: str, *, open_answer: bool) -> str:
    with _explained(f"the chat template of {_name(tokenizer)}", prompt_id):
        return tokenizer.apply_chat_template(turns, add_generation_prompt=open_answer, tokenize=False)


@contextmanager
def _explained(template: str, prompt_id: str) -> Iterator[None]:
    """Templates refuse what they were not written for: a system turn, roles that do not alternate."""
    import jinja2

    try:
        yield
    except jinja2.TemplateError as error:
        raise InputError(
            f"{template} cannot render prompt {prompt_id}: {error.message}; change the prompt's turns or the template"
        ) from error


def _require_chat_template(tokenizer: Any) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{_name(tokenizer)} has no chat template: pass --template plain or --template FILE.jinja")


@lru_cache(maxsize=16)
def _load_jinja(path: str) -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        source = Path(path).read_text(encoding="utf-8")
        return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(source)
    except OSError as error:
        raise InputError(
            f"template {path!r} is neither 'plain', 'chat' nor a readable file: {error.strerror}"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"template {path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"template {path}, line {error.lineno}: {error.message}") from None


def _name(tokenizer: Any) -> str:
    return f"tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}"
