"""An OpenAI-compatible server."""

import os
from pathlib import Path

from selftaught.cli.command import add_command
from selftaught.errors import InputError

KEY_VARIABLE = "SELFTAUGHT_API_KEY"
LOOPBACK = "127.0.0.1"


def add_commands(commands) -> None:
    """Add the command of this module to a parser's subparsers."""
    parser = add_command(
        commands,
        "serve",
        _serve,
        "serve a model to OpenAI's clients, on this machine only unless --host is given",
        example="selftaught serve ./my-model --port 8000",
    )
    parser.add_argument("model", help="a Hub id or a directory: of a model, or of an adaptive head")
    parser.add_argument("--template", help="of chats: plain, chat or a Jinja file (default: chat where there is one)")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--api-key", help=f"token that clients must send (default: ${KEY_VARIABLE}, else none)")
    parser.add_argument("--max-tokens", type=int, default=4096, help="most tokens per sample (default: %(default)s)")
    parser.add_argument("--max-n", type=int, default=128, help="most samples per request (default: %(default)s)")
    parser.add_argument("--max-body-bytes", type=int, default=4 << 20, help="(default: %(default)s)")
    parser.add_argument("--queue", type=int, default=256, help="most requests in hand at once (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=600.0, help="most seconds per request (default: %(default)s)")
    parser.add_argument(
        "--grace", type=float, default=30.0, help="seconds for running requests at shutdown (default: %(default)s)"
    )


def _serve(arguments) -> None:
    for name in ("max_tokens", "max_n", "max_body_bytes", "queue", "timeout"):
        number = getattr(arguments, name)
        if not number > 0:
            raise InputError(f"--{name.replace('_', '-')} {number}: give more than 0")
    if not 0 <= arguments.port < 2**16:
        raise InputError(f"--port {arguments.port}: give 0 to 65535")
    key = os.environ.get(KEY_VARIABLE) if arguments.api_key is None else arguments.api_key
    if key == "":
        raise InputError(f"the API key is empty: give --api-key or {KEY_VARIABLE} a value, or leave both out")
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"serve needs {error.name}: pip install 'selftaught[serve]'") from None
    from selftaught.serve.server import listen, open_engine, serve, url_of
    from selftaught.serve.service import Limits, Service

    limits = Limits(
        body_bytes=arguments.max_body_bytes,
        tokens=arguments.max_tokens,
        samples=arguments.max_n,
        requests=arguments.queue,
        seconds=arguments.timeout,
        grace_seconds=arguments.grace,
    )
    with listen(arguments.host, arguments.port) as listening:
        engine = open_engine(arguments.model, arguments.template, limits.tokens)
        service = Service(engine, name=_name(arguments.model), template=arguments.template, limits=limits, key=key)
        serve(service, listening, lambda stop: print(f"serving {service.name} at {url_of(listening)}", flush=True))


def _name(model: str) -> str:
    """Return what clients call the model: of a directory only its own name."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model
