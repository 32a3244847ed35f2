"""Importing, preparing and loading with a fake tfds process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from normbench.cli.data import rows
from normbench.data import load, tfds_folder, tfds_process
from normbench.data.base import DamagedData, MissingData
from normbench.data.cifar import CIFAR10
from normbench.data.digits import Digits
from normbench.errors import NormbenchError, UserError


def data_sets(root: Path) -> list[str]:
    """Return the data sets in a data folder, excluding normbench's hidden folder."""
    return sorted(p.name for p in root.iterdir() if p.name != tfds_folder.HIDDEN)


def hidden_files(root: Path) -> list[str]:
    """Return the files in normbench's hidden folder, excluding locks."""
    return sorted(p.name for p in (root / tfds_folder.HIDDEN).iterdir() if p.suffix != ".lock")


def test_imported_images_are_loaded_from_the_cache(imported: Any, fake_tfds: Any) -> None:
    tiny, root = imported
    arrays = tiny.source.arrays(root)
    assert fake_tfds.actions == ["write"]  # the cache was used
    np.testing.assert_array_equal(arrays.train_images, tiny.train["image"])
    np.testing.assert_array_equal(arrays.train_labels, tiny.train["label"])
    np.testing.assert_array_equal(arrays.test_images, tiny.test["image"])
    np.testing.assert_array_equal(arrays.test_labels, tiny.test["label"])
    assert arrays.train_labels.dtype == np.int32
    assert tiny.source.location(root) == root / "mnist" / "3.0.1"
    assert tiny.source.state(root) == "ready"
    assert data_sets(root) == ["mnist"]
    assert hidden_files(root) == ["mnist-3.0.1.v1.arrays"]
    data = load(tiny.source, validation=10, split_seed=0, data_dir=root)
    assert len(data.train) == 14


def test_importing_again_says_so_and_does_nothing(
    imported: Any, fake_tfds: Any, tmp_path: Path
) -> None:
    tiny, root = imported
    notes: list[str] = []
    assert tiny.source.import_from(tmp_path / "gone", root, notes.append) == root / "mnist/3.0.1"
    assert notes == [f"MNIST is already present: {root / 'mnist' / '3.0.1'}"]
    assert tiny.source.prepare(root, notes.append) == root / "mnist/3.0.1"
    assert fake_tfds.actions == ["write"]


def test_refused_files_leave_no_trace(tiny_mnist: Any, fake_tfds: Any, tmp_path: Path) -> None:
    name = "t10k-images-idx3-ubyte.gz"
    files = tiny_mnist.write(tmp_path / "files", **{name: tiny_mnist.files[name][:50]})
    with pytest.raises(UserError, match="truncated"):
        tiny_mnist.source.import_from(files, tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()
    assert fake_tfds.actions == []


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt(), NormbenchError("no"), OSError(28, "full")]
)
def test_failed_import_leaves_nothing_and_can_be_repeated(
    tiny_mnist: Any, fake_tfds: Any, tmp_path: Path, failure: BaseException
) -> None:
    files, root = tiny_mnist.write(tmp_path / "files"), tmp_path / "tfds"
    fake_tfds.failure = failure
    with pytest.raises((KeyboardInterrupt, NormbenchError)):
        tiny_mnist.source.import_from(files, root)
    assert data_sets(root) == []
    assert hidden_files(root) == []
    assert tiny_mnist.source.state(root) == "missing"
    fake_tfds.failure = None
    tiny_mnist.source.import_from(files, root)
    assert tiny_mnist.source.state(root) == "ready"


def test_leftovers_of_a_killed_import_are_removed(
    tiny_mnist: Any, fake_tfds: Any, tmp_path: Path
) -> None:
    root = tmp_path / "tfds"
    partial = root / tfds_folder.HIDDEN / "mnist.partial" / "mnist" / "incomplete.X_3.0.1"
    partial.mkdir(parents=True)
    (partial / "half").touch()
    tiny_mnist.source.import_from(tiny_mnist.write(tmp_path / "files"), root)
    assert hidden_files(root) == ["mnist-3.0.1.v1.arrays"]


