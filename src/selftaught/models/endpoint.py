"""Models behind an OpenAI-compatible server, named in the place of a directory or a Hub id."""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from selftaught.errors import InputError

OPENAI = "openai:"
OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model of a server: the URL below which `/completions` lies, and the name the server knows the model by."""

    base_url: str
    model: str

    def __str__(self) -> str:
        return f"{self.base_url}#{self.model}"


def is_endpoint(source: str) -> bool:
    """Whether a model's source names a server: `http(s)://host[:port]/v1#name`, or `openai:name`."""
    return source.startswith(("http://", "https://", OPENAI))


def parse_endpoint(source: str) -> Endpoint:
    """Return the server and the model that `source` names; `openai:name` is at OPENAI_BASE_URL, else at OpenAI's.

    Raises:
        InputError: there is no model's name, no host, or a password, which would end up in manifests.
    """
    if source.startswith(OPENAI):
        url, name = os.environ.get("OPENAI_BASE_URL") or OPENAI_URL, source.removeprefix(OPENAI)
    else:
        url, _, name = source.partition("#")
    shown = source.rpartition("@")[2]
    try:
        parts = urlsplit(url)
        host, secret = parts.hostname, parts.username or parts.password or parts.query
    except ValueError as error:
        raise InputError(f"model {shown!r} is no URL: {error}; write http://HOST:PORT/v1#NAME") from None
    if secret:
        raise InputError(f"model {shown!r} carries a password or a query: put the key into OPENAI_API_KEY")
    if not name or not host:
        raise InputError(f"model {shown!r} lacks its {'name' if host else 'host'}: write http://HOST:PORT/v1#NAME")
    return Endpoint(url.rstrip("/"), name)
