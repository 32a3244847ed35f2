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

    Runs made one by one whose commands form a full grid are told as the one sweep that makes
    them all; the recorded command of each run stands with the run.
    """
    recorded = Counter(tuple(json.loads(text)) for text in runs["command"] if text != "[]")
    if not recorded:
        return []
    sweep = _as_sweep(list(recorded)) if len(recorded) > 1 else None
    if sweep is not None:
        return [(shlex.join(sweep), sum(recorded.values()))]
    found = [(shlex.join(_short(command)), count) for command, count in recorded.most_common()]
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
    return shlex.join(parts)


def _short(command: tuple[str, ...]) -> tuple[str, ...]:
    """Name the program without its folder."""
    program = Path(command[0]).name if command else ""
    return ("normbench" if program == "__main__.py" else program, *command[1:])


def _as_sweep(recorded: list[tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the sweep that is the same as these ``normbench run`` commands, if there is one."""
    found: list[dict[str, str]] = []
    for command in map(_short, recorded):
        if len(command) < 2 or command[1] != "run":
            return None
        options = [part.partition("=") for part in command[2:]]
        if any(not equal or key.startswith("-") for key, equal, _ in options):
            return None
        found.append({key: value for key, _, value in options})
    keys = list(found[0])
    if any(set(options) != set(keys) for options in found):
        return None
    values = {key: sorted({options[key] for options in found}, key=_natural) for key in keys}
    if math.prod(map(len, values.values())) != len({tuple(sorted(o.items())) for o in found}):
        return None
    if any("," in value for each in values.values() for value in each):
        return None
    return ("normbench", "sweep", *(f"{key}={','.join(each)}" for key, each in values.items()))


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
