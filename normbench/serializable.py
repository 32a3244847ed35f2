"""Registration of the package's Keras classes without importing them: :func:`register`.

Keras finds a class of a saved model by its registered name, such as ``normbench>Conv2D``, and a
class is registered when its module is imported. To let a saved model load after
``import normbench.norms`` alone, :func:`register` adds a placeholder for each class to Keras's
registry, which imports the class when Keras uses it. Keras itself is not imported here, because
that takes seconds; if it has not been imported yet, the placeholders are added once it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = "normbench"
_HOLDERS = ("initializers.py", "archs/*.py", "norms/**/*.py")
"""Files of the package that register classes with Keras."""
_CLASS = re.compile(
    rf'^@keras\.saving\.register_keras_serializable\("{_PACKAGE}"\)\nclass (\w+)', re.MULTILINE
)


def register() -> None:
    """Add placeholders to Keras's registry, now or as soon as Keras is imported."""
    if "keras" in sys.modules:
        _add_placeholders(sys.modules["keras"])
    elif not any(isinstance(finder, _AfterKeras) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterKeras())


def classes() -> Iterator[tuple[str, str]]:
    """Yield the module and the name of each class that the package registers with Keras.

    The names are read from the source code, so that neither the modules nor Keras are imported.
    """
    root = Path(__file__).parent
    for pattern in _HOLDERS:
        for file in sorted(root.glob(pattern)):
            module = ".".join((_PACKAGE, *file.relative_to(root).with_suffix("").parts))
            for name in _CLASS.findall(file.read_text(encoding="utf-8")):
                yield module, name


def _add_placeholders(keras: ModuleType) -> None:
    registry = keras.saving.get_custom_objects()
    for module, name in classes():
        registry.setdefault(f"{_PACKAGE}>{name}", _Placeholder(module, name))


class _Placeholder:
    """Proxy for a class, which is imported when it is called or an attribute is read.

    Importing the class replaces the placeholder in Keras's registry.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self.__name__ = name

    def _class(self) -> Any:
        return getattr(import_module(self._module), self.__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._class()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # for example, in a copy that has no state yet
            raise AttributeError(name)
        return getattr(self._class(), name)

    def __repr__(self) -> str:
        return f"<{self._module}.{self.__name__}, not imported yet>"


class _AfterKeras(MetaPathFinder):
    """Adds the placeholders to Keras's registry when Keras has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "keras":
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                if spec.loader is not None:
                    spec.loader = _KerasLoader(spec.loader)
                return spec
        return None


class _KerasLoader(Loader):
    """Runs Keras's own loader, then adds the placeholders."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:  # resources, source and everything else of a loader
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if spec := module.__spec__:
            spec.loader = self._loader
        _add_placeholders(module)
