"""Pre-activation residual networks."""

import pytest

from normbench.archs.resnet_v2 import build
from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model, layer_costs, parameter_count
from normbench.norms.norm import Norm
from tests.marks import slow

SMALL = {"depth": 11, "block": "bottleneck", "width": 8}


def small(shape=(32, 32, 3), **options):
    return build(Norm(None), shape, 10, **{**SMALL, **options})


# He et al. 2016b, table 4 (arXiv 1603.05027): 1.7 M parameters each.
@pytest.mark.parametrize("options", [slow(()), ("arch.depth=110", "arch.block=basic")])
def test_parameter_counts_are_the_published_ones(options, zero_weights):
    model = build_model(compose(["arch=resnet_v2", *options]), (32, 32, 3), 10)
    assert round(parameter_count(model) / 1e6, 1) == 1.7


@pytest.mark.parametrize(("depth", "block"), [(29, "bottleneck"), (20, "basic")])
def test_depth_counts_the_layers_with_weights(depth, block):
    layers = small(depth=depth, block=block).layers
    weighted = [layer for layer in layers if layer.trainable_variables]
    shortcuts = [layer for layer in weighted if layer.name.endswith("conv0")]
    assert len(weighted) - len(shortcuts) == depth


@pytest.mark.parametrize(("side", "last"), [(28, 7), (32, 8), (224, 56)])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_output_is_one_logit_per_class(side, last, block):
    depth = 8 if block == "basic" else 11
    model = small((side, side, 1), depth=depth, block=block)
    assert model.output_shape == (None, 10)
    assert model.get_layer("head_relu").output.shape[1:3] == (last, last)


def test_sum_of_a_block_is_not_normalized():
    costs = {
        cost.name: cost
        for cost in layer_costs(
            build_model(compose(["arch=resnet_v2", "arch.depth=20", "norm=bn"]), (32, 32, 3), 10)
        )
    }
    # A block that keeps the shape adds its input; one that changes it adds a 1×1 convolution of its
    # input after normalization and ReLU.
    assert costs["stage1_block2_add"].inputs == ("stage1_block2_conv3", "stage1_block1_add")
    assert costs["stage2_block1_add"].inputs == ("stage2_block1_conv3", "stage2_block1_conv0")
    assert costs["stage2_block1_conv0"].inputs == ("stage2_block1_relu1",)
    assert costs["stage2_block1_conv1"].inputs == ("stage2_block1_relu1",)
    assert costs["stage2_block1_relu1"].inputs == ("stage2_block1_norm1",)
    assert "shortcut" not in {cost.place for cost in costs.values()}


def test_places_are_named_by_what_the_normalization_follows():
    model = build_model(compose(["arch=resnet_v2", "arch.depth=20", "norm=bn"]), (32, 32, 3), 10)
    places = {cost.name: cost.place for cost in layer_costs(model) if cost.place}
    assert places["stage1_block1_norm1"] == "stem"
    for block in ("stage1_block2", "stage2_block1", "stage3_block2"):
        assert [places[f"{block}_norm{n}"] for n in (1, 2, 3)] == ["post", "pre", "mid"]
    assert places["head_norm"] == "head"
    assert len(places) == 6 * 3 + 1


@pytest.mark.parametrize("place", ["pre", "mid", "post"])
def test_xbn_replaces_one_normalization_per_block(place):
    overrides = ["arch=resnet_v2", "arch.depth=20", "norm=xbn", f"norm.place={place}"]
    costs = layer_costs(build_model(compose(overrides), (32, 32, 3), 10))
    assert {cost.place for cost in costs if cost.kind == "GroupNormalization"} == {place}


def test_convolutions_have_a_bias_only_without_normalization():
    def biases(norm):
        overrides = ["arch=resnet_v2", "arch.depth=11", "arch.width=8", f"norm={norm}"]
        model = build_model(compose(overrides), (8, 8, 1), 10)
        return {layer.name for layer in model.layers if getattr(layer, "use_bias", False)}

    assert biases("bn") == {"logits"}
    without = biases("none")
    assert {"stem_conv", "stage1_block1_conv3", "stage3_block1_conv3"} <= without
    assert not [
        name for name in without if name.endswith("conv0")
    ]  # the shortcut's sum already has one


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"depth": 111}, r"arch.depth must be 9n \+ 2 \(11, 20, 29, …\)"),
        ({"depth": 2}, "arch.depth"),
        ({"depth": 165, "block": "basic"}, r"arch.depth must be 6n \+ 2 \(8, 14, 20, …\)"),
        ({"block": "bottlenek"}, "did you mean 'bottleneck'"),
        ({"width": 0}, "arch.width must be at least 1"),
    ],
)
def test_invalid_options_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        small(**bad)


def test_small_images_are_refused():
    with pytest.raises(UserError, match="must be at least 3×3, these are 2×2"):
        small((2, 2, 1))


def test_saves_and_loads(reloaded):
    reloaded(small())
