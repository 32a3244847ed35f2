"""``normbench experiments``: the ready-made sweeps of ``conf/experiment/``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.cli.parser import Parser, add_config_dir
from normbench.cli.terminal import print_rows
from normbench.config import group_options
from normbench.formats import counted
from normbench.sweep.axis import lists_without
from normbench.sweep.experiment import FULL, Experiment, load, unfold
from normbench.sweep.grid import expand
from normbench.sweep.tune import SEEDS, Tuner, tuned_by_experiment

if TYPE_CHECKING:
    from rich.console import RenderableType


def add_arguments(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", help="an experiment, as in +experiment=NAME")
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    folder = arguments.config_dir
    if arguments.name:
        print(details(arguments.name, folder))
    else:
        print_rows(lambda: rows(folder), lambda: page(folder))
    return 0


def rows(config_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """Return a row for each experiment and scale.

    Keys: ``experiment``, ``scale``, ``runs``, ``trials`` (0 if nothing is tuned), ``minutes``,
    ``asks``.
    """
    entries = []
    for name in group_options(config_dir).get("experiment", []):
        experiment = load(name, config_dir)
        for scale in (FULL, *experiment.scales):
            entries.append(
                {
                    "experiment": name,
                    "scale": scale,
                    "runs": _runs(experiment, scale, config_dir),
                    "trials": _trials(experiment, scale, config_dir),
                    "minutes": experiment.minutes.get(scale),
                    "asks": experiment.title,
                }
            )
    return entries


def page(config_dir: str | Path | None = None) -> RenderableType:
    """Return the list for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("experiment", "scale"):
        table.add_column(title, no_wrap=True)
    for title in ("runs", "trials", "minutes"):
        table.add_column(title, justify="right")
    table.add_column("asks")
    last = None
    for row in rows(config_dir):
        first = row["experiment"] != last
        last = row["experiment"]
        minutes = "" if row["minutes"] is None else f"~{row['minutes']:g}"
        table.add_row(
            Text(row["experiment"] if first else ""),
            Text(row["scale"]),
            str(row["runs"]),
            str(row["trials"] or ""),
            minutes,
            Text(row["asks"] if first else ""),
        )
    return table


def details(name: str, config_dir: str | Path | None = None) -> str:
    """Return the question, overrides, cells and expected result of an experiment."""
    experiment = load(name, config_dir)
    lines = [*experiment.about, "", "overrides"]
    lines += [f"  {override}" for override in experiment.overrides]
    for variant in experiment.variants:
        if variant:
            lines.append(f"  variant: {' '.join(variant)}")
    if experiment.tune:
        lines += ["tuned in each cell", *(f"  {text}" for text in experiment.tune)]
        lines += _tuning(experiment)
    for scale, overrides in experiment.scales.items():
        lines += [f"scale={scale}", *(f"  {override}" for override in overrides)]
    if experiment.expected:
        lines += ["expected", f"  {experiment.expected}"]
    lines.append("runs")
    for scale in (FULL, *experiment.scales):
        minutes = experiment.minutes.get(scale)
        time = f", about {minutes:g} minutes on two CPU cores" if minutes else ""
        trials = _trials(experiment, scale, config_dir)
        trials_note = f" after {trials:,} trials" if trials else ""
        lines.append(f"  {scale}: {_runs(experiment, scale, config_dir)}{trials_note}{time}")
    return "\n".join(lines)


def _tuning(experiment: Experiment) -> list[str]:
    """Return lines on the seeds and epochs of trials, and on how lists are extended."""
    epochs = experiment.tune_epochs
    lines = [
        f"  trials: seed {experiment.tune_seeds or SEEDS}, "
        + ("as many epochs as final runs" if epochs is None else counted(epochs, "epoch"))
    ]
    if experiment.sampler:
        values = counted(experiment.trials or 0, "value")
        lines.append(f"  {values} in each cell, proposed by the sampler {experiment.sampler}")
    if experiment.extend:
        values = counted(experiment.extend, "further value")
        lines.append(f"  up to {values} in each cell whose best value is at an end of its list")
    return lines


def _trials(experiment: Experiment, scale: str, config_dir: str | Path | None) -> int:
    words = [f"+experiment={experiment.name}", f"scale={scale}"]
    options = tuned_by_experiment(words, config_dir)
    if options is None:
        return 0
    _, lists = unfold(words, config_dir)
    tuner = Tuner(lists_without(experiment, lists, options.keys), options, config_dir)
    return len(tuner.trials()) + sum(map(tuner.unproposed, tuner.cells))


def _runs(experiment: Experiment, scale: str, config_dir: str | Path | None) -> int:
    return len(expand([f"+experiment={experiment.name}", f"scale={scale}"], config_dir))
