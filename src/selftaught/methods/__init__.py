"""One file per paper. `get` finds a method's record by name; importing this package loads none of them."""

import difflib
from importlib import import_module

from selftaught.errors import InputError
from selftaught.methods.method import Method

NAMES = ("scpo", "divpo", "thought_po", "rip", "step_kto", "backtracking", "adaptive_decoding", "blt")


def get(name: str) -> Method:
    """Return the record of the method called `name`.

    Raises:
        InputError: there is no such method.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(NAMES)}"
        raise InputError(f"no method is called {name!r}: {hint}")
    return import_module(f"selftaught.methods.{name}").METHOD
