"""The commands in Python: :func:`run`, :func:`sweep`, :func:`report` and :func:`load`.

They are available as ``normbench.run`` and so on. The words of a command are one string, as in the
shell, and its options are keyword arguments; both are checked by the command's own parser::

    run = normbench.run("norm=gn_ws batch=16 dataset=digits arch=resnet8 epochs=5")
    sweep = normbench.sweep("norm=bn,gn seed=range(0,3) dataset=digits arch=resnet8 epochs=5")
    report = normbench.report(by="norm,batch")

A mistake raises :class:`normbench.errors.UserError`, with the message that the command prints. The
results, :class:`FinishedRun`, :class:`FinishedSweep` and :class:`Report`, render themselves in a
notebook.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.errors import UserError

if TYPE_CHECKING:
    import keras
    import pandas as pd
    from rich.console import RenderableType

    from normbench.report.frames import Frames

Folder = str | os.PathLike[str]


# --- results --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishedRun:
    """A run whose training is complete.

    Attributes:
        path: Its folder.
        summary: The final values: ``status`` (finished or diverged), ``test_acc``, ``val_acc``
            (fractions), ``train_seconds``, ``parameters`` and others.
        trained: False if the run was already complete, so that nothing was trained.
        config_dir: The additional folder of config groups that the run was composed with.
    """

    path: Path
    summary: Mapping[str, Any]
    trained: bool
    config_dir: Folder | None = None

    @property
    def name(self) -> str:
        """The run's name, which ends in its signature."""
        return self.path.name

    @property
    def status(self) -> str:
        """``finished`` or ``diverged``."""
        return str(self.summary.get("status"))

    @property
    def config(self) -> dict[str, Any]:
        """All config keys with their values."""
        from normbench.store.run import Run

        return Run(self.path).config or {}

    @property
    def metrics(self) -> pd.DataFrame:
        """A row for each epoch: losses, accuracies, times, and probe values."""
        import pandas as pd

        from normbench.store.run import Run

        return pd.DataFrame(Run(self.path).metrics())

    def model(self, plain: bool = False) -> keras.Model:
        """Return the trained network; see :func:`load`."""
        return load(self.path, plain=plain, config_dir=self.config_dir)

    def __repr__(self) -> str:
        return f"<run {self.name}: {self.status}>"

    def _repr_html_(self) -> str:
        from normbench.cli.notebook import as_html
        from normbench.cli.terminal import facts_table
        from normbench.formats import is_known, percent

        facts: list[tuple[str, Any]] = [("run", self.name), ("status", self.status)]
        for key, label in (("test_acc", "test accuracy"), ("val_acc", "val accuracy")):
            if is_known(self.summary.get(key)):
                facts.append((label, percent(self.summary[key])))
        return as_html(facts_table([*facts, ("folder", self.path)]))


@dataclass(frozen=True)
class FinishedSweep:
    """The runs of a sweep, with data frames and a table of the complete ones.

    Attributes:
        store: The folder of its runs.
        cells: A row for each cell: ``run`` (its name), ``state`` (in the store before the sweep),
            ``result`` (``trained``, ``skipped`` because it was complete, ``failed`` and so on;
            empty if it was not started) and ``error``.
        names: Names of the final runs: all runs except tuning trials.
        asked: Report options set by the sweep's experiment: ``by``, ``metric`` and others.
    """

    store: Path
    cells: pd.DataFrame
    names: Sequence[str] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> pd.DataFrame:
        """The cells that failed, now or in an earlier sweep, or cannot be trained."""
        cells = self.cells
        failed_before = cells["result"].eq("") & cells["state"].isin(
            ["failed", "unreadable", "invalid"]
        )
        return cells[cells["result"].eq("failed") | failed_before]

    @cached_property
    def _frames(self) -> Frames:
        from normbench.report.frames import load

        frames = load(self.store)
        return frames.select(frames.runs["name"].isin(self.names))

    @property
    def runs(self) -> pd.DataFrame:
        """A row for each run: its config, its final metrics, its origin."""
        return self._frames.runs

    @property
    def curves(self) -> pd.DataFrame:
        """A row for each epoch of each run; the column ``run`` is the run's name."""
        return self._frames.curves

    @property
    def _table(self) -> RenderableType:
        from rich.text import Text

        from normbench.report.report import summary_table

        complete = [name for name in self.names if (self.store / name / "summary.json").is_file()]
        if not complete:
            return Text("no cell is complete")
        return summary_table(self.store, complete, **self.asked)

    def __repr__(self) -> str:
        counts = self.cells["result"].replace("", "not started").value_counts()
        outcomes = ", ".join(f"{count} {result}" for result, count in counts.items())
        return f"<sweep of {len(self.cells)} runs in {self.store}: {outcomes}>"

    def __str__(self) -> str:
        from normbench.report.report import text

        return text(self._table)

    def _repr_html_(self) -> str:
        from rich.console import Group
        from rich.text import Text

        from normbench.cli.notebook import as_html

        lines = [
            Text(f"{row['result'] or row['state']}: {row['run']}  {row['error']}", "red")
            for _, row in self.failed.iterrows()
        ]
        return as_html(Group(self._table, *lines))


