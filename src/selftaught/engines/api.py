"""Generation by any OpenAI-compatible server: `ModelSpec(source="http://host:port/v1#name")`.

Requests fly concurrently, as many as the server bears (`engines.pace`). What may pass is asked again with growing
pauses; each answer is kept in a journal as it arrives, so that a stopped run asks only for what is missing.
"""

import asyncio
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

import openai
from pydantic import BaseModel, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)
from tqdm import tqdm

from selftaught.engines.journal import Journal
from selftaught.engines.pace import Overloaded, Pace
from selftaught.errors import InputError, SelftaughtError
from selftaught.models.endpoint import Endpoint, parse_endpoint
from selftaught.specs import ModelSpec, Sampling
from selftaught.store.seeds import row_seed
from selftaught.text.templates import CHAT, render
from selftaught.types import Completion, Prompt, completion_id

KEY_VARIABLE = "OPENAI_API_KEY"
SAMPLES_PER_REQUEST = 128
SEEDS = 2**31
"""Seeds are below: not every server takes more bits."""
SILENT: Any = {
    f"X-Stainless-{name}": openai.Omit()
    for name in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
}
"""What the client would otherwise tell of this machine with every request."""
LONGEST_RETRY_AFTER = 600.0
MAY_PASS = (408, 409, 425, 429)
"""Statuses below 500 that may be another when asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """How a server is asked.

    Attributes:
        most: requests at once, at most; `start` of them at first.
        attempts: how often a request is sent before its row is given up.
        seconds: until one request is given up and sent again.
        total_seconds: for everything; None: no bound.
        first_pause, longest_pause: seconds before a second attempt and, doubling each time, before any; up to a random
            second is added. A server's Retry-After is waited for, up to ten minutes.
        sleep: what waits.
    """

    most: int = 64
    start: int = 4
    attempts: int = 8
    seconds: float = 600.0
    total_seconds: float | None = None
    first_pause: float = 0.5
    longest_pause: float = 60.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


def generate_remote(
    model: ModelSpec,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    seed: int,
    stage_key: str = "",
    model_id: str = "",
    first_k: int = 0,
    journal: Path | None = None,
    remote: Remote | None = None,
    progress: bool | None = None,
) -> Iterator[list[Completion]]:
    """Return an iterator of `sampling.k` completions per prompt, in prompt order, numbered from `first_k`.

    Template "chat" asks /chat/completions with the prompt's turns, any other /completions with the rendered text. A
    completion has its log-probs (nats) where the server gives them, and no token ids. Seeds are sent; whether rows can
    be repeated is up to the server.

    Args:
        model: its source names the server (`models.endpoint`); the key is in OPENAI_API_KEY.
        prompts: with ids of their own.
        sampling: how to draw; `top_k` and `min_p`, which OpenAI does not know, are sent only where they are set.
        seed: of the stage.
        stage_key: of the stage, for the rows' ids.
        model_id: what rows call the model.
        first_k: the number of the first sample.
        journal: where answers are kept as they arrive; rows that are there are not asked for.
        remote: how the server is asked.
        progress: None shows a bar on a terminal only.

    Raises:
        InputError: the server refuses a prompt, or the source is no endpoint.
        SelftaughtError: a row has no answer after all attempts, or the time is over. What was received is kept.
    """
    if model.decoding is not None:
        raise InputError(f"{model.source} decodes by itself: leave the model's decoding out")
    endpoint, how, numbers = parse_endpoint(model.source), remote or Remote(), range(first_k, first_k + sampling.k)
    shown: dict[str, Any] = {} if progress is None and sys.stderr.isatty() else {"disable": not progress}
    with Journal(journal) as kept, tqdm(total=len(prompts) * sampling.k, unit="sample", leave=False, **shown) as bar:
        asker = _Asker(endpoint, model.template, sampling, numbers, seed, kept, how, bar)
        _run_in_thread(lambda: asker.run(prompts))

    def complete(prompt: Prompt, k: int) -> Completion:
        row = kept.get(prompt.id, k)
        assert row is not None
        logprobs = row.get("logprobs")
        return Completion(
            prompt_id=prompt.id,
            k=k,
            text=row["text"],
            logprobs=None if logprobs is None else tuple(logprobs),
            finish=row["finish"],
            model=model_id,
            id=completion_id(stage_key, prompt.id, k),
        )

    return ([complete(prompt, k) for k in numbers] for prompt in prompts)


class _Failed(Exception):
    """An attempt that may succeed when it is made again, after `pause` seconds at least."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class _FailedByLoad(_Failed, Overloaded):
    """The same, where fewer requests at once may help."""


