"""A server that answers from a script, with the faults that a test asks for, and notes what it was asked."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """What goes over the wire. `cut` closes the connection after so many bytes of the body; `wait` comes first."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    wait: Callable[[], Awaitable[Any]] | None = None


def texts(asked: dict[str, Any], script: Callable[[str, int], str] | None = None, n: int | None = None) -> Answer:
    """Return a proper answer: sample i of a prompt is "<prompt> <seed>.<i>", each with two log-probs."""
    prompt = asked["prompt"] if "prompt" in asked else asked["messages"][-1]["content"]
    say = script or (lambda text, i: f"{text} {asked['seed']}.{i}")
    choices: list[dict[str, Any]] = []
    for i in range(asked["n"] if n is None else n):
        text = say(prompt, i)
        logps = [-0.5, -0.25 * (i + 1)]
        choice: dict[str, Any] = {"index": i, "finish_reason": "stop"}
        if "prompt" in asked:
            choice |= {"text": text, "logprobs": {"tokens": ["a", "b"], "token_logprobs": logps}}
        else:
            content = [{"token": "a", "logprob": value} for value in logps]
            choice |= {"message": {"role": "assistant", "content": text}, "logprobs": {"content": content}}
        choices.append(choice)
    return Answer({"choices": choices})


class FaultyServer:
    """Answers request number i (from 0) with `behave(i, body, server)`, in a thread of its own."""

    def __init__(self, behave: Callable[[int, dict[str, Any], "FaultyServer"], Answer]) -> None:
        self.behave = behave
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[str] = []
        self.flying = 0
        self.flights: list[int] = []
        self.moved: asyncio.Condition
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "FaultyServer":
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        port = self._server.sockets[0].getsockname()[1]
        self.source = f"http://127.0.0.1:{port}/v1#fake"
        return self

    def __exit__(self, *error: Any) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    async def _start(self) -> asyncio.Server:
        self.moved = asyncio.Condition()
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def until_flying(self, count: int) -> None:
        """Wait until so many requests are being answered at once, however it comes to that."""
        async with self.moved:
            await asyncio.wait_for(self.moved.wait_for(lambda: max(self.flights) >= count), 20)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                length = next(
                    int(x.split(":")[1]) for x in head.lower().split("\r\n") if x.startswith("content-length")
                )
                body = json.loads(await reader.readexactly(length))
                await self._answer(head, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        number = len(self.asked)
        self.asked.append(body)
        self.paths.append(head.split()[1])
        self.headers.append(head)
        await self._fly(1)
        try:
            answer = self.behave(number, body, self)
            if answer.wait:
                await answer.wait()
        finally:
            await self._fly(-1)
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": len(content)} | answer.headers
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        writer.write("\r\n".join(lines).encode() + content[: answer.cut])
        await writer.drain()
        if answer.cut is not None:
            raise ConnectionError

    async def _fly(self, change: int) -> None:
        async with self.moved:
            self.flying += change
            self.flights.append(self.flying)
            self.moved.notify_all()
