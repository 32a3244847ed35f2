"""CIFAR-10 and CIFAR-100, each with 60,000 color images of 32×32 pixels.

Both are published as pickled batches ("python version") and as rows of label bytes and pixels
("binary version"), each as a ``.tar.gz``; an image is 3×32×32 bytes, red plane first
(https://www.cs.toronto.edu/~kriz/cifar.html). A file is unpickled only if its checksum is the
published one, and only by an unpickler restricted to plain values and NumPy arrays.
"""

from __future__ import annotations

import io
import pickle
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from normbench.data.archives import read_members
from normbench.data.base import Say
from normbench.data.checksums import CIFAR10_PACKINGS, CIFAR100_PACKINGS, CIFAR_SETS, Packing
from normbench.data.files import listing, read
from normbench.data.tfds import Examples, TfdsSource
from normbench.errors import UserError

SIDE = 32
CHANNELS = 3
PIXELS = CHANNELS * SIDE * SIDE


class CIFAR10(TfdsSource):
    """CIFAR-10 (Krizhevsky 2009), ten classes: https://www.cs.toronto.edu/~kriz/cifar.html."""

    name = "cifar10"
    title = "CIFAR-10"
    version = "3.0.2"
    classes = 10
    shape = (32, 32, 3)
    class_names = (
        "airplane", "automobile", "bird", "cat", "deer",
        "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    label_names: ClassVar = {"label": class_names}
    published_order = True
    train_count = 50_000
    test_count = 10_000
    packings: ClassVar[tuple[Packing, ...]] = CIFAR10_PACKINGS

    def read(self, path: Path, say: Say) -> tuple[Examples, Examples]:
        train, test, source = read_cifar(path, self.packings, self.title)
        subject = "the archive is" if source.checked else "all files are"
        say(f"{self.title}: {subject} the published {source.packing.kind} version ({source.where})")
        return train, test


# The names in the order of their labels. Pickled as by Python 2, these two lists have the published
# checksum of the file `meta` (a test checks this).
_FINE = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_COARSE = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things
    large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
    non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""
FINE = tuple(_FINE.split())
COARSE = tuple(_COARSE.split())


class CIFAR100(CIFAR10):
    """CIFAR-100 (Krizhevsky 2009) with its 100 fine labels; the file format is that of CIFAR-10."""

    name = "cifar100"
    title = "CIFAR-100"
    classes = 100
    class_names = FINE
    label_names: ClassVar = {"label": FINE, "coarse_label": COARSE}
    packings = CIFAR100_PACKINGS


# --- reading the published files ------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The files of one packing, read into memory.

    Attributes:
        packing: The form of the files.
        where: The folder or archive that they come from.
        files: The bytes of each file, by name.
        checked: True if they come from an archive equal to the published one, byte for byte.
    """

    packing: Packing
    where: Path
    files: dict[str, bytes]
    checked: bool


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dicts, lists, strings, numbers and NumPy arrays; refuses anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        ):
            from numpy._core.multiarray import _reconstruct  # pyright: ignore

            return _reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR batch")


def unpickle(data: bytes) -> Any:
    """Unpickle a batch written by Python 2; its strings remain bytes.

    Raises:
        pickle.UnpicklingError: It contains anything but plain values and NumPy arrays.
    """
    return _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()


def _images(pixels: np.ndarray) -> np.ndarray:
    """Convert [N, 3072] planes to contiguous [N, 32, 32, 3]."""
    planes = pixels.reshape(-1, CHANNELS, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def decode(data: bytes, packing: Packing) -> dict[str, np.ndarray]:
    """Return ``image`` (uint8 [N, 32, 32, 3]) and the labels (int32 [N]) of a file, by name.

    Raises:
        ValueError: The file does not have the layout of this packing.
    """
    if packing.kind == "binary":
        labels = len(packing.labels)
        rows = np.frombuffer(data, np.uint8).reshape(-1, labels + PIXELS)
        columns = {name: rows[:, i] for i, (name, _) in enumerate(packing.labels)}
        pixels = rows[:, labels:]
    else:
        try:
            batch = unpickle(data)
            columns = {name: np.asarray(batch[key.encode()]) for name, key in packing.labels}
            pixels = np.asarray(batch[b"data"])
        except (pickle.UnpicklingError, KeyError, TypeError, EOFError, IndexError) as error:
            raise ValueError(f"not a batch of images: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise ValueError(f"its images are {pixels.dtype} {pixels.shape}, not uint8 [N, {PIXELS}]")
    for name, column in columns.items():
        if column.shape != pixels.shape[:1]:
            raise ValueError(f"{len(pixels)} images have {column.shape} values of {name}")
    return {"image": _images(pixels)} | {n: c.astype(np.int32) for n, c in columns.items()}


def _from_archive(path: Path, packings: tuple[Packing, ...], title: str) -> Found:
    """Read the files of a CIFAR from an archive."""
    sizes = {p.archive: p.archive_published.size for p in packings}
    other_packings = [p for _, set_packings in CIFAR_SETS.values() for p in set_packings]
    names = {name for p in (*packings, *other_packings) for name in p.files}
    files = read_members(path, names, sizes.get(path.name))
    packing = _packing_of(set(files), path, packings, title)
    is_checked = packing.archive_published.fits_file(path)
    members = {name: data for name, data in files.items() if name in packing.files}
    return Found(packing, path, members, is_checked)


def _names(folder: Path) -> set[str]:
    """Return the names in a folder."""
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error


def _packing_of(names: set[str], path: Path, packings: tuple[Packing, ...], title: str) -> Packing:
    """Return the packing whose files are all among ``names``.

    Raises:
        UserError: There is none, it belongs to another data set, or it is incomplete.
    """
    for packing in packings:
        missing = [name for name in packing.files if name not in names]
        if not missing:
            return packing
    for name, (other, other_packings) in CIFAR_SETS.items():
        if other != title and any(set(p.files) <= names for p in other_packings):
            raise UserError(
                f"{path} holds {other}, not {title}: "
                f"normbench data import {name} --from {shlex.quote(str(path))}"
            )
    for packing in packings:
        missing = [name for name in packing.files if name not in names]
        if len(missing) < len(packing.files):
            raise UserError(f"{path} lacks {', '.join(missing)}, which {title} needs")
    content = listing(path) if path.is_dir() else "none of these"
    expected = " or ".join(", ".join(packing.files) for packing in packings)
    raise UserError(f"{path} does not contain {title}: expected {expected}; found {content}")


def find(path: Path, packings: tuple[Packing, ...], title: str) -> Found:
    """Read the files of a CIFAR from a folder, from a folder of folders, or from an archive.

    Args:
        path: The folder with the files, a folder with the published folder or archive under its
            published name, an archive, or one of the files.
        packings: The forms to look for, the preferred one first.
        title: Name of the data set in messages.

    Raises:
        UserError: The files are missing or not readable.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    if path.is_file() and any(path.name in packing.files for packing in packings):
        path = path.parent
    if path.is_file():
        return _from_archive(path, packings, title)
    names = _names(path)
    if not any(names & set(packing.files) for packing in packings):
        for packing in packings:
            if (path / packing.folder).is_dir():
                return find(path / packing.folder, packings, title)
        for packing in packings:
            if (path / packing.archive).is_file():
                return _from_archive(path / packing.archive, packings, title)
    packing = _packing_of(names, path, packings, title)
    return Found(packing, path, {name: read(path / name) for name in packing.files}, False)


def _wrong(source: Found, name: str, title: str) -> UserError:
    """Build the error for a file that is not the published one."""
    data, expected = source.files[name], source.packing.files[name]
    place = source.where / name if source.where.is_dir() else f"{source.where}: {name}"
    for other_title, packings in CIFAR_SETS.values():
        for packing in packings:
            for other, published in packing.files.items():
                if (other_title, other) != (title, name) and published.fits(data):
                    return UserError(f"{place} holds {other_title}'s {other}, not {title}'s {name}")
    if expected.size is not None and len(data) < expected.size:
        return UserError(f"{place} is truncated at {len(data)} of {expected.size} bytes")
    if expected.size is not None and len(data) > expected.size:
        return UserError(f"{place} has {len(data)} bytes, {title}'s {name} has {expected.size}")
    return UserError(
        f"{place} is corrupted, or not {title}: it has {_short(expected.of(data))}, "
        f"the published file {_short(expected.digest)}"
    )


def _short(digest: str) -> str:
    """Shorten a digest for a message."""
    kind, _, value = digest.partition(":")
    return f"{kind} {value[:16]}…"


def check(found: Found, title: str) -> None:
    """Check every file against its published checksum.

    Raises:
        UserError: A file is truncated, corrupted or a different one.
    """
    if found.checked:
        return
    for name, published in found.packing.files.items():
        if not published.fits(found.files[name]):
            raise _wrong(found, name, title)


def read_cifar(
    path: Path, packings: tuple[Packing, ...], title: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Found]:
    """Read a CIFAR and check it against the published checksums.

    Returns:
        The training examples, the test examples (each ``image`` uint8 [N, 32, 32, 3] and int32
        labels [N] by name, in the order of the files) and the files that they were read from.

    Raises:
        UserError: The files are missing, unreadable, truncated, corrupted or another data set's.
    """
    source = find(path, packings, title)
    check(source, title)
    splits = []
    for names in (source.packing.train, source.packing.test):
        parts = []
        for name in names:
            try:
                parts.append(decode(source.files[name], source.packing))
            except ValueError as error:
                message = f"{source.where}: {name} is not a file of {title}: {error}"
                raise UserError(message) from error
        splits.append({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    return splits[0], splits[1], source
