"""A network's weights as the vectors that the optimizer's update takes one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normbench.engine.loop import flatten, unflatten

Tensor = Any

LARGE = 2**16
"""Elements from which on a weight is a part by itself on a CPU.

Below it what an operation costs to begin counts, which a part of many weights pays once; above it
the memory that laying weights end to end, and taking them apart again, goes through.
"""


class WeightVectors:
    """Small weights laid end to end as the first part, each large one as another.

    Args:
        shapes: Of all weights, in their order.
        large: Elements from which on a weight is a part by itself; None for one part of all.
    """

    def __init__(self, shapes: list[tuple[int, ...]], large: int | None) -> None:
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in shapes]
        alone = [i for i, size in enumerate(self._sizes) if large is not None and size >= large]
        together = [i for i in range(len(shapes)) if i not in alone]
        self._parts = [each for each in (together, *([i] for i in alone)) if each]

    def vectors(self, tensors: list[Tensor]) -> list[Tensor]:
        """The parts, float32 (P,), of one tensor for each weight."""
        return [flatten([tensors[i] for i in part]) for part in self._parts]

    def tensors(self, vectors: list[Tensor]) -> list[Tensor]:
        """Undo :meth:`vectors`."""
        tensors: list[Tensor] = [None] * len(self._shapes)
        for part, vector in zip(self._parts, vectors, strict=True):
            for i, tensor in zip(
                part, unflatten(vector, [self._shapes[i] for i in part]), strict=True
            ):
                tensors[i] = tensor
        return tensors

    def divided(self, vector: np.ndarray) -> list[np.ndarray]:
        """The parts of all weights laid end to end in their order."""
        each = np.split(vector, np.cumsum(self._sizes)[:-1])
        return [np.concatenate([each[i] for i in part]) for part in self._parts]

    def joined(self, vectors: list[np.ndarray]) -> np.ndarray:
        """Undo :meth:`divided`."""
        return np.concatenate([np.ravel(each) for each in self.tensors(vectors)])
