"""A network's costs, against counts made by hand."""

import keras
import pytest

from normbench.archs.resnet_small import build
from normbench.config import compose
from normbench.network import build_model, layer_costs, multiply_adds, parameter_count
from normbench.norms import WeightStandardization
from normbench.norms.norm import Norm
from tests.marks import slow

L = keras.layers


def model_of(*layers, shape=(8, 6, 4)):
    inputs = x = keras.Input(shape, name="images")
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (L.Conv2D(5, 3, padding="same"), 8 * 6 * 3 * 3 * 4 * 5),
        (L.Conv2D(5, 3), 6 * 4 * 3 * 3 * 4 * 5),
        (L.Conv2D(5, (1, 3), strides=2, padding="same"), 4 * 3 * 3 * 4 * 5),
        (L.Conv2D(6, 3, groups=2, padding="same"), 8 * 6 * 3 * 3 * 2 * 6),
        (L.DepthwiseConv2D(3, padding="same", depth_multiplier=2), 8 * 6 * 3 * 3 * 4 * 2),
        (L.SeparableConv2D(5, 3, padding="same"), 8 * 6 * (3 * 3 * 4 + 4 * 5)),
        (L.Conv2DTranspose(5, 2, strides=2), 8 * 6 * 2 * 2 * 4 * 5),
        (L.Dense(3), 8 * 6 * 4 * 3),
        (L.MaxPooling2D(2), 0),
        (L.BatchNormalization(), 0),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_multiply_adds_match_counts_by_hand(layer, count):
    assert multiply_adds(model_of(layer)) == count


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_parametrizations_do_not_change_multiply_adds(groups):
    def convolutions(parametrization):
        norm = Norm(None, parametrization)
        return model_of(
            norm.conv(6, 3, place=None, groups=groups, name="conv"),
            norm.depthwise_conv(3, place=None, name="depthwise"),
            norm.dense(5, place=None, name="dense"),
        )

    plain, parametrized = convolutions(None), convolutions(WeightStandardization)
    assert multiply_adds(plain) == multiply_adds(parametrized) > 0
    assert [cost.parametrization for cost in layer_costs(plain)] == [None] * 4
    assert [cost.parametrization for cost in layer_costs(parametrized)] == [
        None,
        *["WeightStandardization"] * 3,
    ]


def test_resnet20_has_the_published_41_million_multiply_adds():
    model = build(Norm(None), (32, 32, 3), 10, depth=20, width=16)
    shortcuts = 16 * 16 * 16 * 32 + 8 * 8 * 32 * 64  # the published network pads with zeros instead
    assert round((multiply_adds(model) - shortcuts) / 1e6) == 41


def test_layers_are_listed_branch_by_branch_from_images_to_logits():
    model = build(Norm(None), (8, 8, 1), 10, depth=8, width=4)
    costs = layer_costs(model)
    names = [cost.name for cost in costs]
    assert sorted(names) == sorted(layer.name for layer in model.layers)
    start = names.index("stage2_block1_conv1")
    assert [name.removeprefix("stage2_block1_") for name in names[start : start + 6]] == [
        *("conv1", "relu1", "conv2", "conv0", "add", "relu2")
    ]
    seen = set()
    for cost in costs:
        assert seen.issuperset(cost.inputs)
        seen.add(cost.name)
    add = next(cost for cost in costs if cost.name == "stage2_block1_add")
    assert add.inputs == ("stage2_block1_conv2", "stage2_block1_conv0")


def test_only_trained_parameters_count():
    model = build_model(compose(["arch=resnet8", "norm=bn_ws"]), (8, 8, 1), 10)
    costs = layer_costs(model)
    assert sum(cost.parameters for cost in costs) == parameter_count(model)
    moving = next(cost for cost in costs if cost.name == "stem_norm")
    assert moving.parameters == 2 * 16
    model.get_layer("stem_conv").trainable = False
    assert sum(cost.parameters for cost in layer_costs(model)) == parameter_count(model)


def test_layer_used_twice_costs_twice_but_counts_parameters_once():
    layer = L.Conv2D(4, 1, use_bias=False)
    model = model_of(layer, L.ReLU(), layer)
    assert multiply_adds(model) == 2 * 8 * 6 * 4 * 4
    assert [cost.parameters for cost in layer_costs(model)] == [0, 16, 0, 0]


def test_nested_networks_count():
    inner = model_of(L.Conv2D(4, 1, use_bias=False))
    assert multiply_adds(model_of(inner)) == 8 * 6 * 4 * 4


def test_all_outputs_count():
    inputs = keras.Input((4, 4, 2))
    x = L.Conv2D(2, 1, use_bias=False)(inputs)
    model = keras.Model(inputs, [L.Flatten()(x), L.Conv2D(3, 1, use_bias=False)(x)])
    assert multiply_adds(model) == 4 * 4 * (2 * 2 + 2 * 3)


