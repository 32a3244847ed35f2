"""The fully connected sigmoid network of the Batch Normalization paper."""

from __future__ import annotations

import keras

from normbench.archs.options import above_zero, at_least, not_too_deep
from normbench.initializers import Normal
from normbench.norms.norm import Norm


def build(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    layers: int,
    units: int,
    deviation: float,
) -> keras.Model:
    """Build a network of fully connected sigmoid layers (Ioffe & Szegedy 2015, section 4.1).

    The paper has three layers of 100 units and normalizes each before its sigmoid. It plots the
    input of a unit of the last hidden sigmoid, which is ``hidden3_sigmoid`` with three layers.
    Places: ``stem`` in the first layer, ``head`` in the last, ``mid`` in between.

    Args:
        norm: Makes normalizations and fully connected layers.
        input_shape: (H, W, C).
        classes: Number of logits.
        layers: Number of hidden layers.
        units: Number of units in each hidden layer.
        deviation: Standard deviation of the initial weights; biases start at 0.

    Returns:
        A model from (N, H, W, C) to logits (N, classes).

    Raises:
        UserError: ``layers`` or ``units`` is below 1, or ``deviation`` is not positive.
    """
    at_least("layers", layers, 1)
    not_too_deep("layers", layers)
    at_least("units", units, 1)
    above_zero("deviation", deviation)
    inputs = keras.Input(input_shape, name="images")
    x = keras.layers.Flatten(name="flatten")(inputs)
    for index in range(1, layers + 1):
        place = "stem" if index == 1 else "head" if index == layers else "mid"
        name = f"hidden{index}"
        x = norm.dense(
            units, place=place, kernel_initializer=Normal(deviation), name=f"{name}_dense"
        )(x)
        x = norm(x, place, name=f"{name}_norm")
        x = keras.layers.Activation("sigmoid", name=f"{name}_sigmoid")(x)
    logits = keras.layers.Dense(
        classes, kernel_initializer=Normal(deviation), dtype="float32", name="logits"
    )(x)
    return keras.Model(inputs, logits, name="mlp_sigmoid")
