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
    tally = frames.runs["status"].value_counts()
    order = [*STATUSES, *sorted(set(tally.index) - set(STATUSES))]
    texts = [f"{tally[status]} {status}" for status in order if status in tally]
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
    sentences = []
    ended_runs = runs[runs["status"].isin(["finished", "diverged"])]
    if "commit" in ended_runs:
        # Runs made outside a git checkout have no commit, and a column of None has no .str.
        _add(sentences, "commits", ended_runs["commit"].dropna().astype(str).str.slice(0, 10))
    if "dirty" in ended_runs and ended_runs["dirty"].fillna(False).astype(bool).any():
        count = int(ended_runs["dirty"].fillna(False).astype(bool).sum())
        sentences.append(f"{count} of {len(ended_runs)} runs were made with uncommitted changes")
    for column in [c for c in ended_runs.columns if c.startswith("version.")]:
        _add(sentences, f"versions of {column.removeprefix('version.')}", ended_runs[column])
    for column, subject in (("processor", "processors"), ("hardware", "sets of devices")):
        if column in ended_runs:
            _add(
                sentences,
                f"{subject} (times cannot be compared)",
                ended_runs[column].replace("", "none"),
            )
    for column in ("engine.jit_compile", "engine.deterministic", "engine.threads"):
        if column in ended_runs:
            _add(sentences, f"settings of {column}", ended_runs[column])
    return [*sentences, *_split(ended_runs)]


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
    runs = frames.runs[frames.runs["status"].isin(["finished", "diverged"])]
    names = dict(zip(runs["path"], runs["name"], strict=True)) if "path" in runs else {}
    verdicts, sentences = {}, []
    for root in frames.roots:
        try:
            verifications = verification.newest(Store(root))
        except NormbenchError as error:
            sentences.append(f"{error}: its verdicts are ignored")
            continue
        paths = {str(root / name): item for name, item in verifications.items()}
        verdicts |= {names[path]: item for path, item in paths.items() if path in names}
    if not verdicts:
        return sentences
    mismatches = [name for name, item in verdicts.items() if item["verdict"] == "differs"]
    remark = f" ({_listed(mismatches, _NAMED)})" if mismatches else ""
    return [*sentences, f"{verification.counted(verdicts, len(runs))}{remark}"]


def environment(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return name and values of everything recorded about the environment, with counts."""
    columns = [c for c in runs.columns if c.startswith(("version.", "engine."))]
    rows = []
    for column in ("commit", "host", "processor", "hardware", *columns):
        if column in runs and runs[column].notna().any():
            values = runs[column].dropna().astype(str).replace("", "none").value_counts()
            is_mixed = len(values) > 1
            texts = [
                f"{printable(value)} ({_runs(count)})" if is_mixed else printable(value)
                for value, count in values.items()
            ]
            rows.append((printable(column.removeprefix("version.")), ", ".join(texts)))
    return rows


def _add(sentences: list[str], subject: str, values: pd.Series) -> None:
    tally = values.dropna().astype(str).value_counts()
    if len(tally) > 1:
        texts = ", ".join(f"{printable(value)} ({_runs(count)})" for value, count in tally.items())
        sentences.append(f"runs come from {len(tally)} {subject}: {texts}")


def _listed(names: list[str], limit: int) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{rest}"


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
    run_counts = Counter(
        _short(tuple(json.loads(text))) for text in runs["command"] if text != "[]"
    )
    rows = [
        (shlex.join(command), sum(run_counts[original] for original in originals))
        for command, originals in _fewest(list(run_counts))
    ]
    other_runs = sum(count for _, count in rows[LISTED:])
    return rows[:LISTED] + ([("… and others", other_runs)] if other_runs else [])


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


def _fewest(run_commands: list[Command]) -> Replaced:
    """Return the shortest list of commands that makes the same runs as the recorded ones."""
    singles: Replaced = [(command, [command]) for command in run_commands]
    options = {command: _options(command) for command in run_commands}
    first = next(iter(options.values()), None)
    if (
        len(run_commands) < 2
        or first is None
        or any(overrides is None or set(overrides) != set(first) for overrides in options.values())
    ):
        return singles
    run_options = {
        command: overrides for command, overrides in options.items() if overrides is not None
    }
    sweep = _grid(run_options)
    if sweep is not None:
        return [(sweep, run_commands)]
    return min((_by_key(run_options, key) for key in first), key=len, default=singles)


def _by_key(run_options: dict[Command, dict[str, str]], key: str) -> Replaced:
    """Group commands by the value of a key; values with the same other options share a sweep."""
    by_value: dict[str, list[Command]] = {}
    for command, options in run_options.items():
        by_value.setdefault(options[key], []).append(command)
    groups: dict[frozenset, list[Command]] = {}
    for group in by_value.values():
        other_options = frozenset(
            tuple(sorted((k, v) for k, v in run_options[command].items() if k != key))
            for command in group
        )
        groups.setdefault(other_options, []).extend(group)
    replacements: Replaced = []
    for group in groups.values():
        sweep = (
            _grid({command: run_options[command] for command in group}) if len(group) > 1 else None
        )
        replacements += [(sweep, group)] if sweep else [(command, [command]) for command in group]
    return replacements


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


def _grid(run_options: dict[Command, dict[str, str]]) -> Command | None:
    """Return the sweep that makes the same runs as these commands, or None if there is none."""
    keys = next(iter(run_options.values()))
    values = {key: sorted({o[key] for o in run_options.values()}, key=_natural) for key in keys}
    if math.prod(map(len, values.values())) != len(
        {tuple(sorted(o.items())) for o in run_options.values()}
    ):
        return None
    return ("normbench", "sweep", *(f"{key}={','.join(texts)}" for key, texts in values.items()))


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
