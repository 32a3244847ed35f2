"""Printed names and their order, colors and markers of norms, and names of files."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from normbench.formats import UNKNOWN, printable


class NormStyle(NamedTuple):
    """How a norm is printed and drawn.

    Attributes:
        text: Its printed name.
        color: A name in :data:`normbench.report.figures.style.PALETTE`; if empty, color and marker
            follow from a checksum of the name, as for a user's own norm.
        marker: A Matplotlib marker.
    """

    text: str
    color: str = ""
    marker: str = ""


NORMS = {
    "none": NormStyle("No norm", "gray", "h"),
    "bn": NormStyle("BN", "blue", "o"),
    "bn_ws": NormStyle("BN+WS", "sky", "D"),
    "gn": NormStyle("GN", "vermilion", "s"),
    "gn_ws": NormStyle("GN+WS", "green", "^"),
    "ln": NormStyle("LN", "purple", "v"),
    "ln_ws": NormStyle("LN+WS", "purple", "^"),
    "in": NormStyle("IN", "orange", "P"),
    "in_ws": NormStyle("IN+WS", "orange", "^"),
    "rms": NormStyle("RMS", "wine", "<"),
    "bn_keras": NormStyle("BN (Keras)"),
    "bn_moments": NormStyle("BN (tf.nn)"),
    "bn_center": NormStyle("BN (mean only)", "blue", "<"),
    "bn_var": NormStyle("BN (variance only)"),
    "bn_noaffine": NormStyle("BN (no affine)", "blue", "s"),
    "brn": NormStyle("Batch Renorm", "indigo", ">"),
    "ghost_bn": NormStyle("Ghost BN", "sky", "o"),
    "sync_bn": NormStyle("Sync BN", "blue", "D"),
    "precise_bn": NormStyle("Precise BN", "blue", "P"),
    "pn": NormStyle("PN", "olive", "v"),
    "frn": NormStyle("FRN", "olive", "p"),
    "evonorm_s0": NormStyle("EvoNorm-S0", "wine", "s"),
    "evonorm_b0": NormStyle("EvoNorm-B0", "wine", "o"),
    "switchable": NormStyle("SwitchNorm", "teal", "s"),
    "iternorm": NormStyle("IterNorm", "indigo", "D"),
    "dyt": NormStyle("DyT", "sand", "v"),
    "lrn": NormStyle("LRN", "gray", "s"),
    "bcn": NormStyle("BCN", "sand", "8"),
    "xbn": NormStyle("XBN", "teal", "*"),
    "xbn_pre": NormStyle("XBN (first)"),
    "xbn_post": NormStyle("XBN (last)"),
    "bn_head_none": NormStyle("BN, no embedding norm"),
    "bn_head_minmax": NormStyle("BN, min–max"),
    "bn_head_minmax_channel": NormStyle("BN, min–max per channel"),
    "bn_head_minmax_image": NormStyle("BN, min–max per image"),
    "bn_head_minmax_max_first": NormStyle("BN, min–max, max first"),
    "gn_tfa": NormStyle("GN (tfa)", "vermilion", "o"),
    "in_tfa": NormStyle("IN (tfa)", "orange", "o"),
    "frn_tfa": NormStyle("FRN (tfa)", "olive", "o"),
    "gn_ws_regularizer": NormStyle("GN+WS as regularizer", "vermilion", "<"),
    "gn_ws_assign": NormStyle("GN+WS by assignment", "vermilion", "D"),
    "minmax": NormStyle("Min–max", "indigo", "s"),
    "minmax_channel": NormStyle("Min–max per channel", "indigo", "^"),
    "minmax_image": NormStyle("Min–max per image", "indigo", "o"),
    "minmax_max_first": NormStyle("Min–max, max first", "indigo", "v"),
    "minmax_reshape": NormStyle("Min–max, reshaped", "indigo", "<"),
}
"""How each norm is printed and drawn, in the order of tables."""

UNNORMALIZED = {
    "none_ws": NormStyle("WS", "green", "o"),
    "none_scaled_ws": NormStyle("Scaled WS", "green", "D"),
}
"""The same for weight parametrizations without a norm, which tables list alphabetically."""

WEIGHTS = {"ws": "WS", "scaled_ws": "Scaled WS", "wn": "WN", "cwn": "Centered WN", "sn": "SN"}
"""Printed name of each weight parametrization, by the suffix of a norm's name."""

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
    "store": "Store",
    "commit": "Commit",
}


def norm(name: str) -> str:
    """Return the printed name of a norm; options in brackets and unknown names are unchanged.

    A norm with a weight parametrization shows both: ``bn_sn`` is BN+SN, ``none_ws`` is WS.
    """
    base, bracket, options = name.partition(" (")
    if base in NORMS:
        return NORMS[base].text + bracket + options
    activation, weight = split_norm(base)
    if weight:
        text = WEIGHTS[weight]
        base = text if activation == "none" else f"{NORMS[activation].text}+{text}"
    return base + bracket + options


