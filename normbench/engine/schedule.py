"""Learning rates: :func:`peak` scales with the batch size; the schedules vary it over the run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from normbench.errors import UserError


def peak(lr: float, batch: int, base_batch: int, scaling: str) -> float:
    """Scale the learning rate from ``base_batch`` to ``batch``.

    Args:
        lr: Learning rate at ``base_batch`` images per step.
        batch: Images per step.
        base_batch: Images per step that ``lr`` is for.
        scaling: "linear" (Goyal et al. 2017, section 2.1), "sqrt" (Krizhevsky 2014) or "none".
    """
    if base_batch < 1:
        raise UserError(f"optimizer.base_batch must be at least 1, got {base_batch}")
    ratio = batch / base_batch
    return lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[scaling]


def cosine(steps: int, *, warmup: float, final: float) -> np.ndarray:
    """Return half a cosine from 1 to ``final`` after a warm-up (Loshchilov & Hutter 2017, eq. 5).

    Args:
        steps: Total number of steps of the run.
        warmup: Share of the steps during which the rate rises linearly.
        final: Share of the peak rate that is left at the end.

    Returns:
        Factors of the peak learning rate, float32 (steps,).
    """
    if not 0 <= final <= 1:
        raise UserError(f"schedule.final must be in 0..1, got {final:g}")
    share = _share_after_warmup(steps, warmup)
    course = final + (1 - final) * 0.5 * (1 + np.cos(np.pi * share))
    return _warmed(course, warmup)


def step(steps: int, *, warmup: float, milestones: Sequence[float], factor: float) -> np.ndarray:
    """Return factors that drop by ``factor`` at ``milestones``, shares of all steps.

    The warm-up and the return value are those of :func:`cosine`.
    """
    if not 0 < factor <= 1:
        raise UserError(f"schedule.factor must be above 0 and at most 1, got {factor:g}")
    for milestone in milestones:
        if not 0 < milestone < 1:
            raise UserError(f"schedule.milestones must be shares in 0..1, got {milestone:g}")
    share = np.arange(steps) / steps
    drops = np.sum([share >= milestone for milestone in milestones], axis=0)
    return _warmed(factor**drops * np.ones(steps), warmup)


def constant(steps: int, *, warmup: float) -> np.ndarray:
    """Return constant factors after the warm-up of :func:`cosine`."""
    return _warmed(np.ones(steps), warmup)


def _share_after_warmup(steps: int, warmup: float) -> np.ndarray:
    """Return, for each step, the elapsed share of the steps after the warm-up, in [0, 1)."""
    first = _warmup_steps(steps, warmup)
    return np.clip((np.arange(steps) - first) / max(1, steps - first), 0, 1)


def _warmed(course: np.ndarray, warmup: float) -> np.ndarray:
    first = _warmup_steps(len(course), warmup)
    rise = np.minimum(1.0, (np.arange(len(course)) + 1) / max(1, first))
    return (course * rise).astype(np.float32)


def _warmup_steps(steps: int, warmup: float) -> int:
    if not 0 <= warmup < 1:
        raise UserError(f"schedule.warmup must be a share of all steps in [0, 1), got {warmup:g}")
    return round(steps * warmup)
