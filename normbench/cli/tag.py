"""``normbench tag``: add tags and a note to runs, to find them by."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from normbench.cli.parser import Parser, add_store, store_of
from normbench.cli.selection import add_selection, selected
from normbench.errors import UserError
from normbench.store.annotations import annotate, check
from normbench.store.store import Store

_EPILOG = """\
For example:
  normbench tag 3f9c --add paper --note 'figure 2, the run in the middle'
  normbench tag --where 'norm == bn and batch == 16' --add paper,small
  normbench list --where tag.paper"""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    add_selection(parser, "tag")
    parser.add_argument("--add", metavar="TAG[,TAG...]", default="", help="tags to add")
    parser.add_argument("--remove", metavar="TAG[,TAG...]", default="", help="tags to remove")
    parser.add_argument("--note", metavar="TEXT", help="a note of your own; empty removes it")
    parser.may_be_empty.add("--note")
    add_store(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    add, remove = (
        [word for word in text.split(",") if word] for text in (arguments.add, arguments.remove)
    )
    if not add and not remove and arguments.note is None:
        raise UserError("nothing to do: use --add, --remove or --note")
    if common := set(add) & set(remove):
        raise UserError(f"tag {min(common)!r} is both added and removed")
    check([*add, *remove], arguments.note)
    for run in selected(Store(store_of(arguments)), arguments.runs, arguments.where):
        annotation = annotate(run, add, remove, arguments.note)
        tags = ", ".join(annotation.tags) or "no tags"
        print(f"{run.name}: {tags}{f'; {annotation.note}' if annotation.note else ''}")
    return 0


def writes(arguments: Namespace) -> bool:
    return True
