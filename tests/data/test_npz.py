"""Data sets in one NumPy file, and the cache of data sets identified by their content."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from normbench.components import make_source
from normbench.config import Config, compose
from normbench.data import load, streaming
from normbench.data.npz import LAYOUTS, Npz, read_arrays
from normbench.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a temporary cache folder, and return it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "normbench" / "data"


def arrays(
    train: int = 30, test: int = 12, validation: int = 0, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return random images of three classes, under the names that Keras's files use."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for split, count in (("train", train), ("val", validation), ("test", test)):
        if count:
            drawn[f"x_{split}"] = rng.integers(0, 256, (count, 6, 5, 3), np.uint8)
            drawn[f"y_{split}"] = np.arange(count) % 3
    return drawn


def write(path: Path, changed: dict[str, Any] | None = None, **more: Any) -> Path:
    content = {k: v for k, v in (arrays(**more) | (changed or {})).items() if v is not None}
    np.savez(path, **content)
    return path


def config_of(path: Path, *more: str) -> Config:
    return compose(["dataset=npz", f"dataset.path={path}", *more])


# --- reading ------------------------------------------------------------------------------------


def test_array_names_of_medmnist_and_keras_are_equivalent(tmp_path: Path) -> None:
    drawn = arrays(validation=9)
    np.savez(tmp_path / "keras.npz", **drawn)
    renamed = {}
    for split, pair in LAYOUTS[1].items():
        for ours, theirs in zip(LAYOUTS[0][split], pair, strict=True):
            renamed[theirs] = drawn[ours][:, None] if "label" in theirs else drawn[ours]
    np.savez_compressed(tmp_path / "med.npz", other=np.zeros(3), **renamed)
    keras, med = (Npz(str(tmp_path / f"{name}.npz")) for name in ("keras", "med"))
    for name, array in vars(keras.arrays()).items():
        np.testing.assert_array_equal(getattr(med.arrays(), name), array)
    assert config_of(tmp_path / "med.npz").signature == config_of(tmp_path / "keras.npz").signature
    assert med.shape == (6, 5, 3)
    assert (med.train_count, med.validation_count, med.test_count) == (30, 9, 12)


def test_gray_and_float_images_become_byte_levels(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (30, 6, 5), np.uint8)
    tests = levels[:12]
    level_arrays = {"x_train": levels, "x_test": tests}
    float_arrays = {name: (array / 255).astype("float32") for name, array in level_arrays.items()}
    as_levels = Npz(str(write(tmp_path / "a.npz", level_arrays)))
    as_floats = Npz(str(write(tmp_path / "b.npz", float_arrays)))
    np.testing.assert_array_equal(as_levels.arrays().train_images, levels[..., None])
    np.testing.assert_array_equal(as_floats.arrays().train_images, levels[..., None])
    assert as_floats.shape == (6, 5, 1)


def test_labels_are_renumbered_from_zero_in_ascending_order(tmp_path: Path) -> None:
    labels = {"y_train": np.arange(30) % 3 * 10 - 5, "y_test": np.full(12, 15)}
    source = Npz(str(write(tmp_path / "a.npz", labels)))
    assert source.class_names == ("-5", "5", "15")
    np.testing.assert_array_equal(source.arrays().train_labels, np.arange(30) % 3)
    np.testing.assert_array_equal(source.arrays().test_labels, 2)
    assert source.arrays().test_labels.dtype == np.int32


def test_arrays_in_fortran_order_are_read(tmp_path: Path) -> None:
    drawn = arrays()
    write(tmp_path / "a.npz", {"x_train": np.asfortranarray(drawn["x_train"])})
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.npz")["x_train"], drawn["x_train"])


# --- refusals -----------------------------------------------------------------------------------

GRAY = np.zeros((30, 6, 5), np.uint8)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"y_test": None}, "lacks y_test: it has x_test, x_train, y_train (needed: x_train, y_train, "),
    ({"x_val": GRAY}, "lacks y_val"),
    ({"y_train": np.arange(29)}, "x_train has 30 images, y_train 29 labels"),
    ({"y_test": np.full(12, 7)}, "has the class '7' in y_test, which its training images lack"),
    ({"x_train": GRAY}, "x_train has images of 6×5×1, x_test of 6×5×3"),
    ({"x_train": np.zeros((30, 20), np.uint8)}, "x_train has the shape (30, 20); images must"),
    ({"x_train": np.zeros((30, 3, 8, 8), np.uint8)}, "looks like (N, C, H, W): channels go last"),
    ({"x_train": np.zeros((30, 6, 0), np.uint8)}, "no pixels"),
    ({"x_train": np.zeros((30, 6, 5, 3), np.int64)}, "x_train is int64 and x_test is uint8"),
    ({"x_train": GRAY.astype(int), "x_test": GRAY[:12].astype(int)}, "x_train is int64: images m"),
    ({"x_train": GRAY + 2.0, "x_test": GRAY[:12] + 0.0}, "with values of 2..2: floats must be in"),
    ({"x_train": GRAY + np.nan, "x_test": GRAY[:12] + 0.0}, "with values of nan..nan"),
    ({"y_train": np.eye(30)}, "labels must be (N,) or (N, 1) (for one-hot labels use .argmax(1))"),
    ({"y_train": np.arange(30) / 2}, "y_train is float64: labels must be whole numbers"),
    ({"y_train": np.zeros(30, int), "y_test": np.zeros(12, int)}, "has 1 class: a classifier n"),
    ({"y_train": np.array(["a"] * 30)}, "y_train holds <U1 values; images and labels must be"),
    ({"x_test": GRAY[:0, ..., None].repeat(3, -1), "y_test": np.arange(0)}, "x_test is empty"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=[text for _, text in REFUSED])
def test_unsuitable_files_are_refused(
    changed: dict[str, Any], message: str, tmp_path: Path, cache: Path
) -> None:
    path = write(tmp_path / "mine.npz", changed)
    with pytest.raises(UserError) as caught:
        config_of(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("*.arrays"))


def test_python_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    assert pickle.dumps(Evil())
    labels = np.empty(30, object)
    labels[:] = [Evil()] * 30
    path = tmp_path / "evil.npz"
    np.savez(path, **{**arrays(), "y_train": labels})
    with pytest.raises(UserError, match="y_train holds Python objects, which are not read"):
        Npz(str(path)).arrays()
    assert not (tmp_path / "executed").exists()


def test_file_larger_than_memory_is_unpacked_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    path = write(tmp_path / "mine.npz", {})
    floats = tmp_path / "floats.npz"
    scaled = {x: arrays()[x] / 255 for x in ("x_train", "x_test")}
    np.savez_compressed(floats, **{**arrays(), **scaled})
    expected, content = arrays(), compose_content(path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "anew"))
    monkeypatch.setattr("normbench.data.streaming.physical_memory", lambda: 1)
    unpacked: list[tuple[int, ...]] = []

    def recording(shape: tuple[int, ...], *others: Any) -> np.ndarray:
        array = streaming.empty(shape, *others)
        assert isinstance(array.base, np.memmap)
        unpacked.append(shape)
        return array

    monkeypatch.setattr("normbench.data.npz.empty", recording)
    for file_path in (path, floats):
        assert compose_content(file_path) == content
        np.testing.assert_array_equal(
            Npz(str(file_path)).arrays().train_images, expected["x_train"]
        )
    # Twice for floats: before and after rounding.
    assert unpacked.count(expected["x_train"].shape) == 3
    names = {file.suffix for file in (tmp_path / "anew" / "normbench" / "data").iterdir()}
    assert names <= {".arrays", ".json", ".lock"}


def compose_content(path: Path) -> str:
    return config_of(path).dataset["content"]


@pytest.mark.parametrize("memory", [1, 1 << 40])
def test_array_larger_than_the_disk_is_refused(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, **{**arrays(), "x_train": np.zeros((30, 256, 256, 3), np.uint8),
                                 "x_test": np.zeros((12, 256, 256, 3), np.uint8)})  # fmt: skip
    monkeypatch.setattr("normbench.data.streaming.physical_memory", lambda: memory)
    free = SimpleNamespace(free=5 << 20)
    monkeypatch.setattr("normbench.data.streaming.shutil.disk_usage", lambda folder: free)
    needed = "5.6 MiB" if memory == 1 else "7.9 MiB"
    with pytest.raises(UserError) as caught:
        Npz(str(path)).arrays()
    assert f"needs {needed} for its images in {cache}, whose disk has 5.0 MiB" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [file for file in cache.iterdir() if file.suffix not in (".json", ".lock")]


def npy(header_shape: str, data: bytes) -> bytes:
    """Return the bytes of an array file whose header declares this shape."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {header_shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