class _Asker:
    """Asks one server for the samples `numbers` of prompts and puts the answers into a journal."""

    def __init__(
        self,
        endpoint: Endpoint,
        template: str,
        sampling: Sampling,
        numbers: range,
        seed: int,
        journal: Journal,
        how: Remote,
        bar: tqdm,
    ) -> None:
        self.endpoint, self.template, self.sampling, self.numbers = endpoint, template, sampling, numbers
        self.pace = Pace(how.most, how.start)
        self.seed, self.journal, self.how, self.bar = seed, journal, how, bar
        self.logprobs = True

    async def run(self, prompts: Sequence[Prompt]) -> None:
        key = os.environ.get(KEY_VARIABLE) or "none"
        try:
            async with (
                openai.AsyncOpenAI(
                    base_url=self.endpoint.base_url, api_key=key, max_retries=0, timeout=None, default_headers=SILENT
                ) as client,
                asyncio.timeout(self.how.total_seconds),
                asyncio.TaskGroup() as tasks,
            ):
                for prompt in prompts:
                    tasks.create_task(self._complete(client, prompt))
        except TimeoutError:
            raise SelftaughtError(
                f"{self.endpoint} did not answer everything within {self.how.total_seconds:g} seconds; what was "
                "received is kept: the same command continues"
            ) from None
        except ExceptionGroup as group:
            # Several rows fail together when a server goes away: one of them tells it all.
            raise group.exceptions[0] from None

    async def _complete(self, client: Any, prompt: Prompt) -> None:
        missing = [k for k in self.numbers if self.journal.get(prompt.id, k) is None]
        self.bar.update(len(self.numbers) - len(missing))
        while missing:
            wanted = missing[:SAMPLES_PER_REQUEST]
            answers = await self._ask_until_answered(client, prompt, wanted)
            # Some servers ignore n: fewer are asked for again, more are left out.
            for k, answer in zip(wanted, answers, strict=False):
                self.journal.add(prompt.id, k, **answer)
            missing = missing[min(len(answers), len(wanted)) :]
            self.bar.update(min(len(answers), len(wanted)))

    async def _ask_until_answered(self, client: Any, prompt: Prompt, numbers: list[int]) -> list[dict[str, Any]]:
        growing = wait_exponential(self.how.first_pause, self.how.longest_pause) + wait_random(0, 1)

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(growing(state), error.pause if isinstance(error, _Failed) else 0.0)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Failed),
            wait=pause,
            stop=stop_after_attempt(self.how.attempts),
            sleep=self.how.sleep,
            reraise=True,
        )
        try:
            return await retrying(self._ask, client, prompt, numbers)
        except _Failed as error:
            raise SelftaughtError(
                f"prompt {prompt.id}, sample {numbers[0]}: no answer from {self.endpoint} in {self.how.attempts} "
                f"attempts: {error}; what was received is kept: the same command continues"
            ) from None

    async def _ask(self, client: Any, prompt: Prompt, numbers: list[int]) -> list[dict[str, Any]]:
        """Make one attempt."""
        asked_logprobs = self.logprobs
        try:
            async with self.pace.flight():
                try:
                    async with asyncio.timeout(self.how.seconds):
                        return _read(await self._send(client, prompt, numbers), self.template == CHAT)
                except TimeoutError:
                    raise _FailedByLoad(f"nothing within {self.how.seconds:g} seconds") from None
                except openai.APIConnectionError as error:
                    raise _FailedByLoad(f"{error} {error.__cause__ or ''}".strip()) from None
                except openai.APIStatusError as error:
                    if error.status_code < 500 and error.status_code not in MAY_PASS:
                        raise
                    reason = f"status {error.status_code}: {_one_line(error.message)}"
                    raise _FailedByLoad(reason, _retry_after(error.response.headers)) from None
        except openai.APIStatusError as error:
            message = _one_line(error.message)
            if asked_logprobs and error.status_code in (400, 422) and "logprobs" in message:
                self.logprobs = False
                return await self._ask(client, prompt, numbers)
            raise InputError(
                f"prompt {prompt.id}: {self.endpoint} refuses it with status {error.status_code}: {message}; mend the "
                f"request, the name or {KEY_VARIABLE}; what was received is kept"
            ) from None

    async def _send(self, client: Any, prompt: Prompt, numbers: list[int]) -> bytes:
        """Send one request and return the body of its answer."""
        s = self.sampling
        unknown = {name: value for name, value in (("top_k", s.top_k), ("min_p", s.min_p)) if value}
        asked: dict[str, Any] = {
            "model": self.endpoint.model,
            "n": len(numbers),
            "temperature": s.temperature,
            "top_p": s.top_p,
            "max_tokens": s.max_tokens,
            "seed": row_seed(self.seed, prompt.id, numbers[0]) % SEEDS,
            "extra_body": unknown or None,
            **({"stop": list(s.stop)} if s.stop else {}),
        }
        if self.template == CHAT:
            asked["messages"] = [{"role": m.role, "content": m.content} for m in prompt.messages]
            raw = client.chat.completions.with_raw_response
            asked |= {"logprobs": True} if self.logprobs else {}
        else:
            asked["prompt"] = render(prompt, self.template)
            raw = client.completions.with_raw_response
            asked |= {"logprobs": 0} if self.logprobs else {}
        return (await raw.create(**asked)).http_response.content


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    index: int = 0
    finish_reason: Literal["stop", "length", "content_filter"]
    logprobs: Any = None
    text: str | None = None
    message: _Message | None = None


