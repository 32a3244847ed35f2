"""Caveats of a comparison: confounds, unfinished training, untuned learning rates.

Rows and columns of a study differ in the requested factors. Any other recorded value that differs
between them (a config key, a version, the processor) is a :class:`Condition`: it may be the cause
of a difference between two rows. :func:`conditions` finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from normbench.errors import unknown
from normbench.formats import printable
from normbench.report import names as labels
from normbench.report.frames import GROUPS, is_config, is_provenance

ENDED = ("finished", "diverged")
"""Statuses of runs whose results appear in tables."""

CONFOUND_RULE = (
    "If runs of two rows differ in anything recorded other than the compared factor (a config "
    "key, a version, the processor), a difference between these rows is called confounded, "
    "whatever its p-value. --allow-confound names keys in which rows differ on purpose. With "
    "--by label, each label represents a complete config."
)

_NAMES = (
    "seed",
    "store",
    "label",
    "host",
    "row",
    "column",
)  # identify runs but do not change results
# Change only the last bits of sums.
_ROUNDING = ("engine.threads", "engine.shards", "engine.onednn")
_FOLLOW = {  # keys that are determined by another key
    "backend": ("engine.backend", "engine.jit_compile", "engine.deterministic"),
    "precision": ("engine.precision",),
    "accumulate": ("micro_batches",),
}
_FIRST = ("norm", "epochs", "batch", "optimizer", "optimizer.lr", "schedule")
_LISTED = 6  # maximum number of rows listed in a sentence
_VALUES = 3  # maximum number of values listed for one row

_WORDS = {
    "norm": "norm",
    "arch": "architecture",
    "dataset": "data set",
    "batch": "batch size",
    "optimizer.lr": "learning rate",
    "optimizer.weight_decay": "weight decay",
    "optimizer.scaling": "scaling of the learning rate",
    "dataset.train_size": "training images",
    "label_smoothing": "label smoothing",
    "eval_batch": "batch size of evaluation",
    "accumulate": "micro-batches",
    "init": "run that the weights are from",
    "micro_batches": "micro-batches",
    "commit": "commit of the code",
    "dirty": "uncommitted changes",
    "engine.threads": "threads",
    "engine.shards": "shards",
    "engine.onednn": "oneDNN",
    "version.python": "Python version",
    "version.tensorflow": "TensorFlow version",
    "version.keras": "Keras version",
    "version.jax": "JAX version",
    "version.numpy": "NumPy version",
    "version.normbench": "normbench version",
}


@dataclass(frozen=True)
class Condition:
    """A key other than the factors that differs between rows or columns of a study.

    Attributes:
        key: The column of the runs frame, as ``optimizer.lr``.
        values: Its value in each run of the study, as text; None where it is not recorded.
        rows, columns: Whether it differs between rows of a column, and between columns of a row.
        intended: Whether the user allows rows to differ in it.
    """

    key: str
    values: np.ndarray
    rows: bool
    columns: bool
    intended: bool

    @property
    def words(self) -> str:
        """The key as written in a sentence."""
        return words(self.key)

    @property
    def confounds(self) -> bool:
        """Whether it may cause a difference between rows."""
        return self.rows and not self.intended and self.key not in _ROUNDING


@dataclass(frozen=True)
class Training:
    """How far the runs of a study had converged, and how many learning rates were tried.

    Attributes:
        last_best: For each row, the number of finished runs whose best epoch is their last.
        finished: For each row, the number of finished runs that have a best epoch.
        rates: For each row, the largest number of learning rates in the store for any of its cells.
    """

    last_best: Mapping[Any, int]
    finished: Mapping[Any, int]
    rates: Mapping[Any, int]

    @cached_property
    def unconverged(self) -> list[Any]:
        """The rows in which most runs have their best epoch last."""
        return [row for row, count in self.finished.items() if 2 * self.last_best[row] > count]


def conditions(
    runs: pd.DataFrame, factors: Sequence[str], context: Iterable[str], allowed: Sequence[str] = ()
) -> list[Condition]:
    """Return the keys other than the factors that differ between cells.

    Options of a factor that is a group (``norm.groups`` of ``norm``) belong to the factor. A key
    that has the same values in every cell, or that the seed determines, is not a condition. With
    ``label`` as a factor, each label represents a complete config, so config keys are intended.

    Args:
        runs: The runs of a study, with ``row`` and ``column``.
        factors: The factors of rows and columns.
        context: Keys that all runs of the study share.
        allowed: Keys, or groups of keys, in which rows may differ on purpose.
    """
    has_ended = runs["status"].isin(ENDED).to_numpy()
    prefixes = tuple(f"{name}." for name in factors if name in GROUPS)
    context = tuple(context)
    left_out = {*_NAMES, *factors, *context}
    if "commit" in left_out:  # a commit with uncommitted changes is a value of its own
        left_out.add("dirty")
    keys = [
        key
        for key in runs.columns
        if _is_condition(key) and key not in left_out and not key.startswith(prefixes or "\0")
    ]
    if "backend" in runs and "jax" not in set(runs["backend"]):
        keys = [key for key in keys if key != "version.jax"]
    by_key: dict[str, Condition] = {}
    for key in sorted(keys, key=_order):
        values = _texts(runs, key)
        if len(set(values[has_ended]) - {None}) < 2:
            continue
        rows, columns = _differs(runs[has_ended], values[has_ended])
        if not (rows or columns) or (key.endswith("seed") and _determines(runs["seed"], values)):
            continue
        is_intended = is_allowed(key, allowed) or ("label" in factors and is_config(key))
        by_key[key] = Condition(key, values, rows, columns, is_intended)
    return [by_key[key] for key in by_key if not _repeats(by_key, key)]


def check_allowed(names: Sequence[str], runs: pd.DataFrame) -> None:
    """Check the names given to --allow-confound.

    Raises:
        UserError: A name is neither a key nor a group of keys; the message suggests the nearest.
    """
    keys = [key for key in runs.columns if _is_condition(key) and key not in _NAMES]
    groups = {key.partition(".")[0] for key in keys if "." in key}
    for name in names:
        if name not in keys and name not in groups:
            raise unknown("key in --allow-confound", name, sorted({*keys, *groups}))


def is_allowed(key: str, allowed: Sequence[str]) -> bool:
    """Return whether a key or its group is allowed to differ."""
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def words(key: str) -> str:
    """Return a key as written in a sentence."""
    if key.startswith("version.") and key not in _WORDS:  # the user's own code or data
        return f"version of {printable(key.removeprefix('version.'))}"
    return _WORDS.get(key) or printable(key)


def allowing(keys: Sequence[str]) -> str:
    """Return the value of --allow-confound for these keys.

    A key at which a shell or the option would split (``version.data of mine (path=a)``) is replaced
    by its group.
    """
    names = [key if re.fullmatch(r"[\w.]+", key) else key.partition(".")[0] for key in keys]
    return ",".join(dict.fromkeys(names))


def join_names(names: Sequence[str]) -> str:
    """Join names as ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def describe_values(values: Mapping[str, Sequence[str]]) -> str:
    """Format values by name, as ``BN 5, GN 2``; the most common value is for ``all others``."""
    texts = {name: _several(entries) for name, entries in values.items() if entries}
    by_text: dict[str, list[str]] = {}
    for name, text in texts.items():
        by_text.setdefault(text, []).append(name)
    majority = max(by_text.values(), key=len)
    rest = majority if len(majority) > 2 and len(texts) > len(majority) else []
    colon = ":" if any(" " in name or name[-1:].isdigit() for name in texts) else ""
    parts = [f"{name}{colon} {text}" for name, text in texts.items() if name not in rest]
    if len(parts) > _LISTED:
        return f"{len(by_text)} different values"
    if rest:
        parts.append(f"all others{colon} {texts[rest[0]]}")
    return ", ".join(parts)


