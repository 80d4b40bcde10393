"""What a served model is: its engine, its name, its limits, and the requests it is working on."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from selftaught.engines.rows import Event, Request
from selftaught.errors import InputError
from selftaught.serve.engine import Engine, EngineFailed, Job
from selftaught.serve.schema import ApiError, BaseRequest, ChatRequest, CompletionRequest
from selftaught.store.seeds import row_seed
from selftaught.text.templates import CHAT, MODEL_ONLY, PLAIN, encode_prompt
from selftaught.types import Prompt, content_id, number_repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server takes on.

    Attributes:
        body_bytes: the longest body of a request.
        tokens: the most `max_tokens` that can be asked for.
        samples: the most samples per request: prompts times `n`.
        requests: requests in hand at once, running and waiting.
        seconds: from the first byte of a request to the last of its answer.
        grace_seconds: how long running requests may go on once the server is told to stop.
    """

    body_bytes: int = 4 << 20
    tokens: int = 4096
    samples: int = 128
    requests: int = 256
    seconds: float = 600.0
    grace_seconds: float = 30.0


@dataclass(eq=False)
class Exchange:
    """One HTTP request that was let in. `deadline` is in the event loop's time."""

    deadline: float
    job: Job | None = None

    @property
    def requests(self) -> tuple[Request, ...]:
        """The sampler requests it became."""
        return self.job.requests if self.job else ()

    @property
    def samples(self) -> int:
        """How many samples are asked for."""
        return sum(len(request.seeds) for request in self.requests)

    @property
    def prompt_tokens(self) -> int:
        """The length of all prompts."""
        return sum(len(request.prompt) for request in self.requests)

    @property
    def stop(self) -> tuple[str, ...]:
        """The stop strings."""
        return self.requests[0].sampling.stop

    def index(self, event: Event) -> int:
        """Return the number of the choice an event belongs to: all samples of the first prompt come first."""
        return int(event.request.rpartition(":")[2]) * len(self.requests[0].seeds) + event.sample


