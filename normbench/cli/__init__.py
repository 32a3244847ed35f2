# PYTHON_ARGCOMPLETE_OK: argcomplete's global completion looks for this marker.
"""The command line: ``normbench COMMAND``; the entry points are :func:`entry` and :func:`main`.

Each sub-command is a module of this package, with two functions:

- ``add_arguments(parser)`` adds its options to a :class:`normbench.cli.parser.Parser`.
- ``execute(arguments, command)`` runs it and returns the exit code; ``command`` is the command line
  as recorded in run folders. A command that fails raises an exception.

A command that does more than print also defines ``writes(arguments)``, which returns True for it.

To add a command, add a module and a line in :data:`COMMANDS`. The module is imported only when its
command is used, and must import TensorFlow, Keras, pandas and Hydra inside functions.
"""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, NoReturn

from normbench import __version__
from normbench.cli import streams
from normbench.cli.parser import Parser
from normbench.errors import NormbenchError, UserError, nearest, reason

COMMANDS = {
    "run": "train one network, or resume its training",
    "sweep": "train one run for each combination of values",
    "report": "write tables, figures and a web page",
    "power": "estimate how many seeds it takes to detect a difference",
    "diagnose": "measure the checkpoints of finished runs",
    "list": "list the runs of a store",
    "show": "show one run, or the layers of a network",
    "tag": "add tags and a note to runs",
    "rm": "move runs to the trash, restore them, or empty it",
    "norms": "list the normalizations, or explain one",
    "explain": "explain a config key, or list the choices of a group",
    "experiments": "list the ready-made sweeps, or explain one",
    "data": "list, download or import data sets",
    "doctor": "check this machine and the installation",
    "completion": "print the completion script for a shell",
    "diff": "compare two runs, two stores, or two commits",
    "export": "export all results as one table, or a trained network",
    "verify": "train finished runs again and compare the results",
    "pack": "pack a store into one archive for a paper",
}
"""The sub-commands in the order of the help: module name and summary."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in a shell."""

EPILOG = """\
A first comparison, in about three minutes and without a download:
  normbench sweep +experiment=quickstart
  normbench report"""

# Once a sub-command is imported, its name shadows a builtin of that name (``list``) in this module.


