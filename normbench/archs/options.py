"""Checks of a network's options and images, each with a one-line error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from normbench.errors import UserError, unknown

MOST_LAYERS = 5000
"""Maximum number of layers with weights; the deepest published networks have about 1,200."""


def one_of(option: str, value: Any, allowed: Iterable[str]) -> None:
    """Refuse a value of ``arch.<option>`` that is not among the allowed names."""
    names = list(allowed)
    if value not in names:
        raise unknown(f"arch.{option}", str(value), names)


def at_least(option: str, value: float, least: float) -> None:
    """Refuse a value of ``arch.<option>`` that is below ``least``."""
    if not value >= least:
        raise UserError(f"arch.{option} must be at least {least}, got {value}")


def not_too_deep(option: str, layers: int) -> None:
    """Refuse a network with so many layers that building it would take hours.

    Args:
        option: The option that determines the number of layers.
        layers: Approximate number of layers with weights.
    """
    if layers > MOST_LAYERS:
        raise UserError(
            f"arch.{option} makes {layers:,} layers: a network has at most {MOST_LAYERS:,}"
        )


def above_zero(option: str, value: float) -> None:
    """Refuse a value of ``arch.<option>`` that is 0 or below."""
    if not value > 0:
        raise UserError(f"arch.{option} must be above 0, got {value}")


def rate(option: str, value: float) -> None:
    """Refuse a dropout rate that is not in [0, 1)."""
    if not 0 <= value < 1:
        raise UserError(f"arch.{option} must be in [0, 1), got {value}")


def halved(arch: str, input_shape: tuple[int, int, int], times: int) -> tuple[int, int]:
    """Return (H, W) of an image that a network halves ``times`` times, rounding up.

    Raises:
        UserError: The image is too small to be halved that often.
    """
    height, width = input_shape[:2]
    least = 2 ** (times - 1) + 1 if times else 1
    if min(height, width) < least:
        raise UserError(
            f"arch={arch} halves its images {times} times: they must be at least "
            f"{least}×{least}, these are {height}×{width}"
        )
    return -(-height // 2**times), -(-width // 2**times)


def scaled(channels: int, width: float) -> int:
    """Return ``width * channels``, rounded to a multiple of 8 and at least 8.

    Multiples of 8 are divisible by Group Normalization's usual numbers of groups.
    """
    return max(8, int(channels * width / 8 + 0.5) * 8)
