# PYTHON_ARGCOMPLETE_OK: argcomplete's completion of all programs finds normbench by this mark.
"""The command line: ``normbench COMMAND``; the entry points are :func:`entry` and :func:`main`.

Each sub-command is a module of this package, with two functions:

- ``add_arguments(parser)`` adds its options to a :class:`normbench.cli.parser.Parser`.
- ``execute(arguments, command)`` carries it out and returns the exit code; ``command`` is the
  command line as it is recorded in run folders. A command that fails raises.

A command that leaves more behind than the text that it prints says so with ``writes(arguments)``.

A new command is a module and a line in :data:`COMMANDS`. A module is imported when its command is
asked for, and imports TensorFlow, Keras, pandas and Hydra in its functions only.
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
    "power": "say how many seeds it takes to see a difference",
    "diagnose": "measure the checkpoints of finished runs",
    "list": "list the runs of a store",
    "show": "show one run, or the layers of a network",
    "tag": "give runs tags and a note",
    "rm": "move runs to the trash, bring them back, or empty it",
    "norms": "list the normalizations, or explain one",
    "explain": "say what a key means, or what a group has to choose from",
    "experiments": "list the ready-made sweeps, or explain one",
    "data": "list, download or import data sets",
    "doctor": "check this machine and the installation",
    "completion": "print the script that completes commands in a shell",
    "diff": "compare two runs, two stores, or two commits",
    "export": "write all results as one table, or a trained network",
    "verify": "train finished runs again and compare",
    "pack": "write one archive for a paper",
}
"""The sub-commands in the order of the help: the name of the module, and its summary."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell."""

EPILOG = """\
A first comparison, in about three minutes and without a download:
  normbench sweep +experiment=quickstart
  normbench report"""

# Inside this module, the names of sub-commands that were imported shadow builtins (``list``).


def entry() -> NoReturn:
    """Console entry point: run :func:`main`, and ignore further Ctrl-C while exiting.

    If a shell asks for the words that may stand at the cursor, answer it instead.
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
        argv: The words after ``normbench``; those of this process by default.

    Returns:
        The exit code: 0; 1 if a run or the machine failed, or a comparison found a difference; 2
        for a mistake in the command, or a library that it needs and that is not installed; 130 if
        the command was interrupted.
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
        complete: Commands that get their options; of the others it has only name and summary.
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
    """Parse a command line; overrides may stand before and after options.

    Returns:
        The arguments, with ``parser``, the parser of the command. ``store`` is the folder that the
        command line names in any of the three ways, or None.

    Raises:
        UserError: An unknown command or option, with the nearest correct one; or two stores.
    """
    top = build_parser(argv[:1])
    if argv and argv[0].startswith("-") and argv[0].partition("=")[0] not in top.options:
        raise _unknown_option(argv[0], top)
    arguments, unparsed = top.parse_known_args(argv)
    for word in unparsed:
        if word.startswith("-"):
            raise _unknown_option(word, arguments.parser)
        _words(arguments, word).append(word)
    if hasattr(arguments, "store"):
        arguments.store = _named_store(arguments)
    _refuse_empty(argv)
    return arguments


def _words(arguments: Namespace, word: str) -> list[str]:
    """Return the list of a command's arguments, which takes words after an option, too.

    argparse gives such a list only the words that stand together.

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
    named = [word.removeprefix("store=") for word in words if word.startswith("store=")]
    if not named and words[0]:
        named = [words[0]]
    if arguments.store is not None:
        named.append(arguments.store)
    if len(set(named)) > 1:
        raise UserError(f"two stores are named: {named[0]!r} and {named[-1]!r}")
    # With --model, the argument of export is a run.
    folders = () if getattr(arguments, "model", None) else getattr(arguments, "folders", ())
    empty = any(not word.removeprefix("store=").strip() for word in folders)
    if folder == "" or empty or (named and not named[0].strip()):
        raise UserError("the store is empty: name a folder, or none for the default")
    return named[0] if named else None


def _unknown_option(word: str, parser: Parser) -> UserError:
    """Build the error for an option that the parser does not have."""
    name = word.partition("=")[0]
    top = build_parser()
    owners = [other.prog for other in top.descendants() if name in other.options]
    if owners and parser.prog == top.prog:
        return UserError(f"{name} stands after the command, as in: {owners[0]} {name}")
    if owners:
        verb = "has" if len(owners) == 1 else "have"
        return UserError(f"{parser.prog} has no option {name}: {', '.join(owners)} {verb} it")
    close = nearest(name, parser.options)
    hint = f": did you mean {close}?" if close else ""
    return UserError(f"unknown option {word!r}{hint} (see {parser.prog} --help)")


def _refuse_empty(argv: Sequence[str]) -> None:
    """Refuse an empty option or argument, which an unset shell variable leaves behind."""
    for before, word in zip(["", *argv], argv, strict=False):
        option = word[:-1] if word.startswith("--") and word.endswith("=") else before
        if word and option == before:
            continue
        named = option if option.startswith("--") else "an argument"
        raise UserError(f"{named} is empty: give it a value or leave it out")


def _module(command: str) -> Any:
    return import_module(f"normbench.cli.{command}")


def _writes(arguments: Namespace) -> bool:
    """Return whether a command leaves more behind than the text that it prints."""
    writes = getattr(_module(arguments.command), "writes", None)
    return writes is not None and writes(arguments)


def _missing_checksums() -> str:
    """Return a note on the runs without checksums read since the last call; "" for none."""
    if "normbench.store.store" not in sys.modules:
        return ""
    from normbench.store.store import note_on_checksums

    return note_on_checksums()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
