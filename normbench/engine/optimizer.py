"""Optimizers as pure functions of weight vectors: :class:`SGD`, :class:`AdamW`.

The loops lay the weights end to end (:mod:`normbench.engine.flat_weights`): updating one long
vector takes a dozen operations; updating each variable takes a dozen per variable, a large share of
a step at batch 16 on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from keras import ops

from normbench.errors import UserError

Tensor = Any


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum and coupled weight decay.

    v ← m·v + g + λ·w; w ← w − η·v, or in Nesterov's form w ← w − η·(g + λ·w + m·v) (Sutskever et
    al. 2013). As in PyTorch, η multiplies the velocity, so a change of the rate also applies to
    earlier gradients in the velocity.

    Args:
        momentum: m, weight of the old velocity, in [0, 1).
        nesterov: Whether to use Nesterov's form.
        weight_decay: λ, applied to kernels only.
        agc: λ of :func:`clip_adaptively`, the largest norm of a unit's gradient as a share of its
            weights' norm; 0 for no clipping.
    """

    momentum: float
    nesterov: bool
    weight_decay: float
    agc: float

    slots: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_share("momentum", self.momentum)
        _check_not_negative("weight_decay", self.weight_decay)
        _check_not_negative("agc", self.agc)

    def update(
        self,
        weights: Tensor,
        gradient: Tensor,
        slots: list[Tensor],
        rate: Tensor,
        step: Tensor,
        decayed: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the weights and slots after a step; all float32 (P,) except ``rate``, ``step``.

        Args:
            weights: A vector of trainable weights.
            gradient: Gradient of the loss.
            slots: State of the optimizer between steps, initially zeros.
            rate: Learning rate, float32 scalar.
            step: Number of steps taken before this one, int32 scalar.
            decayed: 1 where weight decay applies, else 0.
        """
        gradient = gradient + (self.weight_decay * decayed) * weights
        velocity = self.momentum * slots[0] + gradient
        direction = gradient + self.momentum * velocity if self.nesterov else velocity
        return weights - rate * direction, [velocity]


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    Args:
        beta1: Weight of the old first moment, in [0, 1).
        beta2: Weight of the old second moment, in [0, 1).
        epsilon: Added to the root of the second moment.
        weight_decay: λ, applied to kernels only; a step subtracts η·λ·w from w.
        agc: As for :class:`SGD`.
    """

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    agc: float

    slots: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check_share("beta1", self.beta1)
        _check_share("beta2", self.beta2)
        if not self.epsilon > 0:
            raise UserError(f"optimizer.epsilon must be above 0, got {self.epsilon:g}")
        _check_not_negative("weight_decay", self.weight_decay)
        _check_not_negative("agc", self.agc)

    def update(
        self,
        weights: Tensor,
        gradient: Tensor,
        slots: list[Tensor],
        rate: Tensor,
        step: Tensor,
        decayed: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the weights and slots after a step; see :meth:`SGD.update`."""
        count = ops.cast(step + 1, "float32")
        first = self.beta1 * slots[0] + (1 - self.beta1) * gradient
        second = self.beta2 * slots[1] + (1 - self.beta2) * ops.square(gradient)
        unbiased_first = first / (1 - ops.power(self.beta1, count))
        unbiased_second = second / (1 - ops.power(self.beta2, count))
        direction = unbiased_first / (ops.sqrt(unbiased_second) + self.epsilon)
        direction = direction + (self.weight_decay * decayed) * weights
        return weights - rate * direction, [first, second]


def is_decayed(variable: Any) -> bool:
    """Return whether weight decay applies: to kernels, but not to gains, biases and others."""
    return variable.name.endswith("kernel")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"optimizer.{name} must be in [0, 1), got {value:g}")


def _check_not_negative(name: str, value: float) -> None:
    if value < 0:
        raise UserError(f"optimizer.{name} must be 0 or more, got {value:g}")


# --- adaptive gradient clipping -------------------------------------------------------------------

LEAST_NORM = 1e-3
"""Lower limit on the norm of a unit's weights, so that weights of 0 can move (Brock et al. 2021,
eq. 3)."""
HEAD = "logits/"
"""Prefix of the last linear layer, which is not clipped (Brock et al. 2021, section 4.1)."""


def clip_adaptively(
    variables: list[Any], weights: list[Any], gradients: list[Any], factor: float, scale: Any
) -> list[Any]:
    """Shrink each unit's gradient to at most ``factor`` times the norm of its weights.

    Brock et al. 2021, eq. 3 (arXiv 2102.06171). A unit is an output channel of a kernel, a filter
    of a depthwise kernel, or an entire vector of biases or gains.

    Args:
        variables: Trainable variables; their names identify kernels and the last layer.
        weights: Values of the variables.
        gradients: Gradients of the loss times ``scale``.
        factor: λ, above 0.
        scale: Scale of the loss, scalar.
    """
    results = []
    for variable, weight, gradient in zip(variables, weights, gradients, strict=True):
        if variable.path.startswith(HEAD):
            results.append(gradient)
            continue
        axes = _unit_axes(variable)
        limit = factor * scale * ops.maximum(_norm(weight, axes), LEAST_NORM)
        norm = _norm(gradient, axes)
        results.append(gradient * ops.minimum(1.0, limit / ops.maximum(norm, 1e-12)))
    return results


def _unit_axes(variable: Any) -> tuple[int, ...]:
    """Return the axes of a variable that lie within a unit."""
    rank = len(variable.shape)
    if variable.name == "depthwise_kernel":
        return tuple(range(rank - 2))
    return tuple(range(max(1, rank - 1)))


def _norm(values: Any, axes: tuple[int, ...]) -> Any:
    squares = ops.square(ops.cast(values, "float32"))
    return ops.sqrt(ops.sum(squares, axis=axes, keepdims=True))
