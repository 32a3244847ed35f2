"""A network's weights laid out as vectors for the optimizer: :class:`WeightVectors`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normbench.engine.loop import flatten, unflatten

Tensor = Any

LARGE = 2**16
"""Number of elements from which a weight gets its own vector on a CPU.

For smaller weights the fixed cost of an operation dominates, which is paid once for a vector of
many weights. For larger ones the memory traffic of concatenating and splitting dominates.
"""


class WeightVectors:
    """Concatenates all small weights in the first vector; each large weight is another vector.

    Args:
        shapes: Shapes of all weights, in order.
        large: Number of elements from which a weight gets its own vector; None for a single vector
            of all weights.
    """

    def __init__(self, shapes: list[tuple[int, ...]], large: int | None) -> None:
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in shapes]
        large_indices = [
            i for i, size in enumerate(self._sizes) if large is not None and size >= large
        ]
        small_indices = [i for i in range(len(shapes)) if i not in large_indices]
        # For each vector, the indices of its weights.
        self._groups = [group for group in (small_indices, *([i] for i in large_indices)) if group]

    def vectors(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the vectors, float32 (P,), of a list with one tensor for each weight."""
        return [flatten([tensors[i] for i in group]) for group in self._groups]

    def tensors(self, vectors: list[Tensor]) -> list[Tensor]:
        """Undo :meth:`vectors`."""
        tensors: list[Tensor] = [None] * len(self._shapes)
        for group, vector in zip(self._groups, vectors, strict=True):
            pieces = unflatten(vector, [self._shapes[i] for i in group])
            for i, piece in zip(group, pieces, strict=True):
                tensors[i] = piece
        return tensors

    def split(self, vector: np.ndarray) -> list[np.ndarray]:
        """Return the vectors of an array that has all weights end to end, in order."""
        pieces = np.split(vector, np.cumsum(self._sizes)[:-1])
        return [np.concatenate([pieces[i] for i in group]) for group in self._groups]

    def join(self, vectors: list[np.ndarray]) -> np.ndarray:
        """Undo :meth:`split`."""
        return np.concatenate([np.ravel(tensor) for tensor in self.tensors(vectors)])
