import keras
import numpy as np
import pytest

from normbench.archs.airbench import (
    PartialIdentity,
    WhiteningConv2D,
    build,
    whitening_filters,
)
from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model, multiply_adds, parameter_count
from normbench.norms.norm import Norm

WHOLE = {
    "widths": [64, 256, 256],
    "width": 1.0,
    "whitening_epsilon": 5e-4,
    "logit_scale": 1 / 9,
}
SMALL = {**WHOLE, "width": 0.125}


def smooth_images(count=40, side=12, channels=3):
    """Images with correlated neighboring pixels and channels and a nonzero mean."""
    noise = np.random.default_rng(0).standard_normal((count, side + 2, side + 2, channels))
    shifted = [noise[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]
    smooth = np.sum(shifted, axis=0)
    return (smooth + 0.5 * smooth[..., :1] + 1).astype(np.float32)


def test_costs_are_the_published_ones():
    norm = ["norm=bn", "norm.momentum=0.6", "norm.epsilon=1e-12", "norm.scale=false"]
    model = build_model(compose(["arch=airbench", *norm]), (32, 32, 3), 10)
    frozen = 2 * 2 * 3 * 24
    # Jordan 2024, section 3.1: 1.97 M parameters, including the frozen kernel.
    assert round((parameter_count(model) + frozen) / 1e6, 2) == 1.97
    # airbench94.py, 9.9 epochs of 48 batches of 1,024: 3.6e14 operations in total. The backward
    # pass costs twice the forward pass; a multiply-add is two operations.
    images = 9.9 * 48 * 1024
    assert 3 * 2 * multiply_adds(model) * images == pytest.approx(3.6e14, rel=0.05)


@pytest.mark.parametrize("side", [25, 28, 32, 224])
def test_output_is_one_logit_per_class(side):
    assert build(Norm(None), (side, side, 3), 7, **SMALL).output_shape == (None, 7)


def test_filters_whiten_patches():
    images = smooth_images()
    filters = whitening_filters(images, 2, 2, 1e-9)
    outputs = keras.ops.convert_to_numpy(keras.ops.conv(images, filters, padding="valid"))
    flat = outputs.reshape(-1, 12).astype(np.float64)
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(12), atol=1e-3)


def test_epsilon_keeps_small_eigenvalues_from_blowing_up():
    images = smooth_images(channels=1)
    images = np.concatenate([images, images], axis=-1)  # half of the eigenvalues are 0
    filters = whitening_filters(images, 2, 2, 1e-2)
    size = np.linalg.norm(filters.reshape(-1, 8), axis=0)
    np.testing.assert_allclose(size[4:], 10, rtol=1e-2)
    assert np.all(np.diff(size) > -1e-3)  # in descending order of eigenvalue


def test_whitening_layer_is_frozen_except_for_its_bias(reloaded):
    model = build(Norm(None), (28, 28, 3), 10, **SMALL)
    layer = model.get_layer("whitening")
    assert [v.name for v in layer.trainable_variables] == ["bias"]
    assert [v.name for v in layer.non_trainable_variables] == ["kernel"]
    before = keras.ops.convert_to_numpy(layer.kernel).copy()
    layer.initialize_from(smooth_images())
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    assert kernel.shape == before.shape == (2, 2, 3, 24)
    assert not np.array_equal(kernel, before)
    np.testing.assert_array_equal(kernel[..., :12], -kernel[..., 12:])
    loaded = reloaded(model).get_layer("whitening")
    assert isinstance(loaded, WhiteningConv2D)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(loaded.kernel), kernel)
    assert [v.name for v in loaded.trainable_variables] == ["bias"]
    assert loaded.epsilon == 5e-4


def test_convolutions_start_as_partial_identities():
    image = np.random.default_rng(0).standard_normal((1, 5, 5, 4)).astype(np.float32)
    for filters in (3, 4, 6):
        kernel = PartialIdentity()((3, 3, 4, filters))
        output = np.asarray(keras.ops.conv(image, kernel, padding="same"))
        passed = min(4, filters)
        np.testing.assert_allclose(output[..., :passed], image[..., :passed], atol=1e-6)
    remaining = np.asarray(PartialIdentity()((3, 3, 64, 256)))[..., 64:]
    assert remaining.std() == pytest.approx(1 / np.sqrt(3 * 9 * 64), rel=0.02)


def test_logits_are_scaled():
    model = build(Norm(None), (28, 28, 1), 10, **SMALL)
    inner = keras.Model(model.input, model.get_layer("classifier").output)
    images = np.random.default_rng(0).standard_normal((2, 28, 28, 1)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(model(images)), np.asarray(inner(images)) / 9, rtol=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"widths": [64, 256]}, "arch.widths must be three"),
        ({"widths": [64, 0, 64]}, "arch.widths must be at least 1"),
        ({"width": 0.0}, "arch.width must be above 0"),
        ({"whitening_epsilon": 0.0}, "arch.whitening_epsilon must be above 0"),
        ({"logit_scale": -1.0}, "arch.logit_scale must be above 0"),
    ],
)
def test_invalid_options_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        build(Norm(None), (28, 28, 1), 10, **{**SMALL, **bad})


def test_small_images_are_refused():
    with pytest.raises(UserError, match="at least 25×25, these are 24×28"):
        build(Norm(None), (24, 28, 1), 10, **SMALL)


def test_wrong_number_of_filters_is_refused():
    with pytest.raises(ValueError, match="whitens 3 channels with 24 filters, not 12"):
        WhiteningConv2D(12, 2, epsilon=1e-3).build((None, 8, 8, 3))


def test_saves_and_loads(reloaded):
    overrides = ["arch.width=0.125", "norm=gn_ws"]
    reloaded(build_model(compose(["arch=airbench", *overrides]), (28, 28, 1), 10))
