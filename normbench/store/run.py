"""A run folder: :class:`Run` reads and writes its files, and checks that they are undamaged.

A run folder is readable and resumable at any moment, however its process ended. Every file except
the ``.jsonl`` ones and the log is replaced atomically. ``metrics.jsonl`` and ``diagnosis.jsonl``
are appended to, so a crash can tear only the last line; readers ignore a torn last line, and the
next append removes it.

The process that trains a run holds its lock (:meth:`Run.lock`) and is the only one that writes to
the folder. Any process may read at any time, without the lock. `normbench.store.lock` describes the
guarantees of the lock when several hosts share a store.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from normbench.errors import NormbenchError, UserError
from normbench.store import files, records, schema
from normbench.store import lock as runlock
from normbench.store.files import StoreError
from normbench.store.provenance import utc_now

if TYPE_CHECKING:
    import numpy as np

#: Version of the run folder's layout. A folder of a newer version is refused rather than misread.
SCHEMA = 1

Status = Literal["missing", "running", "interrupted", "finished", "diverged", "failed"]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: The end of a run folder's name.
_SIGNATURE = re.compile(r"-([0-9a-f]{8})$")

#: Complete runs without checksums, written by an earlier version, that this process has read.
without_checksums: set[Path] = set()


def _check_size(value: Any, data: bytes) -> None:
    """Refuse a config that YAML aliases (``*name``) expand beyond what its size allows."""
    if b"*" not in data:
        return
    # Without aliases, a file of n bytes has fewer than n values.
    pending, count = [value], 0
    while pending:
        item = pending.pop()
        count += 1
        if count > len(data):
            raise schema.Mismatch("its aliases expand to too many values")
        if isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list):
            pending += item


@lru_cache(maxsize=4)  # a run's config is often read several times in a row
def _config_of(data: bytes) -> dict[str, Any]:
    """Parse a ``config.yaml`` and check the types in it. The result is shared: copy it.

    Raises:
        ValueError: It is not YAML, or not a config; the message says what is wrong.
    """
    try:
        value = yaml.load(data, Loader=_Loader)
        _check_size(value, data)
        schema.sound(value)
    except schema.Mismatch:
        raise
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise ValueError(f"not YAML ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {type(value).__name__}")
    records.CONFIG(value, "")
    return value


@lru_cache(maxsize=4)
def _signatures_of(data: bytes) -> tuple[str, ...]:
    """Return the signatures that a ``config.yaml`` may have; none if it is not a run's config."""
    from normbench.config import Config

    tree = {k: v for k, v in _config_of(data).items() if k not in ("signature", "schema")}
    try:
        config = Config.from_dict({"store": "", **tree})
        return config.signature, config.earlier_signature
    except (NormbenchError, AttributeError, KeyError, TypeError, ValueError):
        return ()


@lru_cache(maxsize=4)  # a run's status and its metrics are often read in a row
def _epochs_of(path: Path, data: bytes) -> list[dict[str, Any]]:
    """Return the rows of a ``metrics.jsonl``. The result is shared: copy it.

    Raises:
        StoreError: The file is damaged.
    """
    rows = [row for _, row in files.read_lines(path, records.EPOCH, data=data)]
    try:
        records.check_epochs(rows)
    except schema.Mismatch as error:
        raise files.damaged(path, error) from error
    return rows