def test_concurrent_import_is_refused(tiny_mnist: Any, fake_tfds: Any, tmp_path: Path) -> None:
    files, root = tiny_mnist.write(tmp_path / "files"), tmp_path / "tfds"
    (root / tfds_folder.HIDDEN).mkdir(parents=True)
    with (
        FileLock(root / tfds_folder.HIDDEN / "mnist.lock"),
        pytest.raises(NormbenchError, match="another process is writing mnist to"),
    ):
        tiny_mnist.source.import_from(files, root)
    tiny_mnist.source.import_from(files, root)


def test_unwritable_data_folder_is_named(tiny_mnist: Any, fake_tfds: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files = tiny_mnist.write(tmp_path / "files")
    with pytest.raises(NormbenchError, match=r"cannot write in the data folder .*TFDS_DATA_DIR"):
        tiny_mnist.source.import_from(files, tmp_path / "file" / "tfds")


def test_missing_data_set_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingData) as caught:
        CIFAR10().arrays(tmp_path)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    for part in (
        f"CIFAR-10 is not in {tmp_path}",
        "`normbench data prepare cifar10`",
        "`normbench data import cifar10 --from PATH`",
        "TFDS_DATA_DIR",
        "dataset=digits",
    ):
        assert part in message
    assert "\n" not in message


def test_damaged_data_set_is_refused_and_not_overwritten(imported: Any, tmp_path: Path) -> None:
    tiny, root = imported
    shard = next((root / "mnist" / "3.0.1").glob("*-test.*"))
    os.truncate(shard, 10)
    assert tiny.source.state(root).startswith("damaged: the files of 'test'")
    for act in (
        lambda: tiny.source.arrays(root),
        lambda: tiny.source.import_from(tmp_path, root),
        lambda: tiny.source.prepare(root),
    ):
        with pytest.raises(DamagedData, match="remove that folder, then prepare or import mnist"):
            act()
    assert shard.exists()


# The array cache


def cache_file(root: Path) -> Path:
    return root / tfds_folder.HIDDEN / "mnist-3.0.1.v1.arrays"


def test_rewritten_folder_is_decoded_again(imported: Any, fake_tfds: Any) -> None:
    tiny, root = imported
    shard = next((root / "mnist" / "3.0.1").glob("*-train.*"))
    data = shard.read_bytes()
    before = tiny.source.arrays(root)
    changed = bytearray(data)
    changed[-4096 - 28 * 28 * 3] ^= 0xFF  # a byte of an image: the labels are on the last page
    shard.unlink()
    shard.write_bytes(changed)
    after = tiny.source.arrays(root)
    assert fake_tfds.actions == ["write", "decode"]
    assert (before.train_images != after.train_images).sum() == 1
    tiny.source.arrays(root)
    assert fake_tfds.actions == ["write", "decode"]


@pytest.mark.parametrize("spoil", [os.unlink, lambda path: os.truncate(path, 5000)])
def test_lost_or_damaged_cache_is_rebuilt(imported: Any, fake_tfds: Any, spoil: Any) -> None:
    tiny, root = imported
    spoil(cache_file(root))
    arrays = tiny.source.arrays(root)
    np.testing.assert_array_equal(arrays.train_images, tiny.train["image"])
    assert fake_tfds.actions == ["write", "decode"]


def test_read_only_data_folder_is_cached_in_the_user_cache(
    imported: Any, fake_tfds: Any, tmp_path: Path
) -> None:
    tiny, root = imported
    hidden = root / tfds_folder.HIDDEN
    for path in hidden.iterdir():
        path.unlink()
    hidden.rmdir()
    hidden.touch()  # a file prevents the folder, as in a data folder that the user cannot write
    for _ in range(2):
        arrays = tiny.source.arrays(root)
    np.testing.assert_array_equal(arrays.test_images, tiny.test["image"])
    assert fake_tfds.actions == ["write", "decode"]
    assert len(list((tmp_path / "user-cache" / "normbench").rglob("*.arrays"))) == 1


def test_lack_of_a_writable_cache_is_reported(
    imported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, root = imported
    for path in (root / tfds_folder.HIDDEN).iterdir():
        path.unlink()
    (root / tfds_folder.HIDDEN).rmdir()
    (root / tfds_folder.HIDDEN).touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / tfds_folder.HIDDEN))
    with pytest.raises(
        NormbenchError, match=r"cannot cache the arrays of mnist in .* or .*: set XD"
    ):
        tiny.source.arrays(root)


