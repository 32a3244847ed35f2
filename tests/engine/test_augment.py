import numpy as np
import pytest
from keras import ops

from normbench.engine.augment import ERASED_AREA, Images
from normbench.engine.random import AUGMENT, epoch_words, threefry2x32


def numpy_augmented(pixels, words, padding, flip):
    """Crop and flip by slicing padded arrays, one image at a time."""
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
        pixels, [ops.convert_to_numpy(word) for word in words], padding, flip
    )
    np.testing.assert_array_equal(got, expected)


def test_all_shifts_and_flips_occur():
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
def test_prepare_equals_augment_then_scale_to_the_bit(shape, padding, flip):
    pixels = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    words = epoch_words(3, AUGMENT, 1, shape[0])
    mean, std = np.float32([0.4914, 0.4822, 0.4465]), np.float32([0.247, 0.2435, 0.2616])
    images = Images(mean[: shape[-1]], std[: shape[-1]], padding, flip)
    pixels = ops.convert_to_tensor(pixels)
    expected = ops.convert_to_numpy(images.scale(images.augment(pixels, words)))
    got = ops.convert_to_numpy(images.prepare(pixels, words))
    np.testing.assert_array_equal(got, expected)


# --- hidden parts -------------------------------------------------------------------------------


def halves(words, index):
    """Further random numbers per image, int (4, N): the upper and lower halves of two words."""
    counter = [ops.convert_to_tensor(np.full(len(words[0]), n, np.uint32)) for n in (index, 0)]
    drawn = threefry2x32(tuple(map(ops.convert_to_tensor, words)), tuple(counter))
    pair = [ops.convert_to_numpy(word).astype(np.int64) for word in drawn]
    return [part for word in pair for part in (word >> 16, word & 0xFFFF)]


def numpy_hidden(pixels, words, cutout, erasing, color):
    """Hide parts by slicing, one image at a time, with rectangles from the paper's formula."""
    out = pixels.copy()
    count, height, width, _ = pixels.shape
    ys, xs, *_ = halves(words, 0)
    _, chance, tops, lefts = halves(words, 1)
    tries = [*halves(words, 2), *halves(words, 3)]
    for i in range(count):
        if cutout:
            y, x = ys[i] % height - cutout // 2, xs[i] % width - cutout // 2
            out[i, max(y, 0) : max(y + cutout, 0), max(x, 0) : max(x + cutout, 0)] = color
        if chance[i] >= erasing * 65536:
            continue
        for drawn in tries:
            share, ratio = ((int(drawn[i]) >> shift & 255) + 0.5 for shift in (8, 0))
            area = height * width * (0.02 + share / 256 * 0.38)
            aspect = 0.3 + ratio / 256 * (1 / 0.3 - 0.3)
            tall, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if 0 < tall < height and 0 < wide < width:
                y, x = tops[i] % (height - tall + 1), lefts[i] % (width - wide + 1)
                out[i, y : y + tall, x : x + wide] = color
                break
    return out


@pytest.mark.parametrize(("cutout", "erasing"), [(3, 0.0), (4, 0.0), (0, 0.5), (0, 1.0), (4, 0.5)])
@pytest.mark.parametrize("shape", [(60, 8, 8, 1), (40, 7, 11, 3)])
def test_hidden_parts_equal_slices_of_images(shape, cutout, erasing):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    words = [ops.convert_to_numpy(word) for word in epoch_words(3, AUGMENT, 1, shape[0])]
    mean = np.float32([0.25, 0.5, 0.75])[: shape[-1]]
    images = Images(mean, np.ones_like(mean), 0, False, cutout, erasing)
    tensors = tuple(map(ops.convert_to_tensor, words))
    got = ops.convert_to_numpy(images.augment(ops.convert_to_tensor(pixels), tensors))
    color = np.rint(mean * 255).astype(np.uint8)
    expected = numpy_hidden(pixels, words, cutout, erasing, color)
    np.testing.assert_array_equal(got, expected)
    assert (got != pixels).any()
    prepared = ops.convert_to_numpy(images.prepare(ops.convert_to_tensor(pixels), tensors))
    scaled = ops.convert_to_numpy(images.scale(ops.convert_to_tensor(expected)))
    np.testing.assert_array_equal(prepared, scaled)


def test_parts_are_hidden_after_cropping_and_flipping():
    pixels = np.random.default_rng(1).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    words = epoch_words(4, AUGMENT, 2, 50)
    mean = np.float32([0.25, 0.5, 0.75])
    moved = Images(mean, mean, 2, True).augment(ops.convert_to_tensor(pixels), words)
    hidden = Images(mean, mean, 0, False, 4, 0.5).augment(moved, words)
    both = Images(mean, mean, 2, True, 4, 0.5).augment(ops.convert_to_tensor(pixels), words)
    np.testing.assert_array_equal(ops.convert_to_numpy(both), ops.convert_to_numpy(hidden))


def test_squares_cover_all_positions_and_rectangles_the_papers_areas():
    count, side = 4000, 32
    black = ops.convert_to_tensor(np.zeros((count, side, side, 1), np.uint8))
    words = epoch_words(0, AUGMENT, 0, count)
    ones = np.ones(1, np.float32)
    squares = ops.convert_to_numpy(Images(ones, ones, 0, False, 16).augment(black, words)) == 255
    # A square centered at y hides the rows y - 8 to y + 7, clipped to the image.
    expected = [min(y + 8, side) - max(y - 8, 0) for y in range(side)]
    for axis in (1, 2):
        rows = squares.any(axis=axis).sum((1, 2))
        assert (rows.min(), rows.max()) == (8, 16)
        assert abs(rows.mean() - np.mean(expected)) < 0.2
    assert abs(squares.mean() - (np.mean(expected) / side) ** 2) < 0.005
    erased = Images(ones, ones, 0, False, erasing=0.25).augment(black, words)
    shares = (ops.convert_to_numpy(erased) == 255).mean((1, 2, 3))
    assert abs((shares > 0).mean() - 0.25) < 0.03
    areas = shares[shares > 0]
    assert ERASED_AREA[0] - 0.01 < areas.min() < 0.05
    assert 0.35 < areas.max() < ERASED_AREA[1] + 0.02
    assert abs(areas.mean() - 0.2) < 0.03
