"""Splits: disjoint, stratified, nested, the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normbench.data import Arrays, Source, load
from normbench.data.split import channel_statistics, split_indices
from normbench.errors import UserError


def balanced(classes: int, per_class: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), per_class))


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, int, int, int]:
    """Draw labels of classes of any size, with a valid validation size, train size and seed."""
    counts = draw(st.lists(st.integers(3, 40), min_size=2, max_size=8))
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)
    validation = draw(st.integers(len(counts), len(labels) - len(counts)))
    train_size = draw(st.integers(len(counts), len(labels) - validation))
    return labels, validation, train_size, draw(st.integers(0, 2**40))


@given(cases())
def test_splits_are_disjoint_sorted_and_of_the_requested_sizes(case: Any) -> None:
    labels, validation, train_size, seed = case
    train, held_out = split_indices(labels, validation, seed, train_size)
    assert len(train) == train_size
    assert len(held_out) == validation
    for part in (train, held_out):
        assert (np.diff(part) > 0).all()
        assert part[0] >= 0
        assert part[-1] < len(labels)
    assert not set(train) & set(held_out)


@given(cases())
def test_without_train_size_every_image_is_used(case: Any) -> None:
    labels, validation, _, seed = case
    train, held_out = split_indices(labels, validation, seed)
    assert sorted([*train, *held_out]) == list(range(len(labels)))


@given(cases())
def test_larger_split_contains_the_smaller_one(case: Any) -> None:
    labels, validation, train_size, seed = case
    all_train, held_out = split_indices(labels, validation, seed)
    train, held_out_again = split_indices(labels, validation, seed, train_size)
    assert set(train) <= set(all_train)
    assert np.array_equal(held_out, held_out_again)
    smallest = len(np.unique(labels))
    assert set(split_indices(labels, validation, seed, smallest)[0]) <= set(train)
    assert set(split_indices(labels, smallest, seed)[1]) <= set(held_out)


@given(cases())
def test_class_proportions_are_preserved(case: Any) -> None:
    labels, validation, _, seed = case
    _, held_out = split_indices(labels, validation, seed)
    counts = np.bincount(labels)
    share = validation * counts / len(labels)
    # Images are ranked by (r + 1/2)/n within a class of n, as in Webster's rounding, so a class is
    # off by at most 1/2 + classes/2 times its fraction of all images.
    bound = 1 + len(counts) * counts / (2 * len(labels))
    assert (abs(np.bincount(labels[held_out], minlength=len(counts)) - share) <= bound).all()


@pytest.mark.parametrize(("classes", "per_class", "validation"), [(10, 500, 500), (100, 50, 500)])
def test_balanced_classes_stay_exactly_balanced(
    classes: int, per_class: int, validation: int
) -> None:
    labels = balanced(classes, per_class)
    train, held_out = split_indices(labels, validation, 0, 10 * classes)
    assert set(np.bincount(labels[held_out])) == {validation // classes}
    assert set(np.bincount(labels[train])) == {10}


def test_class_counts_of_an_uneven_size_differ_by_at_most_one() -> None:
    labels = balanced(10, 100)
    counts = np.bincount(labels[split_indices(labels, 123, 0)[1]])
    assert sorted(set(counts)) == [12, 13]


def test_split_is_the_same_on_every_machine() -> None:
    """Compare with indices recorded once; every NumPy, system and processor must reproduce them."""
    labels = np.arange(1000) % 10
    train, held_out = split_indices(labels, 100, 0, 50)
    assert held_out[:8].tolist() == PINNED_VALIDATION
    assert train[:8].tolist() == PINNED_TRAIN
    assert split_indices(labels, 100, 1)[1][:8].tolist() != PINNED_VALIDATION


PINNED_VALIDATION = [2, 3, 11, 20, 48, 59, 69, 88]
PINNED_TRAIN = [13, 15, 21, 32, 53, 55, 62, 96]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0}, "validation 0 is not possible: allowed 10..990"),
        ({"validation": 991}, "validation 991 is not possible: allowed 10..990"),
        ({"validation": 0.1}, "validation 0.1 is not possible"),
        ({"validation": True}, "validation True is not possible"),
        ({"train_size": 901}, "train_size 901 is not possible: allowed 10..900 (or null"),
        ({"train_size": 9}, "train_size 9 is not possible: allowed 10..900"),
        ({"split_seed": -1}, "split_seed -1 is not a whole number of at least 0"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    labels = balanced(10, 100)
    with pytest.raises(UserError) as caught:
        split_indices(labels, **({"validation": 100, "split_seed": 0} | options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_channel_statistics_match_numpy(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 7, 5, channels), np.uint8)
    images[..., 0] //= 9
    mean, std = channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-7)


def test_spread_of_a_nearly_constant_channel_is_not_lost() -> None:
    """Computing E[x²] − E[x]² in floats would lose it."""
    images = np.full((3000, 32, 32, 1), 255, np.uint8)
    images[0, 0, 0, 0] = 254
    count = images.size
    expected = ((1 / count) * (1 - 1 / count)) ** 0.5 / 255
    np.testing.assert_allclose(channel_statistics(images)[1], [expected], rtol=1e-6)


class Stripes(Source):
    """A user's data set: only the attributes and `arrays`."""

    name = "stripes"
    title = "Stripes"
    classes = 2
    shape = (4, 4, 1)
    class_names = ("along", "across")
    train_count = 40
    test_count = 10

    def arrays(self, data_dir: str | Path | None = None) -> Arrays:
        def part(count: int) -> tuple[np.ndarray, np.ndarray]:
            labels = (np.arange(count) % 2).astype(np.int32)
            images = np.zeros((count, 4, 4, 1), np.uint8)
            images[labels == 0, ::2] = 200
            images[labels == 1, :, ::2] = 100
            return images, labels

        return Arrays(*part(40), *part(10))


def test_user_source_is_split_like_any_other() -> None:
    source = Stripes()
    data = load(source, validation=10, split_seed=3, train_size=20)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)
    assert data.name == "stripes"
    assert data.class_names == ("along", "across")
    everything = source.arrays()
    for split in (data.train, data.validation):
        np.testing.assert_array_equal(split.images, everything.train_images[split.indices])
        np.testing.assert_array_equal(split.labels, everything.train_labels[split.indices])
    np.testing.assert_array_equal(data.test.images, everything.test_images)
    # Statistics of training images: half have 200 at half of the pixels, half have 100.
    np.testing.assert_allclose(data.mean, [75 / 255], rtol=1e-6)
    assert source.state() == "missing"
    with pytest.raises(UserError, match="stripes cannot be downloaded"):
        source.prepare()
    with pytest.raises(UserError, match="stripes cannot be imported"):
        source.import_from("anywhere")