@dataclass(frozen=True)
class Report:
    """The files that a report wrote.

    Attributes:
        page: The page with all tables and figures, ``index.html``.
    """

    page: Path

    @property
    def folder(self) -> Path:
        """The folder with the page, the tables, the figures and the data."""
        return self.page.parent

    @property
    def text(self) -> str:
        """The report in Markdown."""
        return (self.folder / "report.md").read_text(encoding="utf-8")

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables with unrounded numbers, by file name without suffix.

        If the report has several studies, the name is prefixed with the study and a slash.
        """
        import pandas as pd

        return {name: pd.read_csv(path) for name, path in self._written("tables", ".csv").items()}

    @property
    def figures(self) -> dict[str, Path]:
        """The figure files, named like the tables: SVG, else the format that the report wrote."""
        kinds = (self._written("figures", suffix) for suffix in (".pdf", ".png", ".svg"))
        return {name: path for kind in kinds for name, path in kind.items()}

    def _written(self, kind: str, suffix: str) -> dict[str, Path]:
        from normbench.report.report import MANIFEST

        names = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        paths = [Path(name) for name in names]
        return {
            path.relative_to(kind).with_suffix("").as_posix(): self.folder / path
            for path in paths
            if path.parts[0] == kind and path.suffix == suffix
        }

    def __repr__(self) -> str:
        return f"<report {self.page}>"

    def _repr_markdown_(self) -> str:
        def embedded(match: re.Match[str]) -> str:
            path = figures.get(match[1])
            if path is None or path.suffix not in kinds:
                return match[0]
            data = base64.b64encode(path.read_bytes()).decode()
            return f"](data:{kinds[path.suffix]};base64,{data})"

        figures = self.figures
        kinds = {".svg": "image/svg+xml", ".png": "image/png"}
        return re.sub(r"\]\(figures/([^)]+)\.\w+\)", embedded, self.text)


# --- the commands ---------------------------------------------------------------------------------


def run(
    overrides: str | Sequence[str],
    *,
    store: Folder | None = None,
    config_dir: Folder | None = None,
    resume: bool = False,
    again: bool = False,
    progress: bool = True,
) -> FinishedRun:
    """Train one network, or resume its training, as ``normbench run`` does.

    A run that is complete is not trained again::

        run = normbench.run("norm=gn batch=16 dataset=digits arch=resnet8 epochs=5")
        run.summary["test_acc"]
        run.metrics.plot("epoch", ["train_loss", "val_loss"])

    Args:
        overrides: ``KEY=VALUE`` words, as in the shell; or a list of words, which
            is not split.
        store: Folder of runs; by default ``$NORMBENCH_STORE`` if that is set, else ``runs``.
        config_dir: Additional folder of config groups, laid out like ``conf/``.
        resume: Resume an existing run; never start a new one.
        again: Set the run's folder aside and train the run again from its first step.
        progress: Show the training: in a notebook as one output that is updated in place, elsewhere
            like the command.

    Raises:
        normbench.errors.UserError: A word or an option is wrong, or the run cannot be trained.
        normbench.errors.NormbenchError: The run failed, another process trains it, or the store
            cannot be written.
        KeyboardInterrupt: The run was interrupted and wrote a checkpoint; the same call resumes it.
    """
    from normbench.cli.run import config_of, train_shown

    arguments, command = _parsed(
        "run", overrides, store=store, config_dir=config_dir, resume=resume, again=again
    )
    config = config_of(arguments)
    if not progress:
        from normbench.engine.observer import Observer

        result = train_shown(config, arguments, command, Observer())
    else:
        from normbench.cli.screen import RunScreen, print_complete

        with RunScreen(_console()) as screen:
            result = train_shown(config, arguments, command, screen)
        if not result.trained:
            print_complete(config, result, arguments.config_dir)
    return FinishedRun(result.run.path, result.summary, result.trained, config_dir)


def sweep(
    overrides: str | Sequence[str],
    *,
    store: Folder | None = None,
    config_dir: Folder | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    again: bool = False,
    skip_invalid: bool = False,
    tune: str | Sequence[str] = (),
    tune_seeds: str | int | None = None,
    tune_epochs: int | None = None,
    tune_metric: str | None = None,
    extend: int | None = None,
    sampler: str | None = None,
    trials: int | None = None,
    until: float | None = None,
    max_seeds: int | None = None,
    baseline: str | None = None,
    progress: bool = True,
) -> FinishedSweep:
    """Train one run for each combination of values, as ``normbench sweep`` does.

    Complete runs are not trained again, and a cell that fails does not end the sweep: see
    :attr:`FinishedSweep.failed`::

        sweep = normbench.sweep("norm=bn,gn batch=16,64 seed=0,1,2 dataset=digits arch=resnet8")
        sweep.runs.groupby(["norm", "batch"])["test_acc"].mean()

    Args:
        overrides: ``KEY=VALUE`` words with several values where the runs differ, as in the shell;
            or a list of words, which is not split.
        store: Folder of runs; by default ``$NORMBENCH_STORE`` if that is set, else ``runs``.
        config_dir: Additional folder of config groups, laid out like ``conf/``.
        dry_run: Train nothing; ``cells`` of the result shows the state of each cell.
        retry_failed: Also train the runs that failed before.
        again: Set the folders of all runs aside and train them again from their first step.
        skip_invalid: Skip combinations that cannot be trained.
        tune: Keys whose values are chosen in each cell in trials, such as
            ``"optimizer.lr=log(0.025,0.4,5)"``; a list of several tries all combinations.
        tune_seeds: Seeds of the trials, such as ``"1000,1001"``.
        tune_epochs: Epochs of a trial; by default those of the final run.
        tune_metric: Validation metric to choose by; ``val_acc`` by default.
        extend: Maximum number of values to add in a cell whose best value is at an end of its list.
        sampler: Optuna sampler that proposes the values of ``tune``: ``tpe``, ``random``, ``qmc``
            or ``cmaes``.
        trials: Number of values that ``sampler`` proposes in each cell.
        until: Add seeds until the half-width of the 95 % interval of each difference from the
            baseline is below this, in percentage points for accuracies.
        max_seeds: Maximum number of seeds per cell with ``until``.
        baseline: Baseline of ``until``, such as ``"norm=gn"``.
        progress: Show the training: in a notebook as one output that is updated in place, elsewhere
            like the command.

    Raises:
        normbench.errors.UserError: A word or an option is wrong, or cells cannot be trained.
        normbench.errors.NormbenchError: The store cannot be read or written.
        KeyboardInterrupt: The sweep was interrupted; the same call resumes it.
    """
    from normbench.cli.sweep import asked_by_experiment, print_results, train_sweep
    from normbench.cli.sweep_screen import SweepScreen

    arguments, command = _parsed(
        "sweep",
        overrides,
        store=store,
        config_dir=config_dir,
        dry_run=dry_run,
        retry_failed=retry_failed,
        again=again,
        skip_invalid=skip_invalid,
        tune=[tune] if isinstance(tune, str) else tune,
        tune_seeds=tune_seeds,
        tune_epochs=tune_epochs,
        tune_metric=tune_metric,
        extend=extend,
        sampler=sampler,
        trials=trials,
        until=until,
        max_seeds=max_seeds,
        baseline=baseline,
    )
    console = _console() if progress else _silent_console()
    result = train_sweep(arguments, command, SweepScreen(console))
    if result.interrupted:
        raise KeyboardInterrupt
    if progress and not dry_run and not _in_notebook():
        print_results(arguments, result)
    import pandas as pd

    rows = []
    for cell in result.plan.cells:
        end = result.results.get(cell.name)
        complete = cell.state in ("finished", "diverged") and not cell.todo
        rows.append(
            {
                "run": cell.name,
                "state": cell.state,
                "result": end.result if end else "skipped" if complete else "",
                "error": end.error if end else cell.reason,
            }
        )
    return FinishedSweep(
        store=result.store.root,
        cells=pd.DataFrame(rows, columns=["run", "state", "result", "error"]),
        names=result.final_names,
        asked=asked_by_experiment(arguments),
    )


def report(
    store: Folder | Sequence[Folder] | None = None,
    *,
    where: str | None = None,
    by: str = "norm,batch",
    metric: str = "test_acc",
    baseline: str | None = None,
    out: Folder = "report",
    progress: bool = True,
    **options: Any,
) -> Report:
    """Write tables, figures and a web page on the runs of a store, as ``normbench report`` does.

    In a notebook the result shows the full report::

        normbench.report(where="norm in [bn, gn] and batch <= 64", allow_confound="optimizer.lr")

    Args:
        store: Folder of runs, or a list of several; by default ``$NORMBENCH_STORE`` if that is set,
            else ``runs``.
        where: Filter on runs, such as ``"norm in [bn, gn] and batch <= 64"``.
        by: Config keys, ``store`` or ``commit``, separated by commas: for the rows, the columns,
            and separate tables.
        metric: The metric to compare; ``normbench report --metrics`` lists them.
        baseline: The row to compare the others with; ``bn`` by default.
        out: Folder to write to.
        progress: Print tables and findings, as the command does; in a notebook the result shows
            them instead.
        **options: Any other option of ``normbench report``, with ``_`` for ``-``, such as
            ``target=0.9``, ``sort="test_acc"`` or ``superseded=True``.

    Raises:
        normbench.errors.UserError: An option names something that does not exist, or there are no
            runs.
        normbench.errors.NormbenchError: The store cannot be read, or ``out`` cannot be written.
    """
    from normbench.cli.report import write_report

    if "metrics" in options:
        raise UserError("metrics is for the shell: normbench report --metrics lists the metrics")
    stores = [] if store is None else [store] if isinstance(store, str | os.PathLike) else store
    arguments, _ = _command_line(
        "report",
        [os.fspath(folder) for folder in stores],
        where=where,
        by=by,
        metric=metric,
        baseline=baseline,
        out=out,
        **options,
    )
    is_printed = progress and not _in_notebook()
    return Report(write_report(arguments, print if is_printed else lambda line: None))


def load(
    run: Folder,
    store: Folder | None = None,
    *,
    plain: bool = False,
    config_dir: Folder | None = None,
) -> keras.Model:
    """Return the trained network of a finished run as a Keras model.

    The model maps images (N, H, W, C) in 0–255, uint8 or float32, to logits (N, classes)::

        model = normbench.load("digits-resnet8-gn-b16-s0-1a2b3c4d")
        logits = model.predict(images)

    Args:
        run: Name, signature, or a prefix of either, or the path of a run folder.
        store: Folder of runs in which to look up a name; by default ``$NORMBENCH_STORE`` if that
            is set, else ``runs``.
        plain: Use only Keras's own layers.
        config_dir: Additional folder of config groups, for a run with user-defined components.

    Raises:
        normbench.errors.UserError: There is no such run, it has no final weights, its data set is
            missing or has changed, it names a component that no config group has, or a layer has no
            equivalent in Keras.
        normbench.errors.NormbenchError: A file of the run is damaged, or the backend is missing.
    """
    from normbench.engine.export import load

    return load(run, store, plain=plain, config_dir=config_dir)


# --- words and screens ----------------------------------------------------------------------------


def _parsed(
    command: str, overrides: str | Sequence[str], **options: Any
) -> tuple[Namespace, list[str]]:
    """Return the parsed command line, and its words as runs record them.

    Args:
        command: Name of the sub-command.
        overrides: Its ``KEY=VALUE`` words.
        options: Its options by name.

    Raises:
        UserError: A word is not an override, or the command's parser refuses it.
    """
    words = _split(overrides)
    if not words:
        example = f"normbench.{command}('dataset=digits arch=resnet8 epochs=5')"
        raise UserError(f"{command} needs KEY=VALUE words, as {example}")
    for word in words:
        if word.startswith("-"):
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            raise UserError(
                f"{word} is an option: give it as an argument, normbench.{command}(…, {name}=…)"
            )
    return _command_line(command, words, **options)


def _command_line(
    command: str, words: Sequence[str], **options: Any
) -> tuple[Namespace, list[str]]:
    """Return the parsed command line, and its words.

    Args:
        command: Name of the sub-command.
        words: Its words without options.
        options: Its options by name. None and False are left out; a list repeats the option for
            each item.
    """
    from normbench.cli import parse

    line = [command, *words]
    for name, value in options.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if item is not None and item is not False:
                option = f"--{name.replace('_', '-')}"
                line.append(option if item is True else f"{option}={_as_word(item)}")
    return parse(line), ["normbench", *line]


def _split(overrides: str | Sequence[str]) -> list[str]:
    """Split a string into words as a shell does; a list of words is returned unchanged."""
    if not isinstance(overrides, str):
        return [str(word) for word in overrides]
    try:
        return shlex.split(overrides)
    except ValueError as error:
        raise UserError(f"{overrides!r} cannot be split into words: {error}") from None


def _as_word(value: Any) -> str:
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _in_notebook() -> bool:
    from normbench.cli.notebook import in_notebook

    return in_notebook()


def _console() -> Any:
    """Return a notebook console in a notebook; None elsewhere, for the command's default."""
    from normbench.cli.notebook import NotebookConsole

    return NotebookConsole() if _in_notebook() else None


def _silent_console() -> Any:
    from rich.console import Console

    return Console(quiet=True, force_jupyter=False, force_terminal=False)
