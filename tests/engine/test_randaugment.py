"""RandAugment and color jitter match Pillow's operations on single images."""

import numpy as np
import pytest
from keras import ops
from PIL import Image, ImageEnhance, ImageOps

from normbench.engine.augment import Images
from normbench.engine.randaugment import (
    OPERATIONS,
    apply_operations,
    jittered,
    randaugmented,
)
from normbench.engine.random import AUGMENT, bits, epoch_words, further_words

ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


def photos(shape, seed=0):
    """Smooth images with some noise, low contrast and a different mean in each channel."""
    rng = np.random.default_rng(seed)
    count, height, width, channels = shape
    small = rng.uniform(20, 200, (count, 3, 3, channels))
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 3 // width
    smooth = small[:, rows][:, :, columns] + rng.normal(0, 12, shape)
    return np.clip(smooth, 0, 255).astype(np.uint8)


def to_pillow(pixels):
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def by_pillow(pixels, name, sign, magnitude):
    """Apply an operation as torchvision's RandAugment defines it, on uint8 (H, W, C)."""
    image, (height, width, _) = to_pillow(pixels), pixels.shape
    strength, turn = magnitude / 30, -1 if sign else 1
    if name in ENHANCE:
        image = ENHANCE[name](image).enhance(1 + turn * 0.9 * strength)
    elif name == "rotate":
        angle = turn * 30 * strength
        image = image.rotate(angle, Image.Resampling.NEAREST)
    elif name in ("shear_x", "shear_y", "translate_x", "translate_y"):
        kind, axis = name.split("_")
        matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        if kind == "shear":
            matrix[1 if axis == "x" else 3] = turn * 0.3 * strength
        else:
            side = width if axis == "x" else height
            matrix[2 if axis == "x" else 5] = turn * int(150 / 331 * side * strength)
        image = image.transform(image.size, Image.Transform.AFFINE, matrix)
    elif name == "posterize":
        image = ImageOps.posterize(image, 8 - round(4 * strength))
    elif name == "solarize":
        image = ImageOps.solarize(image, 255 * (1 - strength))
    elif name == "autocontrast":
        image = ImageOps.autocontrast(image)
    elif name == "equalize":
        image = ImageOps.equalize(image)
    return np.asarray(image).reshape(pixels.shape)


@pytest.mark.parametrize("magnitude", [3, 9, 30])
@pytest.mark.parametrize("shape", [(6, 32, 32, 3), (4, 9, 12, 1)])
def test_each_operation_matches_pillow(shape, magnitude):
    pixels = photos(shape)
    pixels[1] = 77  # no contrast at all
    count = len(pixels)
    for index, name in enumerate(OPERATIONS):
        for sign in (0, 1):
            operation = ops.convert_to_tensor(np.full(count, index, np.int32))
            signs = ops.convert_to_tensor(np.full(count, sign, np.int32))
            changed = apply_operations(ops.convert_to_tensor(pixels), operation, signs, magnitude)
            actual = ops.convert_to_numpy(changed).astype(int)
            expected = np.array([by_pillow(one, name, sign, magnitude) for one in pixels], int)
            if name in ("shear_x", "shear_y", "rotate"):
                # A source position between two pixels may be rounded to either.
                assert (actual == expected).mean() > 0.99, name
            elif name in ("translate_x", "translate_y", "posterize", "solarize", "equalize"):
                np.testing.assert_array_equal(actual, expected, err_msg=name)
            else:  # Pillow blends in floats and truncates the result
                assert np.abs(actual - expected).max() <= 1, name
            if name == "identity":
                np.testing.assert_array_equal(actual, pixels)


def test_images_get_the_operations_drawn_for_them():
    pixels = photos((200, 16, 16, 3), seed=1)
    words = epoch_words(3, AUGMENT, 1, 200)
    drawn = [further_words(words, index)[0] for index in (16, 17)]
    changed = ops.convert_to_numpy(randaugmented(ops.convert_to_tensor(pixels), drawn, 9))
    expected, chosen = pixels.copy(), []
    for word in drawn:
        operations = ops.convert_to_numpy(bits(word, 16, 16)) % len(OPERATIONS)
        signs = ops.convert_to_numpy(bits(word, 0, 1))
        chosen += list(operations)
        for i, (operation, sign) in enumerate(zip(operations, signs, strict=True)):
            expected[i] = by_pillow(expected[i], OPERATIONS[operation], sign, 9)
    assert set(chosen) == set(range(len(OPERATIONS)))
    # Not 1: equalizing may amplify an error of one level.
    different = np.abs(changed.astype(int) - expected) > 8
    assert different.mean() < 0.01
    assert (different.mean((1, 2, 3)) > 0.1).sum() <= 2


def test_jitter_matches_pillows_enhancements():
    pixels = photos((300, 8, 8, 3), seed=2)
    word, _ = further_words(epoch_words(5, AUGMENT, 0, 300), 8)
    changed = ops.convert_to_numpy(jittered(ops.convert_to_tensor(pixels), word, 0.4))
    steps = [ops.convert_to_numpy(bits(word, first, 8)) for first in (0, 8, 16)]
    factors = 0.6 + 0.8 * (np.stack(steps, axis=1) + 0.5) / 256
    assert factors.min() < 0.61
    assert factors.max() > 1.39
    assert abs(factors.mean() - 1) < 0.02
    for before, after, factor in zip(pixels, changed, factors, strict=True):
        image = to_pillow(before)
        for name, strength in zip(("brightness", "contrast", "color"), factor, strict=True):
            image = ENHANCE[name](image).enhance(strength)
        assert np.abs(np.asarray(image).astype(int) - after).max() <= 3


def test_colors_change_after_cropping_and_before_parts_are_hidden():
    pixels = photos((40, 8, 8, 3), seed=3)
    words = epoch_words(4, AUGMENT, 2, 40)
    mean = np.float32([0.25, 0.5, 0.75])

    def augmented(pixels, **options):
        options = {"crop_padding": 0, "flip": False} | options
        images = Images(mean, np.ones_like(mean), **options)
        return ops.convert_to_numpy(images.augment(ops.convert_to_tensor(pixels), words))

    moves, colors = {"crop_padding": 2, "flip": True}, {"jitter": 0.3, "randaugment": 2}
    together = augmented(pixels, **moves, **colors, cutout=4, magnitude=5)
    in_turn = augmented(augmented(pixels, **moves), jitter=0.3)
    in_turn = augmented(augmented(in_turn, randaugment=2, magnitude=5), cutout=4)
    np.testing.assert_array_equal(together, in_turn)
    assert (together != augmented(pixels, **moves, cutout=4)).mean() > 0.3


def test_compiled_code_gives_the_same_images():
    pixels = photos((64, 8, 8, 3), seed=4)
    words = epoch_words(4, AUGMENT, 2, 64)
    mean = np.float32([0.25, 0.5, 0.75])
    images = Images(mean, np.ones_like(mean), 1, True, jitter=0.5, randaugment=2, magnitude=30)
    tensor = ops.convert_to_tensor(pixels)
    expected = images.scale(images.augment(tensor, words))
    actual = images.prepare(tensor, words)
    np.testing.assert_array_equal(ops.convert_to_numpy(actual), ops.convert_to_numpy(expected))
