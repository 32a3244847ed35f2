"""Batch Renormalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from normbench.kernels.batch import apply_statistics, batch_standardize
from normbench.kernels.standardize import batch_moments
from normbench.norms.base import BatchStatistics

__all__ = ["BatchRenormalization"]


@keras.saving.register_keras_serializable("normbench")
class BatchRenormalization(BatchStatistics):
    """Batch Renormalization (Ioffe 2017, algorithm 1).

    In training, y = γ·((x − μ_B)/σ_B·r + d) + β with the mini-batch's mean and deviation
    σ_B = sqrt(σ²_B + ε), r = σ_B/σ clipped to [1/r_max, r_max] and d = (μ_B − μ)/σ clipped to
    [−d_max, d_max], where μ and σ are the moving statistics before this step; no gradient flows
    through r and d. Without clipping, this equals inference: y = γ·(x − μ)/σ + β.

    The bounds are relaxed during training: r_max is 1 until the first of ``r_steps`` and rises
    linearly to ``r_max`` at the second; d_max rises from 0 to ``d_max`` over ``d_steps`` in the
    same way. Before that, the layer is Batch Normalization. The defaults are the paper's (section
    4.2, for 130,000 steps and more); adapt them to the length of your training.

    As in the paper and in Keras's ``renorm=True``, the deviation is averaged, not the variance.
    The paper does not specify how the averages start. Here, they are plain averages of all
    mini-batches so far during the first 1/(1 − momentum) steps, and the first step has r = 1 and
    d = 0. Keras's layer clips with fixed bounds (none by default) and starts from 0 and 1.

    Args:
        momentum: Weight of the old moving statistics (the paper's 1 − α).
        epsilon: Added to the variance.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        r_max: Final bound of r, at least 1.
        d_max: Final bound of d, at least 0.
        r_steps: First and last step of r's relaxation.
        d_steps: First and last step of d's relaxation.

    Input and output: (N, ..., C), any float dtype; computed in float32. With a mask of shape
    (N, ...), all statistics, including moving ones, are taken over the valid positions only.
    State: ``moving_mean`` and ``moving_deviation``, float32 (C,); ``steps``, float32.

    Raises:
        ValueError: An option is out of range, or steps are not two ascending numbers.
    """

    formula = "y = γ·((x − μ_B)/σ_B·r + d) + β, r = clip(σ_B/σ), d = clip((μ_B − μ)/σ)"
    state = "moving mean, moving deviation: per channel; steps taken"
    source = "Ioffe 2017, algorithm 1 (arXiv 1702.03275)"

    def __init__(
        self,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        r_max: float = 3.0,
        d_max: float = 5.0,
        r_steps: Sequence[float] = (5000, 40000),
        d_steps: Sequence[float] = (5000, 25000),
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum, epsilon, center, scale, **kwargs)
        if not r_max >= 1:
            raise ValueError(f"r_max must be at least 1, got {r_max}")
        if not d_max >= 0:
            raise ValueError(f"d_max must be at least 0, got {d_max}")
        self.r_max, self.d_max = float(r_max), float(d_max)
        self.r_steps, self.d_steps = _span("r_steps", r_steps), _span("d_steps", d_steps)

    def create_weights(self, channels: int) -> None:
        self.moving_mean = self.moving_average("moving_mean", channels, "zeros")
        self.moving_deviation = self.moving_average("moving_deviation", channels, "ones")
        self.steps = self.float_weight("steps", (), "zeros", trainable=False)

    def normalize(self, x: Any, training: bool | None = None, valid: Any = None) -> Any:
        gamma, beta = self.affine()
        mean = ops.convert_to_tensor(self.moving_mean)
        deviation = ops.convert_to_tensor(self.moving_deviation)
        if not self.takes_batch(x, training):
            return apply_statistics(x, mean, ops.square(deviation), gamma, beta, 0.0)
        steps = ops.convert_to_tensor(self.steps)
        batch_mean, variance, count = batch_moments(x, valid)
        batch_mean = ops.stop_gradient(batch_mean)
        batch_deviation = ops.sqrt(ops.stop_gradient(variance) + self.epsilon)
        r, d = self._corrections(batch_mean, batch_deviation, mean, deviation, steps)
        y, *_ = batch_standardize(x, gamma * r, beta + gamma * d, self.epsilon, valid=valid)
        momentum = ops.minimum(self.momentum, steps / (steps + 1.0))
        self.update_average(self.moving_mean, batch_mean, momentum, count)
        self.update_average(self.moving_deviation, batch_deviation, momentum, count)
        step = 1.0 if isinstance(count, float) else ops.cast(ops.max(count) > 0, "float32")
        self.steps.assign(steps + step)
        return y

    def _corrections(
        self, batch_mean: Any, batch_deviation: Any, mean: Any, deviation: Any, steps: Any
    ) -> tuple[Any, Any]:
        """Return r and d, clipped to the bounds at this step."""
        is_started = steps > 0
        mean = ops.where(is_started, mean, batch_mean)
        deviation = ops.where(is_started, deviation, batch_deviation)
        r_max = 1.0 + (self.r_max - 1.0) * _progress(steps, self.r_steps)
        d_max = self.d_max * _progress(steps, self.d_steps)
        r = ops.clip(batch_deviation / deviation, 1.0 / r_max, r_max)
        return r, ops.clip((batch_mean - mean) / deviation, -d_max, d_max)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "r_max": self.r_max,
            "d_max": self.d_max,
            "r_steps": list(self.r_steps),
            "d_steps": list(self.d_steps),
        }


def _span(name: str, steps: Sequence[float]) -> tuple[float, float]:
    if len(steps) != 2 or not 0 <= steps[0] <= steps[1]:
        raise ValueError(f"{name} must be two ascending numbers of steps, got {list(steps)}")
    return float(steps[0]), float(steps[1])


def _progress(steps: Any, span: tuple[float, float]) -> Any:
    """Return the fraction of ``span`` that has passed: 0 before its start, 1 after its end."""
    start, end = span
    return ops.clip((steps - start) / max(end - start, 1.0), 0.0, 1.0)