def _several(values: Sequence[str]) -> str:
    return join_names(values) if len(values) <= _VALUES else f"{len(values)} values"


def _is_condition(key: str) -> bool:
    return is_config(key) or is_provenance(key) or key == "micro_batches"


def _order(key: str) -> tuple[int, bool, str]:
    return _FIRST.index(key) if key in _FIRST else len(_FIRST), is_provenance(key), key


def _texts(runs: pd.DataFrame, key: str) -> np.ndarray:
    """Return a key's value in each run, as text; None if provenance was not recorded."""
    texts = np.empty(len(runs), object)
    is_recorded = is_provenance(key) or key == "micro_batches"
    for place, value in enumerate(runs[key].tolist()):
        if value is None or value is pd.NA or value != value or (is_recorded and value == ""):
            texts[place] = None if is_recorded else "none"
        elif isinstance(value, bool):
            texts[place] = "yes" if value else "no"
        elif key == "commit":
            texts[place] = str(value)[:10]
        else:
            texts[place] = labels.value(key, value)
    return texts


def _differs(runs: pd.DataFrame, values: np.ndarray) -> tuple[bool, bool]:
    """Return whether values differ between rows of a column, and between columns of a row."""
    cells: dict[tuple[Any, Any], set[str]] = {}
    for row, column, value in zip(runs["row"], runs["column"], values, strict=True):
        if value is not None:
            cells.setdefault((row, column), set()).add(value)
    differences = []
    for axis in (1, 0):
        groups: dict[Any, list[set[str]]] = {}
        for place, cell_values in cells.items():
            groups.setdefault(place[axis], []).append(cell_values)
        differences.append(any(values != group[0] for group in groups.values() for values in group))
    # No two cells share a row or column, or all cells have the same values.
    if not any(differences):
        all_values = list(cells.values())
        differences[0] = any(values != all_values[0] for values in all_values)
    return differences[0], differences[1]


def _determines(first: pd.Series, second: np.ndarray) -> bool:
    """Return whether the first key determines the second."""
    pairs = set(zip(first, second, strict=True))
    return len(pairs) == len({value for value, _ in pairs})


def _repeats(by_key: Mapping[str, Condition], key: str) -> bool:
    """Return whether another condition determines this one, which makes it redundant."""
    group = key.partition(".")[0]
    leaders = [name for name, keys in _FOLLOW.items() if key in keys]
    if group in GROUPS and key not in (group, "optimizer.lr"):
        leaders.append(group)
    return any(
        name in by_key and _determines(pd.Series(by_key[name].values), by_key[key].values)
        for name in leaders
    )
