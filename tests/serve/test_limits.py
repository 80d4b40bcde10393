"""What the server refuses, and what it does when a client, a model or an operator ends things."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests import architectures
from tests.serve.serving import WAIT, Gate, Server, running

from selftaught import cli
from selftaught.engines import sampler
from selftaught.errors import InputError
from selftaught.serve import app
from selftaught.serve.engine import Engine
from selftaught.serve.service import Limits

PROMPT = {"model": "tiny", "prompt": "abc", "seed": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(limits=Limits(body_bytes=4096, tokens=64, samples=8, grace_seconds=10)) as server:
        yield server


def post(server: Server, body: Any, path: str = "/completions", **options: Any) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | options.pop("headers", {})
    return httpx2.post(server.url + path, content=content, headers=headers, timeout=WAIT, **options)


def refused(answer: httpx2.Response, status: int, *, says: str = "", param: str | None = None) -> dict[str, Any]:
    """Check an error's form and return it."""
    error = answer.json()["error"]
    assert answer.status_code == status and set(error) == {"message", "type", "param", "code"}, answer.text
    assert says in error["message"] and "\n" not in error["message"]
    assert param is None or error["param"] == param
    return error


def until(condition: Any) -> None:
    """Wait for what another thread is about to do."""
    step = threading.Event()
    for _ in range(int(WAIT / 0.01)):
        if condition():
            return
        step.wait(0.01)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": [48]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": "a" * 160}, None),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 10**12}, "n"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"prompt": ["a", "b", "c"], "n": 3}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 11}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 257}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_everything": True}}, "stream_options"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": True}, "presence_penalty"),
        ({"temprature": 0.5}, "temprature"),
        ({"reset_bias": 1.0}, "reset_bias"),
        ({"model": 5}, "model"),
    ],
)
def test_bad_fields_are_named(server: Server, change: dict[str, Any], param: str | None) -> None:
    error = refused(post(server, PROMPT | change), 400, param=param)
    assert error["type"] == "invalid_request_error" and error["code"]
    assert server.held == 0


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "abc",
        [{"role": "user"}],
        [{"role": "robot", "content": "abc"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        [{"role": "user", "content": "abc", "tool_calls": []}],
    ],
)
def test_bad_messages_are_named(server: Server, messages: Any) -> None:
    refused(post(server, {"model": "tiny", "messages": messages}, "/chat/completions"), 400, param="messages")


@pytest.mark.parametrize("field", ["tools", "response_format", "top_logprobs", "functions"])
def test_what_chats_cannot_do_is_refused(server: Server, field: str) -> None:
    body = {"messages": [{"role": "user", "content": "abc"}], field: [{"type": "function"}]}
    refused(post(server, body, "/chat/completions"), 400, param=field, says="not supported")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"abc"',
        b"\xff\xfe",
        b'{"prompt": "abc", "temperature": NaN}',
        b'{"prompt": "abc", "temperature": Infinity}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "abc"} {}',
        b"[" * 4000,
        b'{"prompt": ' * 300,
    ],
)
def test_malformed_bodies(server: Server, body: bytes) -> None:
    refused(post(server, body), 400)
    assert post(server, PROMPT).status_code == 200


def test_special_characters_are_text(server: Server) -> None:
    assert post(server, PROMPT | {"prompt": "a\x00b\u202e😀"}).status_code == 200


def test_only_json_is_read(server: Server) -> None:
    """A page of another site can post a form to this machine, not JSON."""
    refused(post(server, PROMPT, headers={"content-type": "text/plain"}), 415)
    refused(httpx2.post(server.url + "/completions", data={"prompt": "abc"}, timeout=WAIT), 415)


def test_a_long_body_is_refused_unread(server: Server) -> None:
    error = refused(post(server, PROMPT | {"prompt": "a" * 5000}), 413, says="longer than 4096 bytes")
    assert error["code"] == "body_too_large"


