"""The origin of runs: status, code, libraries and machines, and the commands that made them."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from normbench.errors import NormbenchError
from normbench.formats import counted, printable
from normbench.report.frames import STATUSES, Frames
from normbench.report.sections import Request
from normbench.report.tuning import is_superseded, is_trial, phase
from normbench.report.venues import DEFAULT
from normbench.store import verification
from normbench.store.store import Store

_NAMED = 12  # maximum number of runs named in one line; the list of runs has all of them


def counts(frames: Frames) -> str:
    """Count the runs by status, as ``63 runs: 57 finished, 3 diverged``."""
    if frames.runs.empty:
        return "0 runs"
    found = frames.runs["status"].value_counts()
    order = [*STATUSES, *sorted(set(found.index) - set(STATUSES))]
    texts = [f"{found[status]} {status}" for status in order if status in found]
    total = len(frames.runs)
    phases = {"trials of tuning": is_trial(frames.runs), "superseded": is_superseded(frames.runs)}
    asides = [f"{mask.sum()} of them {name}" for name, mask in phases.items() if mask.any()]
    tuning = f" ({', '.join(asides)})" if asides else ""
    return f"{total} run{'s' if total != 1 else ''}: {', '.join(texts)}{tuning}"


def unfinished(frames: Frames, named: int = _NAMED) -> list[str]:
    """Name the runs that did not finish, a line for each status, with the errors of failures."""
    lines = []
    for status in ("diverged", "failed", "running", "interrupted", "missing"):
        runs = frames.runs[frames.runs["status"] == status]
        if runs.empty:
            continue
        records = runs.to_dict("records")
        # Trials are expected to diverge if a list of values reaches far enough.
        trials = sum(bool(run.get("trial")) for run in records) if status == "diverged" else 0
        names = [_described(run) for run in records if not (trials and run.get("trial"))]
        names = [_listed(names, named)] if names else []
        names += [counted(trials, "trial") + " of tuning"] if trials else []
        lines.append(f"{status}: {' and '.join(names)}")
    return lines


def mixtures(runs: pd.DataFrame) -> list[str]:
    """Return a sentence for each way in which the origins of the runs differ."""
    found = []
    ended = runs[runs["status"].isin(["finished", "diverged"])]
    if "commit" in ended:
        # Runs made outside a git checkout have no commit, and a column of None has no .str.
        _add(found, "commits", ended["commit"].dropna().astype(str).str.slice(0, 10))
    if "dirty" in ended and ended["dirty"].fillna(False).astype(bool).any():
        count = int(ended["dirty"].fillna(False).astype(bool).sum())
        found.append(f"{count} of {len(ended)} runs were made with uncommitted changes")
    for column in [c for c in ended.columns if c.startswith("version.")]:
        _add(found, f"versions of {column.removeprefix('version.')}", ended[column])
    for column, subject in (("processor", "processors"), ("hardware", "sets of devices")):
        if column in ended:
            _add(found, f"{subject} (times cannot be compared)", ended[column].replace("", "none"))
    for column in ("engine.jit_compile", "engine.deterministic", "engine.threads"):
        if column in ended:
            _add(found, f"settings of {column}", ended[column])
    return [*found, *_split(ended)]


def _split(runs: pd.DataFrame) -> list[str]:
    """Name the runs whose batches were split into micro-batches."""
    if "micro_batches" not in runs:
        return []
    split = runs[runs["micro_batches"].fillna(1) > 1].to_dict("records")
    if not split:
        return []
    texts = [
        f"{run['name']} in {run['micro_batches']:g} of "
        f"{run['batch'] / run['micro_batches']:g} images"
        for run in split
    ]
    return [
        "batches were split into micro-batches, so batch statistics are those of a micro-batch: "
        f"{_listed(texts, _NAMED)}"
    ]


def verified(frames: Frames) -> list[str]:
    """Return a sentence on the runs that ``normbench verify`` trained again, if there are any."""
    ended = frames.runs[frames.runs["status"].isin(["finished", "diverged"])]
    names = dict(zip(ended["path"], ended["name"], strict=True)) if "path" in ended else {}
    known, found = {}, []
    for root in frames.roots:
        try:
            newest = verification.newest(Store(root))
        except NormbenchError as error:
            found.append(f"{error}: its verdicts are ignored")
            continue
        paths = {str(root / name): item for name, item in newest.items()}
        known |= {names[path]: item for path, item in paths.items() if path in names}
    if not known:
        return found
    differing = [name for name, item in known.items() if item["verdict"] == "differs"]
    refuted = f" ({_listed(differing, _NAMED)})" if differing else ""
    return [*found, f"{verification.counted(known, len(ended))}{refuted}"]


def environment(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return name and values of everything recorded about the environment, with counts."""
    columns = [c for c in runs.columns if c.startswith(("version.", "engine."))]
    found = []
    for column in ("commit", "host", "processor", "hardware", *columns):
        if column in runs and runs[column].notna().any():
            values = runs[column].dropna().astype(str).replace("", "none").value_counts()
            several = len(values) > 1
            texts = [
                f"{printable(value)} ({_runs(count)})" if several else printable(value)
                for value, count in values.items()
            ]
            found.append((printable(column.removeprefix("version.")), ", ".join(texts)))
    return found


