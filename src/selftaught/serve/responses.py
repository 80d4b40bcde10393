"""Answers in OpenAI's two forms, whole and in chunks, with the extra fields that docs/serve.md describes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from selftaught.engines.rows import Output
from selftaught.engines.stopping import finished_text
from selftaught.serve.stream import Token, standing, token_list


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The form of one answer: that of /v1/chat/completions or that of /v1/completions."""

    chat: bool
    model: str
    logprobs: bool
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int]) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": list(choices), "usage": dict(usage)}

    def chunk(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Return one event of a stream."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": list(choices), "usage": usage}

    def choice(self, index: int, output: Output, tokenizer: Any) -> dict[str, Any]:
        """Return a finished sample."""
        said = {"message": {"role": "assistant", "content": output.text, "refusal": None}}
        tokens: list[Token] = []
        if self.logprobs:
            rows = (standing(values, output.discarded) for values in (output.token_ids, output.logprobs))
            tokens = token_list(tokenizer, *rows)
        return {
            "index": index,
            **(said if self.chat else {"text": output.text}),
            "logprobs": self._logprobs(tokens),
            "finish_reason": output.finish,
        }

    def opening(self, index: int) -> dict[str, Any]:
        """Return the choice that opens a sample in a chat stream."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(
        self, index: int, change: tuple[int, str], tokens: tuple[int, Sequence[Token]], finish: str | None
    ) -> dict[str, Any]:
        """Return a choice that changes a streamed sample.

        Args:
            index: which sample.
            change: how many characters to drop from the end of what was sent, then what to append.
            tokens: how many tokens to drop, then those to append.
            finish: why it ended, in its last chunk.
        """
        (dropped, text), (gone, new) = change, tokens
        said: dict[str, Any] = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        retract = {"retract": dropped} if dropped else {}
        if self.logprobs and gone:
            retract["retract_tokens"] = gone
        logprobs = self._logprobs(new) if new else None
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": finish, **retract}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.chat:
            content = [
                {"token": t.text, "logprob": t.logprob, "bytes": list(t.text.encode()), "top_logprobs": []}
                for t in tokens
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [t.text for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": None,
            "text_offset": [t.offset for t in tokens],
        }

    def _head(self, kind: str) -> dict[str, Any]:
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "system_fingerprint": None}


def extras(output: Output, retractions: int, tokenizer: Any) -> dict[str, Any]:
    """Return what a policy leaves of a sample: what it took back, and what it chose."""
    found: dict[str, Any] = {}
    if output.discarded:
        spans = [output.token_ids[start:end] for start, end in output.discarded]
        found["discarded"] = {
            "retractions": retractions,
            "tokens": sum(map(len, spans)),
            "texts": [finished_text(tokenizer, list(span)) for span in spans],
        }
    if output.latents:
        found["latents"] = {name: list(values) for name, values in output.latents.items()}
    return found


def usage(prompt_tokens: int, outputs: Sequence[Output]) -> dict[str, int]:
    """Return the tokens read and drawn; tokens taken back were drawn too."""
    drawn = sum(len(output.token_ids) for output in outputs)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": drawn, "total_tokens": prompt_tokens + drawn}
