"""The config of a run: :func:`compose` builds a :class:`Config` from ``conf/`` and overrides.

Hydra composes the chosen files of the groups. Values from overrides are then checked against the
types in those files and set. ``Config.signature`` hashes all keys that affect a run's numbers.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from normbench.components import (
    DATASET_KEYS,
    NEWER_DATASET_KEYS,
    check_names,
    check_recorded,
    conf_dir,
    group_options,
    identify,
    is_by_content,
    options_of,
    read_composed,
    read_groups,
    target,
    with_newer_keys,
)
from normbench.errors import UserError, nearest, unknown
from normbench.overrides import as_text, parse, refers, search_path

__all__ = [
    "SCHEMA",
    "Config",
    "compose",
    "compose_parsed",
    "conf_dir",
    "group_options",
    "options_of",
    "parse",
    "target",
]

STORE_VARIABLE = "NORMBENCH_STORE"
"""Environment variable with the default store."""

SCHEMA = 1
"""Version of the meaning of a config, part of every signature: increment it if numbers change."""

PLACES = ("stem", "pre", "mid", "post", "shortcut", "head")
"""Places at which a network normalizes: after the stem; after a block's first, inner and last
convolution (of two convolutions, the first counts as inner); on the shortcut; before the head."""

_MARK = "launch"
_LAUNCH = {_MARK: True}  # metadata of fields that cannot change a run's numbers
_TEXTS = ("store", "label", "init")  # keys that take any text
_LATER = {"later": True}  # metadata of newer fields, whose defaults signatures leave out


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that affects a run's numbers, and where the run is stored.

    Groups are plain dicts with a ``name``, usually a ``_target_`` (the dotted path of the component
    to build) and options. The other fields are values; ``conf/config.yaml`` has their defaults.
    """

    dataset: dict[str, Any]
    arch: dict[str, Any]
    norm: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    batch: int
    epochs: int
    seed: int
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"]
    backend: Literal["tensorflow", "jax"]
    label_smoothing: float
    eval_batch: int
    max_loss: float
    accumulate: int | Literal["auto"] = field(default=1, metadata=_LATER)
    devices: int = field(default=1, metadata=_LATER)
    init: str = field(default="", metadata=_LATER)
    init_head: Literal["trained", "new"] = field(default="trained", metadata=_LATER)
    store: str = field(metadata=_LAUNCH)
    probe: dict[str, Any] = field(default_factory=dict, metadata=_LAUNCH)
    logger: dict[str, Any] = field(default_factory=dict, metadata=_LAUNCH)
    label: str = field(default="", metadata=_LAUNCH)
    stream: bool | Literal["auto"] = field(default="auto", metadata=_LAUNCH)

    def __post_init__(self) -> None:
        for key in ("batch", "epochs", "eval_batch"):
            _at_least(key, getattr(self, key), 1)
            if getattr(self, key) >= 2**31:
                raise UserError(f"{key} must be below 2147483648, got {getattr(self, key)}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be in 0..4294967295, got {self.seed}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {self.label_smoothing:g}")
        if isinstance(self.accumulate, int):
            _at_least("accumulate", self.accumulate, 1)
            if self.batch % self.accumulate:
                divisors = [n for n in range(1, math.isqrt(self.batch) + 1) if self.batch % n == 0]
                allowed = sorted({*divisors, *(self.batch // n for n in divisors)})
                raise UserError(
                    f"accumulate={self.accumulate} does not divide batch={self.batch} "
                    f"(allowed: {', '.join(map(str, allowed))}, auto)"
                )
        _at_least("devices", self.devices, 1)
        if self.devices > 1:
            self._check_devices()
        if self.init and not self.init_signature:
            raise UserError(
                f"init={self.init} does not end in the signature of a run, 8 hex digits: give the "
                "name, the path or the signature of a run (normbench list)"
            )
        if self.init_head == "new" and not self.init:
            raise UserError("init_head=new needs init=RUN, the run that provides the other weights")
        if not self.max_loss > 0:
            raise UserError(f"max_loss must be above 0, got {self.max_loss:g}")
        for group in ("dataset", "arch", "norm", "optimizer", "schedule"):
            if not isinstance(getattr(self, group).get("name"), str):
                raise UserError(f"the file of {group} must set the key 'name' to a string")
        scaling = self.optimizer.get("scaling", "none")
        if scaling not in ("linear", "sqrt", "none"):
            raise unknown("optimizer.scaling", str(scaling), ("linear", "sqrt", "none"))

    def _check_devices(self) -> None:
        if self.backend != "jax":
            raise UserError(
                f"devices={self.devices} needs backend=jax: TensorFlow trains on one device here"
            )
        if self.accumulate == "auto":
            raise UserError(f"devices={self.devices} needs a number for accumulate, not auto")
        if self.batch // self.accumulate % self.devices:
            raise UserError(
                f"devices={self.devices} does not divide the {self.batch // self.accumulate} "
                f"images of batch={self.batch} with accumulate={self.accumulate}"
            )

    @property
    def micro_batch(self) -> int:
        """Images in a forward pass of one device.

        With ``accumulate=auto``, which is resolved later, this is the entire batch.
        """
        parts = 1 if self.accumulate == "auto" else self.accumulate
        return self.batch // (parts * self.devices)

    @property
    def norm_name(self) -> str:
        """The normalization with its weight parametrization, such as ``gn_ws``."""
        return norm_name(self.norm)

    @property
    def init_signature(self) -> str:
        """Signature of the run that ``init`` names; empty for none.

        It represents the initial weights in this run's signature, wherever the other run is stored.
        """
        return init_signature(self.init)

    @property
    def signature(self) -> str:
        """Eight hex digits, equal for two configs if and only if their numbers must be equal."""
        return self._hashed(_signed)

    @property
    def earlier_signature(self) -> str:
        """Signature in versions that distinguished 1.0 from 1 in options of a user's own class."""
        return self._hashed(lambda tree: _signed(tree, own_numbers=False))

    def _hashed(self, signed: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
        tree = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if not item.metadata.get(_MARK)
            and not (item.metadata.get("later") and getattr(self, item.name) == item.default)
        }
        if self.init:
            tree["init"] = self.init_signature
        tree["dataset"] = _signed_dataset(self.dataset)
        text = json.dumps(
            {"schema": SCHEMA, **signed(tree)},
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def run_name(self) -> str:
        """The name of the run's folder."""
        return (
            f"{self.dataset['name']}-{self.arch['name']}-{self.norm_name}"
            f"-b{self.batch}-s{self.seed}-{self.signature}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain nested dicts, in the order of the fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Config:
        """Build a config from a result of :meth:`to_dict`, of this or an earlier version.

        Raises:
            UserError: A key is unknown, or a required one is missing.
        """
        names = {item.name for item in fields(cls)}
        for key in tree:
            if key not in names:
                raise unknown("key", str(key), names)
        newer = {
            item.name
            for item in fields(cls)
            if item.default is not MISSING or item.default_factory is not MISSING
        }
        for key in names - set(tree) - newer:
            raise UserError(f"the config lacks the key {key!r}")
        hints = typing.get_type_hints(cls)
        values = {key: _typed(key, value, hints[key]) for key, value in tree.items()}
        values["dataset"] = with_newer_keys(values["dataset"])
        return cls(**copy.deepcopy(values))

    @classmethod
    def from_run(
        cls, recorded: Mapping[str, Any], config_dir: str | Path | None, where: str
    ) -> Config:
        """Build the config that a run folder records; the folder need not be trusted.

        Args:
            recorded: The content of ``config.yaml``.
            config_dir: Second folder of config groups, given on this process's command line.
            where: Name of the run in messages.

        Raises:
            UserError: It names a component that no config group has, or it is not a config.
        """
        tree = {key: value for key, value in recorded.items() if key not in _ABOUT}
        return cls.from_dict(check_recorded(_SINCE | tree, config_dir, where))


def signature_without_seed(recorded: Mapping[str, Any]) -> str:
    """Return the signature of the config that a run folder records, with 0 in place of its seed.

    It is equal for two runs if and only if their seeds are the only difference that affects their
    numbers.

    Raises:
        UserError: The config has a key that this version does not know, or lacks one.
    """
    tree = {key: value for key, value in recorded.items() if key not in _ABOUT}
    return replace(Config.from_dict(_SINCE | tree), seed=0).signature


def branch(tree: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Return the mapping of a config that contains a key, and the key's name in it.

    Args:
        tree: A config as plain dicts.
        key: A key, such as ``optimizer.lr``, or a nested group, such as ``norm/weight``.

    Returns:
        The mapping, a new one if the config has none; and the last word of the key.
    """
    *parents, last = key.replace("/", ".").split(".")
    node: Any = tree
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}, last


_ABOUT = ("signature", "schema")  # keys of config.yaml that are not part of the config
_SINCE = {"probe": {}, "label": "", "store": ""}  # keys that the configs of older runs may lack


def init_signature(init: str) -> str:
    """Return the signature of the run that a value of ``init`` names; empty if it names none."""
    match = re.search(r"(?:^|[-/])([0-9a-f]{8})/?$", init)
    return match[1] if match else ""


def _signed_dataset(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a data set that its run's signature hashes.

    A hash of the content, where there is one, replaces the path and the options for reading it.
    """
    options = {
        key: value
        for key, value in spec.items()
        if key not in NEWER_DATASET_KEYS or value != NEWER_DATASET_KEYS[key]
    }
    if not is_by_content(spec):
        return options
    key_names = ("name", "content", *DATASET_KEYS, *NEWER_DATASET_KEYS)
    return {key: value for key, value in options.items() if key in key_names}


def _is_foreign(target: str) -> bool:
    return bool(target) and not target.startswith("normbench.")


def _signed(tree: Any, foreign: bool = False, *, own_numbers: bool = True) -> Any:
    """Return the part of a config that its signature hashes.

    Paths inside this package are left out, so that moving a class changes no signature. In options
    of a user's own class, whose types are not declared, 1.0 becomes 1.

    Args:
        tree: A value of the config.
        foreign: Whether the value is an option of a class outside this package.
        own_numbers: Whether 1.0 becomes 1 there; False for the signatures of earlier versions.
    """
    if isinstance(tree, Mapping):
        target = str(tree.get("_target_", ""))
        is_foreign = _is_foreign(target) if target else foreign
        return {
            key: _signed(value, is_foreign, own_numbers=own_numbers)
            for key, value in tree.items()
            if not (key == "_target_" and str(value).startswith("normbench."))
        }
    if isinstance(tree, list | tuple):
        return [_signed(item, foreign, own_numbers=own_numbers) for item in tree]
    if own_numbers and foreign and isinstance(tree, float) and tree.is_integer():
        return int(tree)
    return tree


# --- composing a config ---------------------------------------------------------------------------


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Config:
    """Compose one run's config from ``conf/`` and command-line overrides.

    Args:
        overrides: Hydra overrides such as ``norm=gn_ws``, ``batch=16``, ``norm.groups=4``.
        config_dir: A second folder of config groups, laid out like ``conf/``.

    Raises:
        UserError: An unknown key, name or value, a value of the wrong type or out of range, or
            an override with several values.
    """
    return compose_parsed(parse(overrides), config_dir)


def compose_parsed(
    overrides: Sequence[Any],
    config_dir: str | Path | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    contents: dict[str, dict[str, Any]] | None = None,
) -> Config:
    """Compose one run's config from parsed overrides.

    Args:
        overrides: Results of :func:`parse`, for one run.
        config_dir: A second folder of config groups, laid out like ``conf/``.
        groups: Result of :func:`group_options`. A sweep passes it, so that the files are listed
            only once.
        contents: Cache of the data sets already identified. A sweep passes the same dict, empty at
            first, for all its cells.

    Raises:
        UserError: As in :func:`compose`.
    """
    groups = group_options(config_dir) if groups is None else groups
    choices: list[str] = []
    values: list[tuple[str, Any, str]] = []
    for override in overrides:
        key = override.key_or_group
        if key in groups:
            if key.partition("/")[0] not in {item.name for item in fields(Config)}:
                raise UserError(f"{override.input_line!r} is for sweeps: normbench sweep takes it")
            if override.is_delete():
                raise UserError(f"{override.input_line!r}: a group cannot be removed, only chosen")
            _refuse_several(key, override.value(), as_text(override))
            _check_option(key, override.value(), groups[key])
            choices.append(override.input_line)
        elif override.is_delete():
            raise UserError(f"{override.input_line!r}: a key cannot be removed, only set")
        elif key in _TEXTS:
            values.append((key, as_text(override), ""))
        else:
            values.append((key, override.value(), as_text(override)))
    if "store" not in {key for key, _, _ in values} and (store := os.environ.get(STORE_VARIABLE)):
        values.append(("store", store, store))
    directory = None if config_dir is None else str(Path(config_dir).resolve())
    plain, defaults = _plain_groups(tuple(choices), directory)
    if plain is not None and not any(refers(value) for _, value, _ in values):
        tree = copy.deepcopy(plain)
        for key, value, text in values:
            _put(tree, key, _checked(key, _plain(value), text, defaults, groups))
        return _stored(Config.from_dict(_identified(tree, contents)))
    config, norm_file = _compose_groups(tuple(choices), directory)
    config = copy.deepcopy(config)
    placing = [item for item in values if names_placement(item[0], config.norm)]
    for item in placing:
        _refuse_several(*item)
    _place(config, norm_file, [item[:2] for item in placing], groups["norm"], directory)
    texts = {key: value for key, value, _ in values if key in _TEXTS and not refers(value)}
    for item in values:
        key, value, text = item
        if item not in placing and key not in texts:
            _set(config, key, _plain(value), text, groups)
    typed_tree = _with_number_types(_resolved(config)) | texts
    return _stored(Config.from_dict(_identified(typed_tree, contents)))


def _identified(tree: dict[str, Any], contents: dict[str, dict[str, Any]] | None) -> dict[str, Any]:
    """Return a config with its data set's content filled in, if the content identifies it."""
    spec = tree["dataset"]
    if not isinstance(spec, Mapping) or not is_by_content(spec):
        return tree
    contents = {} if contents is None else contents
    key = json.dumps(spec, sort_keys=True)
    if key not in contents:
        contents[key] = identify(spec)
    return {**tree, "dataset": dict(contents[key])}


def default_store() -> str:
    """Return the default folder of runs: ``$NORMBENCH_STORE`` if it is set, else ``runs``."""
    return os.environ.get(STORE_VARIABLE) or "runs"


def _stored(config: Config) -> Config:
    """Refuse an empty store, as results from ``store=$UNSET``."""
    if not config.store.strip():
        raise UserError("store is empty: write store=FOLDER, or leave it out for the default")
    return config


@lru_cache(maxsize=4096)
def _compose_groups(choices: tuple[str, ...], config_dir: str | None) -> tuple[Any, str]:
    """Compose one choice of groups, once for all cells of a sweep that share it.

    Returns:
        The config for OmegaConf, and the name of the chosen file of the group ``norm``.
    """
    from omegaconf import OmegaConf

    tree, norm_file = _chosen_groups(choices, config_dir)
    return OmegaConf.create(tree), norm_file


@lru_cache(maxsize=4096)
def _chosen_groups(choices: tuple[str, ...], config_dir: str | None) -> tuple[dict[str, Any], str]:
    """Compose one choice of groups as plain dicts, from their files if possible, else with Hydra.

    Both give the same result, but Hydra takes 0.1 s, and a sweep may have a hundred choices.
    """
    result = _read_choices(choices) if choices and config_dir is None else None
    return _compose_with_hydra(choices, config_dir) if result is None else result


def _read_choices(choices: Sequence[str]) -> tuple[dict[str, Any], str] | None:
    """Put the files of a choice into the default config; return None if Hydra must do it."""
    names = dict(text.split("=", 1) for text in choices if text.count("=") == 1)
    if len(names) != len(choices) or any(group in names for group in ("probe", "logger")):
        return None  # several files of these groups may be chosen, each under its own key
    default, norm_file = _chosen_groups((), None)
    tree = copy.deepcopy(default)
    for group in dict.fromkeys(group.partition("/")[0] for group in names):
        prefix = f"{group}/"
        subgroups = {k.removeprefix(prefix): v for k, v in names.items() if k.startswith(prefix)}
        keys = read_composed(group, names[group], subgroups) if group in names else None
        if keys is None:
            return None
        tree[group] = _with_newer_keys(group, keys)
    return tree, names.get("norm", norm_file)


def _with_newer_keys(group: str, keys: dict[str, Any]) -> dict[str, Any]:
    if group == "dataset":
        for key, value in NEWER_DATASET_KEYS.items():
            keys.setdefault(key, value)
    return keys


def _compose_with_hydra(
    choices: Sequence[str], config_dir: str | None
) -> tuple[dict[str, Any], str]:
    """Compose one choice of groups with Hydra.

    Raises:
        UserError: Hydra refuses it.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    overrides = list(choices)
    if config_dir is not None:
        overrides.append(search_path(config_dir))
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = hydra_compose("config", overrides, return_hydra_config=True)
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from None
    from omegaconf import OmegaConf

    OmegaConf.set_struct(config, False)
    norm_file = config.hydra.runtime.choices["norm"]
    del config["hydra"]
    tree = typing.cast("dict[str, Any]", OmegaConf.to_container(config))
    if isinstance(tree["dataset"], dict):
        _with_newer_keys("dataset", tree["dataset"])
    if config_dir is not None:
        check_names(tree)
        tree = _with_number_types(tree)
    return tree, norm_file


@lru_cache(maxsize=4096)
def _plain_groups(
    choices: tuple[str, ...], config_dir: str | None
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return a choice of groups as plain dicts, and its leaves by dotted key.

    Setting values in plain dicts, without OmegaConf, is what makes large sweeps fast. The dicts are
    None if one value may depend on another: with interpolations, and with a normalization that
    places others.
    """
    tree, _ = _chosen_groups(choices, config_dir)
    defaults = dict(leaves(tree))
    depends = {"bfn", "places"} & set(tree["norm"]) or "${" in json.dumps(tree)
    return (None if depends else tree), defaults


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree[parent]
    tree[last] = value


# --- keys and values ------------------------------------------------------------------------------


def _check_option(group: str, value: Any, options: Sequence[str]) -> None:
    for name in value if isinstance(value, list) else [value]:
        if str(name) not in options:
            raise unknown(group, str(name), options)


def _set(tree: Any, key: str, value: Any, text: str, groups: Mapping[str, Sequence[str]]) -> None:
    """Set ``key`` in the composed ``tree``; check that it exists and that the value fits it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    defaults = dict(leaves(typing.cast("dict[str, Any]", OmegaConf.to_container(tree))))
    checked_value = _checked(key, value, text, defaults, groups)
    try:
        OmegaConf.update(tree, key, checked_value)
    except OmegaConfBaseException as error:
        raise UserError(f"{key}={checked_value}: {str(error).splitlines()[0]}") from None


def _checked(
    key: str,
    value: Any,
    text: str,
    defaults: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
) -> Any:
    """Return a value converted to the type of ``key``.

    Args:
        key: A dotted key of the config.
        value: The value as Hydra reads it.
        text: The value as it was typed, for a key whose values are strings.
        defaults: Every key with its default.
        groups: Every group with its names.

    Raises:
        UserError: There is no such key, the choice of a group decides it, or the value has another
            type.
    """
    if key not in defaults:
        raise _unknown_key(key, value, list(defaults), groups)
    if key.endswith(("_target_", ".name")):
        group = key.rpartition(".")[0]
        group = group.replace(".", "/") if group.replace(".", "/") in groups else group
        raise UserError(f"{key!r} is decided by the choice of {group}; choose {group}=NAME")
    default = defaults[key]
    if (
        isinstance(default, str)
        and not default.startswith("${")
        and "." in key
        and value is not None
    ):
        value = text
    _refuse_several(key, value, text)
    return _like(key, value, default, _target_of(key, defaults))


def _refuse_several(key: str, value: Any, text: str) -> None:
    """Refuse a value that Hydra reads as several values."""
    from hydra.core.override_parser.types import Sweep

    if isinstance(value, Sweep):
        raise UserError(
            f"'{key}={text}' names several values: one run takes one "
            "(normbench sweep takes several)"
        )


def _target_of(key: str, defaults: Mapping[str, Any]) -> str:
    """Return the ``_target_`` of the innermost group around a key; empty if there is none."""
    while key := key.rpartition(".")[0]:
        if path := defaults.get(f"{key}._target_"):
            return str(path)
    return ""


def _unknown_key(
    key: str, value: Any, keys: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> UserError:
    """Build the error for a key that does not exist, with the nearest key and the allowed ones."""
    as_group = key.replace(".", "/")
    if as_group in groups:
        return UserError(f"{key!r} is a group: choose {as_group}={value}")
    option_keys = [k for k in keys if k.rpartition(".")[2] not in ("name", "_target_")]
    inner_keys = [k for k in option_keys if k.startswith(key + ".")]
    if inner_keys:
        return UserError(f"{key!r} is a group of keys: set one of {', '.join(inner_keys)}")
    parent, _, last = key.rpartition(".")
    siblings = [k for k in option_keys if k.rpartition(".")[0] == parent]
    if not parent:
        siblings += [group for group in groups if "/" not in group]
    same_names = [k for k in option_keys if k.rpartition(".")[2] == last]
    nearest_name = nearest(last, [k.rpartition(".")[2] for k in siblings])
    nearest_keys = [k for k in siblings if k.rpartition(".")[2] == nearest_name]
    close = next(iter([*same_names, *nearest_keys]), None)
    hint = f": did you mean {close!r}?" if close else ""
    # A group such as probe is a key too, so a name may occur twice.
    allowed = ", ".join(sorted(set(siblings or option_keys)))
    return UserError(f"unknown key {key!r}{hint} (allowed: {allowed})")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a config with their values; an empty group counts as a value."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def _like(key: str, value: Any, default: Any, target: str) -> Any:
    """Return ``value`` with the type of the default in its group's file, or refuse it.

    For a user's own class, a whole number in the file allows any number: with ``factor: 1`` in it,
    ``factor=0.5`` may make sense too.
    """
    if isinstance(value, str) and value.startswith("${"):
        return value
    if "." not in key:
        return value  # checked against the type of its field
    if default is None or value is None:
        return value  # optional: the component checks it
    if isinstance(default, str) and default.startswith("${"):
        return value
    if isinstance(default, list):
        items = value if isinstance(value, list) else [value]
        return [_like(key, item, default[0], target) if default else item for item in items]
    if isinstance(default, dict):
        return value
    if type(default) is int and _is_foreign(target):
        number = _typed(key, value, float)
        return int(value) if number.is_integer() else number
    return _typed(key, value, type(default))


def _typed(key: str, value: Any, hint: Any) -> Any:
    """Check ``value`` against a type hint; convert a whole number to float if that is the hint."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise unknown(key, str(value), allowed)
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{key} must be a group of keys, got {value!r}")
        return dict(value)
    if origin in (typing.Union, types.UnionType):
        if type(value) in {type(None)}.intersection(typing.get_args(hint)):
            return None
        hints = [option for option in typing.get_args(hint) if option is not type(None)]
        literals = [option for option in hints if typing.get_origin(option) is Literal]
        words = typing.get_args(literals[0]) if literals else ()
        if literals and (isinstance(value, str) or bool in hints):
            if not (value in words if isinstance(value, str) else isinstance(value, bool)):
                other = "true, false" if bool in hints else "a whole number"
                choices = ", ".join(map(repr, words))
                raise UserError(f"{key} must be {other} or {choices}, got {value!r}")
            return value
        (hint,) = [option for option in hints if option not in literals]
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if hint is float and (is_integer or isinstance(value, float)):
        if not math.isfinite(value):
            raise UserError(f"{key} must be a finite number, got {value}")
        return float(value)
    if (hint is int and is_integer) or (hint is bool and isinstance(value, bool)):
        return value
    if hint is str and (isinstance(value, str) or is_integer):
        return str(value)
    nouns = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    raise UserError(f"{key} must be {nouns.get(hint, hint)}, got {value!r}")


def _plain(value: Any) -> Any:
    """Convert values of Hydra's parser (quoted strings, nested lists) to plain Python values."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    return value


def _resolved(tree: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return typing.cast("dict[str, Any]", OmegaConf.to_container(tree, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from None


@lru_cache(maxsize=1)
def _shipped_numbers() -> dict[str, dict[str, Any]]:
    """Return the options in ``conf/`` that are numbers or lists of numbers, by ``_target_``."""
    numbers: dict[str, dict[str, Any]] = {}
    for tree in read_groups():
        examples = numbers.setdefault(str(tree.get("_target_")), {})
        for key, value in tree.items():
            example = value[0] if isinstance(value, list) and value else value
            if isinstance(example, int | float) and not isinstance(example, bool):
                examples.setdefault(key, example)
    return numbers


def _with_number_types(tree: Any, key: str = "") -> Any:
    """Convert numbers in the options of shipped classes to their types in ``conf/``.

    A user's file may have ``lr: 1`` instead of ``lr: 1.0``, which is the same run.

    Raises:
        UserError: A fraction where ``conf/`` has a whole number.
    """
    if not isinstance(tree, Mapping):
        return tree
    examples = _shipped_numbers().get(str(tree["_target_"]), {}) if "_target_" in tree else {}
    values = {}
    for name, value in tree.items():
        path = f"{key}.{name}" if key else str(name)
        if name not in examples:
            values[name] = _with_number_types(value, path)
        elif isinstance(value, list):
            values[name] = [_as_number(path, item, type(examples[name])) for item in value]
        else:
            values[name] = _as_number(path, value, type(examples[name]))
    return values


def _as_number(key: str, value: Any, kind: type[int] | type[float]) -> Any:
    """Convert a number to ``kind``; leave other values to the class that takes them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    return _typed(key, value, kind)


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{key} must be at least {least}, got {value}")


def norm_name(norm: Mapping[str, Any]) -> str:
    """Join the names of a normalization and its weight parametrization, as in ``gn_ws``.

    :func:`normbench.report.names.split_norm` is the inverse.
    """
    weight = norm.get("weight")
    name = weight.get("name", "none") if isinstance(weight, Mapping) else "none"
    return str(norm["name"]) if name == "none" else f"{norm['name']}_{name}"


# --- placed normalizations ------------------------------------------------------------------------


def _place(
    tree: Any,
    norm_file: str,
    placing: Sequence[tuple[str, Any]],
    names: Sequence[str],
    config_dir: str | None,
) -> None:
    """Replace the names of the normalizations placed by ``tree.norm`` with their full options."""
    from omegaconf import OmegaConf

    def options_of_norm(name: str) -> dict[str, Any]:
        config, _ = _compose_groups((f"norm={name}",), config_dir)
        return typing.cast("dict[str, Any]", OmegaConf.to_container(config.norm))

    for key, value in placing:
        OmegaConf.update(tree, key, _plain(value), merge=False)
    norm = typing.cast("dict[str, Any]", OmegaConf.to_container(tree.norm))
    tree.norm = _expand_placement(norm, norm_file, names, options_of_norm, _like)


def names_placement(key: str, norm: Mapping[str, Any]) -> bool:
    """Return whether ``key`` chooses a place or the normalization at a place."""
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
    """Return the group ``norm`` with the name of each placed normalization replaced by its options.

    ``places`` maps places to names of normalizations, or to ``{norm: NAME, option: value}``.
    ``bfn`` and ``place`` set a single one. A group with placed normalizations and no name of its
    own gets the name of its file.

    Args:
        norm: The group as composed.
        file: Name of the chosen file of the group.
        names: The names of all normalizations.
        options_of: Returns a normalization's group by its name.
        like: Converts a value to the type of a default, or refuses it; called with the key, the
            value, the default and the ``_target_`` that takes it.

    Raises:
        UserError: An unknown place or name, or a normalization that cannot be placed.
    """
    result = dict(norm)
    if "bfn" not in norm and "places" not in norm:
        return result
    if norm.get("name") != file and norm.get("name") in (None, *names):
        weight = norm.get("weight", {}).get("name", "none")
        result["name"] = file if weight == "none" else file.removesuffix(f"_{weight}")

    def placed(key: str, value: Any) -> dict[str, Any]:
        name, settings = value, {}
        if isinstance(value, Mapping) and "norm" in value:
            settings = dict(value)
            name = settings.pop("norm")
        if not isinstance(name, str):
            raise UserError(
                f"{key} must be the name of a norm, or {{norm: NAME, option: value}}, got {value!r}"
            )
        if name not in names:
            raise unknown(f"norm at {key}", name, names)
        spec = options_of(name)
        weight = spec.pop("weight", {}).get("name", "none")
        if weight != "none":
            raise UserError(
                f"{key}={name} brings the weight parametrization {weight}, which applies "
                f"to the entire network: choose it with norm/weight={weight}"
            )
        if "bfn" in spec or "places" in spec:
            raise UserError(f"{key}={name} has places of its own, so it cannot be placed itself")
        options = [option for option in spec if option not in ("name", "_target_")]
        for option, setting in settings.items():
            if option not in options:
                raise unknown(f"option of {key}={name}", option, options)
            spec[option] = like(f"{key}.{option}", setting, spec[option], spec.get("_target_", ""))
        return spec

    if "bfn" in norm:
        _check_place("norm.place", norm.get("place"))
        result["bfn"] = placed("norm.bfn", norm["bfn"])
    if "places" in norm:
        result["places"] = {}
        for place, value in (norm["places"] or {}).items():
            _check_place("norm.places", place)
            result["places"][place] = placed(f"norm.places.{place}", value)
        if norm.get("place") in result["places"]:
            raise UserError(f"norm.place={norm['place']} is also a key of norm.places")
    return result


def _check_place(key: str, place: Any) -> None:
    if place not in PLACES:
        raise unknown(f"place in {key}", str(place), PLACES)
