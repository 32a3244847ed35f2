# A network of your own: this function, and conf/arch/plain.yaml, which names it.
#   cd examples
#   normbench run --config-dir my_network/conf arch=plain norm=gn batch=16 dataset=digits epochs=5
#   normbench show --config-dir my_network/conf arch=plain norm=gn dataset=digits
"""A plain network of 3×3 convolutions, without shortcuts."""

import keras


def build(norm, input_shape, classes, *, width, depth):
    """Build the network around a normalization.

    Args:
        norm: Makes the convolutions, ``norm.conv(…, place=…)``, and normalizes their outputs,
            ``norm(x, place)``. The place is the position in the network: "stem" is the first
            convolution, "mid" the others.
        input_shape: (H, W, C).
        classes: Number of logits.
        width: Channels of the first convolution; every second one doubles them.
        depth: Number of convolutions.

    Returns:
        A model from (N, H, W, C) to logits (N, classes).
    """
    inputs = keras.Input(input_shape)
    x = inputs
    for index in range(depth):
        place = "mid" if index else "stem"
        halves = index % 2 == 1
        filters = width * 2 ** ((index + 1) // 2)
        x = norm.conv(filters, 3, strides=2 if halves else 1, place=place, name=f"conv{index}")(x)
        x = norm(x, place, name=f"norm{index}")
        x = keras.layers.ReLU(name=f"relu{index}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="plain")
