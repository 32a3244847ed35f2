"""A network's ``Norm``: the layers that it makes at each place."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from normbench.archs import resnet_small
from normbench.components import options_of, parameters_of, target
from normbench.config import compose, group_options
from normbench.errors import UserError
from normbench.network import build_model
from normbench.norms import (
    BatchNormalization,
    GroupNormalization,
    LayerNormalization,
    WeightStandardization,
)
from normbench.norms.convolution import Conv2D
from normbench.norms.norm import Norm, make_norm
from normbench.norms.weights import ParametrizedConv2D, ParametrizedDepthwiseConv2D
from tests.marks import slow_except_on_jax

SHAPE = (8, 8, 3)


def layers_at(model: keras.Model, ending: str) -> set[str]:
    return {type(layer).__name__ for layer in model.layers if layer.name.endswith(ending)}


def build(*overrides: str, config_dir: Path | None = None) -> keras.Model:
    config = compose(["arch=resnet8", *overrides], config_dir)
    return build_model(config, SHAPE, classes=10)


def test_norm_makes_the_layers_of_each_place() -> None:
    norm = Norm(
        BatchNormalization, WeightStandardization, {"mid": None, "head": LayerNormalization}
    )
    x = keras.Input(SHAPE)
    assert norm(x, "mid", "a") is x
    assert not norm.normalizes("mid")
    assert norm.normalizes("post")
    conv = norm.conv(4, 3, place="post", name="b")
    assert isinstance(conv, ParametrizedConv2D)
    assert not conv.use_bias  # the normalization that follows cancels any bias
    assert norm.conv(4, 3, place="mid", name="c").use_bias
    assert norm.conv(4, 3, place=None, name="d").use_bias
    assert not norm.conv(4, 3, place=None, name="e", use_bias=False).use_bias
    assert isinstance(norm.depthwise_conv(3, place="mid", name="f"), ParametrizedDepthwiseConv2D)
    assert type(Norm(None).conv(4, 3, place="mid", name="g")) is Conv2D
    first, second = (norm.conv(4, 3, place="mid", name=n).parametrization for n in "hi")
    assert first is not second


def test_unknown_places_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown place 'midd': did you mean 'mid'"):
        Norm(None, places={"midd": None})
    with pytest.raises(ValueError, match="unknown place 'stam': did you mean 'stem'"):
        Norm(None)(keras.Input(SHAPE), "stam", "a")


def test_place_missing_from_the_network_is_refused() -> None:
    norm = Norm(BatchNormalization, places={"pre": None})
    resnet_small.build(norm, SHAPE, 10, depth=8, width=8)
    with pytest.raises(ValueError, match=r"never normalizes at the place 'pre' \(it does at: stem"):
        norm.check_used()
    with pytest.raises(UserError, match=r"norm=xbn cannot be built into arch=resnet8.*'pre'"):
        build("norm=xbn", "norm.place=pre")


def test_xbn_puts_its_batch_free_normalization_at_mid_by_default() -> None:
    model = build("norm=xbn")
    assert layers_at(model, "_norm1") == {"GroupNormalization"}
    assert layers_at(model, "_norm2") == {"BatchNormalization"}
    assert layers_at(model, "_norm0") == layers_at(model, "stem_norm") == {"BatchNormalization"}
    model = build("norm=xbn", "norm.place=post", "norm.bfn=ln")
    assert layers_at(model, "_norm1") == {"BatchNormalization"}
    assert layers_at(model, "_norm2") == {"LayerNormalization"}


def test_config_with_places_builds(tmp_path: Path) -> None:
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mixed.yaml").write_text(
        "defaults: [bn]\nplaces: {mid: {norm: gn, groups: 2}, shortcut: none}\n"
    )
    model = build("norm=mixed", "norm/weight=ws", config_dir=tmp_path)
    assert layers_at(model, "_norm1") == {"GroupNormalization"}
    assert layers_at(model, "_norm2") == {"BatchNormalization"}
    assert layers_at(model, "_norm0") == set()
    assert model.get_layer("stage2_block1_norm1").groups == 2
    assert model.get_layer("stage2_block1_conv0").use_bias
    assert not model.get_layer("stage2_block1_conv1").use_bias
    assert isinstance(model.get_layer("stage2_block1_conv1"), ParametrizedConv2D)


@pytest.mark.parametrize("name", slow_except_on_jax(["gn_ws", "xbn"], group_options()["norm"]))
def test_every_norm_file_builds_and_lists_exactly_its_options(name: str) -> None:
    spec = compose([f"norm={name}"]).norm
    assert isinstance(make_norm(spec), Norm)
    if spec["_target_"] is not None:
        layer = target(spec["_target_"])
        options = options_of(spec, "weight", "place", "bfn", "places")
        # axis_name refers to the caller's own program; a run cannot choose it.
        assert set(options) == set(parameters_of(layer)) - {"axis_name"}
        layer(**options)


@pytest.mark.parametrize("name", slow_except_on_jax(["ws"], group_options()["norm/weight"]))
def test_every_weight_file_builds_and_lists_exactly_its_options(name: str) -> None:
    spec = compose([f"norm/weight={name}"]).norm["weight"]
    if spec["_target_"] is None:
        assert name == "none"
        return
    parametrization = target(spec["_target_"])
    assert parametrization(**options_of(spec)).get_config() == options_of(spec)
    model = build(f"norm/weight={name}")
    assert isinstance(model.get_layer("stem_conv"), ParametrizedConv2D)


def test_unknown_layer_options_are_refused() -> None:
    spec = compose(["norm=gn"]).norm
    with pytest.raises(UserError, match="unknown option of norm=gn 'group': did you mean 'groups'"):
        make_norm({**spec, "group": 4})
    with pytest.raises(UserError, match="unknown option of norm/weight=ws 'epsilo'"):
        make_norm({**compose(["norm=gn_ws"]).norm, "weight": weight_with("epsilo")})
    with pytest.raises(UserError, match="unknown option of norm at mid=gn 'group'"):
        make_norm({**spec, "places": {"mid": {**spec, "group": 4}}})
    with pytest.raises(UserError, match="there is no module 'nowhere'"):
        make_norm({**spec, "_target_": "nowhere.Layer"})


def weight_with(option: str) -> dict[str, object]:
    return {**compose(["norm=gn_ws"]).norm["weight"], option: 1}


OUTSIDE = '''
import keras
from normbench.norms import GroupNormalization

class Halved(GroupNormalization):
    """Group Normalization, halved."""

    formula = "y = GN(x)/2"

    def __init__(self, groups=4, factor=0.5, **kwargs):
        super().__init__(groups, **kwargs)
        self.factor = factor

    def call(self, inputs):
        return super().call(inputs) * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}
'''


def test_normalization_from_outside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_norms.py").write_text(OUTSIDE)
    (tmp_path / "conf" / "norm").mkdir(parents=True)
    (tmp_path / "conf" / "norm" / "halved.yaml").write_text(
        "defaults: [{weight: none}, _self_]\n"
        "name: halved\n_target_: my_norms.Halved\ngroups: 4\nfactor: 0.5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = build("norm=halved", "norm.factor=0.25", config_dir=tmp_path / "conf")
    layer = model.get_layer("stem_norm")
    assert type(layer).__name__ == "Halved"
    assert layer.factor == 0.25
    x = np.random.default_rng(0).normal(size=(2, *SHAPE[:2], 16)).astype("f4")
    np.testing.assert_allclose(
        np.asarray(layer(x)), 0.25 * np.asarray(GroupNormalization(4)(x)), atol=1e-6
    )
    with pytest.raises(UserError, match=r"did you mean 'norm\.factor'"):
        compose(["norm=halved", "norm.facto=1"], tmp_path / "conf")


OUTSIDE_WEIGHT = """
from normbench.norms import WeightParametrization

class Times(WeightParametrization):
    formula = "Ŵ = k·W"

    def __init__(self, factor=2.0):
        self.factor = factor

    def of_filters(self, matrix):
        return matrix * self.factor
"""


def test_weight_parametrization_from_outside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_weights.py").write_text(OUTSIDE_WEIGHT)
    (tmp_path / "conf" / "norm" / "weight").mkdir(parents=True)
    (tmp_path / "conf" / "norm" / "weight" / "times.yaml").write_text(
        "name: times\n_target_: my_weights.Times\nfactor: 3.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "conf"
    assert compose(["norm=gn", "norm/weight=times"], folder).norm_name == "gn_times"
    layer = build("norm=gn", "norm/weight=times", config_dir=folder).get_layer("stem_conv")
    assert layer.parametrization.get_config() == {"factor": 3.0}
    x = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype("f4")
    plain = layer.convolution_op(keras.ops.convert_to_tensor(x), layer.kernel)
    np.testing.assert_allclose(np.asarray(layer(x)), 3 * np.asarray(plain), rtol=1e-4, atol=1e-5)
