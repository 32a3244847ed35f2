"""Small data sets in the published file formats, and a stand-in for the tfds process."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from normbench.data import cache, tfds_folder, tfds_process
from normbench.data.checksums import (
    CIFAR10_PACKINGS,
    CIFAR100_PACKINGS,
    IDX_NAMES,
    IdxFile,
    Packing,
    Published,
)
from normbench.data.cifar import CIFAR10, CIFAR100
from normbench.data.mnist import MNIST

PER_FILE = 12


def idx(array: np.ndarray) -> bytes:
    """Return the bytes of an idx file."""
    dimensions = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes((0, 0, 8, array.ndim)) + dimensions + array.astype(np.uint8).tobytes()


@pytest.fixture
def idx_file() -> Callable[[np.ndarray], bytes]:
    """Return :func:`idx`."""
    return idx


def md5(data: bytes) -> Published:
    return Published(f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}", len(data))


@dataclass
class Tiny:
    """A small data set: its source, its files by name, and its examples."""

    source: Any
    files: dict[str, bytes]
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]

    def write(self, folder: Path, **changed: bytes | None) -> Path:
        """Write the files into a folder, some changed or omitted (None)."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (self.files | changed).items():
            if data is not None:
                (folder / name).write_bytes(data)
        return folder


def _examples(rng: np.random.Generator, count: int, shape: tuple[int, ...], classes: int):
    labels = rng.permutation(np.arange(count) % classes).astype(np.int32)
    return {"image": rng.integers(0, 256, (count, *shape), np.uint8), "label": labels}


@pytest.fixture
def tiny_mnist() -> Tiny:
    """Return 24 + 12 images as gzipped idx files, and a source with their checksums."""
    rng = np.random.default_rng(1)
    train, test = _examples(rng, 24, (28, 28, 1), 10), _examples(rng, 12, (28, 28, 1), 10)
    arrays = (train["image"][..., 0], train["label"], test["image"][..., 0], test["label"])
    raw = {name: idx(array) for name, array in zip(IDX_NAMES, arrays, strict=True)}
    packed = {name: gzip.compress(data, 9) for name, data in raw.items()}

    class TinyMNIST(MNIST):
        train_count, test_count = 24, 12
        files: ClassVar = {
            name: IdxFile(
                hashlib.sha256(data).hexdigest(), array.shape, len(packed[name]), "unused"
            )
            for (name, data), array in zip(raw.items(), arrays, strict=True)
        }

    return Tiny(TinyMNIST(), {f"{name}.gz": data for name, data in packed.items()}, train, test)


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def _cifar(source_class: type[CIFAR10], packings: tuple[Packing, ...], kind: str) -> Tiny:
    """Return a small CIFAR in one packing, with ``PER_FILE`` images per file."""
    packing = next(p for p in packings if p.kind == kind)
    rng = np.random.default_rng(2)
    files, parts = {}, {}
    for name in packing.files:
        part = _examples(rng, PER_FILE, (32, 32, 3), 10)
        if len(packing.labels) == 2:
            part["coarse_label"] = part["label"] // 2
        if kind == "python":
            batch = {key.encode(): part[label].tolist() for label, key in packing.labels}
            files[name] = pickle.dumps(batch | {b"data": _pixels(part["image"])}, protocol=3)
        else:
            labels = [part[label][:, None].astype(np.uint8) for label, _ in packing.labels]
            files[name] = np.concatenate([*labels, _pixels(part["image"])], axis=1).tobytes()
        parts[name] = part
    small = replace(
        packing,
        train={name: md5(files[name]) for name in packing.train},
        test={name: md5(files[name]) for name in packing.test},
    )
    others = tuple(p for p in packings if p.kind != kind)

    class TinyCIFAR(source_class):
        train_count, test_count = PER_FILE * len(small.train), PER_FILE
        packings = (small, *others)

    train, test = (
        {key: np.concatenate([parts[name][key] for name in names]) for key in part}
        for names in (small.train, small.test)
    )
    return Tiny(TinyCIFAR(), files, train, test)


@pytest.fixture
def tiny_cifar() -> Callable[[str], Tiny]:
    """Return a function that makes 60 + 12 images as ``python`` or ``binary`` files."""
    return lambda kind: _cifar(CIFAR10, CIFAR10_PACKINGS, kind)


@pytest.fixture
def tiny_cifar100() -> Callable[[str], Tiny]:
    """Return a function that makes 12 + 12 images as ``python`` or ``binary`` files."""
    return lambda kind: _cifar(CIFAR100, CIFAR100_PACKINGS, kind)


@dataclass
class FakeTfds:
    """Replaces the tfds process: stores examples in a file that looks like a shard."""

    actions: list[str] = field(default_factory=list)
    failure: BaseException | None = None
    versions: dict[str, str] = field(default_factory=lambda: {"mnist": "3.0.1", "cifar10": "3.0.2"})

    def run(self, action: str, request: dict[str, Any], tick: Any = None) -> dict[str, Any]:
        self.actions.append(action)
        if action == "decode":
            folder = Path(request["folder"])
            arrays = {}
            for split in ("train", "test"):
                cached = cache.read(next(folder.glob(f"*-{split}.*")))
                assert cached is not None
                arrays |= {f"{split}_{key}s": cached[1][key] for key in ("image", "label")}
            self._cache(folder, arrays, request)
            return {"folder": str(folder)}
        assert action == "write"
        stored = cache.read(Path(request["arrays"]))
        assert stored is not None
        name = request["name"]
        folder = Path(request["data_dir"]) / name / self.versions[name]
        folder.mkdir(parents=True)
        splits, arrays = [], {}
        for split in ("train", "test"):
            examples = {k: stored[1][f"{split}/{k}"] for k in ("image", "label")}
            shard = folder / f"{name}-{split}.tfrecord-00000-of-00001"
            cache.write(shard, examples, {})
            if self.failure is not None:  # with half of the files written
                raise self.failure
            count = len(examples["label"])
            size = shard.stat().st_size - 16 * count
            splits.append({"name": split, "shardLengths": [str(count)], "numBytes": str(size)})
            arrays |= {f"{split}_{key}s": value for key, value in examples.items()}
        info = {"name": name, "fileFormat": "tfrecord", "splits": splits}
        (folder / tfds_folder.INFO).write_text(json.dumps(info))
        self._cache(folder, arrays, request)
        return {"folder": str(folder)}

    @staticmethod
    def _cache(folder: Path, arrays: dict[str, np.ndarray], request: dict[str, Any]) -> None:
        about = {"fingerprint": tfds_folder.fingerprint(folder)}
        cache.write(Path(request["cache_path"]), arrays, about)


@pytest.fixture
def fake_tfds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTfds:
    """Replace the tfds process, and use a temporary cache folder."""
    fake = FakeTfds()
    monkeypatch.setattr(tfds_process, "run", fake.run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return fake


@pytest.fixture
def imported(tiny_mnist: Tiny, fake_tfds: FakeTfds, tmp_path: Path) -> tuple[Tiny, Path]:
    """Return a small MNIST imported into a data folder, and that folder."""
    root = tmp_path / "tfds"
    files = tiny_mnist.write(tmp_path / "files")
    tiny_mnist.source.import_from(files, root)
    shutil.rmtree(files)
    return tiny_mnist, root
