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


def objective(outputs: Any, labels: Any, smoothing: float, auxiliary_weight: float) -> Any:
    """What is minimized: the mean cross-entropy, and a share of each auxiliary classifier's.

    Args:
        outputs: Of the model in training: logits (N, K), or a list of the logits and those of
            auxiliary classifiers (Szegedy et al. 2015, section 5).
        labels: int32 (N,).
        smoothing: As for :func:`cross_entropy`.
        auxiliary_weight: Of each auxiliary classifier's loss.

    Returns:
        float32 scalar.
    """
    logits, *auxiliary = outputs if isinstance(outputs, list | tuple) else [outputs]
    loss = ops.mean(cross_entropy(logits, labels, smoothing))
    for each in auxiliary:
        loss += auxiliary_weight * ops.mean(cross_entropy(each, labels, smoothing))
    return loss


def logits_of(outputs: Any) -> Any:
    """The classifier's logits (N, K) among a model's outputs, which may be several."""
    return outputs[0] if isinstance(outputs, list | tuple) else outputs


def correct(logits: Any, labels: Any) -> Any:
    """How many images have their label's logit on top: int32 scalar."""
    hits = ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), labels)
    return ops.sum(ops.cast(hits, "int32"))
