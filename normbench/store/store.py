"""The store: :class:`Store` is a folder of runs, one folder per run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from normbench.config import default_store
from normbench.errors import UserError, nearest
from normbench.store import files
from normbench.store import lock as runlock
from normbench.store.files import StoreError
from normbench.store.lock import RunLocked
from normbench.store.run import SCHEMA, Run, Status, without_checksums

__all__ = [
    "SCHEMA",
    "Run",
    "RunLocked",
    "Status",
    "Store",
    "StoreError",
    "find_run",
    "note_on_checksums",
]

#: Names of the folder with the records of sweeps, and of the file that `normbench verify` writes.
SWEEPS, VERIFICATIONS = "sweeps", "verification.json"

#: Name of a folder of nested stores, those that a project keeps under version control.
PUBLISHED = "published"

#: Entries that belong in a store but are not runs.
_NOT_RUNS = {SWEEPS, VERIFICATIONS, PUBLISHED}


def note_on_checksums() -> str:
    """Return a sentence on runs without checksums read since the last call, or ""."""
    count = len(without_checksums)
    if not count:
        return ""
    first = min(path.name for path in without_checksums)
    without_checksums.clear()
    runs = "1 complete run has" if count == 1 else f"{count:,} complete runs have"
    return (
        f"{runs} no checksums, because an earlier version wrote them: damage to their files may go "
        f"unnoticed ({'the run' if count == 1 else 'the first'} is {first})"
    )


class Named(Protocol):
    """The part of a config that the store needs."""

    @property
    def run_name(self) -> str: ...


class Store:
    """A folder of runs. It need not exist: it is created with its first run."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = files.expand_user(root)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def run(self, config: Named | str) -> Run:
        """Return the run with a config or a name, whether it exists or not.

        Raises:
            UserError: The name is not a plain folder name.
        """
        name = config if isinstance(config, str) else config.run_name
        if name in ("", ".", "..") or name in _NOT_RUNS or "/" in name or "\0" in name:
            raise UserError(f"run name {name!r} is not the plain name of a folder")
        return Run(self.root / name)

    def _entries(self) -> list[os.DirEntry[str]]:
        """Return the entries of the root that could be runs, sorted by name."""
        try:
            with os.scandir(self.root) as scan:
                names = [e for e in scan if not e.name.startswith(".")]
                entries = [entry for entry in names if entry.name not in _NOT_RUNS]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise files.store_error("read", self.root, error) from error
        return sorted(entries, key=lambda entry: entry.name)

    def runs(self) -> list[Run]:
        """Return the runs that exist, sorted by name, without opening any of their files."""
        runs = (Run(self.root / entry.name) for entry in self._entries() if entry.is_dir())
        return [run for run in runs if run.exists]

    def foreign(self) -> list[tuple[Path, str]]:
        """Return the entries of the store that are not runs, each with the reason.

        Hidden entries, a README, the folders of sweeps and of published stores and
        ``verification.json`` are left out, because they belong in a store; so is a run that another
        process has locked in order to create it.
        """
        entries: list[tuple[Path, str]] = []
        for entry in self._entries():
            run = Run(self.root / entry.name)
            if entry.is_dir():
                if not run.exists and not runlock.is_held(run.path / "lock"):
                    entries.append((run.path, self._why_foreign(run.path)))
            elif not entry.name.upper().startswith("README"):
                entries.append((run.path, "a file, not a run folder"))
        return entries

    @staticmethod
    def _why_foreign(path: Path) -> str:
        try:
            names = {entry.name for entry in path.iterdir()}
        except OSError as error:
            return error.strerror or str(error)
        missing = sorted({"config.yaml", "meta.json"} - names)
        if names <= {"lock", "lock.json", "log.txt", "config.yaml"}:
            return f"an empty run folder: no {', no '.join(missing)} (its process ended early)"
        return f"not a run folder: no {', no '.join(missing)}"

    def find(self, text: str) -> Run:
        """Return the run with a name, path, signature, or unique prefix of a name or signature.

        Raises:
            UserError: No run matches, or several do.
        """
        name = text.rstrip("/")
        if "/" in name:
            path = files.expand_user(name)
            if path.parent.resolve() == self.root.resolve():
                name = path.name
        runs = self.runs()
        matches = named([run.name for run in runs], name)
        if len(matches) == 1:
            return self.run(matches[0])
        if matches:
            names = ", ".join(matches[:4])
            suffix = f", and {len(matches) - 4} more" if len(matches) > 4 else ""
            raise UserError(f"run {text!r} could be any of {len(matches)}: {names}{suffix}")
        if not runs:
            raise UserError(f"unknown run {text!r}: the store {self.root} has no runs")
        close = nearest(name, [run.name for run in runs])
        hint = f": did you mean {close!r}?" if close else ""
        raise UserError(f"unknown run {text!r}{hint} (the store {self.root} has {len(runs)} runs)")


def named(names: Sequence[str], text: str) -> list[str]:
    """Return the names of the runs that a text typed by a user may refer to.

    These are the run with this name, else those with this signature, else those whose name or
    signature starts with it.
    """
    if not text:
        return []
    signatures = {name: name.rpartition("-")[2] for name in names}
    for matches in (
        lambda name: name == text,
        lambda name: signatures[name] == text,
        lambda name: name.startswith(text) or signatures[name].startswith(text),
    ):
        if result := [name for name in names if matches(name)]:
            return result
    return []


def find_run(name: str | os.PathLike[str], store: str | os.PathLike[str] | None = None) -> Run:
    """Return the run with a name, or the run in a folder.

    Args:
        name: A name as :meth:`Store.find` takes it; or, with a slash or as a path object, the path
            of a run folder.
        store: Folder of runs in which a name is looked up; by default ``$NORMBENCH_STORE`` if set,
            else ``runs``.

    Raises:
        UserError: There is no such run.
    """
    if isinstance(name, str) and "/" not in name:
        return Store(default_store() if store is None else store).find(name)
    path = files.expand_user(name).resolve()
    run = Run(path)
    return run if run.exists else Store(path.parent).find(path.name)
