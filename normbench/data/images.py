"""A user's data set as a folder of images: ``dataset=images dataset.path=FOLDER``.

:class:`Images` reads ``train/CLASS/*``, ``test/CLASS/*`` and, if present, ``val/CLASS/*``; or only
``CLASS/*``, a fraction of which becomes the test images. :func:`fitted` converts an image of any
size to the size of the data set.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from normbench.data.base import Arrays
from normbench.data.content import (
    Contents,
    ContentSource,
    find_path,
    refuse_missing,
    refuse_unknown_classes,
    stamp_of,
)
from normbench.data.split import stratified_draw
from normbench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

VALIDATION = "val"
FORMATS = ("JPEG", "PNG")
MOST_PIXELS = 1 << 27
"""Largest number of pixels in an image: a file of a few kilobytes can unpack to any number."""
MOST_SIZE = 4096
_DEPTH = 8  # largest depth of folders in the folder of a class
_SKIPPED = ("Thumbs.db", "desktop.ini", "__MACOSX")  # written by operating systems
_GRAY = ("1", "L", "LA")


class Images(ContentSource):
    """JPEG or PNG images, with one folder per class.

    Classes and images are sorted by name, by code point, so that their order is the same on every
    machine.

    Args:
        path: The folder.
        title: Name of the data set in tables; the folder's name by default.
        content: Hash of the images, filled in when the config is composed.
        size: Side of the images in pixels: the shorter side is resized to it, and the image is
            center-cropped to a square. None if all images have the same size.
        channels: 1 for gray, 3 for color; None for 1 if all images are gray, else 3.
        test: If the folder has no ``test``: the fraction of the images of each class to use as test
            images, or ``val`` to test on ``val``.
        test_seed: Seed of the draw of that fraction.
    """

    name = "images"

    def __init__(
        self,
        path: str,
        title: str = "",
        content: str = "",
        size: int | None = None,
        channels: int | None = None,
        test: float | str | None = None,
        test_seed: int = 0,
    ) -> None:
        self.path = find_path(path, "folder")
        check_options(size, channels, test, (VALIDATION,), test_seed)
        self.size, self.channels = size, channels
        self.test, self.test_seed = test, test_seed
        super().__init__(str(self.path), title or self.path.name, content)

    def resolved(self) -> dict[str, Any]:
        return {"path": str(self.path)}

    def reading(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "channels": self.channels,
            "test": self.test,
            "test_seed": self.test_seed,
        }

    def stamp(self) -> list[Any]:
        refuse_missing(self.path, "folder")
        return [
            [split, name, [[os.fspath(file), *stamp_of(file)] for file in files]]
            for split, classes in self._files().items()
            for name, files in classes.items()
        ]

    def read(self) -> Contents:
        splits = self._files()
        names = list(splits["train"])
        for split, classes in splits.items():
            for name, files in classes.items():
                if not files:
                    raise UserError(f"{self._folder(split) / name} holds no images")
            refuse_unknown_classes(self.origin, split, classes, names)
        examples = {
            split: [(file, names.index(name)) for name, files in classes.items() for file in files]
            for split, classes in splits.items()
        }
        labels = {
            split: np.array([label for _, label in pairs], np.int32)
            for split, pairs in examples.items()
        }
        files = [file for pairs in examples.values() for file, _ in pairs]
        images = Decoded.of(files, self.size, self.channels, self.origin)
        ends = np.cumsum([len(pairs) for pairs in examples.values()])[:-1]
        positions = dict(zip(examples, np.split(np.arange(len(files)), ends), strict=True))
        split = arranged(positions, labels, self.test, self.test_seed, images.at)
        return Contents(split, tuple(names))

    # --- the files ------------------------------------------------------------------------------

    def _folder(self, split: str) -> Path:
        """Return the folder with the classes of a split."""
        return self.path / split if self._has_splits else self.path

    @property
    def _has_splits(self) -> bool:
        return (self.path / "train").is_dir()

    def _files(self) -> dict[str, dict[str, list[Path]]]:
        """Return the files of each class of each split: ``train``, and ``test`` or ``val`` or both.

        Raises:
            UserError: There are no classes, or no test images and no ``dataset.test``.
        """
        if not self._has_splits:
            refuse_test(self.origin, ["train"], self.test, "folder")
            return {"train": self._classes(self.path)}
        splits = [name for name in ("train", VALIDATION, "test") if (self.path / name).is_dir()]
        refuse_test(self.origin, splits, self.test, "folder")
        return {split: self._classes(self.path / split) for split in splits}

    def _classes(self, folder: Path) -> dict[str, list[Path]]:
        try:
            classes = sorted(entry.name for entry in os.scandir(folder)
                             if entry.is_dir() and not _is_skipped(entry.name))  # fmt: skip
            if not classes:
                message = f"{folder} has no folders: put the images of each class in a folder"
                raise UserError(message)
            return {name: _walk(folder / name) for name in classes}
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED


def _walk(folder: Path, depth: int = 0) -> list[Path]:
    """Return all files in a folder and its subfolders, sorted by path."""
    paths: list[Path] = []
    if depth > _DEPTH:
        raise UserError(f"{folder} is {depth} folders deep inside its class")
    for entry in os.scandir(folder):
        if _is_skipped(entry.name):
            continue
        if entry.is_dir():
            paths += _walk(Path(entry.path), depth + 1)
        else:
            paths.append(Path(entry.path))
    return sorted(paths, key=lambda path: path.parts)


# --- decoding -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """Images in files, uint8 (N, H, W, C), which are decoded when they are indexed.

    Attributes:
        files: At least one.
        size: Side of the images, or None if all have the same size.
        shape: Shape of the array of all images.
    """

    files: Sequence[Path]
    size: int | None
    shape: tuple[int, int, int, int]
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)

    @classmethod
    def of(
        cls, files: Sequence[Path], size: int | None, channels: int | None, origin: str
    ) -> Decoded:
        """Determine the shape of the images in files.

        Args:
            files: At least one.
            size: Side of the images, or None if all have the same size.
            channels: 1, 3 or None, as for :class:`Images`.
            origin: Where the images come from, for messages.

        Raises:
            UserError: A file is not an image, or an image has another size than the first.
        """
        width = height = size or 0
        if size is None or channels is None:
            descriptions = list(_each(_describe, files))
            if channels is None:
                channels = 1 if all(is_gray for _, is_gray in descriptions) else 3
            if size is None:
                refuse_sizes(
                    zip(files, (image_size for image_size, _ in descriptions), strict=True), origin
                )
                width, height = descriptions[0][0]
        return cls(files, size, (len(files), height, width, channels))

    def at(self, positions: np.ndarray) -> Decoded:
        """Return the images at some positions, still undecoded."""
        files = [self.files[position] for position in positions]
        return Decoded(files, self.size, (len(files), *self.shape[1:]))

    def __getitem__(self, chosen: slice) -> np.ndarray:
        """Decode some of the images.

        Raises:
            UserError: A file is not an image; the message names the first one.
        """
        files = self.files[chosen]
        images = np.empty((len(files), *self.shape[1:]), np.uint8)

        def put(index: int) -> None:
            fit = partial(fitted, size=self.size, channels=self.shape[-1])
            images[index] = _read(files[index], fit)

        for _ in _each(put, range(len(files))):
            pass
        return images


def _each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield ``function`` of each item in order, computed with one thread per core."""
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about files that it can read
        yield from pool.map(function, items)


