"""Any data set of tensorflow-datasets that classifies images: ``dataset=tfds dataset.id=NAME``.

:class:`Tfds` reads a prepared data set in the folder of tensorflow-datasets, and can download it
(``normbench data prepare tfds:NAME``). It needs no list of names: the features of a prepared data
set show whether it classifies images.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from normbench.data import cache, tfds_folder, tfds_process
from normbench.data.base import Arrays, Say, silent
from normbench.data.cache import publish, staging
from normbench.data.content import Contents, ContentSource
from normbench.data.images import VALIDATION, arranged, check_options, refuse_test
from normbench.data.streaming import ImageView
from normbench.errors import NormbenchError, UserError, nearest
from normbench.store.files import user_cache

_ID = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_SPLITS = {"validation": VALIDATION}  # tfds's names -> those of normbench.data.images


class Tfds(ContentSource):
    """A data set by its name in tensorflow-datasets.

    Its splits ``train``, ``test`` and ``validation`` are used; others, such as ``extra``, are not.

    Args:
        id: The name, such as ``svhn_cropped``, or with a config and a version, as in
            ``imagenette/160px-v2:1.0.0``. By default the newest version is used.
        title: Name of the data set in tables; by default its name in tensorflow-datasets.
        content: Hash of the images, filled in when the config is composed.
        size, channels, test_seed: As for :class:`normbench.data.images.Images`.
        test: If the data set has no split ``test``: the fraction of the images of each class to use
            as test images, or ``validation`` to test on that split.
    """

    name = "tfds"

    def __init__(
        self,
        id: str,
        title: str = "",
        content: str = "",
        size: int | None = None,
        channels: int | None = None,
        test: float | str | None = None,
        test_seed: int = 0,
    ) -> None:
        if not id:
            raise UserError("dataset.id is empty: write dataset.id=NAME, such as svhn_cropped")
        match = _ID.fullmatch(id)
        if match is None:
            raise UserError(
                f"dataset.id {id!r} is not a name in tensorflow-datasets such as svhn_cropped or "
                "imagenette/160px-v2:1.0.0"
            )
        self.builder, self.config, self.version = match["name"], match["config"], match["version"]
        check_options(size, channels, test, ("validation",), test_seed)
        self.size, self.channels = size, channels
        self.test, self.test_seed = test, test_seed
        super().__init__(id, title or self.builder, content)

    def reading(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "channels": self.channels,
            "test": self.test,
            "test_seed": self.test_seed,
            "folder": str(self._folder()),
        }

    def stamp(self) -> list[Any]:
        return tfds_folder.fingerprint(self._folder())

    def location(self, data_dir: str | Path | None = None) -> Path | None:
        try:
            return tfds_folder.newest(self.builder, self.config, self.version, data_dir)
        except UserError:  # several configs are prepared
            return None

    def _folder(self) -> Path:
        """Return the folder in which the data set is prepared.

        Raises:
            UserError: There is none; the message says how to prepare it.
        """
        folder = tfds_folder.newest(self.builder, self.config, self.version)
        if folder is not None:
            return folder
        root = tfds_folder.root()
        close = nearest(self.builder, tfds_folder.prepared(root))
        hint = f" (did you mean {close}, which is?)" if close else ""
        raise UserError(
            f"{self.origin} is not in {root}{hint}: get it with `normbench data prepare "
            f"tfds:{self.origin}`, or set TFDS_DATA_DIR to a tensorflow-datasets folder that has it"
        )

    def read(self) -> Contents:
        folder = self._folder()
        target = user_cache() / "data" / f".{self.builder}.{os.getpid()}.partial"
        request = {
            "folder": str(folder),
            "arrays": str(target),
            "size": self.size,
            "channels": self.channels,
            "test": self.test,
        }
        try:
            tfds_process.run("classify", request)
            entry = cache.read(target)
            if entry is None:
                raise NormbenchError(f"{folder} changed while it was read: run again")
            metadata, arrays = entry
        finally:
            target.unlink(missing_ok=True)  # arrays that are already mapped remain valid
        splits = [name.removesuffix("_labels") for name in arrays if name.endswith("_labels")]
        refuse_test(self.origin, splits, self.test, "split")
        positions, labels = (
            {_SPLITS.get(split, split): arrays[f"{split}_{kind}"] for split in splits}
            for kind in ("positions", "labels")
        )
        test = _SPLITS.get(self.test, self.test) if isinstance(self.test, str) else self.test
        split: Arrays = arranged(
            positions, labels, test, self.test_seed, partial(ImageView, arrays["images"])
        )
        return Contents(split, tuple(metadata["class_names"]))

    def prepare(self, data_dir: str | Path | None = None, say: Say = silent) -> Path:
        folder = self.location(data_dir)
        if folder is not None:
            say(f"{self.origin} is already present: {folder}")
            return folder
        tfds_process.refuse_missing("prepare")
        root = tfds_folder.root(data_dir)
        say(f"{self.origin}: downloading and preparing with tensorflow-datasets")
        name = self.origin.replace("/", "-").replace(":", "-")
        with staging(root, name) as partial:
            request = {
                "name": self.origin,
                "data_dir": str(partial),
                "work": str(partial / "work"),
                "manual": str(root / "downloads" / "manual"),
                "cache_path": None,
            }
            try:
                version_folder = Path(tfds_process.run("prepare", request)["folder"])
            except UserError:
                raise
            except NormbenchError as error:
                raise NormbenchError(f"cannot prepare {self.origin}: {error}") from error
            final = root / version_folder.relative_to(partial)
            publish(version_folder, final)
        say(f"{self.origin} is ready: {final}")
        return final
