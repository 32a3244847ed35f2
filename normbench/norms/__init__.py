"""Normalizations and weight parametrizations as plain Keras 3 layers.

They can be used on their own: ``from normbench.norms import GroupNormalization``.
Importing this package is cheap: a layer's module, and Keras with it, is imported when the layer
is first accessed. Models saved with these layers still load after ``import normbench.norms``; see
:mod:`normbench.serializable`.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


@cache
def _public() -> dict[str, str]:
    """Map each public class of the package to its module, read from the files' ``__all__``."""
    modules: dict[str, str] = {}
    for file in sorted(_HERE.rglob("*.py")):
        module = ".".join(file.relative_to(_HERE).with_suffix("").parts)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                modules.update(dict.fromkeys(ast.literal_eval(node.value), module))
    return modules


def __getattr__(name: str) -> Any:
    if name == "__all__":  # for ``from normbench.norms import *``
        return sorted(_public())
    if name.startswith("_") or name not in _public():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_public()[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_public()])