def refuse_sizes(found: Iterable[tuple[Any, tuple[int, int]]], origin: str) -> None:
    """Refuse images of different sizes, given as pairs of a name and (width, height)."""
    first: tuple[Any, tuple[int, int]] | None = None
    for name, size in found:
        first = first or (name, size)
        if size != first[1]:
            texts = [f"{name} has {w}×{h}" for name, (w, h) in (first, (name, size))]
            raise UserError(
                f"{origin} has images of several sizes ({texts[0]} pixels, {texts[1]}): "
                "dataset.size=64 resizes them to one"
            )


def _describe(file: Path) -> tuple[tuple[int, int], bool]:
    """Return an image's (width, height) and whether it is gray, without decoding it."""

    def describe(image: Image) -> tuple[tuple[int, int], bool]:
        width, height = image.size
        is_rotated = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (height, width) if is_rotated else (width, height), image.mode in _GRAY

    return _read(file, describe)


def _read(file: Path, use: Callable[[Image], Any]) -> Any:
    """Open an image and return the result of ``use``.

    Raises:
        UserError: The file is not an image, is damaged, or has too many pixels or bits.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise UserError(f"{file} has {width}×{height} pixels, more than {MOST_PIXELS:,}")
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{file} has more than 8 bits per channel: convert it to 8")
            return use(image)
    except UnidentifiedImageError as error:
        raise UserError(f"{file} is not a JPEG or PNG image") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} is damaged: {' '.join(str(error).split())}") from error


def fitted(image: Image, size: int | None, channels: int) -> np.ndarray:
    """Return an image as uint8 (H, W, C).

    It is rotated according to its EXIF data, transparency becomes black, and it is converted to
    gray (by ITU-R 601-2, as in Pillow) or RGB. Then, if ``size`` is not None, its shorter side is
    resized to it with antialiased bilinear (triangle) filters, and it is center-cropped to a
    square.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        width, height = image.size
        short = min(width, height)
        new_width, new_height = (max(size, round(side * size / short)) for side in (width, height))
        if (new_width, new_height) != image.size:
            image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
        left, top = (new_width - size) // 2, (new_height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if channels == 1 else pixels


