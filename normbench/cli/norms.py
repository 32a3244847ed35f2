"""``normbench norms``: the catalog of normalizations, and the options of each.

Without a name it prints one line each; ``--long`` adds formula, statistics, parameters and source.

Everything is read from the code: formula, statistics, parameters, state and source are attributes
of the layer classes; options and their values come from the files in ``conf/norm/``.
"""

from __future__ import annotations

import ast
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normbench.cli.parser import Parser, add_config_dir
from normbench.cli.terminal import print_rows
from normbench.components import first_sentence, header, options_of, target
from normbench.errors import UserError, unknown


def add_arguments(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", help="a normalization to explain, as in norm=NAME")
    parser.add_argument(
        "--long", action="store_true", help="also list formulas, statistics, parameters and sources"
    )
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    from normbench.config import compose, group_options

    folder = arguments.config_dir
    groups = group_options(folder)
    catalog = Catalog(
        groups["norm"],
        groups["norm/weight"],
        lambda override: compose([override], folder).norm,
        lambda group, name: header(group, name, folder),
    )
    if arguments.name:
        if arguments.long:
            raise UserError(f"--long is for the list: norms {arguments.name} shows everything")
        Console().print(details(catalog.entry(arguments.name)))
    elif arguments.long:
        print_rows(lambda: rows(catalog), lambda: page(catalog, _lines))
    else:
        print_rows(lambda: short_rows(catalog), lambda: page(catalog, _line, _MORE))
    return 0


FIELDS = ("formula", "computed_over", "parameters", "state", "source")
"""Attributes that describe a normalization, in the order shown."""

_CITATION = r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)"

_NOTHING = {
    "formula": "y = x",
    "computed_over": "nothing",
    "parameters": "none",
    "state": "none",
    "source": "none",
}
"""Description of a file without a class, which does not normalize."""


@dataclass(frozen=True)
class Option:
    """An option: the key that sets it, its value in ``conf/``, and its meaning."""

    key: str
    value: Any
    about: str


@dataclass(frozen=True)
class CatalogEntry:
    """Description of a normalization or weight parametrization; each field is one line."""

    name: str
    summary: str
    formula: str
    computed_over: str
    parameters: str
    state: str
    source: str
    options: tuple[Option, ...]
    has_weight: bool = False

    @property
    def title(self) -> str:
        """The first sentence of the summary, without its citation and period."""
        return re.sub(rf"\s*{_CITATION}", "", first_sentence(self.summary)).removesuffix(".")

    @property
    def style(self) -> str:
        """Style of the name in the list."""
        return "red" if self.is_wrong else "cyan"

    @property
    def is_wrong(self) -> bool:
        """Whether the normalization exists to demonstrate a mistake."""
        return any("WRONG" in text for text in (self.summary, self.source))


@dataclass(frozen=True)
class Catalog:
    """All normalizations and weight parametrizations of ``conf/norm/``.

    Args:
        norms: Names of the files in ``conf/norm/``.
        weights: Names of the files in ``conf/norm/weight/``.
        compose: Returns the group ``norm`` of the config with an override such as ``norm=gn``.
        header: Returns the comment at the top of a file, by group and name.
    """

    norms: Sequence[str]
    weights: Sequence[str]
    compose: Callable[[str], Mapping[str, Any]]
    header: Callable[[str, str], str]

    def entry(self, name: str) -> CatalogEntry:
        """Describe a file of ``conf/norm/``, or else one of ``conf/norm/weight/``.

        Raises:
            UserError: Neither folder has such a file.
        """
        if name in self.norms:
            return self.norm(name)
        if name in self.weights:
            return self.weight(name)
        raise unknown("norm", name, {*self.norms, *self.weights})

    def norm(self, name: str) -> CatalogEntry:
        """Describe a file of ``conf/norm/``."""
        return _norm_entry(name, self.compose(f"norm={name}"), self.header("norm", name))

    def weight(self, name: str) -> CatalogEntry:
        """Describe a file of ``conf/norm/weight/``."""
        spec = self.compose(f"norm/weight={name}")["weight"]
        placeholder = {**_NOTHING, "formula": "Ŵ = W"}
        fields, options = _described("norm.weight", spec, placeholder)
        return _entry(name, self.header("norm/weight", name), fields, options)