class Service:
    """A model that answers requests, within `limits`, and the token (`key`) a client must know.

    `template` None is the tokenizer's chat template for chats, where it has one, else plain text.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        template: str | None = None,
        limits: Limits | None = None,
        key: str | None = None,
    ) -> None:
        self.engine, self.name, self.key = engine, name, key
        self.created = int(time.time())
        self.limits = limits or Limits()
        self.template = template or default_template(engine.tokenizer)
        self.closing = False
        self.exchanges: set[Exchange] = set()
        self.idle = asyncio.Event()
        self.idle.set()
        # One thread: tokenizers may not be used to encode by several at a time.
        self._encoder = ThreadPoolExecutor(1, "encoder")

    @contextmanager
    def admit(self) -> Iterator[Exchange]:
        """Let a request in until the block ends; whatever is left of its job then is cancelled.

        Raises:
            ApiError: 503 while shutting down or without a model, 429 where too many are in hand.
        """
        if self.closing:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        if not self.engine.healthy:
            raise ApiError(503, "the model cannot be run; see the server's log", code="unhealthy")
        if len(self.exchanges) >= self.limits.requests:
            message = f"{self.limits.requests} requests are in hand: try again later"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})
        exchange = Exchange(asyncio.get_running_loop().time() + self.limits.seconds)
        self.exchanges.add(exchange)
        self.idle.clear()
        try:
            yield exchange
        finally:
            if exchange.job:
                self.engine.cancel(exchange.job)
            self.exchanges.remove(exchange)
            if not self.exchanges:
                self.idle.set()

    async def submit(self, exchange: Exchange, asked: ChatRequest | CompletionRequest) -> None:
        """Start what was asked for.

        Raises:
            ApiError: it is beyond a limit, or the template or the sampler cannot take it.
        """
        self._check(asked)
        options, unread = asked.options(self.engine.options), _prompts(asked)
        loop = asyncio.get_running_loop()
        try:
            prompts = await loop.run_in_executor(self._encoder, self._encode, asked, unread)
            requests = self._requests(asked, unread, prompts, options)
            exchange.job = await self.engine.submit(requests, quiet=not asked.stream)
        except InputError as error:
            raise ApiError(400, str(error), code="invalid_value") from None
        except EngineFailed as error:
            raise ApiError(503, str(error), code="engine_failed") from None

    def _check(self, asked: ChatRequest | CompletionRequest) -> None:
        if asked.model is not None and asked.model != self.name:
            message = f"there is no model {asked.model[:100]!r} here: ask for {self.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        samples = len(_prompts(asked)) * (asked.n or 1)
        if samples > self.limits.samples:
            message = f"{samples} samples are asked for and {self.limits.samples} are allowed: ask for fewer at a time"
            raise ApiError(400, message, param="n", code="too_many_samples")
        tokens = asked.wanted_tokens() or 1
        if tokens > self.limits.tokens:
            message = f"max_tokens {tokens} is more than the {self.limits.tokens} that are allowed"
            raise ApiError(400, message, param="max_tokens", code="too_many_tokens")

    def _encode(self, asked: BaseRequest, prompts: Sequence[Prompt | list[int]]) -> list[tuple[int, ...]]:
        template = self.template if isinstance(asked, ChatRequest) else PLAIN
        tokenizer = self.engine.tokenizer
        forbidden = {*tokenizer.convert_tokens_to_ids(getattr(tokenizer, "init_kwargs", {}).get(MODEL_ONLY, []))}
        encoded = []
        for prompt in prompts:
            ids = encode_prompt(tokenizer, prompt, template) if isinstance(prompt, Prompt) else prompt
            bad = next((i for i in ids if not 0 <= i < len(tokenizer) or i in forbidden), None)
            if bad is not None:
                message = f"the prompt has the token id {bad}: give ids of the vocabulary that prompts may hold"
                raise ApiError(400, message, param="prompt", code="invalid_value")
            if self.engine.context is not None and len(ids) >= self.engine.context:
                message = f"the prompt has {len(ids)} tokens and the model's context is {self.engine.context}"
                raise ApiError(400, f"{message}: shorten it", code="context_length_exceeded")
            encoded.append(tuple(ids))
        return encoded

    def _requests(
        self,
        asked: ChatRequest | CompletionRequest,
        unread: Sequence[Prompt | list[int]],
        prompts: Sequence[tuple[int, ...]],
        options: dict[str, float],
    ) -> list[Request]:
        # With the prompt's own id a seed gives the rows that `selftaught generate` draws with it.
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        names = [p.id if isinstance(p, Prompt) else content_id("tokens", i, p) for i, p in enumerate(unread)]
        sampling = asked.sampling(asked.wanted_tokens() or self.limits.tokens)
        group = uuid4().hex
        return [
            Request(
                id=f"{group}:{i}",
                prompt=ids,
                sampling=sampling,
                seeds=tuple(row_seed(seed, name, k) for k in range(sampling.k)),
                stream=True,
                options=options,
            )
            for i, (name, ids) in enumerate(zip(names, prompts, strict=True))
        ]

    async def events(self, exchange: Exchange) -> AsyncIterator[list[Event]]:
        """Yield what happens until all samples are done.

        Raises:
            ApiError: 504 past the deadline, 503 where the server cannot wait, 500 where the sampler failed.
        """
        job, left = exchange.job, exchange.samples
        assert job is not None
        while left:
            try:
                async with asyncio.timeout_at(exchange.deadline):
                    batch = await job.next()
            except TimeoutError:
                message = f"the answer took longer than {self.limits.seconds:g} seconds: ask for fewer tokens"
                raise ApiError(504, message, code="timeout") from None
            except EngineFailed as error:
                raise ApiError(503 if self.closing else 500, str(error), code="engine_failed") from None
            left -= sum(event.kind == "done" for event in batch)
            yield batch

    async def drain(self) -> None:
        """Refuse new requests, and wait for those in hand as long as `grace_seconds` allow; the rest fails."""
        self.closing = True
        try:
            async with asyncio.timeout(self.limits.grace_seconds):
                await self.idle.wait()
        except TimeoutError:
            self.engine.fail_all("the server is shutting down")


def default_template(tokenizer: object) -> str:
    """Return "chat" for a tokenizer with a chat template, else "plain"."""
    return CHAT if getattr(tokenizer, "chat_template", None) else PLAIN


def _prompts(asked: ChatRequest | CompletionRequest) -> list[Prompt | list[int]]:
    """Return the prompts, those of equal text numbered; token ids stay as they are."""
    if isinstance(asked, ChatRequest):
        return [Prompt(messages=tuple(message.to_message() for message in asked.messages))]
    given = asked.prompts
    texts = number_repeats(Prompt.from_text(p) for p in given if isinstance(p, str))
    return [next(texts) if isinstance(p, str) else p for p in given]
