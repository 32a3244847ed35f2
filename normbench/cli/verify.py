"""``normbench verify``: train finished runs again and compare them with their records."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from normbench.cli.parser import WHERE, Parser, add_config_dir, add_store, store_of

if TYPE_CHECKING:
    from normbench.store.store import Store

_EPILOG = """\
For example:
  normbench verify --sample 3
  normbench verify runs --where 'norm == gn and seed == 0'

Runs are trained into a folder outside the store. Metrics and weights must be equal to the last bit
on the same kind of processor, with the same number of threads and the same versions; elsewhere each
curve must differ by no more than the other seeds of its cell do, of which two are needed to judge.
Exit code 1: a run does not verify, is damaged, or could not be trained again. A run that cannot be
judged is neither verified nor refuted, and leaves the exit code at 0."""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "--sample",
        metavar="N",
        type=int,
        help="train N runs, chosen at random (default: 5, or all that --where keeps)",
    )
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="seed of the choice (default: %(default)s)"
    )
    parser.add_argument("--where", metavar="FILTER", help=WHERE)
    add_store(parser, positional=True)
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    from normbench.cli import INTERRUPTED
    from normbench.store.store import Store
    from normbench.store.verification import summary
    from normbench.sweep.verify import verify

    store = Store(store_of(arguments))
    result = verify(
        store,
        None if arguments.where is None else _matching(store, arguments.where),
        arguments.sample,
        arguments.seed,
        config_dir=arguments.config_dir,
        command=command,
    )
    print(summary([*result.verdicts.values()], result.asked, len(result.failures)))
    if result.interrupted:
        print("interrupted: what was verified so far is kept")
        return INTERRUPTED
    return result.exit_code


def writes(arguments: Namespace) -> bool:
    return True


def _matching(store: Store, text: str) -> list[str]:
    """Return the names of the runs that a filter keeps."""
    from normbench.report.frames import load
    from normbench.report.where import select

    frames = load(store)
    return [*frames.runs["name"][select(text, frames.runs).mask]]
