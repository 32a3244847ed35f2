"""Base class of the sources stored by tensorflow-datasets, :class:`TfdsSource`.

Images come from the folder of tensorflow-datasets through a cache of memory-mapped arrays, so that
a run imports neither tensorflow-datasets nor TensorFlow for its data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock

from normbench.data import cache, tfds_folder, tfds_process, tfds_records
from normbench.data.base import Arrays, DamagedData, MissingData, Say, Source, silent
from normbench.data.cache import publish, staging
from normbench.errors import NormbenchError, UserError
from normbench.store.files import expand_user, user_cache

_SCHEMA = 1  # version of the array cache: increment it if the same folder gives other arrays
_MIB = 1 << 20
_ARRAYS = {"train_images", "train_labels", "test_images", "test_labels"}

Examples = Mapping[str, np.ndarray]
"""``image`` uint8 [N, H, W, C] and, by name, labels int32 [N]."""


class TfdsSource(Source):
    """A data set ``name`` of tensorflow-datasets with the features ``image`` and ``label``.

    A subclass with the class attributes can be prepared and loaded; one that overrides `read` can
    also be imported from files.
    """

    version: ClassVar[str]
    """Version of the tfds data set that normbench is tested with."""
    label_names: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Class names by label, for data sets whose names tfds reads from downloaded files."""
    published_order: ClassVar[bool] = False
    """True if tfds returns the images in the order of the published files, as it does if examples
    have an ``id``. Such a data set can be imported without tfds, too."""

    def location(self, data_dir: str | Path | None = None) -> Path | None:
        folder = self._folder(data_dir)
        file = self._imported(data_dir)
        return file if folder is None and file.is_file() else folder

    def _folder(self, data_dir: str | Path | None) -> Path | None:
        """Return the folder in which tfds stores the data set, or None."""
        return tfds_folder.find(self.name, self.version, data_dir)

    def _imported(self, data_dir: str | Path | None) -> Path:
        """Return the path of the arrays that are imported if tfds is not installed."""
        file = f"{self.name}-{self.version}.v{_SCHEMA}.imported.arrays"
        return tfds_folder.root(data_dir) / tfds_folder.HIDDEN / file

    def state(self, data_dir: str | Path | None = None) -> str:
        folder = self._folder(data_dir)
        if folder is None:
            file = self._imported(data_dir)
            if not file.is_file():
                return "missing"
            return "ready" if cache.read(file) else f"damaged: {file.name}"
        damage = tfds_folder.damage(folder, self._counts)
        return "ready" if damage is None else f"damaged: {damage}"

    @property
    def _counts(self) -> dict[str, int]:
        return {"train": self.train_count, "test": self.test_count}

    def arrays(self, data_dir: str | Path | None = None) -> Arrays:
        folder = self._whole(data_dir)
        if folder is None and (file := self._imported(data_dir)).is_file():
            return self._imported_arrays(file)
        if folder is None:
            raise MissingData(
                f"{self.title} is not in {tfds_folder.root(data_dir)}: get it with `normbench data "
                f"prepare {self.name}` (downloads it) or `normbench data import {self.name} --from "
                "PATH` (from files you have), or set TFDS_DATA_DIR to a tensorflow-datasets folder "
                "that has it; dataset=digits needs no download"
            )
        arrays = self._cached(folder)
        if arrays is None:
            target = self._writable(folder)
            # If several processes start at once, one decodes and the others wait for it.
            with FileLock(f"{target}.lock"):
                arrays = self._cached(folder)
                if arrays is None:
                    self._decode(folder, target)
                    arrays = self._cached(folder)
        if arrays is None:
            raise NormbenchError(f"{folder} changed while it was read: run again")
        self._check(arrays, folder)
        return arrays

    def _decode(self, folder: Path, target: Path) -> None:
        """Read a folder into the array cache, with tensorflow-datasets if it is installed."""
        if tfds_process.is_installed():
            request = {"folder": str(folder), "cache_path": str(target)}
            tfds_process.run("decode", request)
            return
        arrays = tfds_records.read(folder, self.shape)
        cache.write(target, arrays, {"fingerprint": tfds_folder.fingerprint(folder)})

    def _whole(self, data_dir: str | Path | None) -> Path | None:
        """Return the folder of the data set, or None if there is none.

        Raises:
            DamagedData: Files in the folder are missing or have the wrong size.
        """
        folder = self._folder(data_dir)
        if folder is not None:
            damage = tfds_folder.damage(folder, self._counts)
            if damage is not None:
                raise DamagedData(
                    f"{self.title} in {folder} is damaged ({damage}): remove that folder, then "
                    f"prepare or import {self.name} again"
                )
        return folder

    def _imported_arrays(self, file: Path) -> Arrays:
        """Return the arrays of a file that was written without tfds."""
        entry = cache.read(file)
        if entry is None or set(entry[1]) != _ARRAYS:
            raise DamagedData(f"{self.title} in {file} is damaged: remove the file, then import "
                              f"{self.name} again")  # fmt: skip
        arrays = Arrays(**entry[1])
        self._check(arrays, file)
        return arrays

    def _check(self, arrays: Arrays, folder: Path) -> None:
        """Check that the arrays have the shapes and labels of this data set."""
        for split, images, labels, count in (
            ("train", arrays.train_images, arrays.train_labels, self.train_count),
            ("test", arrays.test_images, arrays.test_labels, self.test_count),
        ):
            if images.shape != (count, *self.shape) or labels.shape != (count,):
                raise DamagedData(
                    f"{folder} has {split} images of shape {images.shape}, "
                    f"{self.title} has {(count, *self.shape)}"
                )
            if labels.min() < 0 or labels.max() >= self.classes:
                raise DamagedData(f"{folder} has labels outside 0..{self.classes - 1} in {split!r}")

    # --- the array cache ----------------------------------------------------------------------

    def _cache_paths(self, folder: Path) -> tuple[Path, Path]:
        """Return the two paths for the arrays of a folder: next to it, and in the user's cache.

        The second is for data folders that the user cannot write to, as on a cluster.
        """
        file = f"{self.name}-{folder.name}.v{_SCHEMA}.arrays"
        local = folder.parents[1] / tfds_folder.HIDDEN / file
        digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
        return local, user_cache() / digest / file

    def _cached(self, folder: Path) -> Arrays | None:
        """Return the cached arrays of a folder, or None if they are missing or outdated."""
        current = tfds_folder.fingerprint(folder)
        for path in self._cache_paths(folder):
            entry = cache.read(path)
            if entry is not None and entry[0].get("fingerprint") == current:
                return Arrays(**entry[1])
        return None

    def _writable(self, folder: Path) -> Path:
        """Return the first of the two paths that is writable.

        Raises:
            NormbenchError: Neither can be written.
        """
        reasons = []
        for path in self._cache_paths(folder):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                probe.touch()
                probe.unlink()
                return path
            except OSError as error:
                reasons.append(f"{path.parent} ({error.strerror})")
        raise NormbenchError(
            f"cannot cache the arrays of {self.name} in {' or '.join(reasons)}: "
            "set XDG_CACHE_HOME to a folder that can be written"
        )

    # --- preparing and importing ---------------------------------------------------------------

    def prepare(self, data_dir: str | Path | None = None, say: Say = silent) -> Path:
        folder = self._already(data_dir, say)
        if folder is not None:
            return folder
        tfds_process.refuse_missing("prepare")
        root = tfds_folder.root(data_dir)
        say(f"{self.title}: downloading and preparing with tensorflow-datasets")
        with staging(root, self.name) as partial:
            work = partial / "work"
            request = {
                "work": str(work),
                "manual": str(root / "downloads" / "manual"),
            }

            last_size = 0  # MiB

            def progress() -> None:
                nonlocal last_size
                files = (work / "downloads").rglob("*")
                size = sum(file.stat().st_size for file in files if file.is_file()) // _MIB
                if size > last_size:
                    last_size = size
                    say(f"{self.title}: {size} MiB downloaded")

            try:
                return self._make("prepare", request, root, partial, say, progress)
            except UserError:
                raise
            except NormbenchError as error:
                raise NormbenchError(
                    f"cannot prepare {self.name}: {error}; on a machine without internet use "
                    f"`normbench data import {self.name} --from PATH`, or set TFDS_DATA_DIR to a "
                    "tensorflow-datasets folder that has it; dataset=digits needs no download"
                ) from error

    def read(self, path: Path, say: Say) -> tuple[Examples, Examples]:
        """Read the training and test examples from files on disk, in the order of tfds.

        Raises:
            UserError: The files are incomplete or not this data set.
        """
        raise UserError(f"{self.name} cannot be imported by normbench: {type(self).__name__} does "
                        "not say how (no `read`)")  # fmt: skip

    def import_from(
        self, path: str | Path, data_dir: str | Path | None = None, say: Say = silent
    ) -> Path:
        folder = self._already(data_dir, say)
        if folder is not None:
            return folder
        if not self.published_order:
            tfds_process.refuse_missing("write")
        root = tfds_folder.root(data_dir)
        train, test = self.read(expand_user(path), say)
        for split, examples, count in (
            ("train", train, self.train_count),
            ("test", test, self.test_count),
        ):
            if examples["image"].shape != (count, *self.shape):
                raise UserError(f"{path} has {split} images of shape {examples['image'].shape}, "
                                f"{self.title} has {(count, *self.shape)}")  # fmt: skip
        say(f"{self.title}: writing {self.train_count + self.test_count} images")
        if not tfds_process.is_installed():
            target = self._imported(data_dir)
            cache.hidden(root)
            arrays = Arrays(train["image"], train["label"], test["image"], test["label"])
            cache.write(target, {name: getattr(arrays, name) for name in _ARRAYS}, {})
            say(f"{self.title} is ready: {target}")
            return target
        with staging(root, self.name) as partial:
            examples_file = partial / "examples.arrays"
            splits = (("train", train), ("test", test))
            cache.write(
                examples_file, {f"{split}/{key}": value for split, examples in splits
                         for key, value in examples.items()}, {}
            )  # fmt: skip
            request = {
                "arrays": str(examples_file),
                "label_names": {label: list(names) for label, names in self.label_names.items()},
            }
            return self._make("write", request, root, partial, say)

    def _already(self, data_dir: str | Path | None, say: Say) -> Path | None:
        """Return the folder of a data set that is already on this machine, and report it."""
        path = self._whole(data_dir)
        if path is None and self.state(data_dir) == "ready":
            path = self._imported(data_dir)
        if path is not None:
            say(f"{self.title} is already present: {path}")
        return path

    def _make(
        self, action: str, request: dict[str, Any], root: Path, partial: Path, say: Say, tick=None
    ) -> Path:
        """Build a data set in the folder ``partial``, check it, and move it to ``root``."""
        arrays = partial / "new.arrays"
        request |= {"name": self.name, "data_dir": str(partial), "cache_path": str(arrays)}
        folder = Path(tfds_process.run(action, request, tick)["folder"])
        damage = tfds_folder.damage(folder, self._counts)
        if damage is not None:
            raise NormbenchError(f"tensorflow-datasets did not write the expected files: {damage}")
        final = root / self.name / folder.name
        publish(folder, final)
        arrays.replace(self._cache_paths(final)[0])
        say(f"{self.title} is ready: {final}")
        return final
