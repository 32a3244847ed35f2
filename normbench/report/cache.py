"""What was read of a store before: kept in the user's cache folder, never in the store.

An entry counts only while every file of its run has the size, the times and the inode it had when
it was read, so that a cached row is never older than the files. A file that changed less than two
seconds before it was read is read again next time, since a clock of coarse grain (NFS) may give a
later change of equal size the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import normbench
from normbench.files import user_cache

FORMAT = 3
"""Raised when the columns change their meaning; a cache of another format is not read."""

FILES = ("config.yaml", "meta.json", "metrics.jsonl", "diagnosis.jsonl", "summary.json")
_SETTLED_NS = 2_000_000_000
_KEY = b"normbench"


@dataclass(frozen=True)
class Cache:
    """A cache as found: the stamp of each run that it holds, and its two open files."""

    stamps: Mapping[str, str]
    files: tuple[pq.ParquetFile, ...] = ()

    def holds(self, name: str, stamp: str) -> bool:
        """Whether the run is held as its files are now."""
        return self.stamps.get(name) == stamp

    def frames(self, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the rows of these runs in both frames, in the order they were written."""
        runs, curves = (file.read().to_pandas() for file in self.files)
        if len(names) == len(self.stamps):
            return runs, curves
        return (
            runs[runs["name"].isin(names)].reset_index(drop=True),
            curves[curves["run"].isin(names)].reset_index(drop=True),
        )


EMPTY = Cache({})


def stamps(folders: Iterable[Path]) -> dict[str, str]:
    """Return, by the run's name, what tells a change of any of its files."""
    now = time.time_ns()
    return {folder.name: _stamp(folder, now) for folder in folders}


def read(root: Path) -> Cache:
    """Return the cache of the store at ``root``; an empty one where there is none that serves."""
    folder = _folder(root)
    try:
        # Kept open from here on: another process may replace them, but not change these.
        files = tuple(pq.ParquetFile(folder / f"{name}.parquet") for name in ("runs", "curves"))
    except (OSError, pa.ArrowException):
        return EMPTY
    ours, theirs = (
        json.loads((file.schema_arrow.metadata or {}).get(_KEY, b"{}")) for file in files
    )
    if ours.get("format") != _format() or ours.get("written") != theirs.get("written"):
        return EMPTY
    return Cache(ours["stamps"], files)


def write(root: Path, runs: pd.DataFrame, curves: pd.DataFrame, stamps: Mapping[str, str]) -> None:
    """Keep the rows of the runs in ``stamps``; a cache folder that cannot be written is let be."""
    settled = {name: stamp for name, stamp in stamps.items() if stamp}
    runs = runs[runs["name"].isin(settled)]
    curves = curves[curves["run"].isin(settled)]
    written = f"{time.time_ns()}-{os.getpid()}"
    header = {"format": _format(), "written": written}
    folder = _folder(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "curves.parquet", curves, header)
        _replace(folder / "runs.parquet", runs, {**header, "stamps": settled})
    except OSError:
        return


def _format() -> list[str]:
    return [str(FORMAT), normbench.__version__, pd.__version__]


def _folder(root: Path) -> Path:
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return user_cache() / "report" / name


def _stamp(folder: Path, now: int) -> str:
    """Return a text that changes with any file of the run; empty if one changed just now."""
    parts = []
    for name in FILES:
        try:
            found = os.stat(f"{folder}/{name}")  # noqa: PTH116 - 8,000 of them, Path is slower
        except FileNotFoundError:
            parts.append("-")
            continue
        if found.st_mtime_ns > now - _SETTLED_NS:
            return ""
        parts.append(f"{found.st_size}.{found.st_mtime_ns}.{found.st_ctime_ns}.{found.st_ino}")
    return " ".join(parts)


def _replace(path: Path, frame: pd.DataFrame, header: Mapping[str, object]) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(header).encode()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
