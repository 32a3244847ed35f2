"""Data sets in folders of JPEG and PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from normbench.components import make_source
from normbench.config import Config, compose
from normbench.data.images import Decoded, Images, fitted
from normbench.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a temporary cache folder, and return it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "normbench" / "data"


def draw(seed: int, shape: Sequence[int] = (6, 5, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_image(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path, **options)


def write_folders(root: Path, splits: dict[str, int], shape: Sequence[int] = (6, 5, 3)) -> Path:
    """Write images of two classes: ``splits`` maps folders to the number per class."""
    seed = 0
    for split, count in splits.items():
        for label in ("cat", "dog"):
            for index in range(count):
                write_image(root / split / label / f"{index}.png", draw(seed, shape))
                seed += 1
    return root


def config_of(path: Path, *more: str) -> Config:
    return compose(["dataset=images", f"dataset.path={path}", *more])


# --- splits and order ---------------------------------------------------------------------------


def test_split_folders_are_read_in_name_order(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "pets", {"train": 4, "test": 2, "val": 3})
    (root / "README.txt").write_text("about")
    (root / "train" / "cat" / ".hidden").write_text("")
    source = Images(str(root))
    assert (source.title, source.classes, source.class_names) == ("pets", 2, ("cat", "dog"))
    assert (source.train_count, source.validation_count, source.test_count) == (8, 6, 4)
    assert source.shape == (6, 5, 3)
    arrays = source.arrays()
    np.testing.assert_array_equal(arrays.train_labels, [0, 0, 0, 0, 1, 1, 1, 1])
    for index in range(8):
        np.testing.assert_array_equal(arrays.train_images[index], draw(index))
    np.testing.assert_array_equal(arrays.test_images[3], draw(11))
    assert arrays.validation_images is not None
    np.testing.assert_array_equal(arrays.validation_images[0], draw(12))


def test_fraction_of_each_class_becomes_the_test_images(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "pets", {"": 10})
    first = Images(str(root), test=0.2).arrays()
    assert (len(first.train_labels), len(first.test_labels)) == (16, 4)
    np.testing.assert_array_equal(np.bincount(first.test_labels), [2, 2])
    everything = np.concatenate([first.train_images, first.test_images])
    assert len(np.unique(everything.reshape(20, -1), axis=0)) == 20
    again = Images(str(root), test=0.2).arrays()
    np.testing.assert_array_equal(again.test_images, first.test_images)
    other = Images(str(root), test=0.2, test_seed=1).arrays()
    assert (other.test_images != first.test_images).any()


def test_fraction_of_train_or_all_of_val_can_be_the_test_images(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "pets", {"train": 5, "val": 3})
    arrays = Images(str(root), test="val").arrays()
    assert (len(arrays.train_labels), len(arrays.test_labels)) == (10, 6)
    assert arrays.validation_images is None
    arrays = Images(str(root), test=0.4).arrays()
    assert arrays.validation_labels is not None
    counts = [len(a) for a in (arrays.train_labels, arrays.test_labels, arrays.validation_labels)]
    assert counts == [6, 4, 6]


def test_moved_folder_keeps_its_signature_but_changed_pixels_do_not(
    tmp_path: Path, cache: Path
) -> None:
    root = write_folders(tmp_path / "pets", {"train": 4, "test": 2})
    before = config_of(root)
    root.rename(tmp_path / "animals")
    moved = config_of(tmp_path / "animals")
    assert moved.run_name == before.run_name
    assert moved.dataset["title"] == "animals"
    assert len(list(cache.glob("*.arrays"))) == 1
    write_image(tmp_path / "animals" / "train" / "dog" / "0.png", draw(99))
    assert config_of(tmp_path / "animals").signature != before.signature
    np.testing.assert_array_equal(make_source(before.dataset).arrays().train_images[4], draw(4))


def test_options_that_change_no_pixels_keep_the_signature(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "pets", {"train": 4, "test": 2}, (6, 6, 3))
    plain = config_of(root)
    for same in ("dataset.size=6", "dataset.channels=3", "dataset.test_seed=5"):
        assert config_of(root, same).signature == plain.signature
    for other in ("dataset.size=5", "dataset.channels=1"):
        assert config_of(root, other).signature != plain.signature


# --- from a file to pixels ----------------------------------------------------------------------


def test_jpeg_and_png_in_any_mode_become_gray_or_color(tmp_path: Path) -> None:
    root = tmp_path / "modes"
    color, gray = draw(0, (8, 8, 3)), draw(1, (8, 8))
    for split in ("train", "test"):
        write_image(root / split / "a" / "gray.png", gray)
        write_image(root / split / "b" / "bits.png", gray > 99)
    assert Images(str(root)).shape == (8, 8, 1)
    write_image(root / "train" / "a" / "zcolor.jpg", color, quality=95)
    Image.fromarray(color).convert("CMYK").save(root / "train" / "a" / "zz.jpeg")
    Image.fromarray(color).convert("P").save(root / "train" / "b" / "palette.png")
    transparent = np.dstack([color, np.full((8, 8), 0, np.uint8)])
    write_image(root / "train" / "b" / "transparent.png", transparent)
    source = Images(str(root))
    assert source.shape == (8, 8, 3)
    images = source.arrays().train_images
    np.testing.assert_array_equal(images[0], np.repeat(gray[..., None], 3, -1))
    with Image.open(root / "train" / "a" / "zcolor.jpg") as image:
        np.testing.assert_array_equal(images[1], np.asarray(image))
    assert not images[5].any()  # transparent.png
    assert Images(str(root), channels=1).shape == (8, 8, 1)


@pytest.mark.parametrize("shape", [(12, 20, 3), (20, 12, 3), (8, 8, 3), (5, 9, 3)])
def test_size_resizes_the_shorter_side_and_crops_the_center(shape: tuple[int, ...]) -> None:
    size, pixels = 8, draw(0, shape)
    height, width = (max(size, round(side * size / min(shape[:2]))) for side in shape[:2])
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - size) // 2, (width - size) // 2
    expected = resized[top : top + size, left : left + size]
    np.testing.assert_array_equal(fitted(Image.fromarray(pixels), size, 3), expected)
    if shape == (8, 8, 3):
        np.testing.assert_array_equal(expected, pixels)


def test_resizing_averages_over_merged_pixels() -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[::2] = 254
    small = fitted(Image.fromarray(pixels), 8, 1)
    assert small.shape == (8, 8, 1)
    assert np.abs(small.astype(int) - 127).max() <= 8


def test_images_are_rotated_according_to_exif_data(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate clockwise
    root = write_folders(tmp_path / "turned", {"train": 2, "test": 1}, (5, 6, 3))
    pixels = np.zeros((6, 5, 3), np.uint8)
    pixels[:, :2] = 255
    write_image(root / "train" / "cat" / "0.png", pixels, exif=exif)
    images = Images(str(root)).arrays().train_images
    np.testing.assert_array_equal(images[0], np.rot90(pixels, -1))


# --- refusals -----------------------------------------------------------------------------------


def delete_files(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def write_text(path: Path) -> None:
    path.write_text("no image")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


REFUSED: list[tuple[Any, Sequence[str], str]] = [
    (lambda root: delete_files(root / "train" / "dog"), (), "train/dog holds no images"),
    (
        lambda root: write_text(root / "train" / "dog" / "1.txt"),
        (),
        "train/dog/1.txt is not a JPEG",
    ),
    (lambda root: truncate(root / "test" / "cat" / "0.png"), (), "test/cat/0.png is damaged"),
    (
        lambda root: (root / "test" / "dog").rename(root / "test" / "dogs"),
        (),
        "has the class 'dogs' in test, which its training images lack: did you mean 'dog'?",
    ),
    (
        lambda root: write_image(root / "train" / "dog" / "9.png", draw(0, (7, 5, 3))),
        (),
        "9.png has 5×7): dataset.size=64 resizes them to one",
    ),
    (
        lambda root: Image.new("I;16", (5, 6)).save(root / "train" / "dog" / "0.png"),
        (),
        "train/dog/0.png has more than 8 bits per channel",
    ),
    (
        lambda root: Image.new("L", (5, 6)).save(root / "train" / "dog" / "0.png", "GIF"),
        (),
        "train/dog/0.png is not a JPEG or PNG image",
    ),
    (lambda root: None, ["dataset.test=0.2"], "has a test folder: leave dataset.test=0.2 out"),
    (lambda root: (root / "test").rename(root / "tests"), (), "has no test folder: dataset.test=0"),
    (
        lambda root: (root / "test").rename(root / "val"),
        (),
        "dataset.test=0.2 tests on a fifth of the images, dataset.test=val tests on val",
    ),
    (lambda root: None, ["dataset.size=0"], "dataset.size must be in 1..4096 or null, got 0"),
    (lambda root: None, ["dataset.size=5.5"], "dataset.size must be in 1..4096 or null, got 5.5"),
    (lambda root: None, ["dataset.channels=2"], "dataset.channels must be 1, 3 or null, got 2"),
    (lambda root: None, ["dataset.test=2.0"], "must be a fraction in (0, 1), 'val' or null"),
    (lambda root: None, ["dataset.test=vall"], "must be a fraction in (0, 1), 'val' or null"),
    (lambda root: None, ["dataset.test_seed=-1"], "must be a whole number of at least 0, got -1"),
]


@pytest.mark.parametrize(
    ("change", "overrides", "message"), REFUSED, ids=[message for *_, message in REFUSED]
)
def test_unsuitable_folders_are_refused(
    change: Any, overrides: Sequence[str], message: str, tmp_path: Path, cache: Path
) -> None:
    root = write_folders(tmp_path / "pets", {"train": 3, "test": 1})
    change(root)
    with pytest.raises(UserError) as caught:
        config_of(root, *overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("*.arrays"))


def test_images_are_decoded_into_the_cache_slice_by_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    root = write_folders(tmp_path / "pets", {"": 10})
    expected = Images(str(root), test=0.2).arrays()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "anew"))
    monkeypatch.setattr("normbench.data.cache._WRITTEN", 3 * 90)  # bytes: three images
    decoded: list[int] = []

    def counting(images: Decoded, chosen: slice, take: Any = Decoded.__getitem__) -> np.ndarray:
        images_read = take(images, chosen)
        decoded.append(len(images_read))
        return images_read

    monkeypatch.setattr(Decoded, "__getitem__", counting)
    images_read = Images(str(root), test=0.2).arrays()
    assert decoded == [3, 3, 3, 3, 3, 1, 3, 1]
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(images_read, name), getattr(expected, name))


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path, cache: Path) -> None:
    root = write_folders(tmp_path / "pets", {"train": 2, "test": 1})
    Images(str(root)).arrays()
    (entry,) = cache.glob("*.json")
    entry.unlink()
    (cache / f"..{entry.stem}.partial.123-abc.tmp").write_text("half")
    Images(str(root)).arrays()
    assert {file.suffix for file in cache.iterdir()} == {".arrays", ".json", ".lock"}


def test_images_that_do_not_fit_on_the_disk_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    root = write_folders(tmp_path / "pets", {"train": 2, "test": 1})
    free = SimpleNamespace(free=500)
    monkeypatch.setattr("normbench.data.streaming.shutil.disk_usage", lambda path: free)
    with pytest.raises(UserError) as caught:
        config_of(root)
    assert str(caught.value) == (  # 6 images of 6×5×3, and their labels
        f"{root} needs 564 B for its images in {cache}, whose disk has 500 B free: set "
        "XDG_CACHE_HOME to a folder that can hold them"
    )
    assert not [file for file in cache.iterdir() if file.suffix != ".lock"]


def test_fraction_that_empties_a_class_is_refused(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "pets", {"": 2})
    with pytest.raises(UserError, match="leaves a class without test images: the smallest has 2"):
        Images(str(root), test=0.1).arrays()
    with pytest.raises(UserError, match="leaves a class without training images"):
        Images(str(root), test=0.99).arrays()


def test_missing_path_suggests_the_nearest_name(tmp_path: Path) -> None:
    write_folders(tmp_path / "pets", {"train": 1, "test": 1})
    with pytest.raises(UserError, match=f"there is no folder {tmp_path}/pest: did you mean"):
        config_of(tmp_path / "pest")
    with pytest.raises(UserError, match=r"is not a folder: dataset=npz reads \.npz files"):
        config_of(tmp_path / "pets" / "train" / "cat" / "0.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no folders: put the images of each class in a folder"):
        config_of(tmp_path / "empty", "dataset.test=0.2")


def test_image_with_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folders(tmp_path / "pets", {"train": 2, "test": 1})
    write_image(root / "train" / "cat" / "1.png", np.zeros((3000, 3000), np.uint8))
    monkeypatch.setattr("normbench.data.images.MOST_PIXELS", 1_000_000)
    with pytest.raises(UserError, match=r"1\.png has 3000×3000 pixels, more than 1,000,000"):
        Images(str(root), size=8).arrays()
