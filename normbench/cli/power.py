"""``normbench power``: estimate how many seeds it takes to detect a difference."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from normbench.cli.parser import Parser, add_comparison, add_stores, stores_of

_EPILOG = """\
For example:
  normbench power --difference 0.5
  normbench power runs --difference 0.5 --power 0.9 --baseline gn --where 'batch <= 64'
  normbench power --difference 0.5 --until 0.3 --max-seeds 40"""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "--difference",
        metavar="POINTS",
        type=float,
        required=True,
        help="difference to detect: percentage points of an accuracy, else in the metric's unit",
    )
    parser.add_argument(
        "--power",
        metavar="PROBABILITY",
        type=float,
        default=0.8,
        help="probability of detecting it (default: %(default)s)",
    )
    parser.add_argument(
        "--until",
        metavar="POINTS",
        type=float,
        help="also estimate the number of seeds at which normbench sweep --until stops",
    )
    parser.add_argument(
        "--max-seeds",
        metavar="N",
        type=int,
        default=20,
        help="--max-seeds of that sweep (default: %(default)s)",
    )
    add_comparison(parser)
    add_stores(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    from normbench.report.power import power
    from normbench.report.report import text
    from normbench.report.table import terminal

    tables = power(
        stores_of(arguments),
        arguments.difference,
        arguments.power,
        where=arguments.where,
        by=arguments.by,
        metric_name=arguments.metric,
        baseline=arguments.baseline,
        until=arguments.until,
        max_seeds=arguments.max_seeds,
    )
    for place, table in enumerate(tables):
        print(("\n" if place else "") + text(terminal(table)))
    return 0
