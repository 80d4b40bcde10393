"""Imports go one way: each layer may import those before it, and itself. The layers are the design's."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import selftaught

ROOT = Path(selftaught.__file__).parent
LAYERS = (
    {"types", "specs", "errors", "config"},
    {"functional", "text"},
    {"select", "store", "tasks"},
    {"models"},
    {"objectives", "engines", "scorers"},
    {"train", "evals"},
    {"lab", "executor", "plan", "judging"},
    {"methods"},
    {"recipes"},
    {"runs"},
    {"reproductions"},
    {"report", "serve", "cli"},
    {"__main__"},
)
HEIGHT = {unit: height for height, units in enumerate(LAYERS) for unit in units}
HEAVY = {"torch", "transformers"}
WITHOUT_HEAVY = {"types", "specs", "errors", "config", "text", "select"}
WITHOUT_TORCH_AT_FIRST = {"methods", "recipes", "cli"}
FUNCTIONAL_MAY_USE = {"torch", *sys.stdlib_module_names}
SHARED_BY_METHODS = {"selftaught.methods", "selftaught.methods.method", "selftaught.methods.rounds"}


@dataclass(frozen=True)
class Import:
    """One imported module. `runs` is false below `if TYPE_CHECKING`, `at_import` also inside a function."""

    file: Path
    line: int
    module: str
    runs: bool
    at_import: bool


def imports_of(file: Path, root: Path) -> Iterator[Import]:
    """Yield all imports of a file of the package at `root`, relative ones resolved, wherever they stand."""
    package = [root.name, *file.relative_to(root).parent.parts]

    def walk(node: ast.AST, runs: bool, at_import: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(file, node.lineno, name.name, runs, at_import)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            inner = {f"{module}.{name.name}" for name in node.names}
            for name in sorted({name if is_module(name, root) else module for name in inner}):
                yield Import(file, node.lineno, name, runs, at_import)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, False, False)
            for child in node.orelse:
                yield from walk(child, runs, at_import)
        else:
            inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, runs, inside)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), True, True)


def is_module(name: str, root: Path) -> bool:
    """Whether a dotted name below the package is a module, not something inside one."""
    parts = name.split(".")
    path = root.joinpath(*parts[1:])
    return parts[0] == root.name and (path.with_suffix(".py").exists() or (path / "__init__.py").exists())


def violations(root: Path) -> list[str]:
    """Return a line for every import that the design forbids, and one for every module without a layer."""
    found = []
    between: dict[str, set[str]] = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        unit = parts[0]
        if unit == "__init__":
            unit = "types"  # the package itself: as low as can be
        if unit not in HEIGHT:
            found.append(f"{file.name}: {unit} has no layer; give it one")
            continue
        module = ".".join((root.name, *parts)).removesuffix(".__init__")
        for given in imports_of(file, root):
            where = f"{file.relative_to(root)}:{given.line}"
            found += [f"{where}: {unit} imports {given.module}: {why}" for why in reasons(root, unit, module, given)]
            top, _, rest = given.module.partition(".")
            if top == root.name and rest.partition(".")[0] not in ("", unit):
                between.setdefault(unit, set()).add(rest.partition(".")[0])
    return found + [f"{a} and {b} import each other" for a in between for b in between[a] if a in between.get(b, ())]


def reasons(root: Path, unit: str, module: str, given: Import) -> Iterator[str]:
    """Yield why an import is forbidden."""
    top, _, rest = given.module.partition(".")
    if top == root.name:
        other = rest.partition(".")[0]
        if other and HEIGHT.get(other, -1) > HEIGHT[unit]:
            yield "it lies above"
        if unit == "functional" and other and other not in LAYERS[0] | {"functional"}:
            yield "functional imports only torch"
        among_methods = unit == other == "methods" and module not in SHARED_BY_METHODS
        if among_methods and given.module not in {module, *SHARED_BY_METHODS}:
            yield "a method never imports another"
        return
    if unit == "functional" and top not in FUNCTIONAL_MAY_USE:
        yield "functional imports only torch"
    if unit in WITHOUT_HEAVY and top in HEAVY and given.runs:
        yield "neither torch nor transformers here"
    if unit in WITHOUT_TORCH_AT_FIRST and top in HEAVY and given.at_import:
        yield "only inside functions here, so that the command line answers at once"


def test_the_package_keeps_its_layers() -> None:
    assert violations(ROOT) == []


def loaded_by(modules: list[str]) -> set[str]:
    """Return the top-level modules that importing `modules` in a fresh process loads."""
    script = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    path = f"import sys; sys.path.insert(0, {str(ROOT.parent)!r}); "
    out = subprocess.run([sys.executable, "-c", path + script], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return set(out.stdout.split())


def modules_of(*units: str) -> list[str]:
    files = [
        f for u in units for f in ([ROOT / f"{u}.py"] if (ROOT / f"{u}.py").exists() else (ROOT / u).rglob("*.py"))
    ]
    names = (".".join(("selftaught", *f.relative_to(ROOT).with_suffix("").parts)) for f in sorted(files))
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("units", [WITHOUT_HEAVY, WITHOUT_TORCH_AT_FIRST, {"store"}], ids=["low", "first", "store"])
def test_what_must_be_light_loads_no_torch(units: set[str]) -> None:
    """Also through what it imports in turn."""
    assert loaded_by(modules_of(*sorted(units))).isdisjoint(HEAVY)


FORBIDDEN = {
    "text/a.py": ("import torch", "neither torch nor transformers"),
    "select/a.py": ("def f():\n    from transformers import AutoModel", "neither torch nor transformers"),
    "types.py": ("import torch.nn as nn", "neither torch nor transformers"),
    "functional/a.py": ("import numpy", "functional imports only torch"),
    "functional/b.py": ("from selftaught.text import a", "functional imports only torch"),
    "text/b.py": ("from selftaught.store.stage import Stage", "it lies above"),
    "store/a.py": ("def f():\n    import selftaught.engines.sampler", "it lies above"),
    "models/a.py": ("from ..train import loop", "it lies above"),
    "models/deep/a.py": ("from ... import lab", "it lies above"),
    "train/a.py": ("from selftaught import lab", "it lies above"),
    "train/b.py": ("if TYPE_CHECKING:\n    from selftaught.lab import Lab", "it lies above"),
    "errors.py": ("try:\n    from selftaught import cli\nexcept ImportError:\n    pass", "it lies above"),
    "__init__.py": ("from selftaught.lab import Lab", "it lies above"),
    "methods/a.py": ("from selftaught.methods.b import run", "a method never imports another"),
    "methods/c.py": ("from selftaught.methods import b", "a method never imports another"),
    "methods/d.py": ("from . import b", "a method never imports another"),
    "methods/e.py": ("class A:\n    import torch", "only inside functions"),
    "recipes/a.py": ("if True:\n    import transformers", "only inside functions"),
    "cli.py": ("from torch import nn", "only inside functions"),
    "gadgets/a.py": ("", "has no layer"),
    "utils.py": ("", "has no layer"),
}
ALLOWED = {
    "functional/a.py": "import math\nimport torch.nn as nn\nfrom selftaught.types import Pair\nfrom . import b",
    "text/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from transformers import AutoTokenizer",
    "tasks/a.py": "import torch\nfrom selftaught.store.tables import read_table",
    "methods/a.py": "from selftaught.methods.method import Method\ndef run():\n    import torch",
    "methods/__init__.py": "from selftaught.methods import a, b\nfrom selftaught.methods.a import run",
    "cli.py": "from selftaught import __version__, methods\ndef f():\n    import torch\n    import selftaught.lab",
    "recipes/a.py": "from selftaught.methods.a import Config",
}
STUBS = ("lab.py", "cli.py", "store/stage.py", "store/tables.py", "train/loop.py", "engines/sampler.py")
METHOD_STUBS = ("methods/method.py", "methods/a.py", "methods/b.py", "functional/b.py", "text/a.py")


def tree(root: Path, file: str, text: str) -> Path:
    for name in (*STUBS, *METHOD_STUBS):
        path = root / "selftaught" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        (path.parent / "__init__.py").write_text("")
    path = root / "selftaught" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root / "selftaught"


@pytest.mark.parametrize("file", FORBIDDEN)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str) -> None:
    text, words = FORBIDDEN[file]
    (found,) = violations(tree(tmp_path, file, text))
    assert words in found
    assert Path(file).name in found


@pytest.mark.parametrize("file", ALLOWED)
def test_an_allowed_import_is_not(tmp_path: Path, file: str) -> None:
    assert violations(tree(tmp_path, file, ALLOWED[file])) == []


def test_neighbours_that_import_each_other_are_found(tmp_path: Path) -> None:
    root = tree(tmp_path, "store/a.py", "from selftaught.tasks import b")
    tree(tmp_path, "tasks/b.py", "from selftaught.store import a")
    assert "store and tasks import each other" in violations(root)


def test_a_module_that_loads_torch_is_caught() -> None:
    assert "torch" in loaded_by(["selftaught.functional.preference"])
