"""The HTTP side: routes, bodies, answers and streams."""

import asyncio
import hmac
import json
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from selftaught.engines.rows import Output
from selftaught.serve.responses import Form, extras, usage
from selftaught.serve.schema import ApiError, ChatRequest, CompletionRequest, parse
from selftaught.serve.service import Exchange, Service
from selftaught.serve.stream import SampleStream

CLOSED_REQUEST = 499
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
READING_SECONDS = 30
"""How long a client may take to read what is left of its answer once the time for it is over."""


def create_app(service: Service, lifespan: Any = None, *, local: bool = False) -> FastAPI:
    """Return the application that serves `service`, whose engine the caller starts and stops.

    A `local` one answers only where it is asked for by a name of this machine: a web page can have its own name point
    here, and would be let in by the browser.
    """

    async def by_a_local_name(http: HttpRequest) -> None:
        if _name_in(http.headers.get("host", "")) not in LOCAL_NAMES:
            raise ApiError(421, "this server is asked for by a name that is not this machine's", code="wrong_host")

    known = [Depends(by_a_local_name)] if local else []
    app = FastAPI(
        title="selftaught", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan, dependencies=known
    )

    async def authorised(http: HttpRequest) -> None:
        _authorise(service, http)

    async def admitted() -> AsyncIterator[Exchange]:
        # What follows the yield runs once the answer, streamed or not, is sent or its client is gone.
        with service.admit() as exchange, _cancelled_at(exchange.deadline + READING_SECONDS):
            yield exchange

    Admitted = Annotated[Exchange, Depends(admitted)]

    @app.get("/health")
    async def health() -> JSONResponse:
        state = "unhealthy" if not service.engine.healthy else "shutting down" if service.closing else "ok"
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    @app.get("/v1/models", dependencies=[Depends(authorised)])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}", dependencies=[Depends(authorised)])
    async def model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise ApiError(404, f"there is no model {name!r} here", param="model", code="model_not_found")
        return _model(service)

    @app.post("/v1/chat/completions", dependencies=[Depends(authorised)])
    async def chat_completions(http: HttpRequest, exchange: Admitted) -> Response:
        return await _answer(service, exchange, http, ChatRequest)

    @app.post("/v1/completions", dependencies=[Depends(authorised)])
    async def completions(http: HttpRequest, exchange: Admitted) -> Response:
        return await _answer(service, exchange, http, CompletionRequest)

    _explain_errors(app)
    return app


def _authorise(service: Service, http: HttpRequest) -> None:
    if service.key is None:
        return
    scheme, _, given = http.headers.get("authorization", "").partition(" ")
    # Header bytes arrive as Latin-1 text.
    known = hmac.compare_digest(given.strip().encode("latin-1"), service.key.encode())
    if scheme.lower() != "bearer" or not known:
        message = "a valid API key is needed: send it as 'Authorization: Bearer KEY'"
        raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


@contextmanager
def _cancelled_at(when: float) -> Iterator[None]:
    """Cancel this task at a time of its loop: a client that stops reading its stream would hold its place for ever."""
    task = asyncio.current_task()
    assert task is not None
    timer = asyncio.get_running_loop().call_at(when, task.cancel)
    try:
        yield
    finally:
        timer.cancel()


