"""Data sets that are identified by their content: :class:`ContentSource`.

The path of a user's file or folder does not determine its content, and may change. The data set is
therefore identified by a hash of its images and labels, which is in a run's config as
``dataset.content`` and enters its signature; the path does not. The images are decoded once, into
the array cache, which is indexed by the hash: a run can be resumed, verified and diagnosed even if
the file has been moved or edited since. Images are written to the cache as they are decoded, so
they may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from normbench.data import cache
from normbench.data.base import Arrays, Source
from normbench.data.streaming import refuse_full_disk
from normbench.errors import NormbenchError, UserError, nearest
from normbench.store.files import StoreError, dumps, expand_user, read_json, user_cache, write_text
from normbench.store.provenance import data_hash

_SCHEMA = 1  # version of the cache: increment it if the same files give other arrays


class Contents(NamedTuple):
    """A data set as it was read.

    Attributes:
        arrays: All images and labels. Images may be any object that
            :func:`normbench.data.cache.write` accepts as an array.
        class_names: One per class, in the order of the labels.
    """

    arrays: Arrays
    class_names: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Sixteen hex digits, equal for data sets with equal images, labels and classes."""
        text = json.dumps([data_hash(self.arrays), self.class_names])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class ContentSource(Source):
    """A data set that is identified by its content, wherever it is stored.

    A subclass takes options in its constructor, including ``title`` and ``content``, and implements
    `stamp`, `reading` and `read`.

    Args:
        origin: Where the images come from, for messages and for finding them in the cache: an
            absolute path, or the name of a data set.
        title: Name of the data set in tables.
        content: The hash that the images must have; empty to accept any images.
    """

    def __init__(self, origin: str, title: str, content: str) -> None:
        if content and not re.fullmatch("[0-9a-f]{16}", content):
            raise UserError(
                f"dataset.content {content!r} is not 16 hex digits: leave it out, "
                "it is computed from the data"
            )
        self.origin = origin
        self.title = title
        self.content = content

    @abstractmethod
    def stamp(self) -> list[Any]:
        """Return names, sizes and times of the files, which change when a file is written.

        Raises:
            UserError: There are no such files.
        """

    @abstractmethod
    def reading(self) -> dict[str, Any]:
        """Return the options that affect which arrays are read from the same files."""

    @abstractmethod
    def read(self) -> Contents:
        """Read all images.

        Raises:
            UserError: The files are not a data set of this kind, or an option does not fit them.
        """

    # --- called when a config is composed -------------------------------------------------------

    @classmethod
    def identify(cls, **options: Any) -> dict[str, Any]:
        """Return the options of a data set with its content filled in; read it if it is new.

        Raises:
            UserError: There is no such data set, or it cannot be read.
        """
        source = cls(**options)
        content = source._identify()
        if source.content and source.content != content:
            raise UserError(
                f"dataset.content={source.content} is not the content of {source.origin}, which is "
                f"{content}: leave it out, it is computed from the data"
            )
        return {**options, **source.resolved(), "title": source.title, "content": content}

    def resolved(self) -> dict[str, Any]:
        """Return options with values that no longer depend on the working folder."""
        return {}

    # --- Source ---------------------------------------------------------------------------------

    def arrays(self, data_dir: str | Path | None = None) -> Arrays:
        return self._contents.arrays

    def location(self, data_dir: str | Path | None = None) -> Path | None:
        path = Path(self.origin)
        return path if path.exists() else None

    def state(self, data_dir: str | Path | None = None) -> str:
        is_cached = bool(self.content) and _cached(self.content) is not None
        return "ready" if is_cached else super().state(data_dir)

    @cached_property
    def classes(self) -> int:
        return len(self._contents.class_names)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return self._contents.class_names

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self._contents.arrays.train_images.shape[1:]
        return height, width, channels

    @cached_property
    def train_count(self) -> int:
        return len(self._contents.arrays.train_labels)

    @cached_property
    def test_count(self) -> int:
        return len(self._contents.arrays.test_labels)

    @cached_property
    def validation_count(self) -> int:
        labels = self._contents.arrays.validation_labels
        return 0 if labels is None else len(labels)

    @cached_property
    def _contents(self) -> Contents:
        """The images of ``content``, from the cache or else from their files.

        Raises:
            UserError: The files have another content.
        """
        content = self.content or self._identify()
        contents = _cached(content)
        if contents is None:
            current = self._identify(again=True)
            if current != content:
                raise UserError(
                    f"{self.origin} has changed: its content is {current}, the run's is {content}, "
                    "and that is no longer in the cache"
                )
            contents = _cached(content)
        if contents is None:
            raise NormbenchError(f"{_file(content)} was removed while it was read: run again")
        return contents

    def _identify(self, again: bool = False) -> str:
        """Return the hash of the content, and make sure that the cache has the images.

        Args:
            again: Read the files even if they have not changed since they were last read.
        """
        key = json.dumps([self.name, self.origin, self.reading(), _SCHEMA], sort_keys=True)
        index = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        stamp = _digest(self.stamp())
        if not again and (content := _indexed(index, stamp)):
            return content
        with _locked(index):
            if not again and (content := _indexed(index, stamp)):
                return content
            contents = self.read()
            check(contents, self.origin)
            draft = index.with_name(f".{index.stem}.partial")
            try:
                content = self._write(contents, draft)
                if _digest(self.stamp()) != stamp:
                    raise NormbenchError(f"{self.origin} changed while it was read: run again")
                if _cached(content) is None:
                    draft.replace(_file(content))
                write_text(index, dumps({"stamp": stamp, "content": content}))
            except StoreError as error:
                raise NormbenchError(
                    f"{error}: set XDG_CACHE_HOME to a folder that can hold the images"
                ) from error
            finally:
                draft.unlink(missing_ok=True)
        return content

    def _write(self, contents: Contents, draft: Path) -> str:
        """Write images to a temporary file of the cache; return their hash.

        Images that are larger than memory are decoded as they are written. Their hash, which
        becomes the name of the file, is therefore computed from the written file.
        """
        for leftover in draft.parent.glob(f".{draft.name}.*.tmp"):  # left by a killed process
            leftover.unlink(missing_ok=True)
        arrays = {k: v for k, v in vars(contents.arrays).items() if v is not None}
        refuse_full_disk(draft.parent, sum(map(_bytes, arrays.values())), self.origin)
        cache.write(draft, arrays, {"class_names": contents.class_names})
        entry = cache.read(draft)
        if entry is None:
            raise NormbenchError(f"{draft} was changed while it was written: run again")
        return Contents(Arrays(**entry[1]), contents.class_names).hash