def entry() -> NoReturn:
    """Console entry point: run :func:`main`, and ignore further Ctrl-C while exiting.

    If a shell asks for completions, answer it instead.
    """
    if "_ARGCOMPLETE" in os.environ and "COMP_LINE" in os.environ:
        from normbench.cli.completion import answer

        answer(build_parser)
    streams.protect()
    try:
        code = main()
    except KeyboardInterrupt:  # a second one, while main was reporting the first
        code = INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if reason := streams.loss():
        print(f"normbench: standard output could not be written: {reason}", file=sys.stderr)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after ``normbench``; those of this process by default.

    Returns:
        The exit code: 0 for success; 1 if a run or the machine failed, or a comparison found a
        difference; 2 for a mistake in the command or a missing library; 130 if the command was
        interrupted.
    """
    words = [*(sys.argv[1:] if argv is None else argv)]
    try:
        arguments = parse(words)
        if arguments.command is None:
            arguments.parser.print_help()
            return 0
        signal.signal(signal.SIGTERM, _interrupt)  # ends a run as Ctrl-C does
        _missing_checksums()  # forget the runs that this process read before
        code = _module(arguments.command).execute(arguments, ["normbench", *words])
        if note := _missing_checksums():
            print(f"normbench: note: {note}", file=sys.stderr)
        return 1 if code == 0 and not _writes(arguments) and streams.loss() else code
    except NormbenchError as error:
        if "--debug" in words:
            raise
        print(f"normbench: {reason(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("normbench: interrupted; run the same command again to resume", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if "--debug" in words:
            raise
        print(f"normbench: {reason(error)} (--debug shows the traceback)", file=sys.stderr)
        return 1


def build_parser(complete: Collection[str] = tuple(COMMANDS)) -> Parser:
    """Build the parser of the command line.

    Args:
        complete: Commands that get their options; the others get only a name and a summary.
    """
    top = Parser(
        prog="normbench",
        description="Train networks with different normalization layers and compare them.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="version", version=f"normbench {__version__}")
    top.add_commands("command", "COMMAND")
    for name, summary in COMMANDS.items():
        command = top.add_command(name, summary)
        if name in complete:
            _module(name).add_arguments(command)
    return top


def parse(argv: Sequence[str]) -> Namespace:
    """Parse a command line; overrides may come before and after options.

    Returns:
        The arguments, plus ``parser``, the command's parser. ``store`` is the folder named in any
        of the three ways (:func:`_named_store`), or None.

    Raises:
        UserError: A command or option is unknown (the message suggests the nearest one), or two
            stores are named.
    """
    top = build_parser(argv[:1])
    if argv and argv[0].startswith("-") and argv[0].partition("=")[0] not in top.options:
        raise _unknown_option(argv[0], top)
    arguments, words = top.parse_known_args(argv)
    for word in words:
        if word.startswith("-"):
            raise _unknown_option(word, arguments.parser)
        _words(arguments, word).append(word)
    if hasattr(arguments, "store"):
        arguments.store = _named_store(arguments)
    _refuse_empty(argv, arguments.parser.may_be_empty)
    return arguments


def _words(arguments: Namespace, word: str) -> list[str]:
    """Return the command's list of arguments, to which a word after an option is added.

    argparse itself collects only one unbroken sequence of words into such a list.

    Raises:
        UserError: The command takes no list.
    """
    for name in ("overrides", "folders", "sides"):
        if hasattr(arguments, name):
            return getattr(arguments, name)
    prog = arguments.parser.prog
    raise UserError(f"{arguments.command} cannot take {word!r} (see {prog} --help)")


def _named_store(arguments: Namespace) -> str | None:
    """Return the store named by ``--store FOLDER``, ``store=FOLDER`` or the argument STORE."""
    folder = getattr(arguments, "folder", None)
    words = [folder or "", *getattr(arguments, "overrides", ())]
    stores = [word.removeprefix("store=") for word in words if word.startswith("store=")]
    if not stores and words[0]:
        stores = [words[0]]
    if arguments.store is not None:
        stores.append(arguments.store)
    if len(set(stores)) > 1:
        raise UserError(f"two stores are named: {stores[0]!r} and {stores[-1]!r}")
    # With --model, the argument of export is a run.
    folders = () if getattr(arguments, "model", None) else getattr(arguments, "folders", ())
    empty = any(not word.removeprefix("store=").strip() for word in folders)
    if folder == "" or empty or (stores and not stores[0].strip()):
        raise UserError("the store's name is empty: name a folder, or leave it out for the default")
    return stores[0] if stores else None


def _unknown_option(word: str, parser: Parser) -> UserError:
    """Build the error for an option that the parser does not have."""
    name = word.partition("=")[0]
    top = build_parser()
    owners = [other.prog for other in top.descendants() if name in other.options]
    if owners and parser.prog == top.prog:
        return UserError(f"{name} belongs after the command, as in: {owners[0]} {name}")
    if owners:
        verb = "has" if len(owners) == 1 else "have"
        return UserError(f"{parser.prog} has no option {name}: {', '.join(owners)} {verb} it")
    close = nearest(name, parser.options)
    hint = f": did you mean {close}?" if close else ""
    return UserError(f"unknown option {word!r}{hint} (see {parser.prog} --help)")


def _refuse_empty(argv: Sequence[str], allowed: Collection[str]) -> None:
    """Refuse an empty option or argument, which an unset shell variable leaves behind.

    Args:
        argv: The command line.
        allowed: Options that may be empty.
    """
    for previous, word in zip(["", *argv], argv, strict=False):
        option = word[:-1] if word.startswith("--") and word.endswith("=") else previous
        if (word and option == previous) or option in allowed:
            continue
        subject = option if option.startswith("--") else "an argument"
        raise UserError(f"{subject} is empty: give it a value or leave it out")


def _module(command: str) -> Any:
    return import_module(f"normbench.cli.{command}")


def _writes(arguments: Namespace) -> bool:
    """Return whether a command does more than print."""
    predicate = getattr(_module(arguments.command), "writes", None)
    return predicate is not None and predicate(arguments)


def _missing_checksums() -> str:
    """Return a note on the runs without checksums read since the last call; "" for none."""
    if "normbench.store.store" not in sys.modules:
        return ""
    from normbench.store.store import note_on_checksums

    return note_on_checksums()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
