"""Four-stage residual networks, against the published counts."""

import keras
import numpy as np
import pytest

from normbench.archs.resnet import build
from normbench.components import options_of
from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model, layer_costs, multiply_adds, parameter_count
from normbench.norms.norm import Norm, make_norm
from tests.marks import slow

SMALL = {
    "blocks": [1, 1],
    "block": "bottleneck",
    "width": 8,
    "cardinality": 1,
    "group_width": None,
    "stem": "small",
    "stride_at": "3x3",
    "head": "average",
    "dropout": 0.0,
}


def small(shape=(32, 32, 3), norm=None, **options):
    return build(norm or Norm(None), shape, 10, **{**SMALL, **options})


# The exact parameter counts of torchvision's networks, with the multiply-adds in its documentation.
# Xie et al. 2017, table 1, has 25.0 M and 4.2 G for ResNeXt-50.
@pytest.mark.parametrize(
    ("arch", "parameters", "giga"),
    [
        ("resnet18", 11_689_512, 1.81),
        slow("resnet34", 21_797_672, 3.66),
        ("resnet50", 25_557_032, 4.09),
        slow("resnet101", 44_549_160, 7.80),
        ("resnext50", 25_028_904, 4.23),
    ],
)
def test_counts_are_the_published_ones(arch, parameters, giga, zero_weights):
    config = compose([f"arch={arch}", "arch.stem=imagenet", "norm=bn"])
    model = build_model(config, (224, 224, 3), 1000)
    assert parameter_count(model) == parameters
    assert round(multiply_adds(model) / 1e9, 2) == giga


# He et al. 2016, table 1, which truncates to 0.1 G.
@pytest.mark.parametrize(
    ("arch", "giga"),
    [
        ("resnet18", 1.8),
        slow("resnet34", 3.6),
        ("resnet50", 3.8),
        slow("resnet101", 7.6),
    ],
)
def test_multiply_adds_with_the_papers_stride_are_published_ones(arch, giga, zero_weights):
    config = compose([f"arch={arch}", "arch.stem=imagenet", "arch.stride_at=1x1"])
    count = multiply_adds(build_model(config, (224, 224, 3), 1000))
    assert count / 1e9 == pytest.approx(giga, rel=0.02)


# The networks with a 3×3 stem in circulation for CIFAR-10, with 0.56 and 1.30 G multiply-adds.
@pytest.mark.parametrize(
    ("arch", "parameters", "giga"), [("resnet18", 11_173_962, 0.56), ("resnet50", 23_520_842, 1.30)]
)
def test_default_stem_is_for_small_images(arch, parameters, giga, zero_weights):
    model = build_model(compose([f"arch={arch}"]), (32, 32, 3), 10)
    assert parameter_count(model) == parameters
    assert round(multiply_adds(model) / 1e9, 2) == giga
    assert model.get_layer("stage4_block1_relu").output.shape[1:3] == (4, 4)


def test_posted_network_is_built_as_posted(zero_weights):
    model = build_model(compose(["arch=resnet50_post", "norm=bn"]), (32, 32, 3), 10)
    shapes = {layer.name: layer.output.shape[1:] for layer in model.layers}
    assert shapes["stem_pad"] == (38, 38, 3)
    assert shapes["stem_conv"] == (16, 16, 64)
    assert shapes["stem_pool"] == (7, 7, 64)
    ends = [
        shapes[f"stage{stage}_block{blocks}_relu"] for stage, blocks in enumerate((3, 4, 6, 3), 1)
    ]
    assert ends == [(7, 7, 256), (4, 4, 512), (2, 2, 1024), (1, 1, 2048)]
    assert shapes["stage2_block1_conv1"] == (4, 4, 128)  # the stride is in the first 1×1
    assert shapes["flatten"] == (2048,)
    # ResNet-50's count for 1,000 classes, with 10 logits instead of 1,000.
    assert parameter_count(model) == 25_557_032 - 990 * (2048 + 1)


def test_posted_head_is_initialized_with_he_normal():
    model = small(head="flatten", width=64)
    kernel = keras.ops.convert_to_numpy(model.get_layer("logits").kernel)
    assert kernel.shape[0] == 8 * 8 * 512
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / kernel.shape[0]), rel=0.01)


