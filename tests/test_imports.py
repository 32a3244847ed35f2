"""Imports point one way: which room of the package may import which, checked on the syntax trees.

A room is a package of ``normbench/`` (``engine``, ``report``) or one of its loose modules
(``config``, ``errors``). Imports inside functions count, those for type checkers alone do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each room with the rooms that it may import. A room imports only rooms that stand above it in this
# table, so the arrows have no circle; a new arrow is added here on purpose or not at all.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "serializable": set(),
    "initializers": set(),
    "normbench": {"serializable"},  # normbench/__init__.py: the version, and Keras's registry
    "formats": {"errors"},
    "machine": set(),
    "overrides": {"errors"},
    "components": {"errors"},
    "config": {"components", "errors", "overrides"},
    "store": {"components", "config", "errors", "formats", "machine", "normbench"},
    "kernels": set(),
    "norms": {"components", "config", "errors", "initializers", "kernels"},
    "archs": {"errors", "initializers", "norms"},
    "data": {"errors", "formats", "machine", "normbench", "store"},
    "network": {
        *("components", "config", "errors", "formats", "initializers", "kernels", "machine"),
        "norms",
    },
    "engine": {
        *("components", "config", "data", "errors", "formats", "kernels", "machine", "network"),
        *("norms", "store"),
    },
    "probes": {"data", "engine", "errors", "kernels", "network"},
    "loggers": {"engine", "errors"},
    "sweep": {
        *("components", "config", "engine", "errors", "formats", "machine", "network"),
        *("normbench", "overrides", "store"),
    },
    "report": {
        *("components", "config", "engine", "errors", "formats", "network", "normbench", "store"),
    },
    "cli": {
        *("components", "config", "data", "engine", "errors", "formats", "machine", "network"),
        *("normbench", "overrides", "report", "store", "sweep"),
    },
    # The Python API. normbench/__init__.py imports it by name when a function is first called.
    "api": {"cli", "config", "engine", "errors", "formats", "report", "store"},
}

# Plug-ins are reached by the `_target_` of a config. These modules of their rooms are interfaces
# and helpers, which other rooms may import by name.
INTERFACES = {
    "norms": {
        *("normbench.norms", "normbench.norms.norm", "normbench.norms.precise_batch"),
        # Layers that engine/shards.py calls with a batch in shards.
        *("normbench.norms.batch", "normbench.norms.convolution", "normbench.norms.weights"),
    },
    "data": {
        *("normbench.data", "normbench.data.base", "normbench.data.split"),
        "normbench.data.streaming",
    },
}
EXECUTOR_INTERFACE = "normbench.sweep.executors.base"
# `verify` chooses no executor: its worker needs as many threads as the original run had.
OWN_WORKERS = {
    ("normbench.sweep.verify", "normbench.sweep.executors.pool"),
    ("normbench.sweep.verify", "normbench.sweep.executors.slots"),
}

# Rules that the code still breaks, as (importer, imported). An entry that is no longer needed fails
# the test, so this set can only shrink.
KNOWN: set[tuple[str, str]] = set()

LOOSE_MODULES = 10
HEAVY = {"tensorflow", "keras", "jax"}
# These import TensorFlow at module level, and only they import each other there: a run on JAX does
# not need TensorFlow.
ON_TENSORFLOW = {
    *("normbench.engine.loop_tensorflow", "normbench.engine.shards"),
    *("normbench.kernels.batch_cpu", "normbench.kernels.relu"),
}


class Import(NamedTuple):
    importer: str
    imported: str
    at_module_level: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "normbench").rglob("*.py"))}


def imports_of(name: str, source: str, is_package: bool) -> Iterator[Import]:
    """Yield the imports in a module's source, with our modules as full dotted paths."""
    package = name if is_package else name.rpartition(".")[0]

    def visit(node: ast.AST, at_module_level: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for statement in child.orelse:
                    yield from visit(statement, at_module_level)
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(name, alias.name, at_module_level)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    above = package.split(".")
                    base = ".".join([*above[: len(above) - child.level + 1], *base.split(".")])
                    base = base.rstrip(".")
                for alias in child.names:
                    module = f"{base}.{alias.name}"
                    yield Import(name, module if module in MODULES else base, at_module_level)
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from visit(child, at_module_level and not inside)

    yield from visit(ast.parse(source), True)


@cache
def imports() -> list[Import]:
    """Return every import of every module of the package."""
    return [
        found
        for name, path in MODULES.items()
        for found in imports_of(name, path.read_text("utf-8"), path.name == "__init__.py")
    ]


def room(module: str) -> str:
    """Return the room of one of our modules: ``normbench.engine.loop`` is in ``engine``."""
    parts = module.split(".")
    if parts[1:] == ["__main__"]:
        return "cli"
    return parts[1] if len(parts) > 1 else "normbench"


def arrows() -> set[tuple[str, str]]:
    """Return the imports between our modules, as (importer, imported)."""
    return {
        (found.importer, found.imported)
        for found in imports()
        if found.imported.split(".")[0] == "normbench" and found.imported != found.importer
    }


def circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node, by Tarjan's algorithm."""
    after: dict[str, set[str]] = {}
    for start, end in edges:
        after.setdefault(start, set()).add(end)
        after.setdefault(end, set())
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(after[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(after):
        if node not in order:
            visit(node)
    return found


def refused() -> set[tuple[str, str]]:
    """Return the arrows that the rules above do not allow."""
    wrong = set()
    for importer, imported in arrows():
        source, target = room(importer), room(imported)
        if source == target:
            outside = ".executors" in imported and ".executors" not in importer
            allowed = not outside or imported == EXECUTOR_INTERFACE
            allowed = allowed or (importer, imported) in OWN_WORKERS
        else:
            interface = INTERFACES.get(target)
            named = source in ("archs", "cli") or interface is None or imported in interface
            allowed = target in ALLOWED[source] and named
            allowed = allowed and ("executors" not in imported or imported == EXECUTOR_INTERFACE)
        if not allowed:
            wrong.add((importer, imported))
    return wrong


def test_every_room_is_in_the_table() -> None:
    assert {room(module) for module in MODULES} == set(ALLOWED)


def test_allowed_arrows_point_one_way() -> None:
    above: set[str] = set()
    for source, targets in ALLOWED.items():
        assert targets <= above, f"{source} imports {targets - above}, which stand below it"
        above.add(source)
    assert not ALLOWED["kernels"]


def test_every_allowed_arrow_points_to_an_existing_room() -> None:
    assert {target for targets in ALLOWED.values() for target in targets} <= set(ALLOWED)


def test_imports_follow_the_arrows() -> None:
    unexpected = refused() - KNOWN
    assert not unexpected, f"imports against the rules of {Path(__file__).name}: {unexpected}"


def test_known_exceptions_are_still_needed() -> None:
    assert refused() >= KNOWN, f"remove from KNOWN: {KNOWN - refused()}"


def test_there_are_no_circular_imports() -> None:
    assert circles(arrows()) == []


def test_imported_modules_exist() -> None:
    missing = {(a, b) for a, b in arrows() if b not in MODULES}
    assert not missing


def test_there_are_few_loose_modules() -> None:
    loose = [m for m in MODULES if m.count(".") == 1 and MODULES[m].name != "__init__.py"]
    loose.remove("normbench.__main__")
    assert len(loose) <= LOOSE_MODULES, loose


@pytest.mark.parametrize(("start", "more_than"), [("report", 10), ("cli", 10), ("api", 2)])
def test_tensorflow_keras_and_jax_are_not_imported_at_module_level(
    start: str, more_than: int
) -> None:
    later: dict[str, set[str]] = {}
    for item in imports():
        if item.at_module_level:
            later.setdefault(item.importer, set()).add(item.imported)
    for module in MODULES:
        parents = module.split(".")[:-1]  # importing a module also runs its parent packages
        later.setdefault(module, set()).update({".".join(parents)} - {"", module})
    waiting = [(module, module) for module in MODULES if room(module) == start]
    seen: set[str] = set()
    while waiting:
        module, path = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for imported in later.get(module, ()):
            assert imported.split(".")[0] not in HEAVY, f"{path} → {imported}"
            if imported in MODULES:
                waiting.append((imported, f"{path} → {imported}"))
    assert len(seen) > more_than


def test_only_tensorflow_modules_import_tensorflow_at_module_level() -> None:
    at_module_level = [item for item in imports() if item.at_module_level]
    libraries = {"tensorflow", "tensorflow_datasets", "tf_keras", "tensorflow_addons"}
    importers = {i.importer for i in at_module_level if i.imported.split(".")[0] in libraries}
    assert importers == ON_TENSORFLOW
    reached = {(i.importer, i.imported) for i in at_module_level if i.imported in ON_TENSORFLOW}
    assert {importer for importer, _ in reached} <= ON_TENSORFLOW, reached


def test_reader_finds_every_kind_of_import() -> None:
    source = """
from __future__ import annotations
from typing import TYPE_CHECKING
import normbench.errors
from normbench import config
from .loop import Loop
if TYPE_CHECKING:
    from normbench import report
def train():
    from normbench.store import run
"""
    found = [
        (i.imported, i.at_module_level) for i in imports_of("normbench.engine.x", source, False)
    ]
    assert found[2:] == [
        ("normbench.errors", True),
        ("normbench.config", True),
        ("normbench.engine.loop", True),
        ("normbench.store.run", False),
    ]


def test_circles_are_found() -> None:
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [["a", "b", "c"]]
