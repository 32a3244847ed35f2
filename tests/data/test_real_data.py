"""The genuine MNIST and CIFAR-10, imported and read back with plain tensorflow-datasets."""

from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import normbench
from normbench.data import load
from normbench.data.cifar import CIFAR10
from normbench.data.mnist import MNIST
from normbench.errors import UserError

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def root(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with both data sets, imported concurrently, which takes a minute."""
    folder = tmp_path_factory.mktemp("tfds")
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(CIFAR10().import_from, real_data / "cifar-10-batches-py", folder),
            pool.submit(MNIST().import_from, real_data / "mnist", folder),
        ]
    for job in jobs:
        job.result()
    return folder


def cifar_files(real_data: Path) -> dict[str, dict[bytes, Any]]:
    """Unpickle the files without using normbench."""
    batches = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        with (real_data / "cifar-10-batches-py" / name).open("rb") as file:
            batches[name] = pickle.load(file, encoding="bytes")
    return batches


@pytest.mark.slow
def test_plain_tfds_reads_cifar10_as_in_the_files(root: Path, real_data: Path) -> None:
    import tensorflow_datasets as tfds

    batches = cifar_files(real_data)
    data: Any
    data, info = tfds.load(
        "cifar10", data_dir=str(root), download=False, batch_size=-1, with_info=True
    )
    assert info.features["label"].names[:3] == ["airplane", "automobile", "bird"]
    for split, names in (("train", list(batches)[:5]), ("test", ["test_batch"])):
        pixels = np.concatenate([batches[name][b"data"] for name in names])
        labels = np.concatenate([batches[name][b"labels"] for name in names])
        read = {key: np.asarray(value) for key, value in data[split].items()}
        order = np.argsort(read["id"])
        np.testing.assert_array_equal(
            read["image"][order], pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        )
        np.testing.assert_array_equal(read["label"][order], labels)


@pytest.mark.slow
def test_plain_tfds_reads_mnist_as_in_the_files(root: Path, real_data: Path) -> None:
    import tensorflow_datasets as tfds

    data: Any = tfds.load(
        "mnist", data_dir=str(root), download=False, batch_size=-1, as_supervised=True
    )
    for split, prefix, count in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        with gzip.open(real_data / "mnist" / f"{prefix}-images-idx3-ubyte.gz") as file:
            pixels = np.frombuffer(file.read()[16:], np.uint8).reshape(count, 784)
        with gzip.open(real_data / "mnist" / f"{prefix}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read()[8:], np.uint8)
        images, read = (np.asarray(value) for value in data[split])
        rows = np.concatenate([images.reshape(count, 784), read[:, None].astype(np.uint8)], 1)
        expected = np.concatenate([pixels, labels[:, None]], 1)
        np.testing.assert_array_equal(  # tfds shuffles the examples when it writes them
            np.sort(rows.view("V785").ravel()), np.sort(expected.view("V785").ravel())
        )


@pytest.mark.slow
def test_loading_again_is_fast_and_needs_no_tensorflow(root: Path) -> None:
    code = (
        "import sys, time; from normbench.data.cifar import CIFAR10; "
        "from normbench.data.split import load; source = CIFAR10(); start = time.perf_counter(); "
        f"arrays = source.arrays({str(root)!r}); took = time.perf_counter() - start; "
        f"data = load(source, 5000, 0, None, {str(root)!r}); "
        "print(took, len(data.train), [m for m in sys.modules if m.startswith('tensorflow')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(normbench.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    took, count, modules = done.stdout.split(maxsplit=2)
    assert float(took) < 0.1
    assert count == "45000"
    assert modules.strip() == "[]"


@pytest.mark.slow
def test_cifar10_splits_are_balanced_and_have_the_known_statistics(root: Path) -> None:
    data = load(CIFAR10(), validation=5000, split_seed=0, train_size=10_000, data_dir=root)
    assert set(np.bincount(data.validation.labels)) == {500}
    assert set(np.bincount(data.train.labels)) == {1000}
    np.testing.assert_allclose(data.mean, [0.4914, 0.4822, 0.4465], atol=5e-3)
    np.testing.assert_allclose(data.std, [0.2470, 0.2435, 0.2616], atol=5e-3)


@pytest.mark.slow
def test_lost_cache_is_rebuilt_from_the_folder(root: Path) -> None:
    source = MNIST()
    before = {k: v.copy() for k, v in vars(source.arrays(root)).items() if v is not None}
    (cached,) = (root / ".normbench").glob("mnist-*.arrays")
    cached.unlink()
    after = source.arrays(root)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(after, name), array)
    assert cached.is_file()


def test_binary_and_python_versions_are_equal(real_data: Path, tmp_path: Path) -> None:
    """Rows made from the python version must have the checksums of the published binary files."""
    for name, batch in cifar_files(real_data).items():
        rows = np.concatenate(
            [np.array(batch[b"labels"], np.uint8)[:, None], batch[b"data"]], axis=1
        )
        (tmp_path / f"{name}.bin").write_bytes(rows.tobytes())
    notes: list[str] = []
    binary = CIFAR10().read(tmp_path, notes.append)
    assert "all files are the published binary version" in notes[0]
    archive = tmp_path / "packed.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(real_data / "cifar-10-batches-py", "cifar-10-batches-py")
    python = CIFAR10().read(archive, notes.append)
    assert "all files are the published python version" in notes[1]
    for one, other in zip(binary, python, strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(one[key], other[key])


def test_genuine_files_are_not_confused(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "mnist"
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), 1))
    MNIST().read(tmp_path, print)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.write_bytes((folder / images.name).read_bytes()[:1_000_000])
    with pytest.raises(UserError, match="is truncated at 1000000 of 9912422 bytes"):
        MNIST().read(tmp_path, print)
    images.write_bytes((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    with pytest.raises(UserError, match="holds MNIST's t10k-images-idx3-ubyte, not train-images"):
        MNIST().read(tmp_path, print)
    from normbench.data.mnist import FashionMNIST

    with pytest.raises(UserError, match=r"is a file of MNIST .*, not of Fashion-MNIST"):
        FashionMNIST().read(folder, print)
