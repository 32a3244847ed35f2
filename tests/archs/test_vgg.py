import pytest

from normbench.archs.vgg import build
from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model, multiply_adds, parameter_count
from normbench.norms.norm import Norm

FULL = {"head": "full", "units": 4096, "dropout": 0.5, "width": 64}
SMALL = {"depth": 16, "width": 8, "head": "small", "units": 8, "dropout": 0.0}


# Simonyan & Zisserman 2015, table 2: 133, 133, 138 and 144 M parameters (A, B, D, E). He et al.
# 2016, section 3.3 and 4.1: 15.3 and 19.6 G multiply-adds for the last two, the first without the
# fully connected layers' 0.12 G.
@pytest.mark.parametrize(
    ("depth", "millions", "parameters"),
    [
        (11, 133, 132_863_336),
        (13, 133, 133_047_848),
        (16, 138, 138_357_544),
        (19, 144, 143_667_240),
    ],
)
@pytest.mark.slow
def test_costs_are_the_published_ones(depth, millions, parameters, zero_weights):
    model = build(Norm(None), (224, 224, 3), 1000, depth=depth, **FULL)
    assert parameter_count(model) == parameters
    assert round(parameters / 1e6) == millions
    billions = {16: 15.3, 19: 19.6}.get(depth)
    if billions:
        dense = 512 * 7 * 7 * 4096 + 4096 * 4096 + 4096 * 1000 if depth == 16 else 0
        assert round((multiply_adds(model) - dense) / 1e9, 1) == billions


def test_most_parameters_are_in_the_head(zero_weights):
    model = build(Norm(None), (224, 224, 3), 1000, depth=16, **{**FULL, "units": 8})
    convolutions = parameter_count(model) - (25_088 * 8 + 8) - (8 * 8 + 8) - (8 * 1000 + 1000)
    assert convolutions == 138_357_544 - (25_088 + 1 + 4096 + 1) * 4096 - 4097 * 1000


def test_small_head_gives_the_network_commonly_used_for_cifar(zero_weights):
    # The network in circulation has 14,728,266 parameters with BN, including a bias for each of the
    # 4,224 channels, which BN cancels.
    model = build_model(compose(["arch=vgg16", "norm=bn"]), (32, 32, 3), 10)
    assert parameter_count(model) == 14_728_266 - 4_224


@pytest.mark.parametrize("side", [17, 28, 32, 224])
def test_output_is_one_logit_per_class(side):
    model = build(Norm(None), (side, side, 3), 7, **SMALL)
    assert model.output_shape == (None, 7)
    assert model.get_layer("stage5_pool").output.shape[1] == {224: 7}.get(side, 1)


def test_dropout_is_optional():
    def dropouts(**options):
        model = build(Norm(None), (32, 32, 3), 10, **{**SMALL, **options})
        return [layer.name for layer in model.layers if "dropout" in layer.name]

    assert dropouts() == []
    assert dropouts(dropout=0.5) == ["dropout"]
    assert dropouts(dropout=0.5, head="full") == ["dropout1", "dropout2"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"depth": 12}, "arch.depth must be one of 11, 13, 16, 19, got 12"),
        ({"head": "smal"}, "unknown arch.head 'smal': did you mean 'small'"),
        ({"width": 0}, "arch.width must be at least 1"),
        ({"units": 0}, "arch.units must be at least 1"),
        ({"dropout": 1.0}, r"arch.dropout must be in \[0, 1\)"),
    ],
)
def test_invalid_options_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        build(Norm(None), (32, 32, 3), 10, **{**SMALL, **bad})


def test_small_images_are_refused():
    with pytest.raises(UserError, match="must be at least 17×17, these are 16×32"):
        build(Norm(None), (16, 32, 3), 10, **SMALL)


def test_saves_and_loads(reloaded):
    overrides = ["arch=vgg11", "arch.width=8", "arch.head=full", "arch.units=8", "norm=gn_ws"]
    reloaded(build_model(compose([*overrides, "arch.dropout=0.5"]), (28, 28, 1), 10))
