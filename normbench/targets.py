"""Dotted paths of what a config's ``_target_`` builds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from normbench.errors import UserError, unknown


def target(path: str) -> Any:
    """Import what a ``_target_`` names.

    Raises:
        UserError: No such module, or nothing of that name in it.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError(f"_target_ {path!r} is no dotted path such as package.module.Class")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise UserError(f"_target_ {path!r}: there is no module {error.name!r}") from None
        raise
    if not hasattr(module, name):
        raise unknown(f"name in {module_name}", name, [n for n in vars(module) if n[0] != "_"])
    return getattr(module, name)


def options_of(group: Mapping[str, Any], *not_options: str) -> dict[str, Any]:
    """Return a group's options: all of it but its name, its target and ``not_options``."""
    return {
        key: value for key, value in group.items() if key not in ("name", "_target_", *not_options)
    }


def parameters_of(made: Any) -> dict[str, inspect.Parameter]:
    """Return the options that a class's constructor, or a function, takes by name.

    What a constructor passes on as ``**kwargs`` (a layer's name and dtype) is no option.
    """
    signature = inspect.signature(made.__init__ if inspect.isclass(made) else made)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: each
        for name, each in signature.parameters.items()
        if each.kind in kinds and name not in ("self", "name", "dtype")
    }


def check_options(kind: str, made: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that ``made`` does not take, and the lack of one that it needs.

    Raises:
        UserError: Either of them, named as an option of ``kind``.
    """
    known = parameters_of(made)
    for name in options:
        if name not in known:
            raise unknown(f"option of {kind}", name, known)
    for name, each in known.items():
        if each.default is inspect.Parameter.empty and name not in options:
            raise UserError(f"{kind} lacks the option {name!r}")
