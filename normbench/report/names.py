"""How norms and other names are written in print, and in which order they stand."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from normbench.formats import UNKNOWN, printable

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
    "bn_head_minmax_channel": "BN, min–max per channel",
    "bn_head_minmax_image": "BN, min–max per image",
    "bn_head_minmax_max_first": "BN, min–max, max first",
    "gn_tfa": "GN (tfa)",
    "in_tfa": "IN (tfa)",
    "frn_tfa": "FRN (tfa)",
    "gn_ws_regularizer": "GN+WS as regularizer",
    "gn_ws_assign": "GN+WS by assignment",
    "minmax": "Min–max",
    "minmax_channel": "Min–max per channel",
    "minmax_image": "Min–max per image",
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
        return norm(printable(str(raw)))
    if factor == "dataset":
        base, bracket, options = printable(str(raw)).partition(" (")
        return DATASETS.get(base, base) + bracket + options
    return plain(raw)


def plain(raw: Any) -> str:
    """Return any value as a text, in as few digits as tell a number from every other number.

    Whole numbers have no point; a missing value and an empty text are a dash.
    """
    if raw is None or raw != raw:
        return UNKNOWN
    if isinstance(raw, float):
        short = f"{raw:g}"
        if float(short) == raw:
            return short
        return f"{raw:.0f}" if raw.is_integer() and abs(raw) < 2**53 else repr(float(raw))
    return printable(str(raw)) or UNKNOWN


def distinct(factor: str, values: Iterable[Any]) -> dict[Any, str]:
    """Return the printed name of each value of a factor; those that would read the same stay raw.

    A norm of one's own named ``BN`` beside ``bn`` is such a pair.
    """
    names = list(values)
    ways = [{raw: write(raw) for raw in names} for write in (lambda raw: value(factor, raw), plain)]
    counts = [Counter(way.values()) for way in ways]

    def name(raw: Any) -> str:
        for way, count in zip(ways, counts, strict=True):
            if count[way[raw]] == 1:
                return way[raw]
        return repr(raw)

    return {raw: name(raw) for raw in names}


_SLUG = 80
"""Most bytes of a slug: a file name may have 255 in all."""


def slugs(texts: Sequence[str], keys: Sequence[str] | None = None) -> list[str]:
    """Return a name for a file or folder for each text: lower case, letters, digits, ``._-``.

    No two are the same in any file system, also where upper and lower case or two ways to write
    an accent count as the same. Texts that would share a name, and texts too long for one, end
    in a checksum of their key.

    Args:
        texts: What the names are made of.
        keys: What tells texts apart that read the same; the texts themselves where None.
    """
    made = [_slug(text) for text in texts]
    short = [slug.encode()[:_SLUG].decode(errors="ignore").rstrip("._-") for slug in made]
    counts = Counter(map(_folded, short))
    taken: set[str] = set()
    found = []
    for slug, whole, key in zip(short, made, keys or texts, strict=True):
        name = slug
        if slug != whole or counts[_folded(slug)] > 1:
            name += f"-{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:8]}"
        number = 2
        while _folded(name) in taken:
            name, number = f"{slug}-{number}", number + 1
        taken.add(_folded(name))
        found.append(name)
    return found


def _slug(text: str) -> str:
    normal = unicodedata.normalize("NFC", text.lower())
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in normal)
    return kept.strip("._-") or "all"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name.casefold())


def several(name: str, count: int) -> str:
    """Return ``6 batch sizes``; of a factor without a plural, ``6 values of dropout``."""
    if name in ("batch", "norm", "dataset", "arch", "optimizer", "schedule", "seed"):
        word = factor(name).lower()
        return f"{count} {word}{'' if count == 1 else 's'}"
    return f"{count} values of {factor(name).lower()}"


def factor(name: str) -> str:
    """Return the printed name of a factor."""
    return FACTORS.get(name) or printable(name)


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


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Return names of at most about ``most`` letters, the middle of longer ones left out.

    Names that differ still do: those that would not get a number.
    """
    short = [_shortened(name, most) for name in names]
    alike: dict[str, list[str]] = {}
    for text, name in zip(short, names, strict=True):
        if name not in alike.setdefault(text, []):
            alike[text].append(name)
    return [
        text if len(alike[text]) == 1 else f"{text} #{1 + alike[text].index(name)}"
        for text, name in zip(short, names, strict=True)
    ]


def _shortened(name: str, most: int) -> str:
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"
