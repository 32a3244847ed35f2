"""How norms and other names are written in print, and in which order they stand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

NORMS = {
    "none": "No norm",
    "bn": "BN",
    "bn_ws": "BN+WS",
    "gn": "GN",
    "gn_ws": "GN+WS",
    "ln": "LN",
    "ln_ws": "LN+WS",
    "in": "IN",
    "in_ws": "IN+WS",
    "rms": "RMS",
    "bn_keras": "BN (Keras)",
    "bn_moments": "BN (tf.nn)",
    "bn_center": "BN (mean only)",
    "bn_var": "BN (variance only)",
    "bn_noaffine": "BN (no affine)",
    "brn": "Batch Renorm",
    "ghost_bn": "Ghost BN",
    "sync_bn": "Sync BN",
    "precise_bn": "Precise BN",
    "pn": "PN",
    "frn": "FRN",
    "evonorm_s0": "EvoNorm-S0",
    "evonorm_b0": "EvoNorm-B0",
    "switchable": "SwitchNorm",
    "iternorm": "IterNorm",
    "dyt": "DyT",
    "lrn": "LRN",
    "bcn": "BCN",
    "xbn": "XBN",
    "xbn_pre": "XBN (first)",
    "xbn_post": "XBN (last)",
    "bn_head_none": "BN, no embedding norm",
    "bn_head_minmax": "BN, min–max",
    "bn_head_minmax_channel": "BN, min–max a channel",
    "bn_head_minmax_image": "BN, min–max an image",
    "bn_head_minmax_max_first": "BN, min–max, max first",
    "gn_tfa": "GN (tfa)",
    "in_tfa": "IN (tfa)",
    "frn_tfa": "FRN (tfa)",
    "gn_ws_regularizer": "GN+WS as regularizer",
    "gn_ws_assign": "GN+WS by assignment",
    "minmax": "Min–max",
    "minmax_channel": "Min–max a channel",
    "minmax_image": "Min–max an image",
    "minmax_max_first": "Min–max, max first",
    "minmax_reshape": "Min–max, reshaped",
}
"""Printed name of each norm, in the order of tables."""

WEIGHTS = {"ws": "WS", "scaled_ws": "Scaled WS", "wn": "WN", "cwn": "Centered WN", "sn": "SN"}
"""Printed name of each weight parametrization, as the names of norms end in them."""

DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "mnist": "MNIST",
    "mnist_binary": "Binary MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "digits": "Digits",
}

FACTORS = {
    "batch": "Batch size",
    "label": "Run",
    "norm": "Norm",
    "dataset": "Data set",
    "arch": "Architecture",
    "optimizer": "Optimizer",
    "schedule": "Schedule",
    "seed": "Seed",
    "epochs": "Epochs",
    "norm.groups": "Groups",
}


def norm(name: str) -> str:
    """Return the printed name of a norm; options in brackets stay, an unknown name stays.

    A norm with a weight parametrization is written as both: ``bn_sn`` as BN+SN, ``none_ws`` as WS.
    """
    base, bracket, options = name.partition(" (")
    return _norm(base) + bracket + options


def _norm(name: str) -> str:
    if name in NORMS:
        return NORMS[name]
    for ending in sorted(WEIGHTS, key=len, reverse=True):
        activation = name.removesuffix(f"_{ending}")
        if activation != name and activation in NORMS:
            weight = WEIGHTS[ending]
            return weight if activation == "none" else f"{NORMS[activation]}+{weight}"
    return name


def value(factor: str, raw: Any) -> str:
    """Return a value of a factor as it is printed."""
    if factor == "norm":
        return norm(str(raw))
    if factor == "dataset":
        base, bracket, options = str(raw).partition(" (")
        return DATASETS.get(base, base) + bracket + options
    return plain(raw)


def plain(raw: Any) -> str:
    """Return any value as a text: whole numbers without a point, a missing one as a dash."""
    if raw is None or raw != raw:
        return "–"
    if isinstance(raw, float):
        return f"{raw:g}"
    return str(raw)


def several(name: str, count: int) -> str:
    """Return ``6 batch sizes``; of a factor without a plural, ``6 values of dropout``."""
    if name in ("batch", "norm", "dataset", "arch", "optimizer", "schedule", "seed"):
        word = factor(name).lower()
        return f"{count} {word}{'' if count == 1 else 's'}"
    return f"{count} values of {factor(name).lower()}"


def factor(name: str) -> str:
    """Return the printed name of a factor."""
    return FACTORS.get(name, name)


def ordered(name: str, values: Iterable[Any]) -> list[Any]:
    """Sort the values of a factor: norms as in tables, numbers by size, texts by alphabet."""
    known = {key: place for place, key in enumerate(NORMS)}

    def key(raw: Any) -> tuple[int, float, str]:
        if isinstance(raw, str):
            place = known.get(raw.partition(" (")[0], len(known)) if name == "norm" else 0
            return 1, place, raw
        number = float(raw) if raw is not None else math.nan
        return (2, 0.0, "") if math.isnan(number) else (0, number, "")

    return sorted(values, key=key)