@pytest.mark.parametrize("side", [28, 32, 224])
@pytest.mark.parametrize("stem", ["small", "imagenet", "padded"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_output_is_one_logit_per_class(side, stem, block):
    model = small((side, side, 1), blocks=[1, 1, 1, 1], width=4, stem=stem, block=block)
    assert model.output_shape == (None, 10)
    assert model.get_layer("logits").compute_dtype == "float32"


@pytest.mark.parametrize(("stem", "side"), [("small", 16), ("imagenet", 4), ("padded", 4)])
def test_stems_halve_the_image_as_often_as_documented(stem, side):
    last = small(stem=stem).get_layer("stage2_block1_relu").output.shape
    assert last == (None, side, side, 8 * 2 * 4)


@pytest.mark.parametrize(("stride_at", "sides"), [("1x1", (16, 16)), ("3x3", (32, 16))])
def test_stride_is_in_the_requested_convolution(stride_at, sides):
    model = small(stride_at=stride_at)
    actual = tuple(model.get_layer(f"stage2_block1_conv{n}").output.shape[1] for n in (1, 2))
    assert actual == sides


def test_cardinality_groups_the_inner_convolution():
    model = small(cardinality=4, group_width=6)
    inner = [model.get_layer(f"stage{stage}_block1_conv2") for stage in (1, 2)]
    assert [(layer.groups, layer.filters) for layer in inner] == [(4, 24), (4, 48)]
    assert small(cardinality=4).get_layer("stage1_block1_conv2").filters == 8


def test_scales_start_at_one():
    model = small(norm=make_norm(compose(["norm=bn"]).norm))
    gammas = [v for v in model.trainable_variables if v.path.endswith("gamma")]
    assert len(gammas) == 1 + 2 * 4
    assert all(np.all(keras.ops.convert_to_numpy(gamma) == 1) for gamma in gammas)


def test_xbn_is_batch_free_only_after_the_inner_convolution():
    overrides = ["arch=resnet50", "arch.width=8", "arch.blocks=[2,1]", "norm=xbn"]
    costs = layer_costs(build_model(compose(overrides), (32, 32, 3), 10))
    free = [cost for cost in costs if cost.kind == "GroupNormalization"]
    assert [cost.inputs for cost in free] == [
        (f"{name}_conv2",) for name in ("stage1_block1", "stage1_block2", "stage2_block1")
    ]
    places = {cost.place for cost in costs if cost.kind == "BatchNormalization"}
    assert places == {"stem", "pre", "post", "shortcut"}


def test_optional_dropout_precedes_the_classifier():
    assert "dropout" not in [layer.name for layer in small().layers]
    model = small(dropout=0.5)
    assert model.get_layer("dropout").rate == 0.5
    assert model.get_layer("logits").input is model.get_layer("dropout").output


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"stem": "imagnet"}, "unknown arch.stem 'imagnet': did you mean 'imagenet'"),
        ({"block": "basc"}, "unknown arch.block 'basc': did you mean 'basic'"),
        ({"stride_at": "2x2"}, "unknown arch.stride_at '2x2'"),
        ({"head": "flaten"}, "unknown arch.head 'flaten': did you mean 'flatten'"),
        ({"blocks": []}, "arch.blocks must name at least one block for each stage, got \\[\\]"),
        ({"blocks": [2, 0]}, "arch.blocks"),
        ({"width": 0}, "arch.width must be at least 1, got 0"),
        ({"cardinality": 0}, "arch.cardinality must be at least 1, got 0"),
        ({"cardinality": 3}, "arch.cardinality=3 does not divide arch.width=8"),
        ({"cardinality": 2, "group_width": 0}, "arch.group_width must be at least 1, got 0"),
        ({"block": "basic", "cardinality": 2}, "for arch.block=bottleneck"),
        ({"dropout": 1.0}, r"arch.dropout must be in \[0, 1\)"),
    ],
)
def test_invalid_options_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        small(**bad)


@pytest.mark.parametrize(("stem", "least"), [("small", 5), ("imagenet", 17), ("padded", 17)])
def test_small_images_are_refused(stem, least):
    options = {"stem": stem, "blocks": [1, 1, 1, 1], "width": 4}
    small((least, least, 1), **options)
    with pytest.raises(UserError, match=f"must be at least {least}×{least}"):
        small((least - 1, 32, 1), **options)


def test_stride_at_can_be_set_on_the_command_line():
    assert compose(["arch=resnet50", "arch.stride_at=1x1"]).arch["stride_at"] == "1x1"
    assert options_of(compose(["arch=resnet50"]).arch)["blocks"] == [3, 4, 6, 3]


@pytest.mark.parametrize("options", [{}, {"stem": "padded", "head": "flatten", "dropout": 0.5}])
def test_saves_and_loads(options, reloaded):
    assert reloaded(small(**options)).name == "resnet"
