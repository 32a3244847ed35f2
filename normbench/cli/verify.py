"""``normbench verify``: train finished runs again and compare them with their records."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from normbench.cli.parser import WHERE, Parser, add_config_dir, add_store, store_of
from normbench.cli.selection import matching

_EPILOG = """\
For example:
  normbench verify --sample 3
  normbench verify runs --where 'norm == gn and seed == 0'

Runs are trained in a folder outside the store. On the same kind of processor, with the same number
of threads and the same versions, metrics and weights must be equal to the last bit; otherwise each
curve must differ by no more than the other seeds of its cell do (at least two are needed).
The exit code is 1 if a run does not verify, is damaged, or could not be trained again. A run that
cannot be judged is neither verified nor refuted, and does not change the exit code.

After Ctrl-C or any other interruption, the same command resumes: runs that were already compared
are not trained again as long as nothing has changed."""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "--sample",
        metavar="N",
        type=int,
        help="train N runs, chosen at random (default: 5, or all that match --where)",
    )
    parser.add_argument(
        "--seed",
        metavar="S",
        type=int,
        default=0,
        help="seed of that choice (default: %(default)s)",
    )
    parser.add_argument("--where", metavar="FILTER", help=WHERE)
    parser.add_argument(
        "--trials",
        action="store_true",
        help="also choose from tuning trials, as --where does",
    )
    parser.add_argument(
        "--again", action="store_true", help="also train runs that were verified before"
    )
    add_store(parser, positional=True)
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    from normbench.cli import INTERRUPTED
    from normbench.cli.sweep_screen import VerifyScreen
    from normbench.store.store import Store
    from normbench.store.verification import summary
    from normbench.sweep.verify import verify

    store, screen = Store(store_of(arguments)), VerifyScreen()
    result = verify(
        store,
        None if arguments.where is None else [*matching(store, arguments.where).runs["name"]],
        arguments.sample,
        arguments.seed,
        trials=arguments.trials,
        again=arguments.again,
        config_dir=arguments.config_dir,
        command=command,
        say=screen.line,
        view=screen,
    )
    print(summary([*result.verdicts.values()], result.asked, len(result.failures)))
    if result.interrupted:
        print("interrupted: results so far are saved, and the same command resumes")
        return INTERRUPTED
    return result.exit_code


def writes(arguments: Namespace) -> bool:
    return True
