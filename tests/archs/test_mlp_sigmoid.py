import keras
import pytest

from normbench.archs.mlp_sigmoid import build
from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model, parameter_count
from normbench.norms.norm import Norm

PAPER = {"layers": 3, "units": 100, "deviation": 0.1}


def test_layers_are_the_papers():
    model = build(Norm(None), (28, 28, 1), 10, **PAPER)
    assert model.output_shape == (None, 10)
    assert parameter_count(model) == 785 * 100 + 2 * 101 * 100 + 101 * 10
    sigmoids = [layer.name for layer in model.layers if layer.name.endswith("_sigmoid")]
    assert sigmoids == ["hidden1_sigmoid", "hidden2_sigmoid", "hidden3_sigmoid"]
    assert not any(layer.name.endswith("_norm") for layer in model.layers)


def test_inputs_of_each_sigmoid_are_normalized():
    model = build_model(compose(["arch=mlp_sigmoid", "norm=bn"]), (28, 28, 1), 10)
    for index in (1, 2, 3):
        normalization = model.get_layer(f"hidden{index}_norm")
        assert model.get_layer(f"hidden{index}_sigmoid").input is normalization.output
        assert not model.get_layer(f"hidden{index}_dense").use_bias
    assert [model.get_layer(f"hidden{i}_norm").place for i in (1, 2, 3)] == ["stem", "mid", "head"]


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (224, 224, 3)])
def test_output_is_one_logit_per_class(shape):
    model = build(Norm(None), shape, 7, layers=2, units=4, deviation=0.1)
    assert model.output_shape == (None, 7)


def test_initial_weights_have_the_given_deviation():
    model = build(Norm(None), (28, 28, 1), 10, **{**PAPER, "deviation": 0.02})
    kernel = keras.ops.convert_to_numpy(model.get_layer("hidden1_dense").kernel)
    assert kernel.std() == pytest.approx(0.02, rel=0.02)
    assert abs(kernel.mean()) < 0.001


def test_weight_parametrization_applies_to_its_layers():
    model = build_model(compose(["arch=mlp_sigmoid", "norm=bn_wn"]), (8, 8, 1), 10)
    layer = model.get_layer("hidden2_dense")
    assert type(layer.parametrization).__name__ == "WeightNormalization"


@pytest.mark.parametrize("bad", [{"layers": 0}, {"units": 0}, {"deviation": 0.0}])
def test_invalid_options_are_refused(bad):
    with pytest.raises(UserError, match=rf"arch\.{next(iter(bad))} must be"):
        build(Norm(None), (8, 8, 1), 10, **{**PAPER, **bad})


@pytest.mark.parametrize("norm", ["bn", "none", "bn_ws"])
def test_saves_and_loads(norm, reloaded):
    reloaded(build_model(compose(["arch=mlp_sigmoid", f"norm={norm}"]), (8, 8, 1), 10))
