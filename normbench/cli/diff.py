"""``normbench diff``: compare two runs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from normbench.cli.parser import RUN_NAMES, Parser, add_store, store_of


def add_arguments(parser: Parser) -> None:
    parser.add_argument("runs", nargs=2, metavar="RUN", help=f"two runs, each by {RUN_NAMES}")
    parser.add_argument(
        "--out", metavar="FOLDER", help="also write the comparison and the curves to this folder"
    )
    add_store(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    from normbench.report.report import diff

    diff(store_of(arguments), *arguments.runs, out=arguments.out)
    return 0


def writes(arguments: Namespace) -> bool:
    return arguments.out is not None
