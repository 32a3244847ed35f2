"""Wide residual networks, against the published counts."""

import pytest

from normbench.archs.resnet_v2 import build_wide as build
from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model, layer_costs, multiply_adds, parameter_count
from normbench.norms.norm import Norm
from tests.marks import slow

SMALL = {"depth": 10, "widening": 1, "dropout": 0.0}


def small(shape=(32, 32, 3), **options):
    return build(Norm(None), shape, 10, **{**SMALL, **options})


# Zagoruyko & Komodakis 2016, table 4 (arXiv 1605.07146), in millions.
@pytest.mark.parametrize(
    ("depth", "widening", "millions"),
    [(40, 1, 0.6), slow(40, 4, 8.9), (16, 8, 11.0), slow(22, 8, 17.2), slow(28, 10, 36.5)],
)
def test_parameter_counts_are_the_published_ones(depth, widening, millions, zero_weights):
    options = ["arch=wrn28_10", f"arch.depth={depth}", f"arch.widening={widening}"]
    model = build_model(compose(options), (32, 32, 3), 10)
    assert round(parameter_count(model) / 1e6, 1) == millions


def test_wrn_28_10_matches_the_network_in_circulation(zero_weights):
    model = build_model(compose(["arch=wrn28_10"]), (32, 32, 3), 10)
    assert parameter_count(model) == 36_479_194
    assert multiply_adds(model) / 1e9 == pytest.approx(5.2, abs=0.05)


def test_wrn_16_4_is_small(zero_weights):
    model = build_model(compose(["arch=wrn16_4"]), (32, 32, 3), 10)
    assert round(parameter_count(model) / 1e6, 1) == 2.7
    assert len([x for x in model.layers if "conv" in x.name]) == 16


@pytest.mark.parametrize(("side", "last"), [(28, 7), (32, 8), (224, 56)])
def test_output_is_one_logit_per_class(side, last):
    model = small((side, side, 1), depth=16)
    assert model.output_shape == (None, 10)
    assert model.get_layer("head_relu").output.shape[1:3] == (last, last)


def test_dropout_is_between_the_convolutions_of_a_block():
    assert not [layer for layer in small().layers if "dropout" in layer.name]
    costs = {cost.name: cost for cost in layer_costs(small(dropout=0.3, widening=2))}
    dropouts = [name for name in costs if name.endswith("dropout")]
    assert len(dropouts) == 3
    for name in dropouts:
        block = name.removesuffix("_dropout")
        assert costs[name].about == "rate 0.3"
        assert costs[name].inputs == (f"{block}_relu2",)
        assert costs[f"{block}_conv2"].inputs == (name,)


def test_first_stage_has_no_projection_without_widening():
    names = [layer.name for layer in small().layers if layer.name.endswith("conv0")]
    assert names == ["stage2_block1_conv0", "stage3_block1_conv0"]
    assert small(widening=2).get_layer("stage1_block1_conv0").filters == 32


def test_xbn_replaces_the_second_normalization_of_each_block():
    overrides = ["arch=wrn16_4", "arch.widening=1", "norm=xbn"]
    costs = layer_costs(build_model(compose(overrides), (32, 32, 3), 10))
    free = [cost.name for cost in costs if cost.kind == "GroupNormalization"]
    assert free == [f"stage{s}_block{b}_norm2" for s in (1, 2, 3) for b in (1, 2)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"depth": 20}, r"arch.depth must be 6n \+ 4 \(10, 16, 22, 28, …\), got 20"),
        ({"depth": 4}, "arch.depth"),
        ({"widening": 0}, "arch.widening must be at least 1"),
        ({"dropout": 1.0}, r"arch.dropout must be in \[0, 1\)"),
    ],
)
def test_invalid_options_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        small(**bad)


def test_saves_and_loads(reloaded):
    reloaded(small(dropout=0.3))
