"""Locks in a store, :func:`locked`: only one process at a time trains a run or verifies the store.

A lock is the kernel's ``flock`` on a file, taken through the library ``filelock``. It belongs to
the open file, so the kernel releases it as soon as its owner ends, even by ``kill -9``, and nobody
has to clean up or wait for a timeout. The file itself is never removed: otherwise one process could
lock the removed file while another locks its successor. A ``.json`` file next to it names the
owner. It is used only in messages, so it may be stale or missing.

Several hosts on one store: NFS (Linux 2.6.12 and later; version 4, or 3 with its lock daemon),
Lustre mounted with ``flock`` and CephFS share locks between hosts. There the lock of a killed
process is released at once, that of a host that vanished only when the server ends its lease
(NFSv4: about 90 s). On mounts whose locks are local (NFS ``local_lock=flock``, Lustre
``localflock``), processes of one host still exclude each other, but two hosts do not. A mount
without any locks is refused.
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

#: Seconds for which a process retries to take a lock that others only check. A check takes
#: microseconds, so this is reached only if a program keeps the file locked for reading.
PATIENCE = 10.0

#: Real paths of the locks that this process holds, with its process id: a forked child inherits
#: this dict, but holds none of the locks.
_held: dict[str, int] = {}


class RunLocked(UserError):
    """Another process holds the lock; ``owner`` is the note it wrote, or None."""

    def __init__(self, message: str, owner: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.owner = owner


def is_held(path: Path) -> bool:
    """Return whether any process, including this one, holds the lock at ``path``.

    The check tries a shared lock, so that any number of processes may check at once; only a process
    that takes the lock may have to retry (see :func:`_take`). Nothing is written, so the check also
    works in a read-only store.

    Raises:
        StoreError: The file cannot be opened, or its file system has no locks.
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
        # Closing the file would release the lock, too, unless another thread has just forked: the
        # child then shares the open file and with it the lock.
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

    An attempt fails if another process owns the lock *or* is just checking it (:func:`is_held`). A
    shared lock distinguishes the two: it is compatible with other shared locks, but not with an
    owner's exclusive one. So a mere check never causes a refusal, and an owner is detected without
    waiting.
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
            # Two processes that try to take a free lock at the same moment may block each other by
            # the shared locks of their checks. Random waits break the tie.
            time.sleep(random.uniform(0.0005, 0.005))
            continue
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(f"cannot lock {path}: {reason}") from error
        if isinstance(lock, SoftFileLock):  # filelock's fallback on file systems without flock
            lock.release()
            raise StoreError(
                f"cannot lock {path}: its file system has no file locks (flock); "
                "put the store on one that has"
            )
        return lock


def _alive(owner: dict[str, Any]) -> bool:
    """Return False if ``owner`` is a process of this host that no longer exists."""
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
    """Return the content of ``lock.json``, or None if it is missing or damaged.

    The note is used only in messages, so a damaged one must not fail a command.
    """
    try:
        return read_json(path.with_suffix(".json"), OWNER)
    except StoreError:
        return None


def owner_of(path: Path, patience: float = 0.0) -> dict[str, Any] | None:
    """Return the note of the owner of the lock at ``path``, or None if nobody holds it.

    Args:
        path: Path of the lock.
        patience: Seconds to wait for an owner that has not written its note yet.

    Returns:
        ``host``, ``pid``, ``started`` (ISO-8601 UTC) and ``command`` (list of arguments); {} if the
        owner wrote no note in time.
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


def refusal(activity: str, owner: dict[str, Any] | None) -> RunLocked:
    """Build the error that names the process that holds a lock.

    Args:
        activity: Start of the message, such as ``run NAME is being trained``; the owner completes
            it.
        owner: The owner's note; empty or None if it wrote none.
    """
    if not owner:
        return RunLocked(f"{activity} by another process", owner)
    command = shlex.join(str(part) for part in owner.get("command") or [])
    return RunLocked(
        f"{activity} by process {owner.get('pid')} on {owner.get('host')} since "
        f"{owner.get('started')}" + (f": {command}" if command else ""),
        owner,
    )


@contextlib.contextmanager
def locked(path: Path, activity: str, command: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Hold the lock at ``path``.

    Args:
        path: The file to lock, created if it does not exist.
        activity: The protected activity, for messages to others: ``run NAME is being trained``.
        command: The command line of this process, for the same purpose.

    Yields:
        The previous owner's note if it died without releasing the lock, else None.

    Raises:
        RunLocked: Another process, or another caller in this process, holds it.
        StoreError: The lock or ``lock.json`` cannot be written.
    """
    key = os.path.realpath(path)
    lock = None if _held.get(key) == os.getpid() else _take(path)
    if lock is None:
        raise refusal(activity, owner_of(path, patience=0.3))
    note = path.with_suffix(".json")
    pid = os.getpid()
    _held[key] = pid
    try:
        dead_owner = _note(path)
        owner = {
            "host": socket.gethostname(),
            "pid": pid,
            "started": utc_now(),
            "command": printable(list(command)),
        }
        write_text(note, dumps(owner, indent=2) + "\n")
        yield dead_owner
    finally:
        if os.getpid() == pid:  # a forked child that unwinds to here must release nothing
            with contextlib.suppress(OSError):
                note.unlink(missing_ok=True)
            del _held[key]
            lock.release()
