"""Published checksums in normbench agree with those in other packages."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from normbench.data import checksums
from normbench.data.cifar import COARSE, FINE


def tfds_published(name: str) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 by file name from tensorflow-datasets, without importing it."""
    spec = find_spec("tensorflow_datasets")
    assert spec is not None
    assert spec.origin is not None
    table = Path(spec.origin).parent / "url_checksums" / f"{name}.txt"
    rows = (line.split("\t") for line in table.read_text().splitlines())
    return {row[3]: (int(row[1]), row[2]) for row in rows}


@pytest.mark.parametrize(
    ("name", "files"),
    [("mnist", checksums.MNIST_FILES), ("fashion_mnist", checksums.FASHION_MNIST_FILES)],
)
def test_idx_files_match_those_that_tfds_downloads(
    name: str, files: dict[str, checksums.IdxFile]
) -> None:
    ours = {f"{file}.gz": (known.packed, known.packed_sha256) for file, known in files.items()}
    assert ours == tfds_published(name)


@pytest.mark.parametrize(
    ("name", "packings"),
    [("cifar10", checksums.CIFAR10_PACKINGS), ("cifar100", checksums.CIFAR100_PACKINGS)],
)
def test_binary_archives_match_those_that_tfds_downloads(
    name: str, packings: tuple[checksums.Packing, ...]
) -> None:
    binary = next(p for p in packings if p.kind == "binary")
    size, sha256 = tfds_published(name)[binary.archive]
    assert binary.archive_published == checksums.Published(f"sha256:{sha256}", size)


def test_cifar100_class_names_match_its_published_meta_file() -> None:
    """Pickle the names as Python 2's cPickle did; torchvision has the MD5 of the file ``meta``."""

    def text(value: str) -> bytes:
        nonlocal memo
        memo += 1
        return b"U" + bytes([len(value)]) + value.encode() + b"q" + bytes([memo])

    memo = 1
    meta = b"\x80\x02}q\x01("
    for key, names in (("fine_label_names", FINE), ("coarse_label_names", COARSE)):
        meta += text(key)
        memo += 1
        meta += b"]q" + bytes([memo]) + b"(" + b"".join(map(text, names)) + b"e"
    meta += b"u."
    assert hashlib.md5(meta).hexdigest() == "7973b15100ade9c7d40fb424638fde48"


def test_published_file_is_matched_by_digest_and_size(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    for digest in (
        "md5:900150983cd24fb0d6963f7d28e17f72",
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    ):
        assert checksums.Published(digest, 3).fits(b"abc")
        assert checksums.Published(digest).fits_file(path)
        assert not checksums.Published(digest, 4).fits(b"abc")
        assert not checksums.Published(digest, 4).fits_file(path)
        assert not checksums.Published(digest).fits(b"abd")
