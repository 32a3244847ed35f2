"""The parser of the command line, and the options that several sub-commands share.

:class:`Parser` is argparse's parser with one-line errors. A sub-command adds its own options in its
module's ``add_arguments`` and reads the shared ones with :func:`store_of`, :func:`stores_of` and
:func:`overrides_of`.
"""

from __future__ import annotations

import argparse
import os
import re
from argparse import Namespace
from collections.abc import Iterator
from typing import Any, NoReturn

from normbench.errors import UserError, nearest
from normbench.formats import capitalized
from normbench.report.venues import DEFAULT, VENUES

#: Help texts that several sub-commands share.
RUN_NAMES = "name, signature, or a prefix of either"
WHERE = "only the runs that match, as in 'norm in [bn, gn] and batch <= 64'"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with one-line errors that suggest the nearest correct word.

    Attributes:
        may_be_empty: Options to which an empty value means something; elsewhere it is refused.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            *args,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )
        self.may_be_empty: set[str] = set()
        self._subparsers_action: Any = None
        self.set_defaults(parser=self)

    @property
    def options(self) -> list[str]:
        """The options of this parser, excluding those of its sub-commands."""
        return sorted(option for action in self._actions for option in action.option_strings)

    @property
    def commands(self) -> dict[str, Parser]:
        """The parsers of the sub-commands, by name."""
        return {} if self._subparsers_action is None else dict(self._subparsers_action.choices)

    def descendants(self) -> Iterator[Parser]:
        """Yield this parser and those of all sub-commands."""
        yield self
        for command in self.commands.values():
            yield from command.descendants()

    def add_commands(self, dest: str, metavar: str, required: bool = False) -> None:
        """Let this parser have sub-commands, which :meth:`add_command` adds."""
        self._subparsers_action = self.add_subparsers(
            dest=dest, metavar=metavar, required=required, parser_class=Parser
        )

    def add_command(self, name: str, summary: str) -> Parser:
        """Add a sub-command, with ``--debug``, and return its parser.

        Args:
            name: Name of the sub-command.
            summary: One line of help, in lower case and without a period.
        """
        command: Parser = self._subparsers_action.add_parser(
            name, help=summary, description=f"{capitalized(summary)}."
        )
        command.add_argument(
            "--debug", action="store_true", help="show the full traceback of an error"
        )
        return command

    def error(self, message: str) -> NoReturn:
        from normbench.components import group_options  # which imports yaml

        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            name, allowed = choice.groups()
            names = [word.strip(" '") for word in allowed.split(",")]
            close = nearest(name, names)
            hint = f": did you mean {close!r}?" if close else ""
            group = next((g for g in group_options() if name in (g, f"{g}s")), None)
            if group is not None and "explain" in names:
                hint = f": `normbench explain {group}` lists the choices of {group}="
            message = f"unknown command {name!r}{hint} (allowed: {', '.join(names)})"
        missing = re.match(r"the following arguments are required: (.*)", message)
        if missing:
            message = f"{missing[1]} {'are' if ',' in missing[1] else 'is'} required"
        raise UserError(f"{message} (see {self.prog} --help)")


def add_store(parser: Parser, positional: bool = False) -> None:
    """Add ``--store``.

    Args:
        positional: Also accept the folder as an argument without ``--store``.
    """
    if positional:
        parser.add_argument("folder", nargs="?", metavar="STORE", help="the same as --store STORE")
    parser.add_argument(
        "--store",
        metavar="FOLDER",
        help="folder of runs (default: $NORMBENCH_STORE if set, else runs)",
    )


def add_stores(parser: Parser) -> None:
    """Add ``--store`` and any number of folders as arguments; read them with :func:`stores_of`."""
    parser.add_argument(
        "folders", nargs="*", metavar="STORE", help="folders of runs, instead of --store"
    )
    add_store(parser)


def add_style(parser: Parser, made: str) -> None:
    """Add ``--style``.

    Args:
        parser: The parser of a command.
        made: What the command sizes for a venue, such as ``"LaTeX tables"``.
    """
    *venues, last = VENUES
    parser.add_argument(
        "--style",
        metavar="STYLE",
        default=DEFAULT,
        help=f"size {made} for {', '.join(venues)} or {last} (default: %(default)s)",
    )


def add_comparison(parser: Parser) -> None:
    """Add the options that say which runs are compared, by what, and with what."""
    parser.add_argument("--where", metavar="FILTER", help=WHERE)
    parser.add_argument(
        "--by",
        metavar="KEY[,KEY...]",
        default="norm,batch",
        help="config keys, store or commit: for the rows, the columns, and separate tables "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        default="test_acc",
        help="metric to compare (default: %(default)s; normbench report --metrics lists them)",
    )
    parser.add_argument(
        "--baseline",
        metavar="ROW",
        help="row to compare the others with (default: bn; for stores and commits the first)",
    )


def add_sort(parser: Parser, what: str) -> None:
    """Add ``--sort`` and ``--reverse``, which order ``what``, a plural."""
    parser.add_argument(
        "--sort",
        metavar="KEY[,KEY...]",
        help=f"config keys or metrics to sort the {what} by, best first",
    )
    parser.add_argument("--reverse", action="store_true", help=f"reverse the order of the {what}")


def add_superseded(parser: Parser) -> None:
    """Add ``--superseded``."""
    parser.add_argument(
        "--superseded",
        action="store_true",
        help="also show final runs whose tuned values a later sweep replaced, as untuned runs",
    )


def add_config_dir(parser: Parser) -> None:
    """Add ``--config-dir``."""
    parser.add_argument(
        "--config-dir",
        metavar="FOLDER",
        help="folder of your own config groups, laid out like conf/",
    )


def store_of(arguments: Namespace) -> str:
    """Return the folder of runs that a command reads: the one named, else the default."""
    if arguments.store is not None:
        return arguments.store
    from normbench.config import default_store

    return default_store()


def stores_of(arguments: Namespace) -> list[str]:
    """Return the folders of runs that a command reads: those named as arguments, else one.

    Raises:
        UserError: Stores are named both as arguments and with ``--store``.
    """
    stores = [word.removeprefix("store=") for word in arguments.folders]
    if not stores:
        return [store_of(arguments)]
    if arguments.store is not None and stores != [arguments.store]:
        raise UserError(f"two stores are named: {stores[0]!r} and {arguments.store!r}")
    return stores


def overrides_of(arguments: Namespace) -> list[str]:
    """Return the overrides of a run or a sweep, with ``--store FOLDER`` as ``store=FOLDER``.
    Raises:
        UserError: There are none, and no option gives the command anything else to do. Training
            the default config takes hours, so it must be asked for.
    """
    options = ("print_config", "resume")
    if not arguments.overrides and not any(getattr(arguments, name, False) for name in options):
        arguments.parser.print_help()
        example = "dataset=digits arch=resnet8 epochs=5"
        raise UserError(f"{arguments.command} needs KEY=VALUE words, as {example}")
    has_store = any(word.lstrip("+").startswith("store=") for word in arguments.overrides)
    if arguments.store is None or has_store:
        return arguments.overrides
    from normbench.overrides import quoted

    return [*arguments.overrides, f"store={quoted(arguments.store)}"]


def quiet_tensorflow() -> None:
    """Keep TensorFlow's start-up messages off the screen; call this before importing it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
