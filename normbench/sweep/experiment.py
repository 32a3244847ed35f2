"""Experiments: named sweeps, each a file in ``conf/experiment/``; see :func:`unfold`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normbench.components import group_file
from normbench.config import parse
from normbench.errors import UserError, unknown

FULL = "full"
"""Name of the scale at which an experiment has no further overrides."""


@dataclass(frozen=True)
class Experiment:
    """A named sweep: lists of overrides as they would be typed after ``normbench sweep``.

    The lists apply in this order, and a later override of a key replaces an earlier one:
    ``overrides``, one of the ``variants``, those of the scale, those that the user typed.

    Attributes:
        name: Name after ``+experiment=``.
        title: The question that the experiment asks, in one line.
        overrides: Overrides of every cell; several values of one key make several cells.
        variants: Alternative lists of overrides, each of which makes cells of its own.
        scales: Overrides by scale, which make the experiment shorter.
        expected: The published result, in one sentence.
        minutes: Expected minutes on two CPU cores by scale, measured or estimated.
        report: Options of ``normbench report`` that produce the experiment's table.
        about: The lines of the comment at the top of the file.
        tune: The keys to tune in each cell with their values, as they would be typed after
            ``--tune``; none of them are among the overrides.
        tune_seeds, tune_epochs, extend, sampler, trials: Values of the options of these names; None
            if the file does not set them.
    """

    name: str
    title: str
    overrides: tuple[str, ...]
    variants: tuple[tuple[str, ...], ...] = ((),)
    scales: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    expected: str = ""
    minutes: Mapping[str, float] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    about: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()
    tune_seeds: str | None = None
    tune_epochs: int | None = None
    extend: int | None = None
    sampler: str | None = None
    trials: int | None = None

    def unfolded(self, scale: str, typed: Sequence[str]) -> list[list[str]]:
        """Return one list of overrides for each variant.

        Args:
            scale: ``full`` or one of ``scales``.
            typed: Overrides that the user typed in addition to the experiment's name.

        Raises:
            UserError: The experiment has no such scale.
        """
        if scale != FULL and scale not in self.scales:
            raise unknown(f"scale of {self.name}", scale, [FULL, *self.scales])
        scale_overrides = self.scales.get(scale, ())
        return [
            _merged([self.overrides, variant, scale_overrides, typed]) for variant in self.variants
        ]


def unfold(
    overrides: Sequence[str], config_dir: str | Path | None = None
) -> tuple[Experiment | None, list[list[str]]]:
    """Replace ``+experiment=NAME scale=SCALE`` with the overrides of the experiment.

    Returns:
        The experiment and one list of overrides for each of its variants. Without an experiment,
        None and a list with only ``overrides``.

    Raises:
        UserError: There is no such experiment or scale, or a scale without an experiment.
    """
    names: list[str] = []
    scale: str | None = None
    other_overrides: list[str] = []
    for override in parse(overrides):
        key = override.key_or_group
        if key == "experiment":
            names.append(str(override.value()))
        elif key == "scale":
            scale = str(override.value())
        else:
            other_overrides.append(str(override.input_line))
    if not names:
        if scale is not None:
            raise UserError(f"scale={scale} needs an experiment: +experiment=NAME scale={scale}")
        return None, [other_overrides]
    if len(names) > 1:
        raise UserError(f"one experiment at a time, not {' and '.join(names)}")
    experiment = load(names[0], config_dir)
    return experiment, experiment.unfolded(scale or FULL, other_overrides)


def load(name: str, config_dir: str | Path | None = None) -> Experiment:
    """Read an experiment from ``conf/experiment/`` or from ``config_dir``.

    Raises:
        UserError: There is no such experiment, or its file is not valid.
    """
    file = group_file("experiment", name, config_dir)
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, Mapping):
        raise UserError(f"{file} must be a group of keys")
    plain = ("title", "overrides", "variants", "scales", "expected", "minutes", "report")
    allowed = (*plain, *_TUNING)
    for key in tree:
        if key not in allowed:
            raise unknown(f"key in {file}", str(key), allowed)
    for key in ("title", "overrides"):
        if key not in tree:
            raise UserError(f"{file} lacks the key {key!r}")
    return Experiment(
        name=name,
        title=str(tree["title"]),
        overrides=_texts(file, "overrides", tree["overrides"]),
        variants=tuple(_texts(file, "variants", v) for v in tree.get("variants") or [[]]),
        scales={
            str(scale): _texts(file, f"scales.{scale}", overrides)
            for scale, overrides in (tree.get("scales") or {}).items()
        },
        expected=str(tree.get("expected", "")),
        minutes=tree.get("minutes") or {},
        report=tree.get("report") or {},
        about=tuple(
            line.removeprefix("#").removeprefix(" ")
            for line in itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
        ),
        **_tuning(file, tree),
    )


_TUNING = ("tune", "tune_seeds", "tune_epochs", "extend", "sampler", "trials")


def _tuning(file: Path, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of :class:`Experiment` that concern tuning.

    Raises:
        UserError: A value is not valid for the option of the same name.
    """
    for key in _TUNING[1:]:
        if key in tree and "tune" not in tree:
            raise UserError(f"{file}: {key} needs tune, which lists the keys to tune")
    if "tune" not in tree:
        return {}
    axes = tree["tune"]
    if not isinstance(axes, Mapping) or not axes:
        raise UserError(
            f"{file}: tune must map keys to their values, "
            "such as tune: {optimizer.lr: [0.05, 0.1]}"
        )
    options: dict[str, Any] = {"tune": tuple(_axis(file, str(key), axes[key]) for key in axes)}
    if "tune_seeds" in tree:
        seeds = tree["tune_seeds"]
        seed_list = seeds if isinstance(seeds, list) else [seeds]
        if not seed_list or not all(
            isinstance(seed, str) or _is_count(seed, 0) for seed in seed_list
        ):
            raise UserError(f"{file}: tune_seeds must be seeds such as [1000, 1001], not {seeds!r}")
        options["tune_seeds"] = ",".join(map(str, seed_list))
    if "sampler" in tree:
        if not isinstance(tree["sampler"], str):
            raise UserError(f"{file}: sampler must be a name such as tpe, not {tree['sampler']!r}")
        options["sampler"] = tree["sampler"]
    for key, least in (("tune_epochs", 1), ("extend", 0), ("trials", 2)):
        if key in tree:
            if not _is_count(tree[key], least):
                raise UserError(
                    f"{file}: {key} must be a whole number of at least {least}, not {tree[key]!r}"
                )
            options[key] = tree[key]
    return options


