"""LeNet-5."""

from __future__ import annotations

from typing import Any

import keras

from normbench.archs.options import one_of
from normbench.initializers import HeNormal, LecunNormal
from normbench.norms.norm import Norm

SIDE = 32
"""Height and width that smaller images are padded to."""


def build(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    activation: str,
    pooling: str,
) -> keras.Model:
    """Build LeNet-5 (LeCun et al. 1998, section II.B) as it is built today.

    5×5 convolutions to 6, 16 and 120 channels without padding, the first two followed by 2×2
    pooling, a layer of 84 units and a classifier. Smaller images are padded with zeros to 32×32, as
    the paper centers 28×28 digits in 32×32. Places: ``stem`` after the first convolution, ``mid``
    after the other two, ``head`` in the layer of 84.

    Differences from the paper: every channel of the second convolution sees all 6 input channels
    instead of a selection of 3 to 6 (900 more parameters); pooling layers have no trained factor
    and bias (44 fewer); tanh is not scaled; the classifier is linear with softmax cross-entropy
    instead of distances to fixed codes (850 more). The paper counts 60,000 trainable parameters;
    this network has 61,706.

    Args:
        norm: Makes normalizations, convolutions and fully connected layers.
        input_shape: (H, W, C).
        classes: Number of logits.
        activation: "tanh", as in the paper, or "relu".
        pooling: "average", as in the paper, or "max".

    Returns:
        A model from (N, H, W, C) to logits (N, classes).

    Raises:
        UserError: ``activation`` or ``pooling`` is unknown.
    """
    one_of("activation", activation, ("tanh", "relu"))
    one_of("pooling", pooling, ("average", "max"))
    pool = keras.layers.AveragePooling2D if pooling == "average" else keras.layers.MaxPooling2D
    initializer = LecunNormal() if activation == "tanh" else HeNormal()

    def normalized(x: Any, place: str, name: str) -> Any:
        x = norm(x, place, name=f"{name}_norm")
        return keras.layers.Activation(activation, name=f"{name}_{activation}")(x)

    inputs = keras.Input(input_shape, name="images")
    x = inputs
    paddings = [max(0, SIDE - side) for side in input_shape[:2]]
    if any(paddings):
        edges = tuple((total // 2, total - total // 2) for total in paddings)
        x = keras.layers.ZeroPadding2D(edges, name="padding")(x)
    for index, (filters, place) in enumerate(((6, "stem"), (16, "mid"), (120, "mid")), start=1):
        x = norm.conv(
            filters,
            5,
            padding="valid",
            place=place,
            kernel_initializer=initializer,
            name=f"conv{index}",
        )(x)
        x = normalized(x, place, f"conv{index}")
        if index < 3:
            x = pool(2, name=f"pool{index}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = norm.dense(84, place="head", kernel_initializer=initializer, name="dense")(x)
    x = normalized(x, "head", "dense")
    logits = keras.layers.Dense(
        classes, kernel_initializer=LecunNormal(), dtype="float32", name="logits"
    )(x)
    return keras.Model(inputs, logits, name="lenet")
