import doctest
import importlib
import pkgutil

import pytest

import selftaught

LAYERS = ("text", "select", "tasks", "scorers", "evals")
MODULES = [
    module.name
    for layer in LAYERS
    for module in pkgutil.walk_packages([f"{selftaught.__path__[0]}/{layer}"], f"selftaught.{layer}.")
    if not module.name.endswith("_child")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
