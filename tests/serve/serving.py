"""A server in a thread, and models that stand still or fail when a test says so."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from openai import OpenAI
from tests import architectures
from torch import Tensor

from selftaught.engines.policy import Draw, Policy, SoftmaxPolicy, SoftmaxState
from selftaught.engines.rows import Request
from selftaught.engines.sampler import Sampler
from selftaught.models.probe import open_decodable
from selftaught.serve.engine import Engine
from selftaught.serve.server import listen, serve, url_of
from selftaught.serve.service import Limits, Service

SLOTS = 8
WAIT = 20.0
"""Seconds after which a test that waits in vain fails."""


class Gate:
    """While `closed`, a step of its models says so in `waiting` and goes on when `open` is called."""

    def __init__(self) -> None:
        self.waiting, self._open = threading.Event(), threading.Event()
        self._open.set()
        self.error: Exception | None = None
        self.poison = False
        self.rows: list[int] = []

    def close(self) -> None:
        """Make the next step wait."""
        self.waiting.clear()
        self._open.clear()

    def open(self) -> None:
        """Let steps pass."""
        self._open.set()

    def build(self) -> Sampler:
        """Return a sampler of the tiny model whose steps pass this gate."""
        return build(_Gated(self))

    def wait(self) -> None:
        """Wait while closed, then fail if that is wanted."""
        if not self._open.is_set():
            self.waiting.set()
            assert self._open.wait(WAIT)
        if self.error:
            raise self.error


class _Gated:
    def __init__(self, gate: Gate) -> None:
        self.gate, self.inner = gate, open_decodable(architectures.model("llama"), SLOTS, False)
        self.slots, self.context, self.prefill_alone = SLOTS, self.inner.context, self.inner.prefill_alone
        self.embed, self.prefill = self.inner.embed, self.inner.prefill

    def step(self, state: Any, inputs: Any) -> Any:
        self.gate.wait()
        self.gate.rows.append(len(inputs))
        logits, hidden, state = self.inner.step(state, inputs)
        return (logits * torch.nan if self.gate.poison else logits), hidden, state


@dataclass
class Counts:
    """Per row: how often it was asked, and how often it takes back."""

    softmax: SoftmaxState
    asked: Tensor
    every: Tensor

    def select(self, rows: Tensor) -> "Counts":
        return Counts(self.softmax.select(rows), self.asked[rows], self.every[rows])

    def join(self, other: "Counts") -> "Counts":
        joined = (torch.cat(pair) for pair in ((self.asked, other.asked), (self.every, other.every)))
        return Counts(self.softmax.join(other.softmax), *joined)


class Retracting:
    """Every seventh token (option `every`) takes itself and the three before it back; `choice` counts the draws."""

    options = MappingProxyType(dict.fromkeys(("every", "adaptive"), lambda value: None))

    def __init__(self) -> None:
        self.softmax = SoftmaxPolicy()
        self.seen: list[dict[str, float]] = []

    def start(self, requests: Sequence[Request], embed: Any) -> Counts:
        self.seen += [dict(request.options) for request in requests]
        every = torch.tensor([request.options.get("every", 7) for request in requests])
        return Counts(self.softmax.start(requests, embed), torch.zeros(len(requests)), every)

    def __call__(self, logits: Tensor, hidden: Tensor, state: Counts, u: Tensor) -> Draw:
        drawn = self.softmax(logits, hidden, state.softmax, u)
        state.asked = state.asked + 1
        back = torch.where(state.asked % state.every == 0, 4, 0)
        return replace(drawn, retract=back, latents={"choice": state.asked.clone()})


class Server:
    """What a test sees of a running server."""

    def __init__(self, engine: Engine, service: Service, url: str, stop: Any) -> None:
        self.engine, self.service, self.url, self.stop = engine, service, url, stop
        self.root = url.removesuffix("/v1")

    def client(self, **options: Any) -> OpenAI:
        """Return OpenAI's own client; it does not retry unless told to."""
        return OpenAI(**{"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": WAIT} | options)

    @property
    def held(self) -> int:
        """How many sampler requests the engine has in hand."""
        return len(self.engine._jobs)


def build(model: Any = None, policy: Policy | None = None, tokenizer: Any = None) -> Sampler:
    """Return a sampler of the tiny model."""
    network = architectures.model("llama") if model is None else model
    return Sampler(network, tokenizer or architectures.tokenizer(), slots=SLOTS, policy=policy, share=False)


@contextmanager
def running(
    model: Any = None,
    policy: Policy | None = None,
    tokenizer: Any = None,
    *,
    gate: Gate | None = None,
    engine: Engine | None = None,
    send_buffer: int | None = None,
    **service: Any,
) -> Iterator[Server]:
    """Serve the tiny model as "tiny" on a free port of this machine until the block ends."""
    engine = engine or Engine(gate.build if gate else lambda: build(model, policy, tokenizer))
    served = Service(engine, **{"name": "tiny", "limits": Limits(grace_seconds=10)} | service)
    started, stops = threading.Event(), []
    with listen("127.0.0.1", 0) as listening:
        url = url_of(listening)
        if send_buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)

        def ready(stop: Any) -> None:
            stops.append(stop)
            started.set()

        thread = threading.Thread(target=serve, args=(served, listening, ready))
        thread.start()
        assert started.wait(WAIT)
        try:
            yield Server(engine, served, url, stops[0])
        finally:
            stops[0]() if not served.closing else None
            thread.join(WAIT)
            assert not thread.is_alive()
