"""``normbench rm``: move runs to the trash of their store, restore them, or empty it.

The trash consists of the store's hidden folders ``.NAME.WHY-TIME``. ``--again``, and a sweep that
retrains damaged runs, set folders aside in the same way; ``--empty`` deletes all of them.
"""

from __future__ import annotations

import re
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from normbench.cli.parser import Parser, add_store, store_of
from normbench.cli.selection import add_selection, selected
from normbench.errors import NormbenchError, UserError, unknown
from normbench.formats import counted, size
from normbench.store.store import Store, named

REMOVED = "removed"
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<why>removed|replaced|damaged)-(?P<time>[\dTZ-]+)")

_EPILOG = """\
For example:
  normbench rm 3f9c
  normbench rm --where 'status == failed' --dry-run
  normbench rm --restore 3f9c
  normbench rm --empty"""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    add_selection(parser, "remove")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and exit")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--restore", action="store_true", help="restore removed runs")
    other.add_argument("--empty", action="store_true", help="permanently delete all of the trash")
    add_store(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    store = Store(store_of(arguments))
    if not store.root.is_dir():
        raise UserError(f"there is no store {str(store.root)!r}: no such folder")
    if arguments.empty:
        if arguments.runs or arguments.where:
            raise UserError("--empty deletes all of the trash: it takes no run and no --where")
        return _empty(store, arguments.dry_run)
    if arguments.restore:
        if not arguments.runs or arguments.where:
            raise UserError("--restore takes the names of removed runs, and no --where")
        return _restore(store, arguments.runs, arguments.dry_run)
    return _remove(store, arguments, command)


def writes(arguments: Namespace) -> bool:
    return not arguments.dry_run


def _remove(store: Store, arguments: Namespace, command: Sequence[str]) -> int:
    runs = selected(store, arguments.runs, arguments.where)
    for run in runs:
        if not arguments.dry_run:
            run.set_aside(REMOVED, command)
        print(f"{'would be removed' if arguments.dry_run else 'removed'}: {run.name}")
    if not arguments.dry_run:
        print(
            f"{counted(len(runs), 'run')} in the trash of {store.root}: --restore brings one back, "
            "--empty deletes all"
        )
    return 0


def _trash(store: Store) -> dict[Path, tuple[str, str]]:
    """Return the name and the reason of each folder that was set aside, oldest first."""
    matches = [(_ASIDE.fullmatch(path.name), path) for path in store.root.iterdir()]
    pairs = [
        (match, path)
        for match, path in matches
        if match and path.is_dir() and not path.is_symlink()
    ]
    pairs.sort(key=lambda pair: pair[0]["time"])
    return {path: (match["name"], match["why"]) for match, path in pairs}


def removed(store: Store) -> dict[str, Path]:
    """Return the folders of the runs that ``--restore`` can restore, by run name."""
    return {name: path for path, (name, reason) in _trash(store).items() if reason == REMOVED}


def _restore(store: Store, names: Sequence[str], dry_run: bool) -> int:
    removed_paths = removed(store)
    paths = {}
    for text in names:
        matches = named(list(removed_paths), text)
        if not matches:
            raise unknown("removed run", text, removed_paths)
        if len(matches) > 1:
            raise UserError(f"removed run {text!r} could be any of {', '.join(matches[:4])}")
        if store.run(matches[0]).path.exists():
            raise UserError(f"the store has a new run {matches[0]}: remove it first")
        paths[matches[0]] = removed_paths[matches[0]]
    for name, path in paths.items():
        if not dry_run:
            try:
                path.rename(store.run(name).path)
            except OSError as error:
                raise NormbenchError(f"cannot restore {name}: {error.strerror}") from None
        print(f"{'would be restored' if dry_run else 'restored'}: {name}")
    return 0


def _empty(store: Store, dry_run: bool) -> int:
    total = 0
    trash = _trash(store)
    for path, (name, reason) in trash.items():
        total += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if not dry_run:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise NormbenchError(f"cannot delete {path}: {error.strerror}") from None
        print(f"{'would be deleted' if dry_run else 'deleted'}: {name} ({reason})")
    print(f"{counted(len(trash), 'folder')}, {size(total)}")
    return 0
