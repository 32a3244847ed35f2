import pytest

from normbench.archs.lenet import build
from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model, multiply_adds, parameter_count
from normbench.norms.norm import Norm

PAPER = {"activation": "tanh", "pooling": "average"}


def test_parameters_are_published_ones_except_for_documented_changes():
    model = build(Norm(None), (32, 32, 1), 10, **PAPER)
    # LeCun et al. 1998, section II.B: C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164.
    published = {"conv1": 156, "conv2": 1516, "conv3": 48120, "dense": 10164}
    ours = {name: model.get_layer(name).count_params() for name in published}
    assert ours == published | {"conv2": 1516 + 900}
    poolings, classifier = 12 + 32, 850
    assert parameter_count(model) - 900 - classifier + poolings == 60_000
    assert parameter_count(model) == 61_706


def test_multiply_adds_are_the_papers_connections_minus_biases():
    # C1's 122,304 connections include 28·28·6 of biases; C3 connects all 6·16 pairs of maps.
    model = build(Norm(None), (32, 32, 1), 10, **PAPER)
    assert multiply_adds(model) == (122_304 - 28 * 28 * 6) + 240_000 + 48_000 + 10_080 + 840


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (31, 20, 3), (32, 32, 3), (64, 64, 3)])
def test_output_is_one_logit_per_class(shape):
    model = build(Norm(None), shape, 7, activation="relu", pooling="max")
    assert model.output_shape == (None, 7)


def test_large_images_are_accepted(zero_weights):
    assert build(Norm(None), (224, 224, 3), 7, **PAPER).output_shape == (None, 7)


def test_digits_are_padded_to_32_by_32():
    model = build(Norm(None), (28, 28, 1), 10, **PAPER)
    assert model.get_layer("padding").padding == ((2, 2), (2, 2))
    assert model.get_layer("conv3").output.shape == (None, 1, 1, 120)


def test_groups_must_divide_the_channels():
    with pytest.raises(UserError, match="groups=8 does not divide the 6 channels of conv1_norm"):
        build_model(compose(["arch=lenet", "norm=gn"]), (28, 28, 1), 10)
    build_model(compose(["arch=lenet", "norm=gn", "norm.groups=2"]), (28, 28, 1), 10)


@pytest.mark.parametrize("bad", [{"activation": "than"}, {"pooling": "avg"}])
def test_invalid_options_are_refused(bad):
    with pytest.raises(UserError, match=r"unknown arch\.\w+ '\w+': did you mean"):
        build(Norm(None), (28, 28, 1), 10, **{**PAPER, **bad})


def test_saves_and_loads(reloaded):
    reloaded(build_model(compose(["arch=lenet", "norm=bn_ws"]), (28, 28, 1), 10))