class Run:
    """One run folder. The object has no state: every property reads the current files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    # --- reading ------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """True if the run has been created: it has ``config.yaml`` and ``meta.json``."""
        return (self.path / "meta.json").is_file() and (self.path / "config.yaml").is_file()

    @property
    def config(self) -> dict[str, Any] | None:
        """The resolved config with ``signature`` and ``schema``, or None if there is none.

        Raises:
            StoreError: ``config.yaml`` cannot be read, or is not the config of this run.
        """
        data = files.read_bytes(self.path / "config.yaml")
        if data is None:
            return None
        config = self._parsed_config(data)
        try:
            _, seals = self._read_meta()
        except StoreError:  # meta.json is damaged, not the config; `status` reports it
            return config
        self._check_config(data, seals)
        return config

    @property
    def meta(self) -> dict[str, Any] | None:
        """The content of ``meta.json``, or None if there is none.

        Raises:
            StoreError: It cannot be read, or a newer normbench wrote it.
        """
        return self._read_meta()[0]

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of ``summary.json``, or None if the run has neither finished nor diverged.

        Raises:
            StoreError: It cannot be read.
        """
        return self._read("summary.json", records.SUMMARY)[0]

    @property
    def status(self) -> Status:
        """The status of the run, from its files and its lock.

        A run with a summary that agrees with its other files is ``finished`` or ``diverged``. Any
        other run is ``running`` while its lock is held, ``failed`` if it ended in an error, and
        otherwise ``interrupted``: repeating the command that started it resumes it.

        Raises:
            StoreError: A file that decides the status cannot be read, or is damaged.
        """
        while True:
            meta, seals = self._read_meta()
            data = files.read_bytes(self.path / "config.yaml")
            if meta is None:
                return "missing"
            if data is None:  # it is written before meta.json
                raise files.damaged(self.path / "config.yaml", "no such file, though the run began")
            self._check_config(data, seals)
            self._check_name(meta.get("signature"), "meta.json")
            if (self.path / "summary.json").is_file():
                outcome = self._check_end(seals)
                if outcome is None:  # another process has just removed it: check again
                    continue
                return outcome
            if runlock.is_held(self.path / "lock"):
                return "running"
            # The owner may have ended the run after meta.json was read but before the lock was
            # checked. Nobody writes while the lock is free, so if a second read agrees with the
            # first, the state is final.
            if self.meta == meta and not (self.path / "summary.json").is_file():
                return "failed" if meta.get("status") == "failed" else "interrupted"

    @property
    def owner(self) -> dict[str, Any] | None:
        """The process that is training the run, or None: ``host``, ``pid``, ``started`` and
        ``command``; empty if the process wrote no note."""
        return runlock.owner_of(self.path / "lock")

    @property
    def log_path(self) -> Path:
        """Path of the run's log."""
        return self.path / "log.txt"

    # --- checks -------------------------------------------------------------------------------

    def _read(
        self, name: str, check: schema.Check
    ) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
        """Return a record and its checksums of other files, each None if missing."""
        path = self.path / name
        content = files.read_json(path)
        if content is None:
            return None, None
        try:
            value, seals = records.unsealed(name, content)
            check(value, "")
        except schema.Mismatch as error:
            raise files.damaged(path, error) from error
        return value, seals

    def _read_meta(self) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
        meta, seals = self._read("meta.json", records.META)
        if meta is not None and meta.get("schema", SCHEMA) != SCHEMA:
            raise StoreError(
                f"cannot read {self.path / 'meta.json'}: its schema is {meta['schema']}, "
                f"but this version of normbench reads {SCHEMA}"
            )
        return meta, seals

    def _parsed_config(self, data: bytes) -> dict[str, Any]:
        return copy.deepcopy(self._shared_config(data))

    def _shared_config(self, data: bytes) -> dict[str, Any]:
        """Return the config without copying it; the caller must not change it."""
        try:
            return _config_of(data)
        except ValueError as error:
            raise files.damaged(self.path / "config.yaml", error) from error

    def _check_config(self, data: bytes, seals: Mapping[str, str] | None) -> None:
        """Check that ``config.yaml`` is unchanged and belongs to the run of this folder.

        Args:
            data: Content of ``config.yaml``.
            seals: The checksums in ``meta.json``. If None, the signature, which is a hash of the
                config, is computed again instead.
        """
        path = self.path / "config.yaml"
        if seals is not None:
            if seals.get("config.yaml") != records.digest(data):
                raise files.damaged(path, "changed since the run began (checksum in meta.json)")
            return
        signature = self._shared_config(data).get("signature")
        self._check_name(signature, "config.yaml")
        if signature not in _signatures_of(data):
            raise files.damaged(
                path, f"changed since the run began: it no longer has the signature {signature}"
            )

    def _check_name(self, signature: str | None, name: str) -> None:
        """Check that a file has the same signature as the folder's name, if both have one."""
        match = _SIGNATURE.search(self.name)
        if match and signature is not None and signature != match.group(1):
            reason = f"its signature is {signature!r}, the folder's is {match.group(1)!r}"
            raise files.damaged(self.path / name, reason)

    def _check_end(
        self, meta_seals: Mapping[str, str] | None
    ) -> Literal["finished", "diverged"] | None:
        """Check ``summary.json``, and that ``metrics.jsonl`` agrees with it.

        Args:
            meta_seals: The checksums in ``meta.json``; None if it has none.
        """
        summary, seals = self._read("summary.json", records.SUMMARY)
        if summary is None:
            return None
        # The same version wrote both files, so either both have checksums or neither has. Otherwise
        # a damaged key "checksums" would pass for a file of an earlier version.
        for name, own_seals, other_seals in (
            ("summary.json", seals, meta_seals),
            ("meta.json", meta_seals, seals),
        ):
            if own_seals is None and other_seals is not None:
                raise files.damaged(self.path / name, "damaged: its checksums are missing")
        path = self.path / "metrics.jsonl"
        data = files.read_bytes(path) or b""
        if seals is None:
            without_checksums.add(self.path)
            rows = self._rows(data)
            try:
                if len(data.splitlines()) != len(rows):
                    raise schema.Mismatch("its last line is torn, though the run is complete")
                records.check_agreement(summary, rows)
            except schema.Mismatch as error:
                raise files.damaged(path, error) from error
        elif seals.get("metrics.jsonl") != records.digest(data):
            raise files.damaged(path, "changed since the run ended (checksum in summary.json)")
        return summary["status"]

    def verify(self) -> Status:
        """Check every file except the checkpoints and the log, and return the status.

        Raises:
            StoreError: A file is damaged; the message names it.
        """
        _ = self.config
        status = self.status
        if status != "missing":
            self.metrics()
            self.diagnoses()
        return status

    # --- the lock -----------------------------------------------------------------------------

    def lock(self, command: Sequence[str]) -> AbstractContextManager[dict[str, Any] | None]:
        """Hold the lock of the run: ``with run.lock(sys.argv): ...``.

        Callers of `create` and of all other methods that write must hold it. The folder is created
        if there is none. The kernel releases the lock however the process ends.

        Yields:
            The previous owner's ``lock.json`` if it died without releasing the lock, else None.

        Raises:
            RunLocked: On entry, if another process is training the run; the message says which.
            StoreError: On entry, if the folder or the lock cannot be written.
        """
        return self._locked(command)

    @contextmanager
    def _locked(self, command: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        self._make(self.path)
        activity = f"run {self.name} is being trained"
        with runlock.locked(self.path / "lock", activity, command) as dead_owner:
            files.sweep_temporary(self.path)
            files.sweep_temporary(self.path / "checkpoint")
            yield dead_owner

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.store_error("make", folder, error) from error

    # --- writing ------------------------------------------------------------------------------

    def create(self, config: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Write ``config.yaml``, then ``meta.json``.

        For an existing run, ``config.yaml`` is kept and ``meta.json`` is replaced.

        Args:
            config: The resolved config. ``signature`` and ``schema`` are taken from ``meta`` if it
                lacks them.
            meta: Status, provenance and sessions, as in `records.META`.

        Raises:
            StoreError: The folder has a run with another signature, or cannot be written.
            ValueError: Neither ``config`` nor ``meta`` has a signature.
        """
        signature = config.get("signature", meta.get("signature"))
        if not isinstance(signature, str):
            raise ValueError("a run needs a signature, in its config or its meta")
        self._make(self.path)
        path = self.path / "config.yaml"
        data = files.read_bytes(path)
        if data is not None:
            old_signature = self._parsed_config(data).get("signature")
            if old_signature != signature:
                raise StoreError(
                    f"{self.path} has a run with signature {old_signature!r}, not {signature!r}: "
                    "move it away or use another store"
                )
        if data is not None and (self.path / "meta.json").is_file():
            self._check_config(data, self._read_meta()[1])
        else:  # config.yaml is written first: without meta.json, the run has not begun
            tree = {
                **config,
                "signature": signature,
                "schema": config.get("schema", meta.get("schema", SCHEMA)),
            }
            try:
                schema.sound(tree)
            except schema.Mismatch as error:
                raise UserError(f"this config cannot be recorded: {error}") from error
            data = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()
            files.write_bytes(path, data)
        seals = {"config.yaml": records.digest(data)}
        self._write_json("meta.json", {"signature": signature, "schema": SCHEMA, **meta}, seals)

    def _write_json(self, name: str, value: Mapping[str, Any], seals: Mapping[str, str]) -> None:
        """Write a record with the checksums of other files and its own."""
        # A reader computes the checksum from the values that it parses, which may differ from those
        # that were written: a tuple is read back as a list.
        plain = json.loads(files.dumps(files.printable(dict(value))))
        text = files.dumps(records.sealed(name, plain, seals), indent=2)
        files.write_text(self.path / name, text + "\n")

    def update_meta(self, **changes: Any) -> None:
        """Replace keys of ``meta.json``, atomically.

        Raises:
            StoreError: There is no ``meta.json``, or it cannot be read or written.
        """
        meta, seals = self._read_meta()
        if meta is None:
            raise StoreError(f"cannot update {self.path / 'meta.json'}: no such file")
        if seals is None:
            data = files.read_bytes(self.path / "config.yaml") or b""
            seals = {"config.yaml": records.digest(data)}
        self._write_json("meta.json", {**meta, **changes}, seals)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, atomically; NaN and infinities become null.

        Raises:
            UserError: ``status`` is neither finished nor diverged.
            StoreError: It cannot be written.
        """
        if summary.get("status") not in ("finished", "diverged"):
            raise UserError(
                f"summary status {summary.get('status')!r} (allowed: finished, diverged)"
            )
        seals = {
            name: records.digest(files.read_bytes(self.path / name) or b"")
            for name in ("config.yaml", "metrics.jsonl")
        }
        self._write_json("summary.json", files.jsonable(dict(summary)), seals)

    def set_aside(self, why: str, command: Sequence[str]) -> Path | None:
        """Rename the folder to a hidden one in the store: ``.<name>.<why>-<time>``.

        Args:
            why: One word, such as ``damaged`` or ``replaced``.
            command: The command line of the lock's owner, this process.

        Returns:
            The path of the hidden folder; None if there was no folder to move.

        Raises:
            RunLocked: Another process trains the run.
            StoreError: The folder cannot be moved.
        """
        if not self.path.is_dir():
            return None
        with self.lock(command):
            return self.move_aside(why)

    def move_aside(self, why: str) -> Path:
        """Rename the folder as `set_aside` does; the caller holds the lock."""
        stem = f".{self.name}.{why}-{utc_now().replace(':', '')}"
        targets = (self.path.with_name(stem + (f"-{n}" if n else "")) for n in itertools.count())
        target = next(path for path in targets if not path.exists())
        try:
            self.path.rename(target)
        except OSError as error:
            raise StoreError(f"cannot set {self.path} aside: {error.strerror or error}") from error
        return target

    def reset(self) -> None:
        """Remove all results, so that the run starts over; the caller holds the lock.

        ``config.yaml``, ``meta.json`` and the log are kept. The summary is removed first: if the
        process dies halfway, the run is interrupted rather than finished without metrics.

        Raises:
            StoreError: A file cannot be removed.
        """
        try:
            for name in ("summary.json", "metrics.jsonl", "diagnosis.jsonl"):
                (self.path / name).unlink(missing_ok=True)
            if (self.path / "checkpoint").exists():
                shutil.rmtree(self.path / "checkpoint")
            files.sync_folder(self.path)
        except OSError as error:
            raise files.store_error("reset", self.path, error) from error

    # --- metrics ------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl``, one for each epoch, without a torn last line.

        Raises:
            StoreError: A line before the last is torn, an epoch is missing, or the file cannot be
                read.
        """
        return self._rows(files.read_bytes(self.path / "metrics.jsonl") or b"")

    def _rows(self, data: bytes) -> list[dict[str, Any]]:
        return [dict(row) for row in _epochs_of(self.path / "metrics.jsonl", data)]

    def last_metrics(self) -> dict[str, Any] | None:
        """Return the last row of ``metrics.jsonl``, or None, reading only the end of the file."""
        return files.last_line(self.path / "metrics.jsonl", records.EPOCH)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append the row of an epoch to ``metrics.jsonl``, durable on return.

        NaN and infinities become null. A torn last line is removed first.

        Raises:
            StoreError: The row's ``epoch`` does not follow that of the last row, or the file cannot
                be written. Even on a full disk, the earlier rows are unchanged.
        """
        path = self.path / "metrics.jsonl"
        last = files.last_line(path, records.EPOCH)
        last_epoch = 0 if last is None else last["epoch"]
        if row["epoch"] != last_epoch + 1:
            raise StoreError(
                f"cannot append epoch {row['epoch']} to {path}: its last epoch is {last_epoch}"
            )
        files.append_line(path, files.jsonable(dict(row)))

    def metrics_checksum(self) -> str:
        """Return the current SHA-256 of ``metrics.jsonl``, in hex."""
        return records.digest(files.read_bytes(self.path / "metrics.jsonl") or b"")

    def truncate_metrics(self, epoch: int, checksum: str | None = None) -> None:
        """Drop the rows after ``epoch``, atomically: a resumed run trains these epochs again.

        Args:
            epoch: Number of epochs whose rows are kept; 0 drops all rows.
            checksum: Result of :meth:`metrics_checksum` after that epoch, if known.

        Raises:
            StoreError: The file cannot be read or written, lacks a row up to ``epoch``, or does not
                have the checksum.
        """
        path = self.path / "metrics.jsonl"
        if epoch == 0 and not path.exists():
            return
        rows = self.metrics() if epoch else []
        if len(rows) < epoch:
            reason = f"it ends after epoch {len(rows)}, but the checkpoint is of epoch {epoch}"
            raise files.damaged(path, reason)
        lines = [line for line, row in files.read_lines(path) if row.get("epoch", 0) <= epoch]
        data = b"".join(line + b"\n" for line in lines)
        if checksum is not None and checksum != records.digest(data):
            raise files.damaged(path, "changed since the last checkpoint (checksum in last.npz)")
        files.write_bytes(path, data)

    # --- diagnoses ----------------------------------------------------------------------------

    def diagnoses(self) -> list[dict[str, Any]]:
        """Return the lines of ``diagnosis.jsonl``: values that probes measured in checkpoints.

        Raises:
            StoreError: A line is damaged (a torn last one is left out), or the file cannot be read.
        """
        path = self.path / "diagnosis.jsonl"
        lines = [line for _, line in files.read_lines(path, torn=files.is_torn)]
        try:
            return records.unsealed_diagnoses(lines)
        except schema.Mismatch as error:
            raise files.damaged(path, error) from error

    def append_diagnosis(self, line: Mapping[str, Any]) -> None:
        """Append a line to ``diagnosis.jsonl``, durable on return; NaN and infinities become null.

        Raises:
            StoreError: The file cannot be written; the earlier lines are unchanged.
        """
        plain = json.loads(files.dumps(files.printable(files.jsonable(dict(line)))))
        path = self.path / "diagnosis.jsonl"
        files.append_line(path, records.sealed_line(plain, files.last_line(path)))

    # --- checkpoints --------------------------------------------------------------------------

    def _checkpoint(self, best: bool) -> Path:
        return self.path / "checkpoint" / ("best.npz" if best else "last.npz")

    def save_checkpoint(
        self, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any], best: bool = False
    ) -> None:
        """Replace the last (or best) checkpoint, atomically.

        Args:
            arrays: Arrays of any shape and numeric dtype, by name; names may contain slashes.
            info: A record of values that strict JSON can hold.
            best: Replace the best checkpoint instead of the last.

        Raises:
            StoreError: It cannot be written; the previous one is untouched.
        """
        from normbench.store import checkpoint as checkpointfile

        path = self._checkpoint(best)
        self._make(path.parent)
        checkpointfile.save(path, arrays, info)

    def load_checkpoint(
        self, best: bool = False
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return the arrays and the info of the last (or best) checkpoint, None if there is none.

        Raises:
            StoreError: The file is truncated or altered, or cannot be read.
        """
        from normbench.store import checkpoint as checkpointfile

        return self._checked(best, checkpointfile.load(self._checkpoint(best)))

    def checkpoint_info(self, best: bool = False) -> dict[str, Any] | None:
        """Return the info of the last (or best) checkpoint without its arrays, or None.

        Raises:
            StoreError: The file is truncated, or cannot be read.
        """
        from normbench.store import checkpoint as checkpointfile

        contents = self._checked(best, checkpointfile.load(self._checkpoint(best), arrays=False))
        return None if contents is None else contents[1]

    def _checked(
        self, best: bool, contents: tuple[dict[str, np.ndarray], dict[str, Any]] | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        try:
            if contents is not None:
                records.CHECKPOINT(contents[1], "")
        except schema.Mismatch as error:
            raise files.damaged(self._checkpoint(best), error) from error
        return contents
