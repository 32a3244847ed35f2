"""A network that trains quickly, after airbench94 (Jordan 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from normbench.archs.options import above_zero, at_least, scaled
from normbench.errors import UserError
from normbench.initializers import Normal
from normbench.norms.norm import Norm

PATCH = 2
"""Height and width of the patches to be whitened."""
LEAST = 25
"""Minimum height and width of images, for which the last pooling still has a position."""


@keras.saving.register_keras_serializable("normbench")
class FanInNormal(Normal):
    """Gaussian with variance 1/(3·fan-in), as in PyTorch's (uniform) default."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def _scale(self, shape: tuple[int, ...]) -> float:
        return math.sqrt(1.0 / (3 * math.prod(shape[:-1])))

    def get_config(self) -> dict[str, Any]:
        return {}


@keras.saving.register_keras_serializable("normbench")
class PartialIdentity(FanInNormal):
    """:class:`FanInNormal`, except that one filter per input channel passes it on unchanged.

    In a kernel (H, W, I, O), filter i < min(I, O) is 1 in its center for channel i and 0 elsewhere
    (Jordan 2024, section 3.3), so that a deep network starts near the identity.
    """

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        values = np.array(keras.ops.convert_to_numpy(super().__call__(shape)))
        height, width, channels, filters = shape
        indices = np.arange(min(channels, filters))
        values[..., indices] = 0
        values[height // 2, width // 2, indices, indices] = 1
        return keras.ops.convert_to_tensor(values, dtype=dtype or "float32")


@keras.saving.register_keras_serializable("normbench")
class WhiteningConv2D(keras.layers.Conv2D):
    """A frozen convolution that whitens patches of its input, with a trained bias.

    Its filters are the eigenvectors e of the patches' second moments E[ppᵀ], divided by √(λ + ε),
    and their negatives, which the nonlinearity would otherwise cut off: 2·k²·C filters for k×k
    patches of C channels, in order of decreasing λ (Jordan 2024, section 3.2; Page 2019). They are
    random until :meth:`initialize_from` is called.

    Args:
        filters: 2·k²·C.
        kernel_size: k.
        epsilon: Added to each eigenvalue λ; must be positive.
        **kwargs: As for ``keras.layers.Conv2D``.

    Raises:
        ValueError: ``epsilon`` is not positive, or (in ``build``) the number of filters is wrong.
    """

    def __init__(self, filters: int, kernel_size: Any, epsilon: float, **kwargs: Any) -> None:
        if not epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {epsilon}")
        super().__init__(filters, kernel_size, **kwargs)
        self.epsilon = float(epsilon)

    def build(self, input_shape: Any) -> None:
        count = 2 * math.prod(self.kernel_size) * input_shape[-1]
        if self.filters != count:
            raise ValueError(
                f"{self.name} whitens {input_shape[-1]} channels with {count} filters, "
                f"not {self.filters}"
            )
        super().build(input_shape)

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("name") == "kernel":
            kwargs["trainable"] = False
        return super().add_weight(*args, **kwargs)

    def initialize_from(self, images: np.ndarray) -> None:
        """Compute the filters from all patches of scaled images, float32 (N, H, W, C)."""
        height, width = self.kernel_size
        filters = whitening_filters(images, height, width, self.epsilon)
        self.kernel.assign(np.concatenate([filters, -filters], axis=-1))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


def whitening_filters(images: np.ndarray, height: int, width: int, epsilon: float) -> np.ndarray:
    """Return filters whose outputs over the patches of ``images`` are uncorrelated.

    Args:
        images: (N, H, W, C).
        height: Height of a patch.
        width: Width of a patch.
        epsilon: Added to the second moment λ along each eigenvector before the filter is divided by
            its root, so that an output has the second moment λ/(λ + ε).

    Returns:
        float32 (height, width, C, height·width·C), in order of decreasing λ.
    """
    channels = images.shape[-1]
    size = height * width * channels
    moments, count = np.zeros((size, size)), 0
    for chunk in np.array_split(images, -(-len(images) // 256)):
        windows = np.lib.stride_tricks.sliding_window_view(chunk, (height, width), axis=(1, 2))
        patches = np.moveaxis(windows, 3, 5).reshape(-1, size).astype(np.float64)
        moments += patches.T @ patches
        count += len(patches)
    values, vectors = np.linalg.eigh(moments / count)
    filters = (vectors / np.sqrt(np.maximum(values, 0) + epsilon))[:, ::-1]
    return filters.reshape(height, width, channels, size).astype(np.float32)


def build(
    norm: Norm,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    widths: Sequence[int],
    width: float,
    whitening_epsilon: float,
    logit_scale: float,
) -> keras.Model:
    """Build a network after airbench94 (Jordan 2024, arXiv 2404.00498, section 3.1).

    A frozen 2×2 whitening convolution with a trained bias and GELU; three blocks of a 3×3
    convolution, 2×2 max pooling, normalization, GELU, a 3×3 convolution, normalization, GELU;
    3×3 max pooling; a linear layer without bias whose outputs are scaled down. Convolutions start
    as partial identities. Places: ``mid`` and ``post``, a block's first and last normalization.

    airbench94 has Batch Normalization with momentum 0.6, epsilon 1e-12 and no scale, widths 64,
    256, 256 and 1.97 M parameters. Its special training (64 times the learning rate for the
    normalizations' biases, the whitening bias frozen after three epochs, Lookahead, alternating
    flips, evaluation of several crops) is not part of the network. Weights that are not identities
    are drawn from a Gaussian with the variance of PyTorch's uniform default.

    Args:
        norm: Makes normalizations and convolutions.
        input_shape: (H, W, C).
        classes: Number of logits.
        widths: Channels of the three blocks.
        width: Factor of these; they are rounded to multiples of 8.
        whitening_epsilon: Added to the eigenvalues in the whitening; 5e-4 in airbench94.
        logit_scale: Factor of the linear layer's outputs; 1/9 in airbench94.

    Returns:
        A model from (N, H, W, C) to logits (N, classes).

    Raises:
        UserError: ``widths`` does not have three values, a number is out of range, or images are
            smaller than 25×25.
    """
    if len(widths) != 3:
        raise UserError(f"arch.widths must be three, got {list(widths)}")
    at_least("widths", min(widths), 1)
    for option, value in (
        ("width", width),
        ("whitening_epsilon", whitening_epsilon),
        ("logit_scale", logit_scale),
    ):
        above_zero(option, value)
    if min(input_shape[:2]) < LEAST:
        raise UserError(
            f"arch=airbench needs images of at least {LEAST}×{LEAST}, these are "
            f"{input_shape[0]}×{input_shape[1]}"
        )
    inputs = keras.Input(input_shape, name="images")
    x = WhiteningConv2D(
        2 * PATCH**2 * input_shape[-1],
        PATCH,
        epsilon=whitening_epsilon,
        kernel_initializer=FanInNormal(),
        name="whitening",
    )(inputs)
    x = keras.layers.Activation("gelu", name="whitening_gelu")(x)
    for index, channels in enumerate(widths, start=1):
        x = _block(norm, x, scaled(channels, width), f"block{index}")
    x = keras.layers.MaxPooling2D(3, name="pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(
        classes,
        use_bias=False,
        kernel_initializer=FanInNormal(),
        dtype="float32",
        name="classifier",
    )(x)
    logits = keras.layers.Rescaling(logit_scale, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="airbench")


def _block(norm: Norm, x: Any, channels: int, name: str) -> Any:
    for index, place in ((1, "mid"), (2, "post")):
        x = norm.conv(
            channels,
            3,
            place=place,
            kernel_initializer=PartialIdentity(),
            name=f"{name}_conv{index}",
        )(x)
        if index == 1:
            x = keras.layers.MaxPooling2D(2, name=f"{name}_pool")(x)
        x = norm(x, place, name=f"{name}_norm{index}")
        x = keras.layers.Activation("gelu", name=f"{name}_gelu{index}")(x)
    return x
