"""``normbench report``: write tables, figures and a web page."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from normbench.cli.parser import (
    Parser,
    add_comparison,
    add_sort,
    add_stores,
    add_style,
    add_superseded,
    stores_of,
)
from normbench.cli.terminal import Column, fitted_table, print_rows

if TYPE_CHECKING:
    from normbench.report.metrics import Metric

_EPILOG = """\
For example:
  normbench report --where 'norm in [bn, gn] and batch <= 64' --by norm,batch --out report
  normbench report --by norm,optimizer.lr --metric val_acc --baseline bn
  normbench report --sort test_acc
  normbench report --rows gn_ws,bn,gn --style neurips --formats pdf
  normbench report --metrics
  normbench report desk/runs cluster/runs --by store,norm,batch
  normbench report --by commit,norm

Several stores are reported as one set of runs. A run with the same config and seed in two of them
counts once, unless --by has store or commit. The report is written to --out, not to a store."""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    add_comparison(parser)
    add_sort(parser, "rows")
    parser.add_argument(
        "--target",
        metavar="ACCURACY",
        type=float,
        help="also compare the steps needed to reach this validation accuracy, as in 0.9",
    )
    parser.add_argument(
        "--allow-confound",
        default="",
        metavar="KEY[,KEY...]",
        help="keys in which rows may differ on purpose, as in optimizer.lr",
    )
    add_superseded(parser)
    parser.add_argument(
        "--against",
        metavar="STORE",
        help="also compare with another store, such as a published one, config by config",
    )
    parser.add_argument(
        "--metrics",
        action="store_true",
        help="list the names that --metric accepts, including the store's probe values, and exit",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        default="report",
        help="folder to write to (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        metavar="ROW[,ROW...]",
        default="",
        help="show only these rows in tables and figures, in this order, as in gn_ws,bn,gn",
    )
    add_style(parser, "figures and LaTeX tables")
    parser.add_argument(
        "--formats",
        metavar="FORMAT[,FORMAT...]",
        help="figure formats: png, svg, pdf (default: png,svg; all three if --style is a journal "
        "or conference)",
    )
    add_stores(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    if arguments.metrics:
        return _list_metrics(stores_of(arguments))
    write_report(arguments, print)
    return 0


def write_report(arguments: Namespace, say: Callable[[str], None]) -> Path:
    """Write the report of a command line; return its page.

    Args:
        arguments: The words and options of the command line.
        say: Receives each line meant for the user.
    """
    from normbench.report.report import report

    return report(
        stores_of(arguments),
        where=arguments.where,
        by=arguments.by,
        metric=arguments.metric,
        baseline=arguments.baseline,
        target=arguments.target,
        out=arguments.out,
        allow_confound=arguments.allow_confound,
        superseded=arguments.superseded,
        sort=arguments.sort,
        reverse=arguments.reverse,
        against=arguments.against,
        say=say,
        rows=arguments.rows,
        style=arguments.style,
        formats=arguments.formats,
    )


def writes(arguments: Namespace) -> bool:
    return not arguments.metrics


def _list_metrics(stores: Sequence[str]) -> int:
    """Print the metrics of the runs in stores; without a store, those that every store has."""
    from normbench.report.metrics import METRICS, OVER_EPOCHS
    from normbench.report.stores import load_stores

    metrics: Mapping[str, Metric] = METRICS
    counts: dict[str, int] = {}
    if len(stores) > 1 or Path(stores[0]).is_dir():
        frames, _ = load_stores(stores)
        metrics = frames.metrics
        runs = frames.curves.groupby("run").count().gt(0).sum()  # runs with a value in any epoch
        counts = {str(name): int(count) for name, count in runs.items()}
        counts |= {str(name): int(count) for name, count in frames.runs.count().items()}
    rows = [
        {
            "metric": metric.name,
            "meaning": metric.axis,
            "better": {None: "", True: "higher", False: "lower"}[metric.higher_is_better],
            "one per": "run" if metric.of_run else "epoch",
            "runs": counts.get(metric.name, 0),
        }
        for metric in metrics.values()
    ]
    print_rows(lambda: rows, lambda: _table(rows))
    if sys.stdout.isatty():
        print(
            f"for a metric of epochs, --metric NAME:{OVER_EPOCHS[0]} (or "
            f"{', '.join(OVER_EPOCHS[1:])}) compares one value per run (default: {OVER_EPOCHS[0]})"
        )
    return 0


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    def text(key: str, **options: Any) -> Column:
        return Column(key, lambda row: str(row[key]), **options)

    columns = [
        text("metric", right=False),
        text("meaning", right=False, gives_way=True),
        text("better", right=False, spare=2),
        text("one per", right=False, spare=1),
        text("runs", spare=3),
    ]
    return fitted_table(columns, rows)
