"""MobileNetV2, against the published counts."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normbench.archs.mobilenet_v2 import build, rounded
from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model, layer_costs, multiply_adds, parameter_count
from normbench.norms.norm import Norm
from tests.marks import slow

SMALL = {"alpha": 0.1, "stem": "small", "first_expansion": False, "dropout": 0.0}


def small(shape=(32, 32, 3), **options):
    return build(Norm(None), shape, 10, **{**SMALL, **options})


# Sandler et al. 2018, table 4 (arXiv 1801.04381): 3.4 M and 300 M, 6.9 M and 585 M. The authors'
# table of trained networks (github.com/tensorflow/models, mobilenet): the others, and 3.47 M and
# 6.06 M for those two.
@pytest.mark.parametrize(
    ("alpha", "parameters", "mega"),
    [
        slow(1.4, 6.06, 582),
        (1.0, 3.47, 300),
        slow(0.75, 2.61, 209),
        slow(0.5, 1.95, 97),
        (0.35, 1.66, 59),
    ],
)
def test_counts_are_the_published_ones(alpha, parameters, mega, zero_weights):
    overrides = ["arch=mobilenet_v2", "arch.stem=imagenet", f"arch.alpha={alpha}"]
    model = build_model(compose(overrides), (224, 224, 3), 1000)
    assert parameter_count(model) / 1e6 == pytest.approx(parameters, rel=0.02)
    assert multiply_adds(model) / 1e6 == pytest.approx(mega, rel=0.02)


def test_parameters_match_other_implementations(zero_weights):
    overrides = ["arch=mobilenet_v2", "arch.stem=imagenet"]
    model = build_model(compose(overrides), (224, 224, 3), 1000)
    assert parameter_count(model) == 3_504_872  # torchvision's
    assert multiply_adds(model) == 300_774_272


@pytest.mark.parametrize(
    ("side", "stem", "last"),
    [(28, "small", 4), (32, "small", 4), (224, "small", 28), (32, "imagenet", 1),
     (28, "imagenet", 1), (224, "imagenet", 7)],
)  # fmt: skip
def test_output_is_one_logit_per_class(side, stem, last):
    model = small((side, side, 1), stem=stem)
    assert model.output_shape == (None, 10)
    assert model.get_layer("head_relu").output.shape[1:3] == (last, last)
    assert model.get_layer("logits").compute_dtype == "float32"


@given(st.floats(0.01, 5000))
def test_channels_are_multiples_of_8_at_most_a_tenth_smaller(channels):
    given_back = rounded(channels)
    assert given_back % 8 == 0
    assert given_back >= 8
    assert given_back >= 0.9 * channels
    assert given_back < channels + 12


def test_alpha_below_1_does_not_scale_the_last_channels():
    def channels(alpha):
        model = small(alpha=alpha)
        names = ("stem_conv", "stage1_block1_project", "stage7_block1_project", "head_conv")
        return [model.get_layer(name).filters for name in names]

    assert channels(0.35) == [16, 8, 112, 1280]
    assert channels(0.1) == [8, 8, 32, 1280]


def test_alpha_above_1_widens_the_last_channels(zero_weights):
    assert small(alpha=1.4).get_layer("head_conv").filters == 1792


def test_first_block_expands_only_if_requested():
    names = [layer.name for layer in small().layers]
    assert "stage1_block1_expand" not in names
    assert "stage2_block1_expand" in names
    first = small(first_expansion=True).get_layer("stage1_block1_expand")
    assert first.filters == 8  # expansion 1 times the channels of the stem


def test_activations_are_capped_at_6_and_projections_are_linear():
    costs = {cost.name: cost for cost in layer_costs(small(alpha=1.0))}
    assert {cost.about for cost in costs.values() if cost.kind == "ReLU"} == {"at most 6"}
    assert costs["stage2_block2_add"].inputs == ("stage2_block2_project", "stage2_block1_project")


def test_blocks_that_keep_the_shape_add_their_input():
    adds = [layer.name for layer in small(alpha=1.0).layers if layer.name.endswith("_add")]
    assert adds == [
        f"stage{stage}_block{block}_add"
        for stage, blocks in ((2, 2), (3, 3), (4, 4), (5, 3), (6, 3))
        for block in range(2, blocks + 1)
    ]


def test_xbn_is_batch_free_only_after_the_depthwise_convolution():
    overrides = ["arch=mobilenet_v2", "arch.alpha=0.35", "norm=xbn", "norm.bfn.groups=16"]
    config = compose(overrides[:3])
    costs = {cost.name: cost for cost in layer_costs(build_model(config, (32, 32, 3), 10))}
    free = [cost for cost in costs.values() if cost.kind == "GroupNormalization"]
    assert len(free) == 17
    assert {costs[cost.inputs[0]].kind for cost in free} == {"DepthwiseConv2D"}
    places = {cost.place for cost in costs.values() if cost.kind == "BatchNormalization"}
    assert places == {"stem", "pre", "post", "head"}
    # The posted network has 16 groups.
    assert build_model(compose(overrides), (32, 32, 3), 10)


def test_classifier_is_a_1x1_convolution_after_dropout():
    costs = {cost.name: cost for cost in layer_costs(small(dropout=0.001))}
    assert costs["dropout"].inputs == ("pool",)
    assert costs["classifier"].inputs == ("dropout",)
    assert costs["classifier"].about == "1×1"
    assert "dropout" not in [layer.name for layer in small().layers]


def test_classifier_kernel_is_initialized_by_fan_in():
    kernel = keras.ops.convert_to_numpy(small().get_layer("classifier").kernel)
    assert np.std(kernel) == pytest.approx(np.sqrt(1 / 1280), rel=0.03)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"alpha": 0.0}, "arch.alpha must be above 0"),
        ({"stem": "big"}, r"unknown arch.stem 'big' \(allowed: imagenet, small\)"),
        ({"dropout": -0.5}, r"arch.dropout must be in \[0, 1\)"),
    ],
)
def test_invalid_options_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        small(**bad)


@pytest.mark.parametrize(("stem", "least"), [("small", 5), ("imagenet", 17)])
def test_small_images_are_refused(stem, least):
    with pytest.raises(UserError, match=f"must be at least {least}×{least}"):
        small((least - 1, least - 1, 3), stem=stem)


def test_saves_and_loads(reloaded):
    reloaded(small(dropout=0.2))
