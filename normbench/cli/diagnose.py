"""``normbench diagnose``: measure the checkpoints of finished runs with probes."""

from __future__ import annotations

import sys
import textwrap
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normbench.cli.parser import (
    RUN_NAMES,
    Parser,
    add_config_dir,
    add_store,
    quiet_tensorflow,
    store_of,
)
from normbench.cli.terminal import Column, as_text, fitted_table, print_rows
from normbench.errors import UserError
from normbench.formats import printable, small
from normbench.store.differences import as_overrides, differences
from normbench.store.store import Store

_EPILOG = """\
Probes measure the last and best checkpoints of a finished run as they would have during training
(probe=NAME). Values are measured once, stored with the run, and drawn in reports:
  normbench diagnose RUN --probe estimation_shift,train_gap probe.train_gap.images=1000"""

Diagnoses = Mapping[str, Sequence[Mapping[str, Any]]]
"""Lines of ``diagnosis.jsonl``, by the name of their run."""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="RUN|KEY=VALUE",
        help=f"runs ({RUN_NAMES}) and probe options",
    )
    parser.add_argument(
        "--probe", action="append", metavar="NAME[,NAME...]", help="probes to use (default: all)"
    )
    parser.add_argument(
        "--again", action="store_true", help="repeat measurements that already exist"
    )
    add_store(parser)
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    words = [word for word in arguments.overrides if not word.startswith("store=")]
    names = [word for word in words if "=" not in word]
    if not names:
        raise UserError(f"diagnose needs a run: its {RUN_NAMES}")
    quiet_tensorflow()
    from normbench.engine.diagnose import diagnose

    store = Store(store_of(arguments))
    result = diagnose(
        store,
        names,
        [name for option in arguments.probe or () for name in option.split(",")],
        [word for word in words if "=" in word],
        config_dir=arguments.config_dir,
        again=arguments.again,
        command=command,
        say=lambda line: print(line, file=sys.stderr),
    )

    def result_page() -> RenderableType:
        diffs = differences([store.run(name).config or {} for name in result.lines])
        return page(
            result.lines,
            differs=dict(zip(result.lines, map(as_overrides, diffs), strict=True)),
        )

    print_rows(lambda: rows(result.lines), result_page)
    return result.exit_code


def writes(arguments: Namespace) -> bool:
    return True


def rows(diagnoses: Diagnoses) -> list[dict[str, Any]]:
    """Return a row for each value: run, checkpoint, epoch, probe, name and value."""
    return [
        {
            "run": run,
            "checkpoint": line["checkpoint"],
            "epoch": line["epoch"],
            "probe": line["probe"],
            "name": name,
            "value": value,
        }
        for run, lines in diagnoses.items()
        for line in lines
        for name, value in line["values"].items()
    ]


# --- the page -------------------------------------------------------------------------------------

_INDENT = 2
_LAYER_WIDTH = 16
"""Minimum width of a layer's name, in characters."""

_HEADING_WIDTH = 16
"""Width at which a heading is wrapped, in characters."""


def page(
    diagnoses: Diagnoses, width: int | None = None, differs: Mapping[str, str] | None = None
) -> RenderableType:
    """Return, for each run and probe, the values of the network and of each layer.

    Args:
        diagnoses: The measured values.
        width: Width in characters; that of the terminal by default.
        differs: For each run, the keys in which the runs differ and that its name does not show.
    """
    width = (Console().width if width is None else width) - _INDENT
    parts: list[RenderableType] = []
    for run, lines in diagnoses.items():
        heading = as_text(run, "bold")
        parts.append(heading.append_text(as_text(f"  {(differs or {}).get(run, '')}", "not bold")))
        probes = dict.fromkeys(line["probe"] for line in lines)
        blocks = []
        for probe in probes:
            probe_lines = [line for line in lines if line["probe"] == probe]
            blocks += [*_network_values(probe_lines), *_layer_values(probe_lines[0], width)]
        if not lines:
            blocks.append(Text("nothing was measured", "dim"))
        parts += [Padding(block, (0, 0, 0, _INDENT), expand=False) for block in blocks]
    return Group(*parts)


def _network_values(lines: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Return the values of the network, with a column for each checkpoint."""
    names = dict.fromkeys(name for line in lines for name in line["values"] if "/" not in name)
    if not names:
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(as_text(lines[0]["probe"]), overflow="fold")
    for line in lines:
        table.add_column(as_text(_checkpoint(line)), justify="right", no_wrap=True)
    for name in names:
        table.add_row(as_text(name), *(_number(line["values"].get(name)) for line in lines))
    return [table]


def _layer_values(line: Mapping[str, Any], width: int) -> list[RenderableType]:
    """Return the values in one checkpoint, with a row for each layer."""
    layers: dict[str, dict[str, Any]] = {}
    for name, value in line["values"].items():
        layer, slash, quantity = name.partition("/")
        if slash:
            layers.setdefault(layer, {})[quantity] = value
    if not layers:
        return []
    quantities = list(dict.fromkeys(name for values in layers.values() for name in values))
    columns = [
        Column(f"{line['probe']} by layer", lambda layer: layer, right=False, wraps=_LAYER_WIDTH)
    ]
    columns += [
        Column(
            "\n".join(textwrap.wrap(printable(quantity), _HEADING_WIDTH)),
            lambda layer, name=quantity: (
                _number(layers[layer][name]) if name in layers[layer] else ""
            ),
            spare=spare,
        )
        for spare, quantity in enumerate(quantities, start=1)
    ]
    table = fitted_table(columns, list(layers), width)
    parts: list[RenderableType] = [Text(_checkpoint(line), "dim"), table]
    if missing_count := len(columns) - len(table.columns):
        text = "1 more column" if missing_count == 1 else f"{missing_count} more columns"
        parts.append(Text(f"{text} in a wider terminal or a pipe", "dim"))
    return parts


def _checkpoint(line: Mapping[str, Any]) -> str:
    return f"{line['checkpoint']}, epoch {line['epoch']}"


def _number(value: float | None) -> str:
    """Format a value; an integer, such as a depth, has no decimals."""
    is_count = value is not None and float(value).is_integer() and abs(value) < 1e6
    return f"{value:.0f}" if is_count else small(value)
