"""The commands that made a store's runs, and the one that made the report."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from pathlib import Path

import pandas as pd

from normbench.report.content import Request

LISTED = 200
"""Commands listed one by one; the rest are counted, each stands with its run."""


def commands(runs: pd.DataFrame) -> list[tuple[str, int]]:
    """Return each command that is recorded, with how many runs it made, as few as will do.

    Runs made one by one whose commands form full grids are told as the sweeps that make them
    all; the recorded command of each run stands with the run.
    """
    recorded = Counter(_short(tuple(json.loads(text))) for text in runs["command"] if text != "[]")
    found = [
        (shlex.join(command), sum(recorded[each] for each in made))
        for command, made in _fewest(list(recorded))
    ]
    rest = sum(count for _, count in found[LISTED:])
    return found[:LISTED] + ([("… and others", rest)] if rest else [])


def report_command(root: Path, asked: Request) -> str:
    """Return the command that writes the report again."""
    parts = ["normbench", "report", str(root)]
    if asked.where:
        parts += ["--where", asked.where]
    if asked.by != ("norm", "batch"):
        parts += ["--by", ",".join(asked.by)]
    if asked.metric != "test_acc":
        parts += ["--metric", asked.metric]
    if asked.baseline is not None:
        parts += ["--baseline", asked.baseline]
    if asked.target is not None:
        parts += ["--target", f"{asked.target:g}"]
    if asked.allowed:
        parts += ["--allow-confound", ",".join(asked.allowed)]
    return shlex.join(parts)


def _short(command: tuple[str, ...]) -> tuple[str, ...]:
    """Name the program without its folder."""
    program = Path(command[0]).name if command else ""
    return ("normbench" if program == "__main__.py" else program, *command[1:])


Command = tuple[str, ...]
Told = list[tuple[Command, list[Command]]]  # a command, and the recorded ones that it stands for


def _fewest(recorded: list[Command]) -> Told:
    """Return the shortest list of commands that stands for all that were recorded."""
    single: Told = [(command, [command]) for command in recorded]
    options = {command: _options(command) for command in recorded}
    first = next(iter(options.values()), None)
    if (
        len(recorded) < 2
        or first is None
        or any(found is None or set(found) != set(first) for found in options.values())
    ):
        return single
    known = {command: found for command, found in options.items() if found is not None}
    sweep = _grid(known)
    if sweep is not None:
        return [(sweep, recorded)]
    return min((_by_key(known, key) for key in first), key=len, default=single)


def _by_key(known: dict[Command, dict[str, str]], key: str) -> Told:
    """Part commands by the value of a key; values with the same grid beside it share a sweep."""
    parts: dict[str, list[Command]] = {}
    for command, options in known.items():
        parts.setdefault(options[key], []).append(command)
    alike: dict[frozenset, list[Command]] = {}
    for made in parts.values():
        rest = frozenset(
            tuple(sorted((k, v) for k, v in known[command].items() if k != key)) for command in made
        )
        alike.setdefault(rest, []).extend(made)
    told: Told = []
    for made in alike.values():
        sweep = _grid({command: known[command] for command in made}) if len(made) > 1 else None
        told += [(sweep, made)] if sweep else [(command, [command]) for command in made]
    return told


def _options(command: Command) -> dict[str, str] | None:
    """Return what a ``normbench run`` command sets; None for any other command."""
    if len(command) < 2 or command[1] != "run":
        return None
    words = list(command[2:])
    if "--store" in words[:-1]:  # says the same as store=
        at = words.index("--store")
        words[at : at + 2] = [f"store={words[at + 1]}"]
    parts = [part.partition("=") for part in words]
    if any(not equal or key.startswith("-") or "," in value for key, equal, value in parts):
        return None
    return {key: value for key, _, value in parts}


def _grid(known: dict[Command, dict[str, str]]) -> Command | None:
    """Return the sweep that makes the same runs as these commands, if there is one."""
    keys = next(iter(known.values()))
    values = {key: sorted({o[key] for o in known.values()}, key=_natural) for key in keys}
    if math.prod(map(len, values.values())) != len(
        {tuple(sorted(o.items())) for o in known.values()}
    ):
        return None
    return ("normbench", "sweep", *(f"{key}={','.join(each)}" for key, each in values.items()))


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
