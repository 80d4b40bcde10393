"""What a client may ask: OpenAI's request bodies, the sampler's extras, and errors in OpenAI's form.

A field that would change the answer and is not supported is refused, never ignored. Extra fields are looked up in the
options of the model's policy.
"""

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from selftaught.specs import Sampling
from selftaught.types import Message

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
UNUSED = frozenset(
    ("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user")
)
"""Fields of OpenAI's that do not change the answer."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Fields that are not supported, and the values with which they ask for nothing. So does null, for every field."""


class ApiError(Exception):
    """An answer other than 200, in OpenAI's form; `headers` go with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(_Strict):
    """What else a stream brings; `include_obfuscation` pads OpenAI's chunks and does nothing here."""

    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None


class TextPart(_Strict):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: StrictStr


class ChatMessage(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | list[TextPart]

    def to_message(self) -> Message:
        """Return the turn as a prompt has it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role=ROLES[self.role], content=text)  # type: ignore[arg-type]


_Number = Annotated[float, Field(strict=True)]
_Stop = Annotated[StrictStr, Field(min_length=1, max_length=256)]


class BaseRequest(BaseModel):
    """The fields that both endpoints share."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    default_max_tokens: ClassVar[int | None] = None

    model: StrictStr | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1)] | None = None
    temperature: Annotated[_Number, Field(ge=0, le=10)] | None = None
    top_p: Annotated[_Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(strict=True, ge=0, le=2**31)] | None = None
    min_p: Annotated[_Number, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(strict=True, ge=1)] | None = None
    seed: Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | None = None
    stop: _Stop | Annotated[list[_Stop], Len(max_length=16)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None

    def sampling(self, max_tokens: int) -> Sampling:
        """Return how to draw, at most `max_tokens` tokens."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            k=self.n or 1,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            max_tokens=max_tokens,
            stop=stop,
        )

    def wanted_tokens(self) -> int | None:
        """Return how many tokens are asked for, None where the body does not say."""
        return self.default_max_tokens if self.max_tokens is None else self.max_tokens

    def options(self, known: Collection[str]) -> dict[str, float]:
        """Return the policy's own settings among the extra fields.

        A temperature that is asked for takes the place of the one an adaptive head would choose.

        Raises:
            ApiError: a field is not supported, or the value of an option is no number.
        """
        found: dict[str, float] = {}
        for name, value in (self.model_extra or {}).items():
            if value is None or name in UNUSED or _asks_nothing(name, value):
                continue
            if name not in known:
                supported = f"; this model has the options {', '.join(sorted(known))}" if known else ""
                raise ApiError(
                    400, f"{name!r} is not supported{supported}: leave it out", param=name, code="unsupported"
                )
            if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
                raise ApiError(
                    400, f"{name} is a {type(value).__name__}: give a finite number", param=name, code="invalid_value"
                )
            found[name] = value
        if "adaptive" in known:
            self._choose_temperature(found)
        return found

    def _choose_temperature(self, options: dict[str, float]) -> None:
        if self.temperature is not None:
            options.setdefault("adaptive", 0)
        filters = {"top_p": (self.top_p, 1), "top_k": (self.top_k, 0), "min_p": (self.min_p, 0)}
        used = next((name for name, (value, off) in filters.items() if value not in (None, off)), None)
        if used and options.get("adaptive", 1):
            message = (
                f"this model chooses its temperature and filters, so {used} would do nothing: give a temperature too"
            )
            raise ApiError(400, message, param=used, code="unsupported")


def _asks_nothing(name: str, value: Any) -> bool:
    # 1 == True and 0 == False in Python, not in JSON.
    return any(value == x and isinstance(value, bool) == isinstance(x, bool) for x in NEUTRAL.get(name, ()))


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


class ChatRequest(BaseRequest):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Len(min_length=1)]
    max_completion_tokens: Annotated[int, Field(strict=True, ge=1)] | None = None
    logprobs: StrictBool | None = None

    def wanted_tokens(self) -> int | None:
        """Return how many tokens are asked for, by either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_logprobs(self) -> bool:
        """Whether the tokens' log-probs are asked for."""
        return bool(self.logprobs)


class CompletionRequest(BaseRequest):
    """The body of /v1/completions. `logprobs` 0 gives those of the tokens drawn; alternatives are not kept."""

    default_max_tokens: ClassVar[int | None] = 16

    prompt: (
        StrictStr
        | Annotated[list[StrictInt], Len(min_length=1)]
        | Annotated[list[StrictStr], Len(min_length=1)]
        | Annotated[list[Annotated[list[StrictInt], Len(min_length=1)]], Len(min_length=1)]
    )
    logprobs: Annotated[int, Field(strict=True, ge=0, le=0)] | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the tokens' log-probs are asked for."""
        return self.logprobs is not None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or several, each text or token ids."""
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if single else self.prompt  # type: ignore[return-value]


def parse(kind: type[BaseRequest], body: bytes) -> Any:
    """Return the request of this `kind` in a body.

    Raises:
        ApiError: it is no JSON object, or a field has a wrong type or value.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise ApiError(400, f"the body is not JSON: {first['msg']}", code="invalid_json") from None
        place = ".".join(map(str, first["loc"]))
        param = str(first["loc"][0]) if first["loc"] else None
        message = f"{place}: {first['msg']}" if place else f"the body: {first['msg']}"
        raise ApiError(400, message, param=param, code="invalid_value") from None
