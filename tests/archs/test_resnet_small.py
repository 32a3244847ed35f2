import keras
import numpy as np
import pytest

from normbench.archs.resnet_small import build
from normbench.errors import UserError
from normbench.norms.norm import Norm
from tests.marks import slow


# He et al. 2016, table 6: 0.27, 0.46 and 0.85 M parameters with zero-padded shortcuts. Ours are
# convolutions, which add 512 + 2,048 weights and 192 parameters of their normalizations.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), slow(32, 0.46), slow(56, 0.85)])
def test_parameter_counts_are_the_published_ones(depth, millions):
    from functools import partial

    from normbench.norms import BatchNormalization

    model = build(Norm(partial(BatchNormalization)), (32, 32, 3), 10, depth=depth, width=16)
    trained = sum(int(v.value.shape.num_elements()) for v in model.trainable_variables)
    padded = trained - 16 * 32 - 32 * 64 - 2 * (32 + 64)
    assert round(padded / 1e6, 2) == millions


def test_papers_network_has_the_exact_parameter_count():
    from functools import partial

    from normbench.norms import BatchNormalization

    model = build(
        Norm(partial(BatchNormalization)), (32, 32, 3), 10, depth=20, width=16, shortcut="zeros"
    )
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    # 3 stages of 6 convolutions, the stem, the linear layer; scale and shift of 19 normalizations.
    kernels = 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2) + 64 * 10 + 10
    assert trained == kernels + 2 * (7 * 16 + 6 * 32 + 6 * 64)


def at_first_halving(model, layer, images):
    """Return the output of a layer of the second stage, and the inputs of that stage."""
    stage_input = model.get_layer("stage1_block1_relu2").output
    values = keras.Model(model.inputs, [stage_input, model.get_layer(layer).output])(images)
    return [keras.ops.convert_to_numpy(value) for value in values]


@pytest.mark.parametrize(("padding", "first"), [("same", 1), ("symmetric", 0)])
def test_padding_decides_which_positions_a_halving_convolution_is_centered_on(padding, first):
    model = build(Norm(None), (8, 8, 3), 10, depth=8, width=4, padding=padding)
    kernel = np.zeros((3, 3, 4, 8), np.float32)
    kernel[1, 1, :, :4] = np.eye(4)  # only the center of the kernel
    model.get_layer("stage2_block1_conv1").kernel.assign(kernel)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    before, after = at_first_halving(model, "stage2_block1_conv1", images)
    np.testing.assert_allclose(after[..., :4], before[:, first::2, first::2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 9, 1)])
def test_zero_padded_shortcut_takes_every_second_position(shape):
    options = {"padding": "symmetric", "shortcut": "zeros"}
    model = build(Norm(None), shape, 10, depth=8, width=4, **options)
    last = model.get_layer("stage2_block1_conv2")
    last.kernel.assign(np.zeros(last.kernel.shape))
    last.bias.assign(np.zeros(last.bias.shape))
    images = np.random.default_rng(1).normal(size=(2, *shape)).astype("float32")
    before, after = at_first_halving(model, "stage2_block1_relu2", images)
    np.testing.assert_array_equal(after[..., :4], before[:, ::2, ::2])
    np.testing.assert_array_equal(after[..., 4:], 0)


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (17, 31, 3)])
def test_output_is_one_logit_per_class(shape):
    model = build(Norm(None), shape, 7, depth=8, width=4)
    assert model.output_shape == (None, 7)


def test_convolutions_have_a_bias_only_without_normalization():
    from normbench.norms import GroupNormalization

    def biases(model):
        return [v.path for v in model.variables if v.path.endswith("conv1/bias")]

    assert biases(build(Norm(None), (8, 8, 1), 10, depth=8, width=4))
    norm = Norm(lambda name: GroupNormalization(2, name=name))
    assert not biases(build(norm, (8, 8, 1), 10, depth=8, width=4))


@pytest.mark.parametrize(
    "bad",
    [
        {"depth": 9, "width": 4},
        {"depth": 2, "width": 4},
        {"depth": 8, "width": 0},
        {"depth": 8, "width": 4, "padding": "valid"},
        {"depth": 8, "width": 4, "shortcut": "zero"},
    ],
)
def test_invalid_shapes_are_refused(bad):
    with pytest.raises(UserError, match=r"arch\."):
        build(Norm(None), (8, 8, 1), 10, **bad)