def test_a_long_body_without_a_length_is_refused(server: Server) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"a" * 1000

    headers = {"content-type": "application/json"}
    refused(httpx2.post(server.url + "/completions", content=pieces(), headers=headers, timeout=WAIT), 413)


def test_a_length_that_lies_is_no_way_in(server: Server) -> None:
    """100 GB are announced; the answer comes before any of it is sent."""
    host, port = server.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), WAIT) as wire:
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Content-Length: 100000000000"
        )
        wire.sendall(f"{head}\r\n\r\n".encode())
        assert wire.recv(1000).startswith(b"HTTP/1.1 413")


def test_unknown_places(server: Server) -> None:
    refused(httpx2.get(server.url + "/nothing", timeout=WAIT), 404)
    refused(httpx2.get(server.url + "/completions", timeout=WAIT), 405)
    refused(httpx2.get(server.url + "/models/other", timeout=WAIT), 404, param="model")
    refused(httpx2.get(server.root + "/docs", timeout=WAIT), 404)
    error = refused(post(server, PROMPT | {"model": "other"}), 404, param="model", says="'tiny'")
    assert error["code"] == "model_not_found"


def test_the_official_client_raises_its_own_errors(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens 65") as caught:
        server.client().completions.create(**PROMPT, max_tokens=65)
    assert caught.value.param == "max_tokens" and caught.value.code == "too_many_tokens"
    with pytest.raises(openai.BadRequestError, match="context is 160"):
        server.client().completions.create(model="tiny", prompt="a" * 170)


def test_a_key_is_asked_for() -> None:
    with running(key="sésame") as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic sésame".encode()}):
            for answer in (post(server, PROMPT, headers=headers), httpx2.get(server.url + "/models", headers=headers)):
                refused(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
        headers = {"authorization": "Bearer sésame".encode()}
        assert post(server, PROMPT, headers=headers).status_code == 200
        assert httpx2.get(server.url + "/models", headers=headers).status_code == 200
        assert httpx2.get(server.root + "/health").json() == {"status": "ok"}
    with running(key="secret") as server:
        assert server.client(api_key="secret").completions.create(**PROMPT).choices
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key="Secret").completions.create(**PROMPT)


def test_too_many_requests() -> None:
    gate = Gate()
    with running(gate=gate, limits=Limits(requests=2, grace_seconds=10)) as server, ThreadPoolExecutor(2) as pool:
        gate.close()
        first = [pool.submit(post, server, PROMPT) for _ in range(2)]
        until(lambda: len(server.service.exchanges) == 2)
        answer = post(server, PROMPT)
        assert refused(answer, 429)["code"] == "queue_full" and int(answer.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            server.client().completions.create(**PROMPT)
        gate.open()
        assert [f.result(WAIT).status_code for f in first] == [200, 200]
        assert post(server, PROMPT).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_forgotten(stream: bool) -> None:
    gate = Gate()
    with running(gate=gate, limits=Limits(grace_seconds=10)) as server:
        host, port = server.root.removeprefix("http://").split(":")
        body = json.dumps(PROMPT | {"stream": stream, "max_tokens": 100, "n": 2}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        gate.close()
        with socket.create_connection((host, int(port)), WAIT) as wire:
            wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert gate.waiting.wait(WAIT) and server.held == 1
        until(lambda: not server.service.exchanges)
        gate.open()
        until(lambda: not server.held and not server.engine._sampler.busy)
        assert len(gate.rows) <= 2
        assert post(server, PROMPT).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_has_a_deadline(stream: bool) -> None:
    gate = Gate()
    with running(gate=gate, limits=Limits(seconds=0.3, grace_seconds=10)) as server:
        gate.close()
        client = server.client()
        with pytest.raises(openai.APIError, match=r"longer than 0\.3 seconds"):
            list(client.completions.create(stream=True, **PROMPT)) if stream else client.completions.create(**PROMPT)
        gate.open()
        until(lambda: not server.engine._sampler.busy)
        assert not server.held and not server.service.exchanges


def test_a_deadline_is_a_504() -> None:
    gate = Gate()
    with running(gate=gate, limits=Limits(seconds=0.3, grace_seconds=10)) as server:
        gate.close()
        assert refused(post(server, PROMPT), 504)["type"] == "server_error"
        gate.open()


@pytest.mark.parametrize("stream", [False, True])
def test_logits_that_are_not_finite(stream: bool) -> None:
    """Every request the sampler holds fails with the reason; the next finds a new sampler."""
    gate = Gate()
    with running(gate=gate, limits=Limits(grace_seconds=10)) as server:
        gate.poison = True
        client = server.client()
        with pytest.raises(openai.APIError, match="not finite after 1 tokens"):
            list(client.completions.create(stream=True, **PROMPT)) if stream else client.completions.create(**PROMPT)
        gate.poison = False
        assert post(server, PROMPT).status_code == 200 and server.held == 0


def test_any_error_of_the_model_is_a_500() -> None:
    gate = Gate()
    with running(gate=gate, limits=Limits(grace_seconds=10)) as server, ThreadPoolExecutor(2) as pool:
        gate.close()
        held = [pool.submit(post, server, PROMPT) for _ in range(2)]
        until(lambda: len(server.service.exchanges) == 2)
        gate.error = RuntimeError("out of memory")
        gate.open()
        assert [refused(f.result(WAIT), 500, says="out of memory")["code"] for f in held] == ["engine_failed"] * 2
        gate.error = None
        assert post(server, PROMPT).status_code == 200


def test_an_error_while_a_request_is_taken_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no memory for its stop strings")

    with running(limits=Limits(seconds=WAIT, grace_seconds=10)) as server:
        monkeypatch.setattr(sampler.StopStrings, "number", fail)
        refused(post(server, PROMPT), 503, says="no memory for its stop strings")
        monkeypatch.undo()
        assert post(server, PROMPT).status_code == 200 and server.held == 0


def test_a_server_without_a_sampler_says_so() -> None:
    gate, built = Gate(), []

    def once():
        if built:
            raise RuntimeError("no memory is left")
        built.append(1)
        return gate.build()

    with running(engine=Engine(once)) as server:
        gate.error = RuntimeError("out of memory")
        refused(post(server, PROMPT), 500, says="out of memory")
        refused(post(server, PROMPT), 503)
        health = httpx2.get(server.root + "/health", timeout=WAIT)
        assert (health.status_code, health.json()) == (503, {"status": "unhealthy"})


def test_shutdown_finishes_what_runs_and_refuses_what_comes() -> None:
    gate = Gate()
    with running(gate=gate, limits=Limits(grace_seconds=WAIT)) as server, ThreadPoolExecutor(2) as pool:
        gate.close()
        held = pool.submit(post, server, PROMPT)
        streamed = pool.submit(post, server, PROMPT | {"stream": True})
        until(lambda: len(server.service.exchanges) == 2)
        server.stop()
        until(lambda: server.service.closing)
        assert refused(post(server, PROMPT), 503)["code"] == "shutting_down"
        assert httpx2.get(server.root + "/health", timeout=WAIT).json() == {"status": "shutting down"}
        gate.open()
        assert held.result(WAIT).status_code == 200
        assert streamed.result(WAIT).text.endswith("data: [DONE]\n\n")


def test_the_grace_of_a_shutdown_ends() -> None:
    gate = Gate()
    with running(gate=gate, limits=Limits(grace_seconds=0.05)) as server, ThreadPoolExecutor(1) as pool:
        gate.close()
        held = pool.submit(post, server, PROMPT)
        assert gate.waiting.wait(WAIT)
        server.stop()
        # The engine is told to fail what it holds, and does so when the step in progress ends.
        until(lambda: not server.engine._commands.empty())
        gate.open()
        refused(held.result(WAIT), 503, says="shutting down")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_and_ends_on_a_signal(seed_model: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "selftaught", "serve", str(seed_model), "--port", "0"]
    path = os.pathsep.join((str(Path(cli.__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "SELFTAUGHT_API_KEY": "secret"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            said = process.stdout.readline()
            assert said.startswith(f"serving {seed_model.name} at http://127.0.0.1:"), said + process.stderr.read()
            client = openai.OpenAI(base_url=said.split()[-1], api_key="secret", max_retries=0, timeout=WAIT)
            (model,) = client.models.list().data
            assert client.completions.create(model=model.id, prompt="1+1=", max_tokens=4, temperature=0).usage
            process.send_signal(number)
            assert process.wait(WAIT) == 0
            assert "1+1" not in process.stderr.read()
        finally:
            process.kill()


def test_an_address_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert cli.main(["serve", "nothing", "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--max-tokens=0", "--max-n=0", "--queue=-1", "--timeout=nan", "--port=70000", "--max-body-bytes=0"]
)
def test_bad_options(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "nothing", option]) == 2
    assert option.split("=")[0].strip("-").replace("-", " ").split()[-1] in capsys.readouterr().err.replace("-", " ")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "[", ""])
def test_a_loopback_server_is_asked_for_by_a_local_name(host: str) -> None:
    with running() as server:
        refused(post(server, PROMPT, headers={"Host": host}), 421, says="not this machine's")
        port = server.root.rpartition(":")[2]
        for name in ("localhost", f"localhost:{port}", "127.0.0.1", f"[::1]:{port}"):
            assert post(server, PROMPT, headers={"Host": name}).status_code == 200


def test_an_empty_key_is_not_no_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "nothing", "--api-key", ""]) == 2
    monkeypatch.setenv("SELFTAUGHT_API_KEY", "")
    assert cli.main(["serve", "nothing"]) == 2
    assert capsys.readouterr().err.count("the API key is empty") == 2


def test_a_model_that_cannot_be_opened(tmp_path: Path) -> None:
    from selftaught.serve.server import open_engine

    with pytest.raises(InputError, match="does not exist"):
        open_engine(str(tmp_path / "none" / "model"), None, 16)


def test_stop_strings_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set of them holds a table over the vocabulary: a server that kept all would grow for ever."""
    monkeypatch.setattr(sampler, "STOP_SETS", 4)
    with running() as server:
        for i in range(10):
            assert post(server, PROMPT | {"max_tokens": 1, "stop": f"stop {i}"}).status_code == 200
            assert len(server.engine._sampler._stops.sets) <= 5


def test_stop_strings_are_forgotten_beside_a_running_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "STOP_SETS", 4)
    gate = Gate()
    with running(gate=gate, limits=Limits(grace_seconds=10)) as server, ThreadPoolExecutor(20) as pool:
        gate.close()
        held = [pool.submit(post, server, PROMPT | {"max_tokens": 2, "stop": f"stop {i}"}) for i in range(20)]
        until(lambda: len(server.service.exchanges) == 20)
        gate.open()
        assert [future.result(WAIT).status_code for future in held] == [200] * 20
        assert post(server, PROMPT | {"max_tokens": 1, "stop": "last"}).status_code == 200
        assert len(server.engine._sampler._stops.sets) <= 5


def test_a_client_that_does_not_read_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is larger than all buffers on the way."""
    monkeypatch.setattr(app, "READING_SECONDS", 0)
    with running(limits=Limits(seconds=1.5, grace_seconds=10), send_buffer=4096) as server, socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.root.removeprefix("http://").split(":")
        wire.connect((host, int(port)))
        body = json.dumps(PROMPT | {"stream": True, "max_tokens": 150, "n": 16, "top_k": 1, "stop": "none"}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: server.service.exchanges)
        until(lambda: not server.service.exchanges)
        assert post(server, PROMPT).status_code == 200


def test_the_prompt_leaves_room(server: Server) -> None:
    error = refused(
        post(server, PROMPT | {"prompt": "a" * architectures.CONTEXT}), 400, says="the model's context is 160"
    )
    assert error["code"] == "context_length_exceeded"
    assert post(server, PROMPT | {"prompt": "a" * (architectures.CONTEXT - 1)}).status_code == 200