def split_norm(name: str) -> tuple[str, str]:
    """Split ``gn_ws`` into the norm and its weight parametrization, empty if it has none.

    :func:`normbench.config.norm_name` joins them.
    """
    for weight in sorted(WEIGHTS, key=len, reverse=True):
        activation = name.removesuffix(f"_{weight}")
        if activation != name and activation in NORMS:
            return activation, weight
    return name, ""


def value(factor: str, raw: Any) -> str:
    """Return the printed value of a factor."""
    if factor == "norm":
        return norm(printable(str(raw)))
    if factor == "dataset":
        base, bracket, options = printable(str(raw)).partition(" (")
        return DATASETS.get(base, base) + bracket + options
    return plain(raw)


def plain(raw: Any) -> str:
    """Return a value as text; a number with the fewest digits that identify it.

    Integers have no decimal point; a missing value or an empty text becomes a dash.
    """
    if raw is None or raw != raw:
        return UNKNOWN
    if isinstance(raw, float):
        text = f"{raw:g}"
        if float(text) == raw:
            return text
        return f"{raw:.0f}" if raw.is_integer() and abs(raw) < 2**53 else repr(float(raw))
    return printable(str(raw)) or UNKNOWN


def distinct(factor: str, values: Iterable[Any]) -> dict[Any, str]:
    """Return the printed name of each value of a factor; values that would share one stay raw.

    For example, a user's norm named ``BN`` and the built-in ``bn``.
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
"""Maximum length of a slug in bytes: a file name may have 255 bytes in total."""


def slugs(texts: Sequence[str], keys: Sequence[str] | None = None) -> list[str]:
    """Return a name for a file or folder for each text: lower case, letters, digits, ``._-``.

    The names differ on every file system, even one that ignores case or normalizes accents. Texts
    that would share a name, and texts that are too long, end in a checksum of their key.

    Args:
        texts: The texts.
        keys: A unique key for each text; None for the texts themselves.
    """
    full_slugs = [_slug(text) for text in texts]
    short_slugs = [
        slug.encode()[:_SLUG].decode(errors="ignore").rstrip("._-") for slug in full_slugs
    ]
    counts = Counter(map(_folded, short_slugs))
    folded_names: set[str] = set()
    names = []
    for slug, full_slug, key in zip(short_slugs, full_slugs, keys or texts, strict=True):
        name = slug
        if slug != full_slug or counts[_folded(slug)] > 1:
            name += f"-{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:8]}"
        number = 2
        while _folded(name) in folded_names:
            name, number = f"{slug}-{number}", number + 1
        folded_names.add(_folded(name))
        names.append(name)
    return names


def _slug(text: str) -> str:
    normal = unicodedata.normalize("NFC", text.lower())
    slug = "".join(c if c.isalnum() or c in "._-" else "_" for c in normal)
    return slug.strip("._-") or "all"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name.casefold())


_COUNTED = (
    *("batch", "norm", "dataset", "arch", "optimizer", "schedule", "seed"),
    *("store", "commit"),
)  # factors whose plural ends in s


def several(name: str, count: int) -> str:
    """Return ``6 batch sizes``, or ``6 values of dropout`` for a factor without a plural."""
    if name in _COUNTED:
        word = factor(name).lower()
        return f"{count} {word}{'' if count == 1 else 's'}"
    return f"{count} values of {factor(name).lower()}"


def factor(name: str) -> str:
    """Return the printed name of a factor."""
    return FACTORS.get(name) or printable(name)


def ordered(name: str, values: Iterable[Any]) -> list[Any]:
    """Sort the values of a factor: norms as in NORMS, numbers by size, texts alphabetically."""
    places = {key: place for place, key in enumerate(NORMS)}

    def key(raw: Any) -> tuple[int, float, str]:
        if isinstance(raw, str):
            place = places.get(raw.partition(" (")[0], len(places)) if name == "norm" else 0
            return 1, place, raw
        number = float(raw) if raw is not None else math.nan
        return (2, 0.0, "") if math.isnan(number) else (0, number, "")

    return sorted(values, key=key)


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Shorten names to about ``most`` characters by omitting the middle of longer ones.

    Different names stay different: names that would become equal get a number.
    """
    texts = [_shortened(name, most) for name in names]
    names_by_text: dict[str, list[str]] = {}
    for text, name in zip(texts, names, strict=True):
        if name not in names_by_text.setdefault(text, []):
            names_by_text[text].append(name)
    return [
        text if len(names_by_text[text]) == 1 else f"{text} #{1 + names_by_text[text].index(name)}"
        for text, name in zip(texts, names, strict=True)
    ]


def _shortened(name: str, length: int) -> str:
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"