# --- the cache ----------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the folder of the cache, creating it if needed."""
    folder = user_cache() / "data"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


@contextmanager
def _locked(index: Path) -> Iterator[None]:
    """Let one process decode while others that start at the same time wait for it."""
    lock = FileLock(f"{index}.lock")
    try:
        lock.acquire()
    except OSError as error:
        raise _unwritable(index.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(folder: Path, error: OSError) -> NormbenchError:
    return NormbenchError(
        f"cannot write in {folder} ({error.strerror}): set XDG_CACHE_HOME to a folder that can be "
        "written"
    )


def _bytes(array: Any) -> int:
    return array.dtype.itemsize * math.prod(array.shape)


def _file(content: str) -> Path:
    return user_cache() / "data" / f"{content}.arrays"


def _cached(content: str) -> Contents | None:
    """Return the images with a content hash, memory-mapped, or None if the cache lacks them."""
    entry = cache.read(_file(content))
    # Files of earlier versions record their content hash.
    if entry is None or entry[0].get("content", content) != content:
        return None
    return Contents(Arrays(**entry[1]), tuple(entry[0]["class_names"]))


def _indexed(index: Path, stamp: str) -> str | None:
    """Return the content that files with this stamp had when they were read."""
    try:
        entry = read_json(index) or {}
    except StoreError:  # a damaged entry is rebuilt
        return None
    content = entry.get("content")
    return content if entry.get("stamp") == stamp and isinstance(content, str) else None


def _digest(stamp: list[Any]) -> str:
    return hashlib.sha256(json.dumps(stamp).encode()).hexdigest()


# --- checks of data sets ------------------------------------------------------------------------


def check(contents: Contents, origin: str) -> None:
    """Refuse a data set on which no classifier can be trained.

    Raises:
        UserError: It has fewer than two classes, or a split has no images.
    """
    classes = len(contents.class_names)
    if classes < 2:
        raise UserError(f"{origin} has {classes} class: a classifier needs at least 2")
    for split in ("train", "validation", "test"):
        labels = getattr(contents.arrays, f"{split}_labels")
        if labels is not None and not len(labels):
            raise UserError(f"{origin} has no {split} images")


def refuse_unknown_classes(
    origin: str, split: str, found: Iterable[Any], known: Iterable[Any]
) -> None:
    """Refuse classes in ``split`` that the training images lack.

    Raises:
        UserError: There is one; the message names it.
    """
    names = list(known)
    for name in found:
        if name not in names:
            close = nearest(str(name), map(str, names))
            hint = f": did you mean {close!r}?" if close else ""
            text = ", ".join(map(str, names[:20])) + ("" if len(names) <= 20 else ", …")
            raise UserError(
                f"{origin} has the class {str(name)!r} in {split}, which its training images lack"
                f"{hint} (they have {text})"
            )


def find_path(path: str, kind: str) -> Path:
    """Return the absolute path of a file or folder given by the user.

    Args:
        path: The path; relative to the working folder, or with ``~``.
        kind: ``file`` or ``folder``.

    Raises:
        UserError: The path is empty.
    """
    if not path:
        raise UserError(f"dataset.path is empty: write dataset.path={kind.upper()}")
    return expand_user(path).absolute()


def refuse_missing(path: Path, kind: str) -> None:
    """Refuse a path that does not exist or is not of its kind.

    Raises:
        UserError: The message suggests the most similar name in the closest existing folder.
    """
    if path.is_dir() if kind == "folder" else path.is_file():
        return
    if path.exists():
        other = "dataset=images reads folders" if path.is_dir() else "dataset=npz reads .npz files"
        raise UserError(f"{path} is not a {kind}: {other}")
    parent, name = path.parent, path.name
    while not parent.is_dir():
        parent, name = parent.parent, parent.name
    try:
        close = nearest(name, [entry.name for entry in parent.iterdir()])
    except OSError:
        close = None
    hint = f": did you mean {parent / close}?" if close else ""
    raise UserError(f"there is no {kind} {path}{hint}")


def stamp_of(path: Path) -> list[Any]:
    """Return size and times of a file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class Labels:
    """Maps the labels of the splits to 0..classes-1, in the order of the training labels.

    Args:
        train: Labels of the training images, integers (N,).
    """

    def __init__(self, train: np.ndarray) -> None:
        self.values = np.unique(train)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(str, self.values.tolist()))

    def encode(self, labels: np.ndarray, origin: str, split: str) -> np.ndarray:
        """Return labels as int32 (N,).

        Raises:
            UserError: A label does not occur in the training images.
        """
        refuse_unknown_classes(origin, split, np.unique(labels).tolist(), self.values.tolist())
        return np.searchsorted(self.values, labels).astype(np.int32)
