"""normbench: a bench for comparing normalization layers.

``normbench.run``, ``normbench.sweep``, ``normbench.report`` and ``normbench.load`` are the commands
in Python, documented in :mod:`normbench.api`. That module is imported on first use, so that
``import normbench`` is cheap.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from normbench.serializable import register as _register_with_keras

if TYPE_CHECKING:
    from normbench.api import load, report, run, sweep

__all__ = ["load", "report", "run", "sweep"]

__version__ = "0.1.0"

_register_with_keras()


def __getattr__(name: str) -> Any:
    if name in ("load", "run"):
        return getattr(import_module("normbench.api"), name)
    if name in ("report", "sweep"):  # packages that can be called
        return import_module(f"normbench.{name}")
    raise AttributeError(f"module 'normbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class CallablePackage(ModuleType):
    """A package that can be called like the function of the same name in :mod:`normbench.api`.

    ``normbench.sweep`` is both the command in Python and the package that implements it. Importing
    any module of the package sets the attribute ``sweep`` of ``normbench`` to the package, so the
    package itself must be callable.
    """

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        return getattr(import_module("normbench.api"), self.__name__.rpartition(".")[2])

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function of this name in normbench.api; see its docstring."""
        return self._function(*arguments, **options)


def make_callable(package: str) -> None:
    """Turn a package that is being imported into a :class:`CallablePackage`."""
    sys.modules[package].__class__ = CallablePackage
