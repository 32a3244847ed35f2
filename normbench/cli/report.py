"""``normbench report``: write tables, figures and a web page."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from normbench.cli.parser import Parser, add_comparison, add_store, store_of

_EPILOG = """\
For example:
  normbench report --where 'norm in [bn, gn] and batch <= 64' --by norm,batch --out report
  normbench report --by norm,optimizer.lr --metric val_acc --baseline bn"""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    add_comparison(parser)
    parser.add_argument(
        "--target",
        metavar="ACCURACY",
        type=float,
        help="also compare the steps to this validation accuracy, as in 0.9",
    )
    parser.add_argument(
        "--allow-confound",
        default="",
        metavar="KEY[,KEY...]",
        help="keys in which rows may differ on purpose, as in optimizer.lr",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", default="report", help="folder to write (default: %(default)s)"
    )
    add_store(parser, positional=True)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    from normbench.report.report import report

    report(
        store_of(arguments),
        where=arguments.where,
        by=arguments.by,
        metric=arguments.metric,
        baseline=arguments.baseline,
        target=arguments.target,
        out=arguments.out,
        allow_confound=arguments.allow_confound,
    )
    return 0


def writes(arguments: Namespace) -> bool:
    return True
