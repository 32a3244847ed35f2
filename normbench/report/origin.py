"""Where a store's runs come from: mixtures of code, libraries and machines are said, not hidden."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from pathlib import Path

import pandas as pd

from normbench.formats import printable
from normbench.report.frames import STATUSES, Frames
from normbench.report.sections import Request

_NAMED = 12  # runs named in one line; all are in the list of runs


def counts(frames: Frames) -> str:
    """Return how many runs there are in each state, as ``63 runs: 57 finished, 3 diverged``."""
    if frames.runs.empty:
        return "0 runs"
    found = frames.runs["status"].value_counts()
    order = [*STATUSES, *sorted(set(found.index) - set(STATUSES))]
    parts = [f"{found[status]} {status}" for status in order if status in found]
    total = len(frames.runs)
    return f"{total} run{'s' if total != 1 else ''}: {', '.join(parts)}"


def unfinished(frames: Frames, named: int = _NAMED) -> list[str]:
    """Name the runs that did not finish, a line for each state, with the reason of a failure."""
    lines = []
    for status in ("diverged", "failed", "running", "interrupted", "missing"):
        part = frames.runs[frames.runs["status"] == status]
        if part.empty:
            continue
        names = [_described(run) for run in part.to_dict("records")]
        lines.append(f"{status}: {_listed(names, named)}")
    return lines


def mixtures(runs: pd.DataFrame) -> list[str]:
    """Return a sentence for each respect in which the runs' origin differs."""
    found = []
    ended = runs[runs["status"].isin(["finished", "diverged"])]
    commits = ended["commit"].str.slice(0, 10) if "commit" in ended else pd.Series(dtype=str)
    _add(found, "commits", commits)
    if "dirty" in ended and ended["dirty"].fillna(False).astype(bool).any():
        count = int(ended["dirty"].fillna(False).astype(bool).sum())
        found.append(f"{count} of {len(ended)} runs were made with uncommitted changes")
    for column in [c for c in ended.columns if c.startswith("version.")]:
        _add(found, f"versions of {column.removeprefix('version.')}", ended[column])
    for column, what in (("processor", "processors"), ("devices", "sets of devices")):
        if column in ended:
            _add(found, f"{what} (times cannot be compared)", ended[column].replace("", "none"))
    for column in ("engine.jit_compile", "engine.deterministic", "engine.threads"):
        if column in ended:
            _add(found, f"settings of {column}", ended[column])
    return [*found, *_split(ended)]


def _split(runs: pd.DataFrame) -> list[str]:
    """Name the runs whose batches went through the network in parts."""
    if "micro_batches" not in runs:
        return []
    parts = runs[runs["micro_batches"].fillna(1) > 1].to_dict("records")
    if not parts:
        return []
    each = [
        f"{run['name']} in {run['micro_batches']:g} of "
        f"{run['batch'] / run['micro_batches']:g} images"
        for run in parts
    ]
    return [
        "batches went through the network in micro-batches, which batch statistics are then of: "
        f"{_listed(each, _NAMED)}"
    ]


def environment(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what the runs were made with, a pair of name and values with counts each."""
    columns = [c for c in runs.columns if c.startswith(("version.", "engine."))]
    found = []
    for column in ("commit", "host", "processor", "devices", *columns):
        if column in runs and runs[column].notna().any():
            values = runs[column].dropna().astype(str).replace("", "none").value_counts()
            several = len(values) > 1
            texts = [
                f"{printable(value)} ({_runs(count)})" if several else printable(value)
                for value, count in values.items()
            ]
            found.append((printable(column.removeprefix("version.")), ", ".join(texts)))
    return found


def _add(found: list[str], what: str, values: pd.Series) -> None:
    tally = values.dropna().astype(str).value_counts()
    if len(tally) > 1:
        each = ", ".join(f"{printable(value)} ({_runs(count)})" for value, count in tally.items())
        found.append(f"runs come from {len(tally)} {what}: {each}")


def _listed(names: list[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"


def _described(run: dict) -> str:
    if run["status"] == "failed" and isinstance(run.get("error_type"), str):
        return f"{run['name']} ({printable(run['error_type'])})"
    if run["status"] in ("running", "interrupted"):
        return f"{run['name']} (epoch {run['epochs_done']:g} of {run['epochs']})"
    return str(run["name"])


# --- the commands that made a store's runs, and the one that made the report ----------------------

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
