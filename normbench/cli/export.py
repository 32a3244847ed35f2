"""``normbench export``: write all results as one table."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from normbench.cli.parser import WHERE, Parser, add_store, store_of


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--where", metavar="FILTER", help=WHERE)
    parser.add_argument(
        "--out", metavar="FILE", default="runs.csv", help="file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--format", help="csv, md, tex or parquet (default: the suffix of the file)"
    )
    add_store(parser, positional=True)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    from normbench.report.report import export

    export(store_of(arguments), arguments.where, arguments.out, arguments.format)
    return 0


def writes(arguments: Namespace) -> bool:
    return True
