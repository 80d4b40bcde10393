"""Versions of what a stage was made with, read without importing any of it."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import selftaught

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "pyarrow", "numpy")


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version()), ("selftaught", selftaught.__version__)]
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return tuple(found)


def versions() -> dict[str, str]:
    """Return the version of Python, of this package, and of the packages that decide what a stage holds."""
    return dict(_versions())
