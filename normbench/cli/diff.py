"""``normbench diff``: compare two runs, two stores, or two commits."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from normbench.cli.parser import RUN_NAMES, WHERE, Parser, add_store, store_of
from normbench.errors import UserError

_EPILOG = f"""\
A RUN is given by its {RUN_NAMES}, or by the path of its folder.
Any other folder is a store:
  normbench diff digits-resnet8-bn-b16-s0 digits-resnet8-bn-b16-s1
  normbench diff desk/runs cluster/runs
  normbench diff runs --by commit

Each config that both stores (or both commits) have gets a verdict: equal bits, within the spread
of seeds, different, or spread unknown. The exit code is 1 if any config is different."""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "sides", nargs="*", metavar="RUN|STORE", help="two runs, two stores, or stores --by commit"
    )
    parser.add_argument(
        "--by",
        metavar="SIDE",
        help="compare the configs of each store or of each commit (default: store)",
    )
    parser.add_argument("--where", metavar="FILTER", help=f"for stores: {WHERE}")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="for stores: metric whose means over seeds are compared (default: test_acc)",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="also write the comparison and the curves to this folder"
    )
    add_store(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    from normbench.report.report import diff, diff_sides

    stores = _stores(arguments)
    if stores:
        return diff_sides(
            stores,
            arguments.by or "store",
            arguments.where,
            arguments.metric or "test_acc",
            arguments.out,
        )
    words = arguments.sides
    for option in ("by", "where", "metric"):
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option} is for stores, and {words[0]!r} is not a store")
    if len(words) != 2:
        raise UserError(f"diff compares two runs or two stores, not {len(words)}: name two")
    diff(store_of(arguments), *words, out=arguments.out)
    return 0


def _stores(arguments: Namespace) -> list[str]:
    """Return the stores to compare; none if runs are compared.

    A word is a store if it is a folder but not a run folder. With ``--store``, all words are runs.

    Raises:
        UserError: A store and a run are named together.
    """
    from normbench.store.store import Run

    words = arguments.sides
    if not words:
        return [store_of(arguments)] if arguments.by == "commit" else []
    if arguments.store is not None:
        return []
    stores = [word for word in words if Path(word).is_dir() and not Run(Path(word)).exists]
    other_words = [word for word in words if word not in stores]
    if stores and other_words:
        raise UserError(
            f"{stores[0]!r} is a store and {other_words[0]!r} is not: name two runs or two stores"
        )
    return stores


def writes(arguments: Namespace) -> bool:
    return arguments.out is not None