def _axis(file: Path, key: str, values: Any) -> str:
    """Return a tuned key with its values, as it would be typed after ``--tune``.

    Args:
        file: The file, for messages.
        key: The key, such as ``optimizer.lr``.
        values: A list of at least two values, or a string such as ``log(0.025,0.4,5)``.
    """
    simple = (str, int, float, bool, type(None))
    if isinstance(values, list) and all(isinstance(value, simple) for value in values):
        # YAML reads 1e-4 as a string, which needs no conversion.
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        values = ",".join(texts) if len(texts) > 1 else None
    if not isinstance(values, str):
        raise UserError(
            f"{file}: tune.{key} must have several values, "
            "such as [0.05, 0.1] or 'log(0.025,0.4,5)'"
        )
    try:
        (override,) = parse([f"{key}={values}"])
    except UserError as error:
        raise UserError(f"{file}: tune.{key}: {error}") from None
    if not override.is_sweep_override():
        raise UserError(
            f"{file}: tune.{key} must have several values, "
            f"such as [0.05, 0.1] or 'log(0.025,0.4,5)', not {values}"
        )
    return f"{key}={values}"


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _texts(file: Path, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{file}: {key} must be a list of overrides such as norm=bn,gn")
    return tuple(value)


def _merged(lists: Sequence[Sequence[str]]) -> list[str]:
    """Join lists of overrides; a later override of a key replaces an earlier one."""
    by_key: dict[str, str] = {}
    for overrides in lists:
        for override in parse(overrides):
            by_key[str(override.key_or_group)] = str(override.input_line)
    return list(by_key.values())