# --- options of this data set and of tfds -------------------------------------------------------


def check_options(
    size: Any, channels: Any, test: Any, names: Sequence[str] | None, test_seed: Any
) -> None:
    """Check the options of a data set whose images are resized to one size.

    Args:
        size, channels, test, test_seed: As for :class:`Images`.
        names: Splits that may be used as test images; None for any name.

    Raises:
        UserError: A value is out of range.
    """
    if size is not None and not (_is_whole(size) and 1 <= size <= MOST_SIZE):
        raise UserError(f"dataset.size must be in 1..{MOST_SIZE} or null, got {size!r}")
    if channels is not None and not (_is_whole(channels) and channels in (1, 3)):
        raise UserError(f"dataset.channels must be 1, 3 or null, got {channels!r}")
    is_share = isinstance(test, float) and 0 < test < 1
    is_name = isinstance(test, str) and (names is None or test in names)
    if test is not None and not is_share and not is_name:
        choices = "the name of a split" if names is None else " or ".join(map(repr, names))
        allowed = f"a fraction in (0, 1), {choices} or null"
        raise UserError(f"dataset.test must be {allowed}, got {test!r}")
    if not (_is_whole(test_seed) and test_seed >= 0):
        allowed = "a whole number of at least 0"
        raise UserError(f"dataset.test_seed must be {allowed}, got {test_seed!r}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def refuse_test(origin: str, present: Sequence[str], test: float | str | None, noun: str) -> None:
    """Refuse a data set without test images, and ``dataset.test`` for one that has them.

    Args:
        origin: Where the images come from.
        present: The splits of the data set, including ``train``.
        test: The option.
        noun: Noun for a split, such as ``folder``.
    """
    other_splits = [name for name in present if name not in ("train", "test")]
    if "test" in present and test is not None:
        raise UserError(f"{origin} has a test {noun}: leave dataset.test={test} out")
    if "test" not in present and test is None:
        advice = (
            f", dataset.test={other_splits[0]} tests on {other_splits[0]}" if other_splits else ""
        )
        raise UserError(
            f"{origin} has no test {noun}: dataset.test=0.2 tests on a fifth of the images{advice}"
        )
    if isinstance(test, str) and test not in other_splits:
        choices = ", ".join(other_splits) or "none"
        raise UserError(f"{origin} has no {test} {noun} to test on (there are: {choices})")


def arranged(
    positions: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    test: float | str | None,
    test_seed: int,
    at: Callable[[np.ndarray], Any],
) -> Arrays:
    """Return the splits of a data set, with the test images that ``dataset.test`` requests.

    Args:
        positions: For each split, the positions of its images among all images.
        labels: The labels of the same images.
        test: As for :class:`Images`, already checked by :func:`refuse_test`.
        test_seed: Seed of the draw of a fraction.
        at: Returns the images at some positions. It is called only once for each final split, so
            that images that do not fit in memory need not be moved.

    Raises:
        UserError: The fraction leaves a class without training or without test images.
    """
    pairs = {split: (positions[split], labels[split]) for split in positions}
    if isinstance(test, str):
        pairs["test"] = pairs.pop(test)
    elif test is not None:
        train, codes = pairs["train"]
        indices = stratified_draw(codes, test, test_seed)
        mask = np.zeros(len(codes), bool)
        mask[indices] = True
        for part, name in ((codes[mask], "test"), (codes[~mask], "training")):
            if len(np.unique(part)) < len(np.unique(codes)):
                raise UserError(
                    f"dataset.test={test} leaves a class without {name} images: the smallest has "
                    f"{np.bincount(codes).min()} images"
                )
        pairs |= {"train": (train[~mask], codes[~mask]), "test": (train[mask], codes[mask])}
    order = [name for name in ("train", "test", VALIDATION) if name in pairs]
    return Arrays(*(part for name in order for part in (at(pairs[name][0]), pairs[name][1])))
