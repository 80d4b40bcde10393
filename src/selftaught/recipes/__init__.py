"""Recipes: for each method the functions paper(), small(), smoke(), each of which returns a configuration."""

from importlib import import_module
from typing import Any

from selftaught.errors import InputError


def names(method: str) -> list[str]:
    """Return the names of a method's recipes."""
    return list(import_module(f"selftaught.recipes.{method}").RECIPES)


def get(method: str, recipe: str) -> Any:
    """Return a recipe's configuration.

    Raises:
        InputError: the method has no such recipe.
    """
    recipes = import_module(f"selftaught.recipes.{method}").RECIPES
    if recipe not in recipes:
        raise InputError(f"{method} has no recipe {recipe!r}: choose one of {', '.join(recipes)}")
    return recipes[recipe]()
