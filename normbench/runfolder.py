"""A run folder: its files, its lock and what they say of the run.

A run folder is readable and resumable at any moment, however its process ended: every file but
``metrics.jsonl`` is replaced atomically, and of ``metrics.jsonl`` only the last line can be torn,
which reading ignores and the next append removes.

Who trains a run holds its lock (`Run.lock`) and is the only one to write in its folder; anybody
may read at any time. `runlock` says what holds where several hosts share a store.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from normbench import files, runlock
from normbench.errors import UserError
from normbench.files import StoreError
from normbench.provenance import utc_now

if TYPE_CHECKING:
    import numpy as np

#: Version of the run folder's layout; a store written by a newer one is refused, not misread.
SCHEMA = 1

Status = Literal["missing", "running", "interrupted", "finished", "diverged", "failed"]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Run:
    """One run folder. Holds no state: every property reads the files as they are now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    # --- what the run is -----------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether the run was created: ``config.yaml`` and ``meta.json`` are there."""
        return (self.path / "meta.json").is_file() and (self.path / "config.yaml").is_file()

    @property
    def config(self) -> dict[str, Any] | None:
        """The resolved config with ``signature`` and ``schema``, or None if there is none.

        Raises:
            StoreError: ``config.yaml`` cannot be read.
        """
        path = self.path / "config.yaml"
        data = files.read_bytes(path)
        if data is None:
            return None
        try:
            value = yaml.load(data, Loader=_Loader)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
            reason = " ".join(str(error).split())
            raise StoreError(f"cannot read {path}: not YAML ({reason})") from error
        if not isinstance(value, dict):
            raise StoreError(f"cannot read {path}: a mapping expected, not {type(value).__name__}")
        return value

    @property
    def meta(self) -> dict[str, Any] | None:
        """``meta.json``, or None if there is none.

        Raises:
            StoreError: it cannot be read, or a newer normbench wrote it.
        """
        meta = files.read_json(self.path / "meta.json")
        if meta is not None and meta.get("schema", SCHEMA) != SCHEMA:
            raise StoreError(
                f"cannot read {self.path / 'meta.json'}: its schema is {meta['schema']}, "
                f"this normbench reads {SCHEMA}"
            )
        return meta

    @property
    def summary(self) -> dict[str, Any] | None:
        """``summary.json``, or None: it exists only if the run finished or diverged.

        Raises:
            StoreError: it cannot be read.
        """
        return files.read_json(self.path / "summary.json")

    @property
    def status(self) -> Status:
        """What became of the run, from its files and its lock.

        ``finished`` and ``diverged`` have a summary. Of the others, a run is ``running`` while
        its lock is held; ``failed`` if it ended in an error; else ``interrupted``, and resumable.

        Raises:
            StoreError: a file that decides it cannot be read.
        """
        while True:
            meta = self.meta
            if meta is None or not (self.path / "config.yaml").is_file():
                return "missing"
            if (self.path / "summary.json").is_file():
                ended = meta.get("status")
                if ended not in ("finished", "diverged"):  # ended between summary and meta
                    ended = (self.summary or {}).get("status")
                if ended == "finished" or ended == "diverged":
                    return ended
                raise StoreError(
                    f"cannot read {self.path / 'summary.json'}: its status is {ended!r} "
                    "(allowed: finished, diverged)"
                )
            if runlock.is_held(self.path / "lock"):
                return "running"
            # The owner may have ended the run after meta.json was read and before the lock was
            # looked at; a lock that is free now makes a second reading final.
            if self.meta == meta and not (self.path / "summary.json").is_file():
                return "failed" if meta.get("status") == "failed" else "interrupted"

    @property
    def owner(self) -> dict[str, Any] | None:
        """Who trains the run now (``host``, ``pid``, ``started``, ``command``; {} if it does not
        say), or None if nobody does."""
        return runlock.owner_of(self.path / "lock")

    @property
    def log_path(self) -> Path:
        """Where the run's log goes."""
        return self.path / "log.txt"

    # --- who trains it ------------------------------------------------------------------------

    def lock(self, command: Sequence[str]) -> AbstractContextManager[dict[str, Any] | None]:
        """Own the run: ``with run.lock(sys.argv): ...``, before `create` and any other writing.

        Makes the folder if there is none. Yields what the last owner left in ``lock.json`` if it
        died without letting go, else None. Freed by the kernel however the process ends.

        Raises (on entering):
            RunLocked: another process trains the run; the message says who.
            StoreError: the folder or the lock cannot be written.
        """
        return self._locked(command)

    @contextmanager
    def _locked(self, command: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        self._make(self.path)
        with runlock.locked(self.path / "lock", self.name, command) as died:
            files.sweep_temporary(self.path)
            files.sweep_temporary(self.path / "checkpoint")
            yield died

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.cannot("make", folder, error) from error

    # --- writing ------------------------------------------------------------------------------

    def create(self, config: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Write ``config.yaml``, then ``meta.json``.

        Args:
            config: the resolved config; ``signature`` and ``schema`` are added from ``meta`` (else
                the store's own schema) where they are not in it.
            meta: as in the run folder's description.

        On a run that exists, ``config.yaml`` stays and ``meta.json`` is replaced.

        Raises:
            StoreError: the folder holds a run of another signature, or cannot be written.
            ValueError: neither ``config`` nor ``meta`` has a signature.
        """
        signature = config.get("signature", meta.get("signature"))
        if not isinstance(signature, str):
            raise ValueError("a run needs a signature, in its config or its meta")
        self._make(self.path)
        there = self.config
        if there is not None and there.get("signature") != signature:
            raise StoreError(
                f"{self.path} holds a run of signature {there.get('signature')!r}, "
                f"not {signature!r}: move it away or use another store"
            )
        if there is None:
            schema = config.get("schema", meta.get("schema", SCHEMA))
            whole = {**config, "signature": signature, "schema": schema}
            text = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)
            files.write_text(self.path / "config.yaml", text)
        self._write_json("meta.json", {"signature": signature, "schema": SCHEMA, **meta})

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        files.write_text(self.path / name, files.dumps(dict(value), indent=2) + "\n")

    def update_meta(self, **changes: Any) -> None:
        """Replace keys of ``meta.json``, atomically.

        Raises:
            StoreError: there is no ``meta.json``, or it cannot be read or written.
        """
        meta = self.meta
        if meta is None:
            raise StoreError(f"cannot update {self.path / 'meta.json'}: no such file")
        self._write_json("meta.json", {**meta, **changes})

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, atomically; NaN and infinities become null.

        Raises:
            UserError: ``status`` is neither finished nor diverged.
            StoreError: it cannot be written.
        """
        if summary.get("status") not in ("finished", "diverged"):
            raise UserError(
                f"summary status {summary.get('status')!r} (allowed: finished, diverged)"
            )
        self._write_json("summary.json", files.plain(dict(summary)))

    def set_aside(self, why: str, command: Sequence[str]) -> Path | None:
        """Move the folder out of the way, to a hidden one of the store: ``.<name>.<why>-<time>``.

        Args:
            why: One word, as ``damaged`` or ``replaced``.
            command: For the lock.

        Returns:
            Where it is now; None if there was no folder.

        Raises:
            RunLocked: another process trains the run.
            StoreError: it cannot be moved.
        """
        if not self.path.is_dir():
            return None
        with self.lock(command):
            return self.move_aside(why)

    def move_aside(self, why: str) -> Path:
        """As `set_aside`, for who holds the lock already."""
        stem = f".{self.name}.{why}-{utc_now().replace(':', '')}"
        asides = (self.path.with_name(stem + (f"-{n}" if n else "")) for n in itertools.count())
        aside = next(path for path in asides if not path.exists())
        try:
            self.path.rename(aside)
        except OSError as error:
            raise StoreError(f"cannot set {self.path} aside: {error.strerror or error}") from error
        return aside

    def reset(self) -> None:
        """Forget what was trained, so that the run starts over, and what was measured of it.

        ``config.yaml``, ``meta.json`` and the log stay. The caller holds the lock.

        Raises:
            StoreError: something cannot be removed.
        """
        try:
            for name in ("summary.json", "metrics.jsonl", "diagnosis.jsonl"):
                (self.path / name).unlink(missing_ok=True)
            if (self.path / "checkpoint").exists():
                shutil.rmtree(self.path / "checkpoint")
            files.sync_folder(self.path)
        except OSError as error:
            raise files.cannot("reset", self.path, error) from error

    # --- metrics ------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl``, an epoch each; a torn last line is left out.

        Raises:
            StoreError: an earlier line is torn, or the file cannot be read.
        """
        return [row for _, row in files.read_lines(self.path / "metrics.jsonl")]

    def last_metrics(self) -> dict[str, Any] | None:
        """Return the last row of ``metrics.jsonl`` (None: no row), reading only the file's end."""
        return files.last_line(self.path / "metrics.jsonl")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append the row of an epoch to ``metrics.jsonl``, durable on return.

        NaN and infinities become null. A torn last line is removed first.

        Raises:
            StoreError: the row's ``epoch`` does not come after the last one's, or the file cannot
                be written (a full disk: the rows before stay whole).
        """
        path = self.path / "metrics.jsonl"
        last = files.last_line(path)
        if last is not None and not row["epoch"] > last.get("epoch", 0):
            raise StoreError(
                f"cannot append epoch {row['epoch']} to {path}: its last epoch is {last['epoch']}"
            )
        files.append_line(path, files.plain(dict(row)))

    def truncate_metrics(self, epoch: int) -> None:
        """Drop the rows after ``epoch`` (completed epochs, 0 drops all), atomically.

        Raises:
            StoreError: the file cannot be read or written.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = [line for line, row in files.read_lines(path) if row.get("epoch", 0) <= epoch]
        files.write_atomic(path, lambda file: file.write(b"".join(line + b"\n" for line in kept)))

    # --- diagnoses ----------------------------------------------------------------------------

    def diagnoses(self) -> list[dict[str, Any]]:
        """Return the lines of ``diagnosis.jsonl``: what probes measured in checkpoints later on.

        Raises:
            StoreError: a line before the last is torn, or the file cannot be read.
        """
        return [line for _, line in files.read_lines(self.path / "diagnosis.jsonl")]

    def append_diagnosis(self, line: Mapping[str, Any]) -> None:
        """Append a line to ``diagnosis.jsonl``, durable on return; NaN and infinities become null.

        Raises:
            StoreError: the file cannot be written; the lines before stay whole.
        """
        files.append_line(self.path / "diagnosis.jsonl", files.plain(dict(line)))

    # --- checkpoints --------------------------------------------------------------------------

    def _checkpoint(self, best: bool) -> Path:
        return self.path / "checkpoint" / ("best.npz" if best else "last.npz")

    def save_checkpoint(
        self, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any], best: bool = False
    ) -> None:
        """Replace the last (or best) checkpoint, atomically.

        Args:
            arrays: by name (slashes allowed), any shape and numeric dtype, bfloat16 included.
            info: what strict JSON can hold.

        Raises:
            StoreError: it cannot be written; the one before is untouched.
        """
        from normbench import checkpointfile

        path = self._checkpoint(best)
        self._make(path.parent)
        checkpointfile.save(path, arrays, info)

    def load_checkpoint(
        self, best: bool = False
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return the arrays and the info of the last (or best) checkpoint, None if there is none.

        Raises:
            StoreError: the file is truncated or altered, or cannot be read.
        """
        from normbench import checkpointfile

        return checkpointfile.load(self._checkpoint(best))

    def checkpoint_info(self, best: bool = False) -> dict[str, Any] | None:
        """Return the info of the last (or best) checkpoint without its arrays, or None.

        Raises:
            StoreError: the file is truncated, or cannot be read.
        """
        from normbench import checkpointfile

        loaded = checkpointfile.load(self._checkpoint(best), arrays=False)
        return None if loaded is None else loaded[1]
