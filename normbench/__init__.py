"""normbench: the bench on which normalization layers are compared.

``normbench.run``, ``normbench.sweep``, ``normbench.report`` and ``normbench.load`` are the commands
in Python; :mod:`normbench.api` describes them. It is imported with the first of them that is used,
so that ``import normbench`` is cheap.
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
    """A package that is also the function of its name in :mod:`normbench.api`.

    ``normbench.sweep`` is both the command in Python and the package that carries it out. Python
    sets the attribute to the package as soon as any module of it is imported, so the package has
    to answer the call.
    """

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        return getattr(import_module("normbench.api"), self.__name__.rpartition(".")[2])

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function of this name in normbench.api, whose docstring describes it."""
        return self._function(*arguments, **options)


def make_callable(package: str) -> None:
    """Make a package that is being imported a :class:`CallablePackage`."""
    sys.modules[package].__class__ = CallablePackage