def _name_in(host: str) -> str | None:
    """Return the name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "selftaught"}


def _explain_errors(app: FastAPI) -> None:
    """Give every error OpenAI's form."""

    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(ApiError)
    async def refused(http: HttpRequest, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def no_route(http: HttpRequest, error: HTTPException) -> JSONResponse:
        return answer(ApiError(error.status_code, f"{http.method} {http.url.path}: {error.detail}"))

    @app.exception_handler(ClientDisconnect)
    async def gone(http: HttpRequest, error: ClientDisconnect) -> Response:
        return Response(status_code=CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def failed(http: HttpRequest, error: Exception) -> JSONResponse:
        return answer(ApiError(500, f"the server failed: {type(error).__name__}; see its log", code="internal_error"))


async def _answer(
    service: Service, exchange: Exchange, http: HttpRequest, kind: type[ChatRequest] | type[CompletionRequest]
) -> Response:
    try:
        async with asyncio.timeout_at(exchange.deadline):
            asked = parse(kind, await _read(http, service.limits.body_bytes))
            await service.submit(exchange, asked)
    except TimeoutError:
        raise ApiError(504, f"no complete request within {service.limits.seconds:g} seconds", code="timeout") from None
    form = Form(chat=kind is ChatRequest, model=service.name, logprobs=asked.wants_logprobs)
    if asked.stream:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        stream = _stream(service, exchange, form, asked)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    return await _until_gone(http, _whole(service, exchange, form))


async def _read(http: HttpRequest, limit: int) -> bytes:
    """Return the body; never more than `limit` bytes of it are held."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Web pages of other sites can post other types to a server on this machine without asking.
    if kind != "application/json":
        raise ApiError(
            415, f"Content-Type {kind or 'is missing'}: send application/json", code="unsupported_media_type"
        )
    body = bytearray()
    length = http.headers.get("content-length", "0")
    too_long = not length.isdecimal() or int(length[:20]) > limit
    if not too_long:
        async for part in http.stream():
            body += part
            if too_long := len(body) > limit:
                break
    if too_long:
        message = f"the body is longer than {limit} bytes: ask for less at a time"
        raise ApiError(413, message, code="body_too_large", headers={"Connection": "close"})
    return bytes(body)


async def _until_gone(http: HttpRequest, work: Coroutine[Any, Any, Response]) -> Response:
    """Return the result of `work`, or give it up when the client is gone."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(http))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=CLOSED_REQUEST)
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _whole(service: Service, exchange: Exchange, form: Form) -> Response:
    """Wait for all samples and return them in one body."""
    outputs: dict[int, Output] = {}
    retractions: Counter[int] = Counter()
    async for batch in service.events(exchange):
        for event in batch:
            index = exchange.index(event)
            retractions[index] += event.kind == "retract"
            if event.output is not None:
                outputs[index] = event.output
    tokenizer = service.engine.tokenizer
    choices = [
        form.choice(i, outputs[i], tokenizer) | extras(outputs[i], retractions[i], tokenizer) for i in sorted(outputs)
    ]
    return JSONResponse(form.whole(choices, usage(exchange.prompt_tokens, list(outputs.values()))))


async def _stream(
    service: Service, exchange: Exchange, form: Form, asked: ChatRequest | CompletionRequest
) -> AsyncIterator[bytes]:
    """Yield server-sent events: chunks, usage where it is asked for, and [DONE]; or, in their place, an error."""
    streams = [SampleStream(service.engine.tokenizer, exchange.stop) for _ in range(exchange.samples)]
    outputs: list[Output] = []
    try:
        if form.chat:
            yield _event(form.chunk([form.opening(i) for i in range(len(streams))]))
        async for batch in service.events(exchange):
            touched: dict[int, Output | None] = {}
            for event in batch:
                index = exchange.index(event)
                streams[index].push(event)
                touched[index] = event.output
            for index, output in touched.items():
                if chunk := _chunk(form, index, streams[index], output, service.engine.tokenizer):
                    yield _event(chunk)
            outputs += [output for output in touched.values() if output]
        if asked.stream_options and asked.stream_options.include_usage:
            yield _event(form.chunk([], usage(exchange.prompt_tokens, outputs)))
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error.body)


def _chunk(
    form: Form, index: int, stream: SampleStream, output: Output | None, tokenizer: Any
) -> dict[str, Any] | None:
    """Return the chunk for what has changed in a sample, None where nothing can be told yet."""
    change = stream.advance(None if output is None else output.text)
    if output is None and change == (0, ""):
        return None
    choice = form.delta(index, change, stream.new_tokens(), output.finish if output else None)
    return form.chunk([choice | (extras(output, stream.retractions, tokenizer) if output else {})])


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
