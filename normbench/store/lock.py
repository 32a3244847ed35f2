"""The lock of a run folder: one process trains a run, and a dead owner's lock is free at once.

The lock is the kernel's (``flock``, taken through the library ``filelock`` on the file ``lock``):
it belongs to the open file, so it is gone the moment its owner is, ``kill -9`` included, and
nothing is ever cleaned up or waited for. ``lock.json`` beside it says who took it; it serves
messages alone and decides nothing.

Several hosts on one store: NFS (Linux 2.6.12 and later; version 4, or 3 with its lock daemon),
Lustre mounted with ``flock`` and CephFS carry the lock between hosts. There a killed process frees
it at once, a host that vanished only when the server ends its lease (NFSv4: about 90 s). Where a
mount keeps locks to one host (NFS ``local_lock=flock``, Lustre ``localflock``), processes of one
host still exclude each other, but two hosts do not. A mount without any locks is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLock, Timeout

from normbench.errors import UserError
from normbench.store.files import StoreError, dumps, printable, read_json, store_error, write_text
from normbench.store.provenance import utc_now
from normbench.store.records import OWNER

#: How long a taker outlasts programs that only look at the lock, in seconds. Each look takes
#: microseconds, so this is reached only if some other program keeps the file locked for reading.
PATIENCE = 10.0

#: The locks this process holds: their real paths. A child made by fork holds none of them.
_held: dict[str, int] = {}


class RunLocked(UserError):
    """Another process trains this run; ``owner`` says who (None where it left no word)."""

    def __init__(self, message: str, owner: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.owner = owner


def is_held(path: Path) -> bool:
    """Return whether some process, this one included, holds the lock at ``path``.

    Looks with a shared lock, so that any number of lookers pass one another and only a taker
    must look twice (see ``take``); writes nothing, so it serves on a read-only store, too.

    Raises:
        StoreError: the file cannot be opened, or its file system has no locks.
    """
    if _held.get(os.path.realpath(path)) == os.getpid():
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise store_error("read", path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # Closing would do, but not if another thread has just forked: the child shares the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return False
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return True
        raise store_error("lock", path, error) from error
    finally:
        os.close(descriptor)


def _take(path: Path) -> FileLock | None:
    """Take the lock, or return None if another process owns it.

    A failed attempt means an owner *or* somebody looking (`is_held`). A shared lock tells them
    apart: lookers let it through, an owner does not. So nobody is refused because of a looker,
    and an owner is found out without waiting.
    """
    lock = FileLock(path, thread_local=False)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if is_held(path):
                return None
            if time.monotonic() > deadline:
                raise StoreError(
                    f"cannot lock {path}: another program keeps it locked for reading"
                ) from None
            time.sleep(random.uniform(0.0005, 0.005))  # unequal, so that takers do not keep step
            continue
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(f"cannot lock {path}: {reason}") from error
        if isinstance(lock, SoftFileLock):  # filelock's stand-in where the file system has no flock
            lock.release()
            raise StoreError(
                f"cannot lock {path}: its file system has no file locks (flock); "
                "put the store on one that has"
            )
        return lock


def _alive(owner: dict[str, Any]) -> bool:
    """Return False if ``owner`` is a process of this host that is gone."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _note(path: Path) -> dict[str, Any] | None:
    """Return what ``lock.json`` says; None where there is none, or nothing that can be read.

    It serves messages alone: that it is damaged must not end what only asks who trains a run.
    """
    try:
        return read_json(path.with_suffix(".json"), OWNER)
    except StoreError:
        return None


def owner_of(path: Path, patience: float = 0.0) -> dict[str, Any] | None:
    """Return what the owner of the lock at ``path`` says of itself, or None if nobody holds it.

    Keys: ``host``, ``pid``, ``started`` (ISO-8601 UTC), ``command`` (list of arguments). An owner
    that has not yet said anything is waited for up to ``patience`` seconds, then reported as {}.
    """
    deadline = time.monotonic() + patience
    while is_held(path):
        owner = _note(path)
        if owner is not None and _alive(owner):
            return owner
        if time.monotonic() >= deadline:
            return {}
        time.sleep(0.01)
    return None


def refusal(name: str, owner: dict[str, Any] | None) -> RunLocked:
    """Build the error that says who trains the run ``name``."""
    if not owner:
        return RunLocked(f"run {name} is being trained by another process", owner)
    command = shlex.join(str(part) for part in owner.get("command") or [])
    return RunLocked(
        f"run {name} is being trained by process {owner.get('pid')} on {owner.get('host')} "
        f"since {owner.get('started')}" + (f": {command}" if command else ""),
        owner,
    )


@contextlib.contextmanager
def locked(path: Path, name: str, command: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Hold the lock at ``path`` for the run ``name``.

    Yields:
        what the last owner left if it died without letting go, else None.

    Raises:
        RunLocked: another process (or another part of this one) holds it.
        StoreError: the lock or ``lock.json`` cannot be written.
    """
    key = os.path.realpath(path)
    lock = None if _held.get(key) == os.getpid() else _take(path)
    if lock is None:
        raise refusal(name, owner_of(path, patience=0.3))
    note = path.with_suffix(".json")
    pid = os.getpid()
    _held[key] = pid
    try:
        died = _note(path)
        owner = {
            "host": socket.gethostname(),
            "pid": pid,
            "started": utc_now(),
            "command": printable(list(command)),
        }
        write_text(note, dumps(owner, indent=2) + "\n")
        yield died
    finally:
        if os.getpid() == pid:  # a child made by fork that unwinds to here lets go of nothing
            with contextlib.suppress(OSError):
                note.unlink(missing_ok=True)
            del _held[key]
            lock.release()
