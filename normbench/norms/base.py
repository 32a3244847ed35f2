"""Base classes for normalization layers. To add one, subclass :class:`ChannelAffine`.

The subclass implements its formula in ``normalize``. Subclass :class:`BatchStatistics` instead for
a layer that uses mini-batch statistics in training and moving averages in inference::

    class CenterNormalization(ChannelAffine):
        formula = "y = γ·(x − μ) + β, μ of an image's channel"
        computed_over = "space"
        source = "example"

        def normalize(self, x):
            gamma, beta = self.affine()
            return gamma * (x - keras.ops.mean(x, axis=1, keepdims=True)) + beta
"""

from __future__ import annotations

from inspect import signature
from typing import Any, ClassVar

import keras
from keras import ops

from normbench.kernels.arrays import as_tensor, flatten_spatial


class ChannelAffine(keras.layers.Layer):
    """Base class for layers on (N, ..., C) that end in ``y·γ + β``, with float32 γ, β of (C,).

    A subclass defines ``normalize(x)``, which maps (N, S, C) to (N, S, C), where S is the number of
    spatial positions. ``normalize`` may also take ``training``, a bool or None, and ``valid``, the
    unmasked positions as bool (N, S, 1), or None if there is no mask. A subclass with further
    weights adds them in ``create_weights(channels)``. This class handles shapes, dtypes and masks.

    Statistics, γ and β stay in float32 under every dtype policy; the output has the policy's
    compute dtype.

    Attributes:
        formula: The computation, in one line.
        computed_over: The axes that statistics are taken over: batch, space, channels.
        parameters: Trainable weights.
        state: Non-trainable state.
        source: The publication.
    """

    formula: ClassVar[str]
    computed_over: ClassVar[str]
    parameters: ClassVar[str] = "γ, β: per channel"
    state: ClassVar[str] = "none"
    source: ClassVar[str]

    normalize: Any  # a subclass takes x and, if it needs them, training and valid

    def __init__(self, epsilon: float, center: bool, scale: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be 0 or more, got {epsilon}")
        self.epsilon = float(epsilon)
        self.center = bool(center)
        self.scale = bool(scale)
        # A layer that normalizes each position independently passes the mask on unchanged. Any
        # other layer needs the mask, to exclude positions from its statistics.
        self.supports_masking = self._ignores_masks or "valid" in self._normalize_takes()

    @property
    def per_example(self) -> bool:
        """Whether each image's output depends on that image alone, with no non-trainable state."""
        return "batch" not in self.computed_over and not self.non_trainable_variables

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[-1]
        if len(input_shape) < 2 or channels is None:
            raise ValueError(
                f"{self.name} needs an input (N, ..., C) of known channels, got {input_shape}"
            )
        self.channels = channels
        self.gamma = self.channel_weight("gamma", channels, "ones") if self.scale else None
        self.beta = self.channel_weight("beta", channels, "zeros") if self.center else None
        self.create_weights(channels)
        self.built = True

    def create_weights(self, channels: int) -> None:
        """Add weights other than γ and β, and check options that depend on the channels."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        names = self._normalize_takes()
        options: dict[str, Any] = {"training": training} if "training" in names else {}
        if "valid" in names:
            options["valid"] = self.valid_positions(mask, inputs)
        elif not self._ignores_masks:
            self.refuse_mask(mask)
        return self.restore(self.normalize(self.flatten(inputs), **options), inputs)

    def flatten(self, inputs: Any) -> Any:
        """Return ``inputs``, (N, ..., C), as (N, S, C) in the compute dtype, at most float32."""
        return flatten_spatial(ops.cast(inputs, self.compute_dtype))

    def restore(self, outputs: Any, inputs: Any) -> Any:
        """Give ``outputs``, (N, S, C), the shape of the inputs and the compute dtype."""
        return ops.cast(ops.reshape(outputs, ops.shape(inputs)), self.compute_dtype)

    def affine(self) -> tuple[Any, Any]:
        """Return γ and β as float32 tensors (C,), using ones and zeros where the layer has none."""
        shape = (self.channels,)
        gamma = ops.ones(shape, "float32") if self.gamma is None else as_tensor(self.gamma)
        beta = ops.zeros(shape, "float32") if self.beta is None else as_tensor(self.beta)
        return gamma, beta

    def channel_weight(
        self, name: str, channels: int, initializer: Any, trainable: bool = True
    ) -> Any:
        """Add a weight (C,) that stays in float32 under every dtype policy."""
        return self.float_weight(name, (channels,), initializer, trainable)

    def float_weight(
        self, name: str, shape: tuple[int, ...], initializer: Any, trainable: bool = True
    ) -> Any:
        """Add a weight that stays in float32 under every dtype policy."""
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype="float32",
            autocast=False,
            trainable=trainable,
            # Replicas see different images; their common state is the mean over replicas.
            aggregation="none" if trainable else "mean",
        )

    def valid_positions(self, mask: Any, inputs: Any) -> Any:
        """Return a mask of ``inputs``, (N, ...), as bool (N, S, 1), or None if there is no mask.

        Raises:
            ValueError: The mask's shape differs from that of the inputs without channels.
        """
        if mask is None:
            return None
        mask = ops.convert_to_tensor(mask)
        sizes = zip(mask.shape, inputs.shape[:-1], strict=False)
        pairs = [(size, expected) for size, expected in sizes if None not in (size, expected)]
        if len(mask.shape) != len(inputs.shape) - 1 or any(a not in (1, b) for a, b in pairs):
            raise ValueError(
                f"the mask of {self.name} must have the shape of its input without the channels, "
                f"{tuple(inputs.shape[:-1])}, got {tuple(mask.shape)}"
            )
        mask = ops.broadcast_to(ops.cast(mask, "bool"), ops.shape(inputs)[:-1])
        return flatten_spatial(ops.expand_dims(mask, -1))

    def refuse_mask(self, mask: Any) -> None:
        """Reject a mask in a layer that cannot exclude positions from its statistics.

        Raises:
            ValueError: ``mask`` is not None.
        """
        if mask is not None:
            raise ValueError(
                f"{self.name} takes its statistics over all positions, including masked ones: "
                "pass an input without a mask, or use another normalization"
            )

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> Any:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
        }

    @property
    def _ignores_masks(self) -> bool:
        """Whether each position is normalized independently, so that a mask has no effect."""
        return getattr(self, "computed_over", "") in ("channels", "nothing")

    def _normalize_takes(self) -> Any:
        """Return the names of the arguments of ``normalize``."""
        return signature(self.normalize).parameters if hasattr(self, "normalize") else ()


class BatchStatistics(ChannelAffine):
    """Base class for mini-batch statistics in training and moving averages in inference."""

    computed_over = "batch, space"

    def __init__(
        self, momentum: float, epsilon: float, center: bool, scale: bool, **kwargs: Any
    ) -> None:
        super().__init__(epsilon=epsilon, center=center, scale=scale, **kwargs)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in 0..1, got {momentum}")
        self.momentum = float(momentum)

    def moving_average(self, name: str, channels: int, initializer: str) -> Any:
        """Add a non-trainable moving average (C,)."""
        return self.channel_weight(name, channels, initializer, trainable=False)

    def takes_batch(self, inputs: Any, training: bool | None) -> bool:
        """Return whether to use the mini-batch's statistics: in training, unless it is empty."""
        return bool(training) and self.trainable and 0 not in inputs.shape

    def update_average(
        self, moving: Any, new: Any, momentum: Any = None, count: Any = None
    ) -> None:
        """Update a moving average with a mini-batch's value.

        Args:
            moving: The variable to update.
            new: The mini-batch's value, of the same shape.
            momentum: Weight of the old value; by default the layer's ``momentum``.
            count: Number of values that ``new`` was computed from, a float or a tensor. If it is 0,
                the average is left unchanged.
        """
        momentum = self.momentum if momentum is None else momentum
        old = ops.convert_to_tensor(moving)
        average = old * momentum + ops.stop_gradient(new) * (1.0 - momentum)
        moving.assign(
            average
            if count is None or isinstance(count, float)
            else ops.where(count > 0, average, old)
        )

    def unbiased_factor(self, count: Any) -> Any:
        """Return m/(m−1), where m is the number of values per channel in the mini-batch."""
        if not isinstance(count, float):
            return count / ops.maximum(count - 1.0, 1.0)
        if count == 1:
            raise ValueError(
                f"{self.name} gets one value per channel in a mini-batch, for which the unbiased "
                "variance is undefined: use a larger batch or unbiased=False"
            )
        return count / (count - 1.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum}


def groups_dividing(
    layer: str, channels: int, groups: int | None, channels_per_group: int | None
) -> int:
    """Return the number of groups, given either that number or the channels per group.

    Raises:
        ValueError: The given number does not divide the channels.
    """
    name, value = ("groups", groups) if groups else ("channels_per_group", channels_per_group)
    if not value or channels % value:
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        raise ValueError(
            f"{name}={value} does not divide the {channels} channels of {layer} "
            f"(allowed: {', '.join(map(str, divisors))})"
        )
    return value if groups else channels // value


def check_groups(groups: Any, channels_per_group: Any) -> None:
    """Check that exactly one of the two is given and is a positive integer.

    Raises:
        ValueError: Both or neither are given, or the value is not a positive integer.
    """
    if (groups is None) == (channels_per_group is None):
        raise ValueError(
            "exactly one of groups and channels_per_group must be given, got "
            f"groups={groups} and channels_per_group={channels_per_group}"
        )
    for name, value in (("groups", groups), ("channels_per_group", channels_per_group)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
