"""The loss that is minimized and the count that accuracy is made of."""

from __future__ import annotations

from typing import Any

from keras import ops


def cross_entropy(logits: Any, labels: Any, smoothing: float) -> Any:
    """Softmax cross-entropy of each image, with label smoothing (Szegedy et al. 2016, section 7).

    Args:
        logits: (N, K), any float dtype; computed in float32.
        labels: int32 (N,).
        smoothing: Share of the target that is spread evenly over all classes.

    Returns:
        Natural-log loss, float32 (N,).
    """
    log_probabilities = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    classes = logits.shape[-1]
    target = ops.one_hot(labels, classes, dtype="float32") * (1.0 - smoothing)
    return -ops.sum((target + smoothing / classes) * log_probabilities, axis=-1)


def correct(logits: Any, labels: Any) -> Any:
    """How many images have their label's logit on top: int32 scalar."""
    hits = ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), labels)
    return ops.sum(ops.cast(hits, "int32"))