class _Answer(BaseModel):
    choices: list[_Choice]


def _read(body: bytes, chat: bool) -> list[dict[str, Any]]:
    """Return text, finish and log-probs of every choice, in their order."""
    try:
        choices = sorted(_Answer.model_validate_json(body).choices, key=lambda choice: choice.index)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise _Failed(f"an answer that cannot be read: {place}: {first['msg']}") from None
    if any(choice.finish_reason == "content_filter" for choice in choices):
        # A part of an answer, or none, is no sample of the model's.
        raise _Failed("its content filter cut the answer; leave the prompt out")
    if not choices or any((c.message if chat else c.text) is None for c in choices):
        raise _Failed("an answer without text")
    return [
        {
            "text": (choice.message.content or "") if choice.message else choice.text,
            "finish": choice.finish_reason,
            "logprobs": _logprobs(choice.logprobs, chat),
        }
        for choice in choices
    ]


def _logprobs(given: Any, chat: bool) -> list[float] | None:
    """Return the log-probs of a choice, None where the server gives none that can be read."""
    try:
        values = [token["logprob"] for token in given["content"]] if chat else list(given["token_logprobs"])
        return [float(v) for v in values] if all(math.isfinite(v) for v in values) else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _retry_after(headers: Any) -> float:
    """Return for how many seconds the server asks to be left alone: a number, or a date."""
    given = headers.get("retry-after", "")
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(given).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if math.isfinite(seconds) else 0.0


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _run_in_thread(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine to its end in a thread of its own: in a notebook this one has a running loop already."""
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task | None]] = []

    async def main() -> None:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        await work()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: asyncio.run(main()))
        try:
            future.result()
        except KeyboardInterrupt:
            for loop, task in running:
                if task is not None and not future.done():
                    loop.call_soon_threadsafe(task.cancel)
            raise
