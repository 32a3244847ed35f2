"""The steps that the optimizer would take next, worked out beside the training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from normbench.engine import loop as shared
from normbench.engine.loop import Loop
from normbench.engine.optimizer import clip_adaptively


class Step(NamedTuple):
    """A step that was not taken; the vectors are float32 (P,) as :meth:`Loop.weights`.

    Attributes:
        weights: From which it would be taken.
        loss: Of the mini-batch there.
        gradient: Of that loss, as it comes: not clipped, without weight decay.
        update: What the step would add to the weights, weight decay, momentum, clipping and
            constraints included.
        direction: The update per unit of the learning rate. It is known where the rate is so low
            that the update is lost in the weights' rounding, or 0; but 0 then for weights
            under a constraint.
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

    The optimizer's own formula, from its present slots (velocity, moments) and count of steps, on
    gradients of :meth:`Loop.gradients`: without augmentation, and with what is no weight (moving
    averages, random numbers) as it is now at each of the steps. Only copies move: the loop takes
    no step and nothing of its state is written.

    Args:
        loop: Whose training it is.
        batches: Pixels, uint8 (N, H, W, C), and labels, int32 (N,), of each mini-batch.
        rate: Learning rate of all these steps.
    """
    optimizer, variables = loop.settings.optimizer, list(loop.model.trainable_variables)
    shapes = [tuple(each.shape) for each in variables]
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
            # As in training: the step is left out.
            none = np.zeros_like(weights)
            steps.append(Step(weights, loss, gradient, none, none))
            continue
        here = ops.convert_to_tensor(weights)
        clipped = _clipped(loop, variables, shapes, weights, gradient)
        step = ops.convert_to_tensor(np.int32(count))
        # All optimizers are linear in the rate, so at 1 they tell the direction unrounded.
        far, slots = optimizer.update(
            here, clipped, slots, ops.convert_to_tensor(np.float32(1.0)), step, decayed
        )
        direction = weights - _numpy(far)
        update = np.float32(-rate) * direction
        update, direction = _under_constraints(variables, shapes, weights, update, direction, rate)
        steps.append(Step(weights, loss, gradient, update, -direction))
        weights = weights + update
        count += 1
    return steps


def _clipped(
    loop: Loop, variables: list[Any], shapes: list[Any], weights: np.ndarray, gradient: np.ndarray
) -> Any:
    """The gradient as the optimizer is handed it."""
    if not loop.settings.optimizer.agc:
        return ops.convert_to_tensor(gradient)
    values = shared.unflatten(ops.convert_to_tensor(weights), shapes)
    gradients = shared.unflatten(ops.convert_to_tensor(gradient), shapes)
    scale = ops.convert_to_tensor(np.float32(1.0))  # the gradient is already divided by any other
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
    """Replace what weights with a constraint would move by what they move within it."""
    if all(variable.constraint is None for variable in variables):
        return update, direction
    update, direction, start = update.copy(), direction.copy(), 0
    for variable, shape in zip(variables, shapes, strict=True):
        stop = start + int(np.prod(shape, dtype=int))
        if variable.constraint is not None:
            moved = (weights[start:stop] + update[start:stop]).reshape(shape)
            held = _numpy(variable.constraint(ops.convert_to_tensor(moved))).ravel()
            update[start:stop] = held - weights[start:stop]
            direction[start:stop] = -update[start:stop] / rate if rate else 0.0
        start = stop
    return update, direction


def _numpy(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor), np.float32)
