"""From a model's name to a listening server, and from a signal to its end."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn

from selftaught.engines.policies import build_policy
from selftaught.engines.sampler import Sampler, default_slots
from selftaught.errors import InputError
from selftaught.models.decoding import open_spec
from selftaught.models.load import context_length, default_device, load_model, load_tokenizer
from selftaught.serve.app import LOCAL_NAMES, create_app
from selftaught.serve.engine import Engine
from selftaught.serve.service import Service, default_template

CLOSING_SECONDS = 5
"""How long answers that are written already may take to reach their clients."""


def open_engine(source: str, template: str | None, tokens: int) -> Engine:
    """Return an engine for the model at `source`, a Hub id or a directory, decoding as it says.

    Args:
        source: what `models.decoding.open_spec` takes.
        template: of chats; None is the tokenizer's own where it has one.
        tokens: the most a request may draw, for which memory is set aside.

    Raises:
        InputError: nothing can be opened there.
    """
    spec = open_spec(source)
    device = default_device()
    tokenizer, model = load_tokenizer(spec), load_model(spec, device=device)
    policy = build_policy(spec.decoding, tokenizer, device)
    slots = default_slots(model, min(2 * tokens, context_length(model.config) or 2 * tokens))
    chosen = template or default_template(tokenizer)

    def build() -> Sampler:
        return Sampler(model, tokenizer, slots=slots, policy=policy, template=chosen, share=False)

    return Engine(build)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        InputError: the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host} port {port}: {error}; give another --host or --port") from error


def url_of(listening: socket.socket) -> str:
    """Return the base URL clients are given."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def serve(service: Service, listening: socket.socket, ready: Callable[[Callable[[], Any]], Any]) -> None:
    """Serve until SIGTERM, SIGINT or a call of what `ready` is given; running requests are finished first.

    New ones are told to go elsewhere meanwhile. A second signal ends the server at once. In a thread other than the
    main one signals are left alone.
    """
    endings: list[asyncio.Task[None]] = []

    async def drain() -> None:
        await service.drain()
        server.should_exit = True

    def end() -> None:
        if endings:
            server.force_exit = server.should_exit = True
        endings.append(asyncio.ensure_future(drain()))

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        service.engine.start()
        # uvicorn's own handlers, set before this runs, stop listening at once.
        with suppress(ValueError, RuntimeError):  # not the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, end)
        ready(lambda: loop.call_soon_threadsafe(end))
        yield
        service.engine.stop()

    config = uvicorn.Config(
        create_app(service, lifespan, local=listening.getsockname()[0] in LOCAL_NAMES),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
