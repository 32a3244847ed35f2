"""What a layer's class says about itself, read from its source.

Reading the source instead of importing the class keeps the catalogue page free of Keras, whose
import takes seconds.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from normbench.components import target
from normbench.errors import UserError


class Described:
    """A class's text attributes and docstring, its base classes' where it has none of its own.

    Args:
        path: Dotted path of the class.

    Raises:
        UserError: There is no such module or class.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lineage = list(_lineage(path))
        if not self._lineage:
            raise UserError(f"_target_ {path!r}: there is no such class")

    def get(self, name: str) -> str | None:
        """Return the text of a class attribute, or None where no class has it."""
        for node in self._lineage:
            for value in _values(node, name):
                try:
                    return str(ast.literal_eval(value))
                except ValueError:  # computed, not written down
                    return str(getattr(target(self.path), name))
        return None

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(_docstring(self._lineage[0]).split("\n\n")[0].split())

    def about(self, option: str) -> str:
        """What the docstring's ``Args:`` says about an option; empty where it says nothing."""
        for node in self._lineage:
            found = _arguments(_docstring(node)).get(option)
            if found:
                return found.replace("``", "")
        return ""


def _lineage(path: str) -> Iterator[Any]:
    """The class and its bases that are found in source, as syntax trees."""
    module_name, _, name = path.rpartition(".")
    tree = _parsed(module_name)
    if tree is None:
        return
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        for alias in node.names
    }
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            yield node
            for base in getattr(node, "bases", ()):
                if isinstance(base, ast.Name):
                    yield from _lineage(imported.get(base.id, f"{module_name}.{base.id}"))
            return
    if name in imported:
        yield from _lineage(imported[name])


@cache
def _parsed(module_name: str) -> ast.Module | None:
    try:
        spec = find_spec(module_name) if module_name else None
    except ModuleNotFoundError:
        return None
    if spec is None or not (spec.origin or "").endswith(".py"):
        return None
    return ast.parse(Path(spec.origin or "").read_text(encoding="utf-8"))


def _values(node: Any, name: str) -> list[ast.expr]:
    return [
        each.value
        for each in node.body
        for goal in getattr(each, "targets", [getattr(each, "target", None)])
        if isinstance(each, (ast.Assign, ast.AnnAssign))
        and each.value is not None
        and getattr(goal, "id", None) == name
    ]


def _docstring(node: Any) -> str:
    return ast.get_docstring(node) or ""


def _arguments(docstring: str) -> dict[str, str]:
    """The options that a docstring's section ``Args:`` describes."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines() if section else ():
        start = re.match(r"    \*{0,2}(\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found
