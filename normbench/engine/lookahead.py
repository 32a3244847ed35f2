"""The steps that the optimizer would take next, computed on copies: :func:`lookahead`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from normbench.engine import loop as shared
from normbench.engine.loop import Loop
from normbench.engine.optimizer import clip_adaptively


class Step(NamedTuple):
    """A step that was computed but not taken; vectors are float32 (P,), as in :meth:`Loop.weights`.

    Attributes:
        weights: Weights before the step.
        loss: Loss of the mini-batch at these weights.
        gradient: Gradient of that loss, not clipped and without weight decay.
        update: Change of the weights, with weight decay, momentum, clipping and constraints.
        direction: Update per unit of the learning rate. It is exact even at a rate of 0 or one so
            low that the update vanishes in the rounding of the weights; in these cases, weights
            with a constraint have a direction of 0.
    """

    weights: np.ndarray
    loss: float
    gradient: np.ndarray
    update: np.ndarray
    direction: np.ndarray


def lookahead(
    loop: Loop, batches: Iterable[tuple[np.ndarray, np.ndarray]], rate: float
) -> list[Step]:
    """Return the steps that training would take on these mini-batches, one after another.

    The optimizer's own formula is applied to its present slots (velocity, moments) and step count,
    with gradients from :meth:`Loop.gradients`: without augmentation, and with the present values of
    non-trainable state (moving averages, random numbers) in all steps. Only copies change: the loop
    takes no step, and its state is not modified.

    Args:
        loop: Loop of the run.
        batches: Pixels, uint8 (N, H, W, C), and labels, int32 (N,), of each mini-batch.
        rate: Learning rate of all steps.
    """
    optimizer, variables = loop.settings.optimizer, list(loop.model.trainable_variables)
    shapes = [tuple(variable.shape) for variable in variables]
    state = loop.state()
    slots: list[Any] = [
        ops.convert_to_tensor(state[f"optimizer/slot{index}"]) for index in range(optimizer.slots)
    ]
    count = int(state["optimizer/step"])
    decayed = ops.convert_to_tensor(shared.decay_mask(variables))
    weights = loop.weights()
    steps = []
    for pixels, labels in batches:
        loss, gradient = loop.gradients(pixels, labels, weights)
        if loop.settings.scaled_loss and not np.isfinite(gradient).all():
            # A step whose gradient overflowed is skipped, as in training.
            zeros = np.zeros_like(weights)
            steps.append(Step(weights, loss, gradient, zeros, zeros))
            continue
        point = ops.convert_to_tensor(weights)
        clipped_gradient = _clipped(loop, variables, shapes, weights, gradient)
        step = ops.convert_to_tensor(np.int32(count))
        # All optimizers are linear in the rate. At a rate of 1, the direction is not lost in the
        # rounding of the weights.
        new_weights, slots = optimizer.update(
            point, clipped_gradient, slots, ops.convert_to_tensor(np.float32(1.0)), step, decayed
        )
        direction = weights - _numpy(new_weights)
        update = np.float32(-rate) * direction
        update, direction = _under_constraints(variables, shapes, weights, update, direction, rate)
        steps.append(Step(weights, loss, gradient, update, -direction))
        weights = weights + update
        count += 1
    return steps


def _clipped(
    loop: Loop, variables: list[Any], shapes: list[Any], weights: np.ndarray, gradient: np.ndarray
) -> Any:
    """Return the gradient as the optimizer receives it."""
    if not loop.settings.optimizer.agc:
        return ops.convert_to_tensor(gradient)
    values = shared.unflatten(ops.convert_to_tensor(weights), shapes)
    gradients = shared.unflatten(ops.convert_to_tensor(gradient), shapes)
    scale = ops.convert_to_tensor(np.float32(1.0))  # ``gradient`` is that of the unscaled loss
    factor = loop.settings.optimizer.agc
    return shared.flatten(clip_adaptively(variables, values, gradients, factor, scale))


def _under_constraints(
    variables: list[Any],
    shapes: list[Any],
    weights: np.ndarray,
    update: np.ndarray,
    direction: np.ndarray,
    rate: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the update and direction after applying the weights' constraints."""
    if all(variable.constraint is None for variable in variables):
        return update, direction
    update, direction, start = update.copy(), direction.copy(), 0
    for variable, shape in zip(variables, shapes, strict=True):
        stop = start + int(np.prod(shape, dtype=int))
        if variable.constraint is not None:
            new_values = (weights[start:stop] + update[start:stop]).reshape(shape)
            projected = _numpy(variable.constraint(ops.convert_to_tensor(new_values))).ravel()
            update[start:stop] = projected - weights[start:stop]
            direction[start:stop] = -update[start:stop] / rate if rate else 0.0
        start = stop
    return update, direction


def _numpy(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor), np.float32)
