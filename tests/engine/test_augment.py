import numpy as np
import pytest
from keras import ops

from normbench.engine.augment import Images
from normbench.engine.random import AUGMENT, epoch_words


def numpy_augmented(pixels, words, padding, flip):
    """The same by slices of padded arrays, an image at a time."""
    count, height, width, _ = pixels.shape
    out = np.empty_like(pixels)
    for i in range(count):
        image = np.pad(pixels[i], ((padding, padding), (padding, padding), (0, 0)))
        y = int(words[0][i] >> 16) % (2 * padding + 1)
        x = int(words[0][i] & 0xFFFF) % (2 * padding + 1)
        image = image[y : y + height, x : x + width]
        out[i] = image[:, ::-1] if flip and words[1][i] & 1 else image
    return out


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(9, 8, 8, 1), (5, 7, 11, 3)])
def test_crop_and_flip_equal_slices_of_padded_images(padding, flip, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    words = epoch_words(3, AUGMENT, 1, shape[0])
    images = Images(np.zeros(1, np.float32), np.ones(1, np.float32), padding, flip)
    got = ops.convert_to_numpy(images.augment(ops.convert_to_tensor(pixels), words))
    expected = numpy_augmented(
        pixels, [ops.convert_to_numpy(each) for each in words], padding, flip
    )
    np.testing.assert_array_equal(got, expected)


def test_every_shift_and_both_sides_occur():
    ramp = np.arange(1, 82, dtype=np.uint8).reshape(1, 9, 9, 1).repeat(2000, axis=0)
    words = epoch_words(0, AUGMENT, 0, 2000)
    images = Images(np.zeros(1, np.float32), np.ones(1, np.float32), 1, True)
    got = ops.convert_to_numpy(images.augment(ops.convert_to_tensor(ramp), words))
    distinct, counts = np.unique(got.reshape(2000, -1), axis=0, return_counts=True)
    assert len(distinct) == 3 * 3 * 2
    assert counts.min() > 2000 / 18 / 2


def test_scaling_gives_mean_0_and_deviation_1():
    pixels = np.random.default_rng(1).integers(0, 256, (50, 6, 6, 3), dtype=np.uint8)
    scaled = pixels.astype(np.float64) / 255
    mean, std = scaled.mean((0, 1, 2)), scaled.std((0, 1, 2))
    images = Images(mean.astype(np.float32), std.astype(np.float32), 0, False)
    got = ops.convert_to_numpy(images.scale(ops.convert_to_tensor(pixels)))
    np.testing.assert_allclose(got, (scaled - mean) / std, atol=2e-6)


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (4, True), (2, False)])
@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (9, 32, 32, 3)])
def test_prepared_in_one_is_augmented_and_scaled_to_the_bit(shape, padding, flip):
    pixels = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    words = epoch_words(3, AUGMENT, 1, shape[0])
    mean, std = np.float32([0.4914, 0.4822, 0.4465]), np.float32([0.247, 0.2435, 0.2616])
    images = Images(mean[: shape[-1]], std[: shape[-1]], padding, flip)
    pixels = ops.convert_to_tensor(pixels)
    expected = ops.convert_to_numpy(images.scale(images.augment(pixels, words)))
    got = ops.convert_to_numpy(images.prepare(pixels, words))
    np.testing.assert_array_equal(got, expected)
