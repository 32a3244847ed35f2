"""Config keys in which runs differ but which their names do not show: :func:`differences`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from normbench.components import with_newer_keys

#: The name of a run, if no part of it contains a dash. Otherwise only its config tells the parts.
NAME = re.compile(
    r"(?P<dataset>[^-]+)-(?P<arch>[^-]+)-(?P<norm>[^-]+)"
    r"-b(?P<batch>\d+)-s(?P<seed>\d+)-(?P<signature>[0-9a-f]{8})"
)

#: Keys that the name of a run shows or that do not affect its results.
_SHOWN = {
    *("dataset", "arch", "norm", "norm.weight", "batch", "seed", "signature", "schema", "store"),
    *("dataset.path", "stream"),
}

_ABSENT = "absent"


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the values of each config for the keys that differ among all configs.

    The data set, the network, the normalization, the batch size and the seed are left out, because
    the name of a run shows them. An option of a group is compared only among configs with the same
    choice for the group: ``norm.groups`` among those with ``norm=gn`` and the same
    ``norm/weight``.

    Args:
        configs: Results of ``Config.to_dict``, or contents of ``config.yaml``. An empty config
            differs in nothing.

    Returns:
        For each config, values by dotted key in the order of the config. The key of a group maps to
        the group's name.
    """
    defaults = _defaults()
    flat = [
        dict(_leaves(_completed({**defaults, **config}))) if config else {} for config in configs
    ]
    values_by_key: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for leaves in flat:
        for key in leaves:
            if key not in _SHOWN:
                values_by_key.setdefault((key, _choice(leaves, key)), set())
    for (key, choice), values in values_by_key.items():
        for leaves in flat:
            if leaves and _choice(leaves, key) == choice:
                values.add(_comparable(leaves[key]) if key in leaves else _ABSENT)
    return [
        {
            key: value
            for key, value in leaves.items()
            if key not in _SHOWN and len(values_by_key[key, _choice(leaves, key)]) > 1
        }
        for leaves in flat
    ]


def as_overrides(values: Mapping[str, Any]) -> str:
    """Format keys and values as on a command line: ``optimizer.lr=0.1 epochs=5``."""
    return " ".join(f"{key}={_text(value)}" for key, value in values.items())


def short_names(names: Sequence[str], differs: Sequence[str]) -> list[str]:
    """Return runs' names without the parts that all of them share.

    Args:
        names: Names of the runs.
        differs: For each run, other keys in which it differs (see :func:`as_overrides`).

    Returns:
        Short names such as ``gn_ws b16 s0 optimizer.lr=0.1``; the full names if one of them cannot
        be split into its parts.
    """
    matches = [match for name in names if (match := NAME.fullmatch(name))]
    if len(matches) < len(names):
        return [
            f"{name} {difference}".rstrip() for name, difference in zip(names, differs, strict=True)
        ]
    parts = [part for part in ("dataset", "arch", "norm", "batch", "seed")
             if len({match[part] for match in matches}) > 1]  # fmt: skip
    prefix = {"batch": "b", "seed": "s"}
    short = []
    for match, difference in zip(matches, differs, strict=True):
        words = [prefix.get(part, "") + match[part] for part in parts]
        short.append(" ".join([*words, *([difference] if difference else [])]) or match[0])
    return short


def _defaults() -> dict[str, Any]:
    """Return the defaults of the keys that older configs lack."""
    from normbench.config import Config

    return {field.name: field.default for field in fields(Config) if field.default is not MISSING}


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    dataset = config.get("dataset")
    return {**config, "dataset": with_newer_keys(dataset)} if isinstance(dataset, dict) else config


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; the key of a group maps to the group's name."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path in ("probe", "logger") or key == "_target_":
            continue
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield (prefix[:-1] if key == "name" and prefix else path), value


def _choice(leaves: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the choices for the groups that contain a key."""
    words = key.split(".")
    groups = [".".join(words[:length]) for length in range(1, len(words))]
    weight = [leaves.get("norm.weight")] if words[0] == "norm" else []
    return tuple(_comparable(name) for name in (*map(leaves.get, groups), *weight))


def _comparable(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(float(value))
    return json.dumps(value, default=str)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value if value else "''"
    return json.dumps(value, ensure_ascii=False, default=str)
