"""The values of a diagnosis as rows, and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normbench.cli.listing import as_text
from normbench.formats import small

Lines = Mapping[str, Sequence[Mapping[str, Any]]]
"""By run, lines as those of its ``diagnosis.jsonl``."""

_INDENT = 2
_NAME = 16  # columns that the name of a layer has at least
_HEADING = 16  # columns of a heading, from which on it is wrapped


def rows(found: Lines) -> list[dict[str, Any]]:
    """Return a row a value: run, checkpoint, epoch, probe, name and value."""
    return [
        {
            "run": run,
            "checkpoint": line["checkpoint"],
            "epoch": line["epoch"],
            "probe": line["probe"],
            "name": name,
            "value": value,
        }
        for run, lines in found.items()
        for line in lines
        for name, value in line["values"].items()
    ]


def page(
    found: Lines, width: int | None = None, differs: Mapping[str, str] | None = None
) -> RenderableType:
    """Return, for each run and probe, the values of the network and those of each layer.

    Args:
        found: What is shown.
        width: Of the terminal; the columns that do not fit are counted below the table.
        differs: By run, the keys that its name does not show and in which the runs differ.
    """
    room = (Console().width if width is None else width) - _INDENT
    shown: list[RenderableType] = []
    for run, lines in found.items():
        heading = as_text(run, "bold")
        shown.append(heading.append_text(as_text(f"  {(differs or {}).get(run, '')}", "not bold")))
        for probe in dict.fromkeys(line["probe"] for line in lines):
            own = [line for line in lines if line["probe"] == probe]
            parts = [_network(own), _layers(own[0], room)]
            tables = [each for part in parts if part is not None for each in part]
            shown += [Padding(each, (0, 0, 0, _INDENT), expand=False) for each in tables]
        if not lines:
            shown.append(Padding(Text("nothing was measured", "dim"), (0, 0, 0, _INDENT)))
    return Group(*shown)


def _text(value: float | None) -> str:
    """A value as it is printed; counts, such as a depth, without a fraction."""
    whole = value is not None and float(value).is_integer() and abs(value) < 1e6
    return f"{value:.0f}" if whole else small(value)


def _where(line: Mapping[str, Any]) -> str:
    return f"{line['checkpoint']}, epoch {line['epoch']}"


def _network(lines: Sequence[Mapping[str, Any]]) -> list[RenderableType] | None:
    """Values of the whole network, a column a checkpoint."""
    names = dict.fromkeys(name for line in lines for name in line["values"] if "/" not in name)
    if not names:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(as_text(lines[0]["probe"]), overflow="fold")
    for line in lines:
        table.add_column(as_text(_where(line)), justify="right", no_wrap=True)
    for name in names:
        table.add_row(as_text(name), *(_text(line["values"].get(name)) for line in lines))
    return [table]


def _layers(line: Mapping[str, Any], room: int) -> list[RenderableType] | None:
    """Values by layer in one checkpoint, a row a layer."""
    values: dict[str, dict[str, Any]] = {}
    for name, value in line["values"].items():
        layer, slash, quantity = name.partition("/")
        if slash:
            values.setdefault(layer, {})[quantity] = value
    if not values:
        return None
    quantities = list(dict.fromkeys(quantity for own in values.values() for quantity in own))
    texts = {
        (layer, quantity): _text(own[quantity]) if quantity in own else ""
        for layer, own in values.items()
        for quantity in quantities
    }
    widths = [
        max(min(cell_len(quantity), _HEADING), *(len(texts[layer, quantity]) for layer in values))
        for quantity in quantities
    ]
    heading = f"{line['probe']} by layer"
    # Names of layers are wrapped before a value has no room.
    left = room - sum(2 + width for width in widths)
    used = min(max(map(cell_len, [heading, *values])), max(_NAME, left))
    fitting = 0
    while fitting < len(quantities) and used + 2 + widths[fitting] <= room:
        used += 2 + widths[fitting]
        fitting += 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(as_text(heading), overflow="fold")
    for quantity, width in zip(quantities[:fitting], widths, strict=False):
        table.add_column(as_text(quantity), justify="right", width=width, overflow="fold")
    for layer in values:
        table.add_row(
            as_text(layer), *(texts[layer, quantity] for quantity in quantities[:fitting])
        )
    shown: list[RenderableType] = [Text(_where(line), "dim"), table]
    if fitting < len(quantities):
        left = len(quantities) - fitting
        columns = "1 more column" if left == 1 else f"{left} more columns"
        shown.append(Text(f"{columns}: shown by a wider terminal, or by a pipe", "dim"))
    return shown
