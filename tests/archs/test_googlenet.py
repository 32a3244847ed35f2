import pytest

from normbench.archs.inception import build_googlenet as build
from normbench.config import compose
from normbench.errors import UserError
from normbench.network import build_model, layer_costs, multiply_adds, parameter_count
from normbench.norms.norm import Norm
from tests.marks import slow

PUBLISHED = {
    "stem": "imagenet",
    "separable": False,
    "width": 1.0,
    "lrn": True,
    "dropout": 0.4,
    "auxiliary_weight": 0.3,
    "auxiliary_dropout": 0.7,
}
SMALL = {**PUBLISHED, "stem": "small", "width": 0.125, "lrn": False, "auxiliary_weight": 0.0}

# Szegedy et al. 2015, table 1: parameters in units of 1,024 and millions of multiply-adds.
# Two rows contradict the widths in the same table: 4c, 463 instead of 498, and 5a, 1,072 and 54
# instead of 1,018 and 51.
TABLE = {
    "inception3a": (159, 128),
    "inception3b": (380, 304),
    "inception4a": (364, 73),
    "inception4b": (437, 88),
    "inception4c": (463, 100),
    "inception4d": (580, 119),
    "inception4e": (840, 170),
    "inception5a": (1072, 54),
    "inception5b": (1388, 71),
    "logits": (1000, 1.024),
}


def test_costs_match_the_papers_table(zero_weights):
    options = {**PUBLISHED, "separable": True, "auxiliary_weight": 0.0}
    costs = layer_costs(build(Norm(None), (224, 224, 3), 1000, **options))

    def total(*names):
        selected = [cost for cost in costs if cost.name.startswith(names)]
        biases = sum(cost.output_shape[-1] for cost in selected if cost.name.endswith("_conv"))
        return (
            (sum(cost.parameters for cost in selected) - biases) / 1024,
            sum(cost.multiply_adds for cost in selected) / 1e6,
        )

    for name, published in TABLE.items():
        off = 0.08 if name in ("inception4c", "inception5a") else 0.02
        assert total(name) == pytest.approx(published, rel=off), name
    # 2.7 K and 34 M are a separable 7×7 with depth multiplier 8; a plain one has 9.2 K and 118 M.
    assert total("stem1") == pytest.approx((2.7, 34), rel=0.02)
    assert total("stem2", "stem3") == pytest.approx((112, 360), rel=0.02)
    assert sum(cost.multiply_adds for cost in costs) / 1e9 == pytest.approx(1.5, rel=0.01)


def test_parameters_match_the_networks_in_circulation(zero_weights):
    # 6,998,552 without and 13,378,280 with the auxiliary classifiers, in Caffe's and Keras's.
    model = build(Norm(None), (224, 224, 3), 1000, **{**PUBLISHED, "auxiliary_weight": 0.0})
    assert parameter_count(model) == 6_998_552
    assert multiply_adds(model) / 1e9 == pytest.approx(1.58, abs=0.005)
    assert parameter_count(build(Norm(None), (224, 224, 3), 1000, **PUBLISHED)) == 13_378_280


def test_published_network_has_auxiliary_classifiers_lrn_and_dropout(zero_weights):
    model = build(Norm(None), (224, 224, 3), 10, **PUBLISHED)
    assert model.output_names == ["logits", "auxiliary1_logits", "auxiliary2_logits"]
    assert [output.shape for output in model.outputs] == [(None, 10)] * 3
    names = [layer.name for layer in model.layers]
    assert [name for name in names if name.endswith("lrn")] == ["stem1_lrn", "stem3_lrn"]
    dropouts = {name: model.get_layer(name).rate for name in names if name.endswith("dropout")}
    assert dropouts == {"dropout": 0.4, "auxiliary1_dropout": 0.7, "auxiliary2_dropout": 0.7}
    assert model.get_layer("auxiliary1_pool").output.shape == (None, 4, 4, 512)
    assert model.get_layer("inception5b").output.shape == (None, 7, 7, 1024)


def test_optional_parts_can_be_left_out():
    model = build(Norm(None), (32, 32, 3), 10, **{**SMALL, "dropout": 0.0})
    assert model.output_shape == (None, 10)
    assert not [n for n in (x.name for x in model.layers) if "lrn" in n or "dropout" in n]


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


def test_channels_stay_multiples_of_8():
    model = build_model(
        compose(["arch=googlenet", "norm=gn", "arch.width=0.15", "arch.auxiliary_weight=0.3"]),
        (28, 28, 1),
        10,
    )
    convolutions = [layer for layer in model.layers if layer.name.endswith("_conv")]
    assert all(layer.filters % 8 == 0 for layer in convolutions)
    assert len(convolutions) == 3 + 9 * 6 + 2


def test_xbn_is_batch_free_at_mid_places():
    model = build_model(
        compose(["arch=googlenet", "norm=xbn", "arch.width=0.125"]), (32, 32, 3), 10
    )
    free = {
        layer.name.split("_", 1)[1].removesuffix("_norm")
        for layer in model.layers
        if type(layer).__name__ == "GroupNormalization"
    }
    assert free == {"three2", "five2"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"stem": "imagnet"}, "unknown arch.stem 'imagnet': did you mean 'imagenet'"),
        ({"width": 0.0}, "arch.width must be above 0"),
        ({"dropout": -0.1}, r"arch.dropout must be in \[0, 1\)"),
        ({"auxiliary_dropout": 1.0}, r"arch.auxiliary_dropout must be in \[0, 1\)"),
        ({"auxiliary_weight": -0.3}, "arch.auxiliary_weight must be 0 or more"),
        (
            {"auxiliary_weight": 0.3, "stem": "imagenet"},
            "32×32 images have 2×2: use arch.auxiliary_weight=0 or arch.stem=small",
        ),
    ],
)
def test_invalid_options_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        build(Norm(None), (32, 32, 3), 10, **{**SMALL, **bad})


def test_small_images_are_refused():
    with pytest.raises(UserError, match="must be at least 17×17, these are 16×16"):
        build(Norm(None), (16, 16, 3), 10, **{**SMALL, "stem": "imagenet"})


def test_saves_and_loads(reloaded):
    overrides = ["arch.width=0.125", "arch.auxiliary_weight=0.3", "arch.lrn=true", "norm=bn"]
    model = build_model(compose(["arch=googlenet", *overrides]), (28, 28, 1), 10)
    assert len(reloaded(model).outputs) == 3
