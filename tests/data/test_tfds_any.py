"""Data sets of tensorflow-datasets in general: `dataset=tfds`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normbench.cli import main
from normbench.config import compose
from normbench.data import tfds_child, tfds_folder, tfds_process
from normbench.data.tfds_any import Tfds
from normbench.errors import UserError

NAMES = ["plane", "dog", "eel"]


def draw(count: int, seed: int, side: int | None = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (side or 5 + index % 2, 5, 3), np.uint8) for index in range(count)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tensorflow-datasets folder with small data sets: whole, untested, mixed, boxes."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tfds")

    def store(
        name: str, counts: dict[str, int], shape: Any, side: int | None = 5, version: str = "1.0.0"
    ) -> None:
        def examples(split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, image in enumerate(draw(count, len(split), side)):
                yield index, {"image": image, "label": NAMES[index % 3]}

        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version=version,
            data_dir=root,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape),
                    "label": tfds.features.ClassLabel(names=NAMES),
                }
            ),
            split_datasets={split: examples(split, n) for split, n in counts.items()},
            disable_shuffling=True,
        )

    store("whole", {"train": 30, "test": 9, "validation": 6, "extra": 3}, (5, 5, 3))
    store("whole", {"train": 3, "test": 3}, (5, 5, 3), version="0.9.0")
    store("untested", {"train": 30, "validation": 6}, (5, 5, 3))
    store("mixed", {"train": 6, "test": 6}, (None, None, 3), side=None)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="boxes",
        version="1.0.0",
        data_dir=root,
        features=tfds.features.FeaturesDict({"image": tfds.features.Image(), "n": tf.int64}),
        split_datasets={"train": iter([(0, {"image": draw(1, 0)[0], "n": 1})])},
    )
    return root


@pytest.fixture(autouse=True)
def tfds_in_process(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read with tensorflow-datasets in this process, into a temporary cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))

    def run(action: str, request: dict[str, Any], tick: Any = None) -> dict[str, Any]:
        return getattr(tfds_child, action)(**request)

    monkeypatch.setattr(tfds_process, "run", run)


def test_prepared_data_set_is_read_with_its_splits(prepared: Path) -> None:
    source = Tfds("whole")
    assert (source.title, source.classes, source.class_names) == ("whole", 3, tuple(NAMES))
    assert (source.train_count, source.validation_count, source.test_count) == (30, 6, 9)
    assert source.location() == prepared / "whole" / "1.0.0"
    arrays = source.arrays()
    np.testing.assert_array_equal(arrays.train_images, draw(30, len("train")))
    np.testing.assert_array_equal(arrays.test_images, draw(9, len("test")))
    np.testing.assert_array_equal(arrays.test_labels, np.arange(9) % 3)
    assert Tfds("whole:0.9.0").train_count == 3


def test_split_or_fraction_becomes_the_test_images() -> None:
    arrays = Tfds("untested", test="validation").arrays()
    np.testing.assert_array_equal(arrays.test_images, draw(6, len("validation")))
    assert arrays.validation_images is None
    source = Tfds("untested", test=0.2)
    assert (source.train_count, source.validation_count, source.test_count) == (24, 6, 6)


def test_images_larger_than_memory_are_read_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normbench.data.streaming.physical_memory", lambda: 1)
    arrays = Tfds("untested", test=0.2).arrays()
    both = np.concatenate([arrays.train_images, arrays.test_images])
    drawn = np.stack(draw(30, len("train")))
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(drawn, axis=0))
    np.testing.assert_array_equal(arrays.validation_images, draw(6, len("validation")))


def test_images_of_several_sizes_are_resized() -> None:
    assert Tfds("mixed", size=4).shape == (4, 4, 3)
    assert Tfds("mixed", size=4, channels=1).shape == (4, 4, 1)


def test_same_images_under_another_name_are_the_same_run() -> None:
    named, versioned = (
        compose(["dataset=tfds", f"dataset.id='{name}'"]) for name in ("whole", "whole:1.0.0")
    )
    assert named.run_name == versioned.run_name
    older = compose(["dataset=tfds", "dataset.id='whole:0.9.0'"])
    assert older.run_name != named.run_name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "boxes", "test": 0.2}, "does not classify images: an image and one class label"),
        ({"id": "mixed"}, "image 1 of train has 5×6): dataset.size=64 resizes them to one"),
        ({"id": "untested"}, "dataset.test=validation tests on validation"),
        ({"id": "whole", "test": 0.2}, "has a test split: leave dataset.test=0.2 out"),
        ({"id": "hole"}, "(did you mean whole, which is?): get it with `normbench data prepare "),
        ({"id": "whole:3.0.0"}, "whole:3.0.0 is not in "),
        ({"id": "../x"}, "dataset.id '../x' is not a name in tensorflow-datasets"),
        ({"id": "whole", "test": "extra"}, "a fraction in (0, 1), 'validation' or null, got 'e"),
    ],
)
def test_unsuitable_data_sets_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Tfds(**options).arrays()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_config_is_needed_only_if_several_are_prepared(tmp_path: Path) -> None:
    for path in ("one/small/1.0.0", "two/small/1.0.0", "two/large/1.0.0", "two/large/1.2.0"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / tfds_folder.INFO).touch()
    find = tfds_folder.newest
    assert find("one", None, None, tmp_path) == tmp_path / "one/small/1.0.0"
    assert find("two", "large", None, tmp_path) == tmp_path / "two/large/1.2.0"
    assert find("two", "huge", None, tmp_path) is None
    with pytest.raises(UserError, match="several configs, choose one: two/large, two/small"):
        find("two", None, None, tmp_path)
    assert tfds_folder.prepared(tmp_path) == ["one", "two"]


def test_unknown_or_unsuitable_tfds_names_are_not_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert main(["data", "prepare", "tfds:svhn_croped"]) == 2
    error = capsys.readouterr().err
    assert "knows no data set 'svhn_croped': did you mean 'svhn_cropped'?" in error
    assert main(["data", "prepare", "tfds:imdb_reviews"]) == 2
    assert "imdb_reviews does not classify images" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


@pytest.mark.slow
def test_tfds_process_reads_the_same_as_tfds_in_process(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read_in_process = compose(["dataset=tfds", "dataset.id=whole"])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert compose(["dataset=tfds", "dataset.id=whole"]) == read_in_process
    with pytest.raises(UserError, match="does not classify images"):
        Tfds("boxes", test=0.2).arrays()
