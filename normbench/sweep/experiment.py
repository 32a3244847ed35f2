"""Experiments: named, documented sweeps, each a file in ``conf/experiment/``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normbench.components import group_file
from normbench.config import parse
from normbench.errors import UserError, unknown

FULL = "full"
"""The scale that a file describes by itself; the others change it."""


@dataclass(frozen=True)
class Experiment:
    """A sweep by name: lists of overrides as they would be typed after ``normbench sweep``.

    A later list replaces what an earlier one says of the same key: first ``overrides``, then one
    of the ``variants``, then the scale's, then what the user typed.

    Attributes:
        name: As in ``+experiment=``.
        title: What it asks, in one line.
        overrides: Of every cell; several values of one key make cells.
        variants: Alternatives that are no product of values; each makes cells of its own.
        scales: Further overrides by name, for less time than the whole experiment takes.
        expected: What the source found, in one sentence.
        minutes: Expected minutes on two CPU cores by scale, measured or estimated.
        report: Options of ``normbench report`` that give the experiment's table.
        about: The comment at the top of its file, line by line.
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

    def unfolded(self, scale: str, given: Sequence[str]) -> list[list[str]]:
        """Return one list of overrides a variant.

        Args:
            scale: ``full``, or one of ``scales``.
            given: What the user typed beside the experiment's name.

        Raises:
            UserError: The experiment has no such scale.
        """
        if scale != FULL and scale not in self.scales:
            raise unknown(f"scale of {self.name}", scale, [FULL, *self.scales])
        smaller = self.scales.get(scale, ())
        return [_merged([self.overrides, variant, smaller, given]) for variant in self.variants]


def unfold(
    overrides: Sequence[str], config_dir: str | Path | None = None
) -> tuple[Experiment | None, list[list[str]]]:
    """Replace ``+experiment=NAME scale=SCALE`` by what it stands for.

    Returns:
        The experiment, if one is named, and one list of overrides a variant; without an
        experiment the one list that was given.

    Raises:
        UserError: No such experiment or scale; a scale without an experiment.
    """
    names: list[str] = []
    scale: str | None = None
    rest: list[str] = []
    for override in parse(overrides):
        key = override.key_or_group
        if key == "experiment":
            names.append(str(override.value()))
        elif key == "scale":
            scale = str(override.value())
        else:
            rest.append(str(override.input_line))
    if not names:
        if scale is not None:
            raise UserError(
                f"scale={scale} goes with an experiment: +experiment=NAME scale={scale}"
            )
        return None, [rest]
    if len(names) > 1:
        raise UserError(f"one experiment at a time, not {' and '.join(names)}")
    experiment = load(names[0], config_dir)
    return experiment, experiment.unfolded(scale or FULL, rest)


def load(name: str, config_dir: str | Path | None = None) -> Experiment:
    """Read an experiment from ``conf/experiment/``, or from the folder beside it.

    Raises:
        UserError: There is none of that name, or its file says what cannot be understood.
    """
    file = group_file("experiment", name, config_dir)
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, Mapping):
        raise UserError(f"{file} must be a group of keys")
    allowed = ("title", "overrides", "variants", "scales", "expected", "minutes", "report")
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
        variants=tuple(_texts(file, "variants", each) for each in tree.get("variants") or [[]]),
        scales={
            str(scale): _texts(file, f"scales.{scale}", each)
            for scale, each in (tree.get("scales") or {}).items()
        },
        expected=str(tree.get("expected", "")),
        minutes=tree.get("minutes") or {},
        report=tree.get("report") or {},
        about=tuple(
            line.removeprefix("#").removeprefix(" ")
            for line in itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
        ),
    )


def _texts(file: Path, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{file}: {key} must be a list of overrides such as norm=bn,gn")
    return tuple(value)


def _merged(parts: Sequence[Sequence[str]]) -> list[str]:
    """Join lists of overrides, the later of two for one key in place of the earlier."""
    merged: dict[str, str] = {}
    for part in parts:
        for override in parse(part):
            merged[str(override.key_or_group)] = str(override.input_line)
    return list(merged.values())