def _norm_entry(name: str, spec: Mapping[str, Any], header: str) -> CatalogEntry:
    parts = [("", "norm", spec)]
    placements = [
        (place, f"norm.places.{place}", g) for place, g in (spec.get("places") or {}).items()
    ]
    if spec.get("bfn"):
        placements.append((spec["place"], "norm.bfn", spec["bfn"]))
    parts += [(f"at {place}: ", key, group) for place, key, group in placements]
    weight = spec.get("weight") or {}
    has_weight = weight.get("name", "none") != "none"
    if has_weight:
        parts.append(("kernels: ", "norm.weight", weight))

    descriptions = [(prefix, *_described(key, group, _NOTHING)) for prefix, key, group in parts]
    joined = {
        field: _joined((prefix, fields[field]) for prefix, fields, _ in descriptions)
        for field in FIELDS
    }
    citation = re.search(_CITATION, header)
    if placements and citation:  # cite the placement before the normalization that it places
        joined["source"] = f"{citation[1]}; {joined['source']}"
    options = [option for _, _, part_options in descriptions for option in part_options]
    if "place" in spec:
        options.insert(0, Option("norm.place", spec["place"], "where norm.bfn goes"))
    return _entry(name, header, joined, options, has_weight)


def _entry(
    name: str,
    summary: str,
    fields: Mapping[str, str],
    options: Iterable[Option],
    has_weight: bool = False,
) -> CatalogEntry:
    texts = {field: fields[field] for field in FIELDS}
    return CatalogEntry(
        name=name, summary=summary, **texts, options=tuple(options), has_weight=has_weight
    )


def _described(
    key: str, spec: Mapping[str, Any], placeholder: dict[str, str]
) -> tuple[dict[str, str], tuple[Option, ...]]:
    """Return the texts of a layer class, and its options with their values."""
    path = spec.get("_target_")
    if path is None:
        return placeholder, ()
    description = Described(path)
    values = options_of(spec, "weight", "places", "place", "bfn")
    fields = {field: description.get(field) or "not said" for field in FIELDS}
    options = (Option(f"{key}.{name}", v, description.about(name)) for name, v in values.items())
    return _as_set(fields, values), tuple(options)


def _as_set(fields: dict[str, str], options: Mapping[str, Any]) -> dict[str, str]:
    """Remove the scale and the shift from the texts if the options switch them off."""
    formula, parameters = fields["formula"], fields["parameters"]
    off_symbols = [
        symbol
        for option, symbol in (("scale", "γ"), ("center", "β"))
        if options.get(option) is False
    ]
    if "γ" in off_symbols:
        formula = formula.replace("γ·", "")
    if "β" in off_symbols:
        formula = formula.replace(" + β", "")
    if "γ, β: " in parameters and off_symbols:
        prefix = "γ: " if off_symbols == ["β"] else "β: "
        parameters = "none" if len(off_symbols) == 2 else parameters.replace("γ, β: ", prefix)
    return {**fields, "formula": formula, "parameters": parameters}


def _joined(parts: Iterable[tuple[str, str]]) -> str:
    """Join texts on one line, each prefixed by its place; "none" if all are "none"."""
    return "; ".join(f"{prefix}{text}" for prefix, text in parts if text != "none") or "none"


def rows(catalog: Catalog) -> list[dict[str, str]]:
    """Return a row of plain text for each normalization and weight parametrization."""
    return [
        {"choice": choice, **{field: getattr(entry, field) for field in FIELDS}}
        for choice, entry in _choices(catalog)
    ]


def short_rows(catalog: Catalog) -> list[dict[str, str]]:
    """Return the choice and its title for each normalization and weight parametrization."""
    return [{"choice": choice, "title": entry.title} for choice, entry in _choices(catalog)]


def _choices(catalog: Catalog) -> list[tuple[str, CatalogEntry]]:
    return [
        *((f"norm={name}", catalog.norm(name)) for name in catalog.norms),
        *((f"norm/weight={name}", catalog.weight(name)) for name in catalog.weights),
    ]


_MORE = "normbench norms gn shows one in full, --long more of each"


