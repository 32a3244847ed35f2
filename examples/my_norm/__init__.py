# A normalization of your own: this layer, and conf/norm/l1.yaml, which names it.
#   cd examples
#   normbench run --config-dir my_norm/conf norm=l1 batch=16 dataset=digits arch=resnet8 epochs=5
#   normbench sweep --config-dir my_norm/conf norm=gn,l1 arch=resnet8 dataset=digits epochs=5
"""L1 normalization: the deviation is the mean distance from the mean, not its mean square."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("my_norm")
class L1Normalization(keras.layers.Layer):
    """Normalize each image by its mean and its mean absolute deviation.

    y = γ·(x − μ) / (d·√(π/2) + ε) + β, where μ is the mean of an image's values and d the mean of
    |x − μ|. The factor √(π/2) makes d the standard deviation of a normal distribution (Hoffer et
    al. 2018, section 4, where μ and d are those of a mini-batch).

    Args:
        epsilon: Added to the deviation.
    """

    per_example = True  # an image's output does not depend on the other images of the batch

    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta")

    def call(self, x):
        axes = list(range(1, len(x.shape)))  # all but the batch
        x = ops.cast(x, "float32")
        centered = x - ops.mean(x, axis=axes, keepdims=True)
        deviation = ops.mean(ops.abs(centered), axis=axes, keepdims=True)
        y = centered / (deviation * math.sqrt(math.pi / 2) + self.epsilon)
        return ops.cast(y, self.compute_dtype) * self.gamma + self.beta

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}
