"""Select runs by name or with a filter: :func:`selected`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from normbench.cli.parser import RUN_NAMES, WHERE, Parser
from normbench.errors import UserError
from normbench.store.store import Run, Store

if TYPE_CHECKING:
    from normbench.report.frames import Frames


def add_selection(parser: Parser, verb: str) -> None:
    """Add the arguments RUN and the option ``--where``.

    Args:
        parser: The parser of the command.
        verb: What the command does with the runs, for the help text.
    """
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"run to {verb}: {RUN_NAMES}")
    parser.add_argument("--where", metavar="FILTER", help=f"{verb} {WHERE}")


def selected(store: Store, names: Sequence[str], where: str | None) -> list[Run]:
    """Return the runs with these names, or the runs of a store that match a filter, each once.

    Raises:
        UserError: Neither names nor a filter are given, or both; the store or a run does not exist;
            the filter cannot be parsed or matches no run.
    """
    if bool(names) == bool(where):
        raise UserError("name runs, or say which with --where 'norm == bn'; not both")
    if not store.root.is_dir():
        raise UserError(f"there is no store {str(store.root)!r}: no such folder")
    if where is None:
        runs = [store.find(name) for name in names]
        return list({run.name: run for run in runs}.values())
    matches = matching(store, where).runs["name"]
    if matches.empty:
        raise UserError(f"no run matches --where {where!r}")
    return [store.run(name) for name in matches]


def matching(store: Store, where: str | None) -> Frames:
    """Return the frames, without curves, of the runs that match a filter; None matches all runs.

    Raises:
        UserError: The filter cannot be parsed.
    """
    from normbench.report.frames import load
    from normbench.report.where import parse, select

    if where is not None:
        parse(where)
    frames = load(store, epochs=False)
    if where is None or frames.runs.empty:
        return frames
    return frames.select(select(where, frames.runs).mask)