@pytest.mark.parametrize("shape", ["(999999999999, 9)", "(3,)", "(-1, 4)", "(10**9,)", "oops"])
def test_header_that_does_not_match_its_array_is_refused(shape: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {"x_train": None})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", npy(shape, b"1234"))
    with pytest.raises(UserError, match="is damaged"):
        Npz(str(path)).arrays()


def test_damaged_files_and_other_formats_are_distinguished(tmp_path: Path) -> None:
    data = write(tmp_path / "a.npz").read_bytes()
    for name, content, message in [
        ("cut.npz", data[: len(data) // 2], "is damaged"),
        ("flipped.npz", data[:3000] + bytes([data[3000] ^ 1]) + data[3001:], "is damaged"),
        ("text.npz", b"x_train", "is not an npz file"),
        ("empty.npz", b"", "is not an npz file"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            Npz(str(tmp_path / name)).arrays()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays().items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    (tmp_path / "lzma.npz").write_bytes(packed.getvalue())
    with pytest.raises(UserError, match=r"x_train is packed in a way that np\.savez does not use"):
        Npz(str(tmp_path / "lzma.npz")).arrays()


def test_missing_path_suggests_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "mine.npz")
    with pytest.raises(UserError) as caught:
        config_of(tmp_path / "mime.npz")
    hint = f"did you mean {tmp_path}/mine.npz?"
    assert str(caught.value) == f"there is no file {tmp_path}/mime.npz: {hint}"
    with pytest.raises(UserError, match="is not a file: dataset=images reads folders"):
        config_of(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.path is empty: write dataset\.path=FILE"):
        compose(["dataset=npz"])


# --- the content --------------------------------------------------------------------------------


def test_moved_file_keeps_its_signature_but_changed_arrays_do_not(
    tmp_path: Path,
) -> None:
    before = config_of(write(tmp_path / "a.npz"))
    (tmp_path / "there").mkdir()
    (tmp_path / "a.npz").rename(tmp_path / "there" / "b.npz")
    moved = config_of(tmp_path / "there" / "b.npz")
    assert moved.run_name == before.run_name
    assert config_of(tmp_path / "there" / "b.npz", "dataset.title=Mine").run_name == before.run_name
    assert moved.dataset["path"] != before.dataset["path"]
    assert (before.dataset["title"], moved.dataset["title"]) == ("a", "b")
    for key in ("x_train", "y_train", "x_test", "y_test"):
        changed = arrays()[key].copy()
        changed.flat[0] = (changed.flat[0] + 1) % 3
        assert config_of(write(tmp_path / "c.npz", {key: changed})).signature != before.signature
    assert config_of(write(tmp_path / "c.npz", validation=3)).signature != before.signature
    assert config_of(write(tmp_path / "c.npz")).signature == before.signature


def test_relative_path_is_recorded_as_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.npz")
    monkeypatch.chdir(tmp_path)
    assert config_of(Path("a.npz")).dataset["path"] == str(tmp_path / "a.npz")


def test_images_are_read_from_the_cache_after_the_file_is_gone(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.npz")
    composed = config_of(path)
    before = make_source(composed.dataset).arrays().train_images.copy()
    write(path, seed=1)
    np.testing.assert_array_equal(make_source(composed.dataset).arrays().train_images, before)
    path.unlink()
    source = make_source(composed.dataset)
    np.testing.assert_array_equal(source.arrays().train_images, before)
    assert source.state() == "ready"
    for file in cache.glob("*.arrays"):
        file.unlink()
    gone = make_source(composed.dataset)
    assert gone.state() == "missing"
    with pytest.raises(UserError, match="there is no file"):
        gone.arrays()
    write(path, seed=1)
    with pytest.raises(UserError, match=r"has changed: its content is \w{16}, the run's is \w{16}"):
        make_source(composed.dataset).arrays()
    write(path)
    np.testing.assert_array_equal(make_source(composed.dataset).arrays().train_images, before)


def test_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.npz")
    reads: list[str] = []
    read = Npz.read

    def counting(source: Npz) -> Any:
        reads.append(source.origin)
        return read(source)

    monkeypatch.setattr(Npz, "read", counting)
    for _ in range(2):
        make_source(config_of(path).dataset).arrays()
    assert len(reads) == 1
    write(path, seed=1)
    config_of(path)
    assert len(reads) == 2


def test_damaged_cache_is_rebuilt(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.npz")
    first = config_of(path)
    for file in [*cache.glob("*.arrays"), *cache.glob("*.json")]:
        file.write_bytes(b"{")
    assert config_of(path) == first
    assert len(make_source(first.dataset).arrays().train_labels) == 30


def test_content_must_be_the_hash_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"dataset\.content '\.\./x' is not 16 hex digits"):
        config_of(path, "dataset.content=../x")
    other = "0123456789abcdef"
    with pytest.raises(UserError, match=f"dataset.content={other} is not the content of {path}"):
        config_of(path, f"dataset.content='{other}'")


def test_title_cannot_be_the_name_of_a_shipped_data_set(tmp_path: Path) -> None:
    path = write(tmp_path / "mnist.npz")
    assert config_of(path).dataset["title"] == "npz mnist"
    with pytest.raises(UserError, match=r"dataset\.title=cifar10 is the name of a data set"):
        config_of(path, "dataset.title=cifar10")


def test_unwritable_cache_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(Exception, match="set XDG_CACHE_HOME to a folder that can be written"):
        config_of(write(tmp_path / "a.npz"))


# --- splits -------------------------------------------------------------------------------------


def test_validation_is_a_tenth_or_a_count_or_the_split_in_the_file(tmp_path: Path) -> None:
    plain = Npz(str(write(tmp_path / "a.npz", train=60)))
    with_validation = Npz(str(write(tmp_path / "b.npz", train=60, validation=9)))
    assert len(load(plain, None, 0).validation) == 6
    assert len(load(plain, 12, 0).validation) == 12
    split = load(with_validation, None, 0)
    assert (len(split.train), len(split.validation), len(split.test)) == (60, 9, 12)
    np.testing.assert_array_equal(split.validation.images, arrays(60, 12, 9)["x_val"])
    assert len(load(with_validation, None, 0, train_size=30).train) == 30
    with pytest.raises(UserError, match="b has 9 validation images of its own"):
        load(with_validation, 12, 0)
    with pytest.raises(UserError, match=r"validation 5000 is not possible: allowed 3\.\.57"):
        load(plain, 5000, 0)
