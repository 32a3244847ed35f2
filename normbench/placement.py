"""Which normalization goes where: the names in a config turned into full options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from normbench.errors import UserError, unknown
from normbench.places import PLACES


def names_placement(key: str, norm: Mapping[str, Any]) -> bool:
    """Whether setting ``key`` chooses a place, or the normalization at one."""
    if key in ("norm.place", "norm.bfn"):
        return key.removeprefix("norm.") in norm
    return key.startswith("norm.places.") and key.count(".") == 2 and "places" in norm


def _expand_placement(
    norm: Mapping[str, Any],
    file: str,
    names: Sequence[str],
    options_of: Callable[[str], dict[str, Any]],
    like: Callable[[str, Any, Any, str], Any],
) -> dict[str, Any]:
    """Return the group ``norm`` with each placed normalization's name turned into its options.

    Normalizations are placed by ``places``, a map from a place to the name of another
    normalization, or to ``{norm: NAME, option: value}``; or, one in a place of its own, by
    ``bfn`` and ``place``. A group with places that has no name of its own gets that of its file.

    Args:
        norm: The group as composed.
        file: Which file of the group was chosen.
        names: Every normalization there is.
        options_of: Gives a normalization's group by its name.
        like: Returns a value as the type of a default, or refuses it; called with the key, the
            value, the default and the ``_target_`` that takes it.

    Raises:
        UserError: An unknown place or name, or a normalization that cannot be placed.
    """
    expanded = dict(norm)
    if "bfn" not in norm and "places" not in norm:
        return expanded
    if norm.get("name") != file and norm.get("name") in (None, *names):
        weight = norm.get("weight", {}).get("name", "none")
        expanded["name"] = file if weight == "none" else file.removesuffix(f"_{weight}")

    def placed(key: str, given: Any) -> dict[str, Any]:
        name, chosen = given, {}
        if isinstance(given, Mapping) and "norm" in given:
            chosen = dict(given)
            name = chosen.pop("norm")
        if not isinstance(name, str):
            raise UserError(
                f"{key} must be the name of a norm, or {{norm: NAME, option: value}}, got {given!r}"
            )
        if name not in names:
            raise unknown(f"norm at {key}", name, names)
        spec = options_of(name)
        weight = spec.pop("weight", {}).get("name", "none")
        if weight != "none":
            raise UserError(
                f"{key}={name} brings the weight parametrization {weight}, which a network has "
                f"as a whole: choose it by norm/weight={weight}"
            )
        if "bfn" in spec or "places" in spec:
            raise UserError(f"{key}={name} has places of its own and cannot be placed in one")
        settable = [option for option in spec if option not in ("name", "_target_")]
        for option, value in chosen.items():
            if option not in settable:
                raise unknown(f"option of {key}={name}", option, settable)
            spec[option] = like(f"{key}.{option}", value, spec[option], spec.get("_target_", ""))
        return spec

    if "bfn" in norm:
        _check_place("norm.place", norm.get("place"))
        expanded["bfn"] = placed("norm.bfn", norm["bfn"])
    if "places" in norm:
        expanded["places"] = {}
        for place, given in (norm["places"] or {}).items():
            _check_place("norm.places", place)
            expanded["places"][place] = placed(f"norm.places.{place}", given)
        if norm.get("place") in expanded["places"]:
            raise UserError(f"norm.place={norm['place']} is a place that norm.places has, too")
    return expanded


def _check_place(key: str, place: Any) -> None:
    if place not in PLACES:
        raise unknown(f"place in {key}", str(place), PLACES)