def test_places_are_those_requested_by_the_network():
    model = build_model(compose(["arch=resnet8", "norm=xbn"]), (8, 8, 1), 10)
    kinds = {(cost.place, cost.kind) for cost in layer_costs(model) if cost.place}
    assert kinds == {
        ("stem", "BatchNormalization"),
        ("mid", "GroupNormalization"),
        ("post", "BatchNormalization"),
        ("shortcut", "BatchNormalization"),
    }


def test_descriptions_name_the_options_that_distinguish_layers():
    model = model_of(
        L.Conv2D(4, (3, 5), strides=2, groups=2, padding="same"),
        L.ReLU(6.0),
        L.MaxPooling2D(3, 2, padding="same"),
        L.Dropout(0.25),
        L.Activation("sigmoid"),
    )
    assert [cost.about for cost in layer_costs(model)] == [
        *("", "3×5 /2 2 groups", "at most 6", "3×3 /2", "rate 0.25", "sigmoid")
    ]


def test_bytes_depend_on_the_compute_dtype():
    whole = layer_costs(model_of(L.Conv2D(4, 1), L.ReLU(), L.Flatten(), L.Dense(3)))
    assert [cost.activation_bytes for cost in whole] == [4 * 192] * 4 + [4 * 3]
    half = layer_costs(
        model_of(L.Conv2D(4, 1, dtype="mixed_bfloat16"), L.Dense(3, dtype="float32"))
    )
    assert [cost.activation_bytes for cost in half] == [4 * 192, 2 * 192, 4 * 48 * 3]


def test_kept_bytes_are_what_the_backward_pass_needs():
    inputs = keras.Input((4, 4, 2), name="images")
    x = L.Conv2D(2, 1, name="conv")(inputs)
    x = L.BatchNormalization(name="norm")(x)
    y = L.ReLU(name="relu")(x)
    x = L.Add(name="add")([y, x])
    x = L.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, L.Dense(3, name="logits")(x))
    kept = {cost.name for cost in layer_costs(model) if cost.kept_bytes}
    # Convolutions and normalizations need their inputs, a ReLU its output, an addition nothing.
    assert kept == {"images", "conv", "relu", "pool"}
    assert all(cost.kept_bytes in (0, cost.activation_bytes) for cost in layer_costs(model))


def test_images_of_unknown_size_are_refused():
    inputs = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="unknown size"):
        multiply_adds(keras.Model(inputs, L.Conv2D(2, 1)(inputs)))


def test_loaded_network_costs_the_same(reloaded):
    model = build_model(compose(["arch=resnet8", "norm=gn_ws"]), (8, 8, 1), 10)

    def costs(of):
        return [(cost.name, cost.parameters, cost.multiply_adds) for cost in layer_costs(of)]

    assert costs(reloaded(model)) == costs(model)


def kept_by_tensorflow(model, batch):
    """Bytes that the graph of a training step hands from its forward to its backward pass."""
    import tensorflow as tf

    def source(tensor):
        """The tensor whose memory this one shares."""
        shares = {"ExpandDims", "Identity", "IdentityN", "Reshape", "Squeeze", "StridedSlice"}
        while tensor.op.type in shares and tensor.op.inputs:
            source_tensor = tensor.op.inputs[
                tensor.value_index if tensor.op.type == "IdentityN" else 0
            ]
            if source_tensor.shape.num_elements() != tensor.shape.num_elements():
                break
            tensor = source_tensor
        return tensor

    @tf.function
    def loss(images):
        logits = model(images, training=True)
        return tf.reduce_mean(tf.reduce_logsumexp(logits, axis=-1))

    traced = loss.get_concrete_function(tf.zeros((batch, *model.input_shape[1:])))
    forward, _ = traced._delayed_rewrite_functions.forward_backward(1)
    kept = {source(tensor).ref(): tensor for tensor in forward.graph.outputs}

    return sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in kept.values())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="reads TensorFlow's graphs")
@pytest.mark.parametrize(
    "overrides",
    [
        ["arch=resnet8", "norm=none"],
        slow(["arch=resnet8", "norm=bn"]),
        slow(["arch=resnet8", "norm=gn_ws"]),
        ["arch=resnet50", "arch.width=8", "arch.blocks=[1,1]", "norm=xbn"],
        slow(["arch=resnet50", "arch.width=8", "arch.blocks=[2,1]", "norm=xbn"]),
        slow(["arch=mobilenet_v2", "arch.alpha=0.1", "norm=bn"]),
    ],
    ids=" ".join,
)
def test_kept_bytes_match_what_tensorflow_keeps(overrides):
    model = build_model(compose(overrides), (32, 32, 3), 10)
    an_image = (kept_by_tensorflow(model, 8) - kept_by_tensorflow(model, 4)) / 4
    estimate = sum(cost.kept_bytes for cost in layer_costs(model))
    # The rest is the loss and the statistics of each normalization.
    assert estimate == pytest.approx(an_image, rel=0.02)
