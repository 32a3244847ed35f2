import pytest

from normbench.archs.inception import MODULES
from normbench.archs.inception import build_bn_inception as build
from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model, multiply_adds, parameter_count
from normbench.norms.norm import Norm
from tests.marks import slow

LARGE = {
    "stem": "imagenet",
    "separable": False,
    "width": 1.0,
    "activation": "relu",
    "lrn": False,
    "dropout": 0.4,
    "auxiliary_weight": 0.0,
    "auxiliary_dropout": 0.7,
}
SMALL = {**LARGE, "stem": "small", "width": 0.125}


def test_parameters_match_the_network_in_circulation_not_the_paper(zero_weights):
    model = build_model(compose(["arch=bn_inception", "arch.stem=imagenet"]), (224, 224, 3), 1000)
    channels = sum(
        layer.filters for layer in model.layers if layer.name.endswith("_conv") and layer.filters
    )
    # The network in circulation has 11,295,240, with one bias per channel, which BN cancels.
    # Ioffe & Szegedy 2015, section 4.2, state 13.6 M.
    assert parameter_count(model) == 11_285_224
    assert parameter_count(model) + channels == 11_295_240


def test_multiply_adds_match_the_network_in_circulation(zero_weights):
    model = build(Norm(None), (224, 224, 3), 1000, **LARGE)
    assert multiply_adds(model) / 1e9 == pytest.approx(2.0, abs=0.05)


def test_feature_map_shapes_match_the_papers_figure(zero_weights):
    model = build(Norm(None), (224, 224, 3), 1000, **LARGE)
    sizes = {
        module.name: model.get_layer(f"inception{module.name}").output.shape[1:]
        for module in MODULES
    }
    assert sizes == {
        "3a": (28, 28, 256),
        "3b": (28, 28, 320),
        "3c": (14, 14, 576),
        "4a": (14, 14, 576),
        "4b": (14, 14, 576),
        "4c": (14, 14, 608),
        "4d": (14, 14, 608),
        "4e": (7, 7, 1056),
        "5a": (7, 7, 1024),
        "5b": (7, 7, 1024),
    }


def test_separable_first_convolution_has_depth_multiplier_8(zero_weights):
    model = build(Norm(None), (224, 224, 3), 10, **{**LARGE, "separable": True})
    depthwise = model.get_layer("stem1_depthwise")
    assert depthwise.kernel.shape == (7, 7, 3, 8)
    assert depthwise.output.shape == (None, 112, 112, 24)
    assert model.get_layer("stem1_conv").kernel.shape == (1, 1, 24, 64)
    assert not depthwise.use_bias


@pytest.mark.parametrize(
    ("side", "stem", "last"),
    [
        (28, "small", 7),
        slow(32, "small", 8),
        slow(28, "pooled", 4),
        (32, "pooled", 4),
        (224, "imagenet", 7),
        (32, "imagenet", 1),
    ],
)
def test_output_is_one_logit_per_class(side, stem, last):
    model = build(Norm(None), (side, side, 3), 7, **{**SMALL, "stem": stem})
    assert model.output_shape == (None, 7)
    assert model.get_layer("inception5b").output.shape[1:3] == (last, last)


def test_variants_of_the_paper():
    def kinds(*overrides):
        config = compose(["arch=bn_inception", "arch.width=0.125", *overrides])
        model = build_model(config, (28, 28, 1), 10)
        activations = {
            layer.activation.__name__
            for layer in model.layers
            if type(layer).__name__ == "Activation"
        }
        return activations, {type(layer).__name__ for layer in model.layers}

    inception = kinds("norm=none", "arch.lrn=true")
    assert inception[0] == {"relu"}
    assert {"LocalResponseNormalization", "Dropout"} <= inception[1]
    assert "BatchNormalization" not in inception[1]
    x5_sigmoid = kinds("norm=bn", "arch.dropout=0", "arch.activation=sigmoid")
    assert x5_sigmoid[0] == {"sigmoid"}
    assert "BatchNormalization" in x5_sigmoid[1]
    assert not {"LocalResponseNormalization", "Dropout"} & x5_sigmoid[1]


def test_auxiliary_classifiers_are_optional():
    model = build(Norm(None), (32, 32, 3), 10, **{**SMALL, "auxiliary_weight": 0.3})
    assert model.output_names == ["logits", "auxiliary1_logits", "auxiliary2_logits"]
    assert model.get_layer("auxiliary1_pool").output.shape[1:3] == (4, 4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"stem": "large"}, "unknown arch.stem 'large'"),
        ({"activation": "relu6"}, "unknown arch.activation 'relu6': did you mean 'relu'"),
        ({"width": -1.0}, "arch.width must be above 0"),
        ({"auxiliary_weight": 0.3, "stem": "imagenet"}, "arch=bn_inception averages 5×5 positions"),
    ],
)
def test_invalid_options_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        build(Norm(None), (32, 32, 3), 10, **{**SMALL, **bad})


@pytest.mark.slow  # the default suite saves GoogLeNet, which has the same modules
def test_saves_and_loads(reloaded):
    overrides = ["arch.width=0.125", "arch.separable=true", "norm=gn_ws"]
    reloaded(build_model(compose(["arch=bn_inception", *overrides]), (28, 28, 1), 10))
