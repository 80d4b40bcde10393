"""What a run would cost before it is started: rows, tokens, memory and hours, as upper bounds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from selftaught.methods.method import Method
