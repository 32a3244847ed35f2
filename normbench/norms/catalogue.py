"""From the names and options in a config to the ``Norm`` that a network is built with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from normbench.components import configured
from normbench.errors import UserError
from normbench.norms.norm import Norm

__all__ = ["make_norm"]

_STRUCTURE = ("weight", "places", "place", "bfn")
"""Keys of a norm's group that are no options of its layer."""


def make_norm(spec: Mapping[str, Any]) -> Norm:
    """Make the ``Norm`` that the group ``norm`` of a config describes.

    Args:
        spec: ``name``, ``_target_`` (dotted path of a layer; None for no normalization) and that
            layer's options; ``weight``, a group of the same form for the weight parametrization;
            optionally ``places``, a group of the same form for each place that differs; and, as
            one more such place, ``bfn`` at ``place``.

    Raises:
        UserError: A ``_target_`` that does not exist or is no layer, or options that it does not
            take.
        ValueError: An unknown place.
    """
    placed = dict(spec.get("places") or {})
    if spec.get("bfn"):
        placed[spec["place"]] = spec["bfn"]
    return Norm(
        _factory("norm", spec),
        _factory("norm/weight", spec.get("weight") or {}),
        {place: _factory("norm", other, f" at {place}") for place, other in placed.items()},
    )


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "epsilon": (lambda value: value >= 0, "0 or more"),
    "momentum": (lambda value: 0 <= value <= 1, "in 0..1"),
    "iterations": (lambda value: 1 <= value <= 100, "in 1..100"),
    "gamma": (lambda value: value > 0, "above 0"),
}
"""Options of this package's norms and weight parametrizations whose numbers have one meaning."""


def _check_numbers(called: str, options: Mapping[str, Any]) -> None:
    """Refuse numbers with which a layer would compute roots of negative numbers, or for ever.

    Raises:
        UserError: A number is out of its range.
    """
    for name, value in options.items():
        if name in _RANGES and isinstance(value, int | float) and not isinstance(value, bool):
            fits, wanted = _RANGES[name]
            if not fits(value):
                raise UserError(f"{called}: {name} must be {wanted}, got {value:g}")


def _factory(group: str, spec: Mapping[str, Any], where: str = "") -> Any:
    """Return a callable that builds what ``spec`` describes, or None where it names nothing."""
    if spec.get("_target_") is None:
        return None
    called = f"{group}{where}={spec.get('name')}"
    made, options = configured(group, spec, called=called, structure=_STRUCTURE)
    if str(spec["_target_"]).startswith("normbench."):
        _check_numbers(called, options)
    return partial(made, **options)