def test_images_of_another_shape_are_refused(imported: Any) -> None:
    tiny, root = imported

    class Wide(type(tiny.source)):
        shape = (28, 29, 1)

    with pytest.raises(DamagedData, match=r"train images of shape \(24, 28, 28, 1\), MNIST has"):
        Wide().arrays(root)


def test_fewer_classes_than_the_labels_have_are_refused(imported: Any) -> None:
    tiny, root = imported

    class Few(type(tiny.source)):
        classes = 9

    with pytest.raises(DamagedData, match=r"labels outside 0\.\.8 in 'train'"):
        Few().arrays(root)


# Preparing


def test_unreachable_host_is_one_line_with_the_alternatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[dict[str, Any]] = []

    def unreachable(action: str, request: dict[str, Any], tick: Any) -> dict[str, Any]:
        requests.append(request)
        Path(request["work"]).mkdir()
        downloads = Path(request["work"]) / "downloads"
        downloads.mkdir()
        (downloads / "half.tmp").write_bytes(bytes(3 << 20))
        tick()
        tick()
        raise NormbenchError("example.org cannot be reached from this machine")

    monkeypatch.setattr(tfds_process, "run", unreachable)
    notes: list[str] = []
    with pytest.raises(NormbenchError) as caught:
        CIFAR10().prepare(tmp_path, notes.append)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "cannot prepare cifar10: example.org cannot be reached" in message
    for part in ("normbench data import cifar10 --from PATH", "TFDS_DATA_DIR", "dataset=digits"):
        assert part in message
    assert "\n" not in message
    assert data_sets(tmp_path) == []
    assert hidden_files(tmp_path) == []
    # Each data set has its own folder, as extracted files may have equal names.
    assert Path(requests[0]["work"]).parent.name == "cifar10.partial"
    assert notes[1:] == ["CIFAR-10: 3 MiB downloaded"]


def test_list_has_a_row_per_data_set(imported: Any) -> None:
    tiny, root = imported
    listed = rows({"mnist": tiny.source, "digits": Digits(), "cifar10": CIFAR10()}, root)
    assert [(row["name"], row["state"], row["where"]) for row in listed] == [
        ("cifar10", "missing", None),
        ("digits", "built in", None),
        ("mnist", "ready", root / "mnist" / "3.0.1"),
    ]
    assert listed[0] | {"state": "", "where": None} == {
        "name": "cifar10", "title": "CIFAR-10", "train": 50_000, "test": 10_000,
        "shape": (32, 32, 3), "classes": 10, "state": "", "where": None,
    }  # fmt: skip


def test_cifar_is_imported_without_tensorflow_datasets(
    tiny_cifar: Any, tiny_mnist: Any, fake_tfds: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """CIFAR's images keep their order; MNIST's do not, and so need tensorflow-datasets."""
    tiny, root = tiny_cifar("binary"), tmp_path / "tfds"
    with_tfds = tiny.source.import_from(tiny.write(tmp_path / "files"), tmp_path / "other")
    monkeypatch.setattr(tfds_process, "is_installed", lambda: False)
    file = tiny.source.import_from(tmp_path / "files", root)
    assert tiny.source.state(root) == "ready"
    assert tiny.source.location(root) == file != with_tfds
    assert tiny.source.import_from(tmp_path / "files", root) == file  # already there
    arrays, expected = tiny.source.arrays(root), tiny.source.arrays(tmp_path / "other")
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(arrays, name), getattr(expected, name))
        assert getattr(arrays, name).dtype == getattr(expected, name).dtype
    file.write_bytes(file.read_bytes()[:-1])
    assert tiny.source.state(root).startswith("damaged")
    with pytest.raises(DamagedData, match="import cifar10 again"):
        tiny.source.arrays(root)
    tiny.source.import_from(tmp_path / "files", root)
    assert tiny.source.state(root) == "ready"
    with pytest.raises(UserError, match="tensorflow-datasets is needed"):
        tiny_mnist.source.import_from(tiny_mnist.write(tmp_path / "mnist"), root)