def _add(found: list[str], subject: str, values: pd.Series) -> None:
    tally = values.dropna().astype(str).value_counts()
    if len(tally) > 1:
        texts = ", ".join(f"{printable(value)} ({_runs(count)})" for value, count in tally.items())
        found.append(f"runs come from {len(tally)} {subject}: {texts}")


def _listed(names: list[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"


def _described(run: dict) -> str:
    if run["status"] == "failed" and isinstance(run.get("error_type"), str):
        return f"{run['name']} ({printable(run['error_type'])})"
    if phase(run):
        return f"{run['name']} ({phase(run)})"
    if run["status"] in ("running", "interrupted"):
        return f"{run['name']} (epoch {run['epochs_done']:g} of {run['epochs']})"
    return str(run["name"])


# --- commands -------------------------------------------------------------------------------------

LISTED = 200
"""Maximum number of commands listed; the others are counted, and shown with their runs."""


def commands(runs: pd.DataFrame) -> list[tuple[str, int]]:
    """Return the shortest list of commands that makes the same runs, with numbers of runs.

    ``normbench run`` commands that form a full grid are replaced by the sweep that makes all their
    runs. The recorded command of each run is shown with the run.
    """
    recorded = Counter(_short(tuple(json.loads(text))) for text in runs["command"] if text != "[]")
    found = [
        (shlex.join(command), sum(recorded[original] for original in originals))
        for command, originals in _fewest(list(recorded))
    ]
    others = sum(count for _, count in found[LISTED:])
    return found[:LISTED] + ([("… and others", others)] if others else [])


def report_command(roots: Sequence[Path], asked: Request) -> str:
    """Return the command that writes the same report for the stores in these folders."""
    parts = ["normbench", "report", *map(str, roots)]
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
    if asked.superseded:
        parts.append("--superseded")
    if asked.sort is not None:
        parts += ["--sort", asked.sort]
    if asked.reverse:
        parts.append("--reverse")
    if asked.against is not None:
        parts += ["--against", asked.against]
    if asked.rows:
        parts += ["--rows", ",".join(asked.rows)]
    if asked.style != DEFAULT:
        parts += ["--style", asked.style]
    if asked.formats != asked.venue.formats:
        parts += ["--formats", ",".join(asked.formats)]
    return shlex.join(parts)


def _short(command: tuple[str, ...]) -> tuple[str, ...]:
    """Strip the folder from the program's path."""
    program = Path(command[0]).name if command else ""
    return ("normbench" if program == "__main__.py" else program, *command[1:])


Command = tuple[str, ...]
Replaced = list[tuple[Command, list[Command]]]  # commands, each with those that it replaces


def _fewest(recorded: list[Command]) -> Replaced:
    """Return the shortest list of commands that makes the same runs as the recorded ones."""
    single: Replaced = [(command, [command]) for command in recorded]
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


def _by_key(known: dict[Command, dict[str, str]], key: str) -> Replaced:
    """Group commands by the value of a key; values with the same other options share a sweep."""
    by_value: dict[str, list[Command]] = {}
    for command, options in known.items():
        by_value.setdefault(options[key], []).append(command)
    alike: dict[frozenset, list[Command]] = {}
    for group in by_value.values():
        others = frozenset(
            tuple(sorted((k, v) for k, v in known[command].items() if k != key))
            for command in group
        )
        alike.setdefault(others, []).extend(group)
    replaced: Replaced = []
    for group in alike.values():
        sweep = _grid({command: known[command] for command in group}) if len(group) > 1 else None
        replaced += [(sweep, group)] if sweep else [(command, [command]) for command in group]
    return replaced


def _options(command: Command) -> dict[str, str] | None:
    """Return the overrides of a ``normbench run`` command; None for any other command."""
    if len(command) < 2 or command[1] != "run":
        return None
    words = list(command[2:])
    if "--store" in words[:-1]:  # means the same as store=
        at = words.index("--store")
        words[at : at + 2] = [f"store={words[at + 1]}"]
    parts = [part.partition("=") for part in words]
    if any(not equal or key.startswith("-") or "," in value for key, equal, value in parts):
        return None
    return {key: value for key, _, value in parts}


def _grid(known: dict[Command, dict[str, str]]) -> Command | None:
    """Return the sweep that makes the same runs as these commands, or None if there is none."""
    keys = next(iter(known.values()))
    values = {key: sorted({o[key] for o in known.values()}, key=_natural) for key in keys}
    if math.prod(map(len, values.values())) != len(
        {tuple(sorted(o.items())) for o in known.values()}
    ):
        return None
    return ("normbench", "sweep", *(f"{key}={','.join(texts)}" for key, texts in values.items()))


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