def page(
    catalog: Catalog, show: Callable[[CatalogEntry, int], RenderableType], end: str = ""
) -> RenderableType:
    """Return the catalog for a terminal of any width.

    Args:
        catalog: The catalog.
        show: Renders an entry, given the width of the longest name.
        end: The last line.
    """
    norms = [catalog.norm(name) for name in catalog.norms]
    weights = [catalog.weight(name) for name in catalog.weights]
    width = max(len(entry.name) for entry in [*norms, *weights])
    sections = {
        "norm=NAME": [entry for entry in norms if not entry.has_weight],
        "norm=NAME, with a weight parametrization": [entry for entry in norms if entry.has_weight],
        "norm/weight=NAME, with any norm": weights,
    }
    parts: list[RenderableType] = []
    for heading, entries in sections.items():
        parts.append(Text(heading if not parts else f"\n{heading}", style="bold"))
        parts += [show(entry, width) for entry in entries]
    if end:
        parts.append(Text(f"\n{end}", style="dim"))
    return Group(*parts)


def details(entry: CatalogEntry) -> RenderableType:
    """Return one entry of the catalog with its options."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for field in FIELDS:
        facts.add_row(field.replace("_", " "), Text(getattr(entry, field)))
    options = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    options.add_column("option", no_wrap=True)
    options.add_column("value", no_wrap=True)
    options.add_column("meaning")
    for option in entry.options:
        options.add_row(Text(option.key), Text(_written(option.value)), Text(option.about))
    parts: list[RenderableType] = [
        Text(entry.name, style="bold red" if entry.is_wrong else "bold"),
        Text(entry.summary),
        Padding(facts, (1, 0, 0, 0)),
    ]
    if options.row_count:
        parts.append(Padding(options, (1, 0, 0, 0)))
    return Group(*parts)


def _line(entry: CatalogEntry, width: int) -> RenderableType:
    line = Text(no_wrap=True, overflow="ellipsis")
    return line.append(entry.name.ljust(width + 2), entry.style).append(entry.title)


def _lines(entry: CatalogEntry, width: int) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(width=width, no_wrap=True)
    table.add_column()
    facts = "  ·  ".join(
        f"{label}{getattr(entry, field)}"
        for field, label in (
            ("computed_over", "over "),
            ("parameters", "parameters "),
            ("state", "state "),
            ("source", ""),
        )
        if getattr(entry, field) != "none"
    )
    table.add_row(Text(entry.name, style=entry.style), Text(entry.formula))
    table.add_row("", Text(facts, style="dim"))
    return table


def _written(value: Any) -> str:
    """Format a value as on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


# --- descriptions, read from the source of a layer's class ----------------------------------------
# Importing the class would import Keras, which takes seconds.


class Described:
    """Text attributes and docstring of a class, or of its bases if it has none itself.

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
        """Return the text of a class attribute, or None if no class has it."""
        for node in self._lineage:
            for value in _values(node, name):
                try:
                    return str(ast.literal_eval(value))
                except ValueError:  # computed, not a literal
                    return str(getattr(target(self.path), name))
        return None

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(_docstring(self._lineage[0]).split("\n\n")[0].split())

    def about(self, option: str) -> str:
        """Return the description of an option in the docstring's ``Args:``, or an empty text."""
        for node in self._lineage:
            text = _arguments(_docstring(node)).get(option)
            if text:
                return text.replace("``", "")
        return ""


def _lineage(path: str) -> Iterator[Any]:
    """Yield the syntax trees of a class and of its bases that have source files."""
    module_name, _, name = path.rpartition(".")
    tree = _parsed(module_name)
    if tree is None:
        return
    imports = {
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
                    yield from _lineage(imports.get(base.id, f"{module_name}.{base.id}"))
            return
    if name in imports:
        yield from _lineage(imports[name])


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
        statement.value
        for statement in node.body
        for goal in getattr(statement, "targets", [getattr(statement, "target", None)])
        if isinstance(statement, (ast.Assign, ast.AnnAssign))
        and statement.value is not None
        and getattr(goal, "id", None) == name
    ]


def _docstring(node: Any) -> str:
    return ast.get_docstring(node) or ""


def _arguments(docstring: str) -> dict[str, str]:
    """Return the descriptions in a docstring's section ``Args:``, by option."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", docstring, re.MULTILINE)
    descriptions: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines() if section else ():
        start = re.match(r"    \*{0,2}(\w+): (.*)", line)
        if start:
            name = start[1]
            descriptions[name] = start[2]
        elif name and line.strip():
            descriptions[name] += f" {line.strip()}"
    return descriptions
