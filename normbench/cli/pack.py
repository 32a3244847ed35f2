"""``normbench pack``: one archive of a store for a paper's artifact."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from normbench.cli.parser import Parser, add_config_dir, add_store, store_of

_EPILOG = """\
For example:
  normbench pack runs --out paper.tar.gz
  normbench pack runs --out paper.tar.gz --config-dir my_norm/conf

The archive contains the records of runs and sweeps, the report, the config groups, the locked
versions, a manifest of checksums, and a README with the commands that read it. From --config-dir
it takes only the files that the runs name, and the modules that these files need. The same store
always gives the same bytes."""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "--out", metavar="FILE", required=True, help="archive to write, as in paper.tar.gz"
    )
    parser.add_argument("--checkpoints", action="store_true", help="also pack the checkpoints")
    parser.add_argument("--force", action="store_true", help="replace an existing archive")
    add_store(parser, positional=True)
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    from normbench.report.pack import pack

    pack(
        store_of(arguments),
        arguments.out,
        arguments.checkpoints,
        arguments.force,
        config_dir=arguments.config_dir,
    )
    return 0


def writes(arguments: Namespace) -> bool:
    return True
