"""A place beside the data sets where one is made before it gets its name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from normbench.data.tfds_folder import HIDDEN
from normbench.errors import NormbenchError


def hidden(root: Path) -> Path:
    """Return normbench's own folder in a data folder, making it where it is not there.

    Raises:
        NormbenchError: it cannot be made.
    """
    folder = root / HIDDEN
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NormbenchError(
            f"cannot write in the data folder {root} ({error.strerror}): name another one in "
            "TFDS_DATA_DIR"
        ) from error
    return folder


@contextmanager
def staging(root: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder on the file system of ``root`` that is gone afterwards.

    One process at a time makes a data set of one name. A folder that a killed process left is
    removed by the next one: whoever holds the lock knows that nobody else works in it.

    Raises:
        NormbenchError: the data folder cannot be written, or another process is at it.
    """
    folder = hidden(root)
    partial = folder / f"{name}.partial"
    try:
        lock = FileLock(folder / f"{name}.lock", timeout=0)
        with lock:
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Timeout as error:
        raise NormbenchError(
            f"another process is bringing {name} into {root}: wait for it"
        ) from error
    except OSError as error:
        raise NormbenchError(
            f"cannot bring {name} into the data folder {root}: {error.strerror or error}"
        ) from error


def publish(made: Path, final: Path) -> None:
    """Give a finished folder its name.

    Raises:
        NormbenchError: something else has that name by now.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.rename(final)
    except OSError as error:
        raise NormbenchError(f"cannot rename {made} to {final}: {error.strerror}") from error
