"""Adaptive gradient clipping."""

from __future__ import annotations

from typing import Any

from keras import ops

LEAST_NORM = 1e-3  # of a unit's weights, so that those at 0 can move (Brock et al. 2021, eq. 3)
HEAD = "logits/"  # the last linear layer is not clipped (Brock et al. 2021, section 4.1)


def adaptively_clipped(
    variables: list[Any], weights: list[Any], gradients: list[Any], factor: float, scale: Any
) -> list[Any]:
    """Shrink each unit's gradient to at most ``factor`` times the norm of its weights.

    Brock et al. 2021, eq. 3 (arXiv 2102.06171). A unit is an output channel of a kernel, a filter
    of a depthwise one, or a whole vector of biases or gains.

    Args:
        variables: Trainable; their names tell kernels and the head.
        weights: Their values.
        gradients: Of the loss times ``scale``.
        factor: λ, above 0.
        scale: Of the loss, scalar.
    """
    clipped = []
    for variable, weight, gradient in zip(variables, weights, gradients, strict=True):
        if variable.path.startswith(HEAD):
            clipped.append(gradient)
            continue
        axes = _unit_axes(variable)
        most = factor * scale * ops.maximum(_norm(weight, axes), LEAST_NORM)
        norm = _norm(gradient, axes)
        clipped.append(gradient * ops.minimum(1.0, most / ops.maximum(norm, 1e-12)))
    return clipped


def _unit_axes(variable: Any) -> tuple[int, ...]:
    """The axes within a unit."""
    rank = len(variable.shape)
    if variable.name == "depthwise_kernel":
        return tuple(range(rank - 2))
    return tuple(range(max(1, rank - 1)))


def _norm(values: Any, axes: tuple[int, ...]) -> Any:
    squares = ops.square(ops.cast(values, "float32"))
    return ops.sqrt(ops.sum(squares, axis=axes, keepdims=True))
