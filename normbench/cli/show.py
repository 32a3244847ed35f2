"""``normbench show``: one run in full, or the layers of a network."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
from normbench.cli.screen import epochs_table
from normbench.cli.terminal import (
    STATUS_STYLE,
    Column,
    as_text,
    facts_table,
    fitted_table,
    print_rows,
)
from normbench.errors import UserError
from normbench.formats import UNKNOWN, count, duration, failure, percent, size, small
from normbench.store.store import Run, Store, StoreError

if TYPE_CHECKING:
    from normbench.network import LayerCost
    from normbench.report.network import Network

_EPILOG = """\
A network is described by the same keys as a run, and does not need the data set:
  normbench show arch=resnet50 norm=xbn --plot resnet50.svg
  normbench show arch=resnet50 arch.stem=imagenet --images 224x224x3 --classes 1000"""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="RUN|KEY=VALUE",
        help=f"a run ({RUN_NAMES}), or a network by its config keys",
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="also draw the network to a .png, .svg or .pdf file"
    )
    parser.add_argument(
        "--images", metavar="HxWxC", help="size of the images (default: the data set's)"
    )
    parser.add_argument(
        "--classes", metavar="N", type=int, help="number of classes (default: the data set's)"
    )
    add_store(parser)
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    if any("=" in word for word in arguments.overrides):
        _show_network(arguments)
        return 0
    if len(arguments.overrides) > 1:
        raise UserError(f"show takes one run, got {', '.join(arguments.overrides)}")
    for option in ("plot", "images", "classes"):
        if getattr(arguments, option) is not None:
            raise UserError(
                f"--{option} is for a network, as in: normbench show arch=resnet8 --{option} …"
            )
    Console().print(run_page(Store(store_of(arguments)).find(arguments.overrides[0])))
    return 0


def writes(arguments: Namespace) -> bool:
    return arguments.plot is not None


# --- a network ------------------------------------------------------------------------------------

NORM_STYLES = ("cyan", "yellow", "magenta", "green", "blue", "red")
"""Styles of the kinds of normalizations, in order of appearance."""

_NAME_WIDTH = 24
"""Minimum width of a name in a narrow terminal, in characters."""


def _show_network(arguments: Namespace) -> None:
    from normbench.config import compose

    config = compose(arguments.overrides, arguments.config_dir)
    quiet_tensorflow()
    from normbench.report.network import network_of, rows

    if arguments.plot:  # check it before the network is built, which takes seconds
        from normbench.report.figures.network import check_file

        check_file(arguments.plot)
    network = network_of(config, arguments.images, arguments.classes)
    print_rows(lambda: rows(network), lambda: network_page(network))
    if arguments.plot:
        from normbench.report.figures.network import save

        file = save(network, arguments.plot, say=lambda line: print(line, file=sys.stderr))
        print(f"drawn: {file}", file=sys.stderr)


def network_page(network: Network, width: int | None = None) -> RenderableType:
    """Return the layers of a network and, below them, the totals.

    Args:
        network: The network.
        width: Width in characters; that of the terminal by default.
    """
    from normbench.report.network import norm_styles, totals

    styles = norm_styles(network.layers, NORM_STYLES)

    def style(layer: LayerCost, heading: str) -> str:
        has_style = layer.place and heading in ("kind", "place")
        return styles.get(layer.kind, "") if has_style else ""

    width = Console().width if width is None else width
    table = fitted_table(_layer_columns(width), network.layers, width, style)
    totals_table = facts_table(totals(network))
    return Group(Text(network.name, "bold"), table, Padding(totals_table, (1, 0, 0, 0)))


def _layer_columns(width: int) -> list[Column]:
    from normbench.report.network import by, kind

    def text(number: int) -> str:
        return count(number) if number else ""

    wraps = max(_NAME_WIDTH, width // 4)  # wrap long names before a number loses its column
    return [
        Column("layer", lambda layer: layer.name, right=False, wraps=wraps),
        Column("kind", kind, right=False, wraps=wraps),
        Column("place", lambda layer: layer.place or "", right=False, spare=1),
        Column("output", lambda layer: by(layer.output_shape), spare=3),
        Column("parameters", lambda layer: text(layer.parameters), spare=2),
        Column("multiply-adds", lambda layer: text(layer.multiply_adds), spare=4),
        Column("activation", lambda layer: size(layer.activation_bytes), spare=5),
    ]


# --- a run ----------------------------------------------------------------------------------------

_ACCURACIES = ("train_acc", "val_acc", "test_acc", "best_val_acc", "best_val_test_acc")


def run_page(run: Run, width: int | None = None) -> Group:
    """Return everything known about a run: state, summary, last epochs, config, provenance, files.

    A section whose file cannot be read shows the reason, so that a damaged run can be inspected.

    Args:
        run: The run.
        width: Width in characters; that of the terminal by default.
    """
    width = Console().width if width is None else width
    parts: list[RenderableType] = [as_text(run.name, "bold")]
    sections = {
        "": lambda: _state(run),
        "summary": lambda: _summary(run),
        "last epochs": lambda: _last_epochs(run, width - 2),
        "config": lambda: [(key, _option(value)) for key, value in (run.config or {}).items()],
        "provenance": lambda: _provenance(run.meta or {}),
        "checkpoints": lambda: _checkpoints(run),
    }
    for title, reader in sections.items():
        try:
            content: Any = reader()
        except StoreError as error:
            content = as_text(error, "red")
        if isinstance(content, list):
            content = facts_table(content) if content else None
        if content is not None:
            if title:
                parts.append(Text(title, "bold"))
            parts.append(Padding(content, (0, 0, 0, 2), expand=False))
    return Group(*parts)


def _state(run: Run) -> list[tuple[str, Any]]:
    status = run.status
    facts: list[tuple[str, Any]] = [("status", Text(status, STATUS_STYLE.get(status, "")))]
    error = (run.meta or {}).get("error")
    if error and status == "failed":
        facts.append(("error", failure(error)))
    if owner := run.owner:
        text = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('started')}"
        facts.append(("owner", text))
    return [*facts, ("folder", run.path)]


def _summary(run: Run) -> list[tuple[str, str]]:
    return [(key, _result(key, value)) for key, value in (run.summary or {}).items()]


def _result(key: str, value: Any) -> str:
    if key == "images_per_s":
        return count(value)
    if key in _ACCURACIES:
        return percent(value)
    if key.endswith("_seconds"):
        return duration(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    if isinstance(value, float):
        return small(value)
    return UNKNOWN if value is None else str(value)


def _last_epochs(run: Run, width: int) -> Table | None:
    metrics = run.metrics()
    val_rows = [row for row in metrics if row.get("val_acc") is not None]
    best = max(val_rows, key=lambda row: row["val_acc"])["epoch"] if val_rows else None
    return epochs_table(metrics[-5:], width, best) if metrics else None


def _option(value: Any) -> str:
    """Return a config value on one line; a group as its name and its options."""
    if not isinstance(value, dict):
        return "null" if value is None else str(value)
    options = [
        f"{key}={_option(item)}" for key, item in value.items() if key not in ("name", "_target_")
    ]
    return "  ".join([str(value["name"]), *options] if "name" in value else options)


def _provenance(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("started", meta.get("started")), ("ended", meta.get("ended"))]
    sessions = meta.get("sessions") or []
    if len(sessions) > 1:
        last = sessions[-1]
        text = f"the last from epoch {last.get('from_epoch')} on {last.get('host')}"
        facts.append(("sessions", f"{len(sessions)}, {text}"))
    facts.append(("command", shlex.join(map(str, meta.get("command") or [])) or None))
    facts.append(("commit", _commit(meta.get("git"))))
    if "git_folder" in meta:
        facts.append(("folder's commit", _commit(meta["git_folder"])))
    versions = (meta.get("versions") or {}).items()
    facts.append(("versions", "  ".join(f"{name} {number}" for name, number in versions) or None))
    facts += [("host", meta.get("host")), ("processor", meta.get("processor"))]
    facts.append(("devices", ", ".join(map(str, meta.get("devices") or [])) or None))
    changes = meta.get("micro_batches") or []
    if any(change["count"] > 1 for change in changes):
        texts = [f"{change['count']} from epoch {change['epoch'] + 1} on" for change in changes]
        facts.append(("micro-batches", ", ".join(texts)))
    engine = (meta.get("engine") or {}).items()
    facts.append(("engine", "  ".join(f"{key}={value}" for key, value in engine) or None))
    return [(key, str(value)) for key, value in facts if value is not None]


def _commit(state: Mapping[str, Any] | None) -> str:
    if not state:
        return "not a git checkout"
    return f"{str(state.get('commit'))[:12]}{' with changes' if state.get('dirty') else ''}"


def _checkpoints(run: Run) -> list[tuple[str, str]]:
    facts = []
    for name, best in (("last", False), ("best", True)):
        info = run.checkpoint_info(best)
        if info is not None:
            path = run.path / "checkpoint" / f"{name}.npz"
            epoch_note = f"after epoch {info['epoch']}, " if "epoch" in info else ""
            facts.append((name, f"{epoch_note}{size(path.stat().st_size)}"))
    return facts
