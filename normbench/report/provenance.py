"""Where a store's runs come from: mixtures of code, libraries and machines are said, not hidden."""

from __future__ import annotations

import pandas as pd

from normbench.formats import printable
from normbench.report.frame import Frames
from normbench.report.rows import STATUSES

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
