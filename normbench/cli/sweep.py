"""``normbench sweep``: train one run for each combination of values; ``sweep status``."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from normbench.cli.parser import (
    Parser,
    add_config_dir,
    add_store,
    overrides_of,
    quiet_tensorflow,
    store_of,
)
from normbench.errors import UserError

if TYPE_CHECKING:
    from normbench.sweep.observer import SweepView
    from normbench.sweep.phases import SweepResult
    from normbench.sweep.tune import TuneMetric, TuneOptions

_EPILOG = """\
Every key accepts a list, a range or a pattern of values. Quote what the shell would interpret:
  normbench sweep norm=bn,gn batch=16,64 'seed=range(0,5)' dataset=digits arch=resnet8 epochs=5
  normbench sweep 'norm=glob(gn*)' executor=local executor.workers=2 --dry-run
  normbench sweep +experiment=batch_sweep scale=small
  normbench sweep norm=bn,gn 'seed=range(0,5)' --tune 'optimizer.lr=log(0.025,0.4,5)'
  normbench sweep norm=bn,gn --tune 'optimizer.lr=log(0.01,1)' --sampler tpe --trials 20
  normbench sweep norm=bn,gn 'seed=range(0,3)' dataset=digits arch=resnet8 epochs=5 --until 0.5
  normbench sweep status --watch

`normbench experiments` lists the ready-made sweeps, and `sweep status` shows the progress of the
last sweep. executor=local|inline|ray|slurm chooses where the runs are trained. Finished runs are
skipped, and interrupted ones are resumed."""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE[,VALUE...]",
        help="a config key and its values",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list the runs with their state and expected time",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="also train the runs that failed before"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="move the folders of all runs aside and train them again from their first step",
    )
    parser.add_argument(
        "--skip-invalid", action="store_true", help="skip combinations that cannot be trained"
    )
    parser.add_argument(
        "--detach", action="store_true", help="run in the background, without this terminal"
    )
    parser.add_argument(
        "--watch", action="store_true", help="with sweep status: update it until the sweep ends"
    )
    parser.add_argument("--all", action="store_true", help="with sweep status: list all sweeps")
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE[,...]",
        help="choose the value of a key in each cell in trials, by a validation metric; repeat it "
        "to try all combinations of several keys",
    )
    tuning.add_argument(
        "--tune-seeds",
        metavar="SEED[,SEED...]",
        help="seeds of the trials, which final runs must not use (default: 1000)",
    )
    tuning.add_argument(
        "--tune-epochs", type=int, metavar="N", help="epochs of a trial (default: the final run's)"
    )
    tuning.add_argument(
        "--tune-metric",
        metavar="NAME",
        help="validation metric to choose by (default: val_acc)",
    )
    tuning.add_argument(
        "--extend",
        type=int,
        metavar="N",
        help="try up to N more values in each cell whose best value is at an end of its list",
    )
    tuning.add_argument(
        "--sampler",
        metavar="NAME",
        help="Optuna sampler (tpe, random, qmc or cmaes) that proposes values from the ranges of "
        "--tune, as in log(0.01,1) or interval(0,1)",
    )
    tuning.add_argument(
        "--trials", type=int, metavar="N", help="values that --sampler proposes in each cell"
    )
    seeds = parser.add_argument_group("as many seeds as needed")
    seeds.add_argument(
        "--until",
        metavar="POINTS",
        type=float,
        help="add seeds until the 95 %% interval of each difference from the baseline is narrower "
        "than ±POINTS",
    )
    seeds.add_argument(
        "--max-seeds",
        metavar="N",
        type=int,
        help="maximum number of seeds per cell with --until (default: 20)",
    )
    seeds.add_argument(
        "--baseline", metavar="[KEY=]ROW", help="baseline of --until, as in norm=gn (default: bn)"
    )
    add_store(parser)
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    if _asks_status(arguments):
        return _status(arguments)
    for option in ("watch", "all"):
        if getattr(arguments, option):
            raise UserError(f"--{option} is for sweep status: normbench sweep status --{option}")
    if arguments.detach:
        from normbench.cli import detached

        if arguments.dry_run:
            raise UserError("--dry-run trains nothing: leave out --detach")
        return detached.start(command, store_of(arguments))
    from normbench.cli.sweep_screen import SweepScreen

    result = train_sweep(arguments, command, SweepScreen())
    if result.interrupted:
        raise KeyboardInterrupt
    if not arguments.dry_run:
        print_results(arguments, result)
    return result.exit_code


def train_sweep(arguments: Namespace, command: Sequence[str], view: SweepView) -> SweepResult:
    """Train the sweep of a command line.

    Args:
        arguments: The parsed command line.
        command: The command line, for the record.
        view: Shows the sweep.

    Raises:
        UserError: An option or a word is wrong, or a cell cannot be trained.
        StoreError: The store cannot be read or written.
    """
    overrides = overrides_of(arguments)
    tune = _tune_options(arguments, overrides)
    quiet_tensorflow()
    from normbench.sweep.sweep import sweep

    if arguments.until is not None:
        return _until(arguments, overrides, command, tune, view)
    for option, value in (("--max-seeds", arguments.max_seeds), ("--baseline", arguments.baseline)):
        if value is not None:
            raise UserError(f"{option} requires --until, as in --until 0.3 {option} {value}")
    return sweep(
        overrides,
        command,
        config_dir=arguments.config_dir,
        dry_run=arguments.dry_run,
        retry_failed=arguments.retry_failed,
        skip_invalid=arguments.skip_invalid,
        again=arguments.again,
        tune=tune,
        view=view,
    )


def _until(
    arguments: Namespace,
    overrides: list[str],
    command: Sequence[str],
    tune: TuneOptions | None,
    view: SweepView,
) -> SweepResult:
    """Add seeds until the differences to the baseline are known well enough."""
    from normbench.report.rounds import NarrowIntervals
    from normbench.sweep.experiment import unfold
    from normbench.sweep.until import sweep_until

    if arguments.again:
        raise UserError("--until continues from existing runs: leave out --again")
    experiment, _ = unfold(arguments.overrides, arguments.config_dir)
    report_options = dict(experiment.report) if experiment else {}
    rule = NarrowIntervals(
        arguments.until,
        arguments.baseline or report_options.get("baseline"),
        str(report_options.get("by", "norm,batch")).split(","),
        report_options.get("metric", "test_acc"),
    )
    return sweep_until(
        overrides,
        command,
        rule,
        20 if arguments.max_seeds is None else arguments.max_seeds,
        config_dir=arguments.config_dir,
        dry_run=arguments.dry_run,
        retry_failed=arguments.retry_failed,
        skip_invalid=arguments.skip_invalid,
        tune=tune,
        view=view,
    )


def writes(arguments: Namespace) -> bool:
    return not (arguments.dry_run or _asks_status(arguments))


def _asks_status(arguments: Namespace) -> bool:
    return arguments.overrides[:1] == ["status"]


def _status(arguments: Namespace) -> int:
    from normbench.cli.sweep_status import show_all, show_status
    from normbench.store.store import Store

    if arguments.detach:
        raise UserError("sweep status trains nothing: leave out --detach")

    names = [word for word in arguments.overrides[1:] if not word.startswith("store=")]
    if len(names) > 1:
        raise UserError(f"sweep status takes one name, got {', '.join(names)}")
    store = Store(store_of(arguments))
    if arguments.all:
        if names or arguments.watch:
            raise UserError("sweep status --all lists all sweeps: leave out the name and --watch")
        return show_all(store)
    return show_status(store, names[0] if names else None, watch=arguments.watch)


def _tune_options(arguments: Namespace, overrides: Sequence[str]) -> TuneOptions | None:
    """Return the tuning options: those of an experiment, overridden by the command line.

    Returns:
        None if nothing is tuned.

    Raises:
        UserError: A tuning option is given but nothing is tuned, or the metric cannot be used to
            choose a value.
    """
    from normbench.sweep.executors.base import choose
    from normbench.sweep.tune import TuneOptions, tuned_by_experiment

    names = {"tune_seeds": "seeds", "tune_epochs": "epochs", "tune_metric": "metric"}
    tune_arguments = {
        name: getattr(arguments, name)
        for name in (*names, "extend", "sampler", "trials")
        if getattr(arguments, name) is not None
    }
    _, of_runs = choose(overrides, arguments.config_dir)
    options = tuned_by_experiment(of_runs, arguments.config_dir)
    if arguments.tune:
        options = replace(options or TuneOptions([]), keys=arguments.tune)
    if options is None:
        if tune_arguments:
            option = f"--{next(iter(tune_arguments)).replace('_', '-')}"
            raise UserError(f"{option} requires --tune KEY=VALUE,VALUE, the key to tune")
        return None
    tune_arguments["tune_metric"] = _tune_metric(tune_arguments.get("tune_metric", "val_acc"))
    return replace(
        options, **{names.get(name, name): value for name, value in tune_arguments.items()}
    )


def _tune_metric(name: str) -> TuneMetric:
    """Return the metric of METRICS to choose values by; it must use validation images only."""
    from normbench.errors import unknown
    from normbench.report.metrics import METRICS
    from normbench.sweep.tune import TuneMetric

    tune_metric = METRICS.get(name)
    if tune_metric is not None and "test" in {
        word for key in (name, *tune_metric.of) for word in key.split("_")
    }:
        raise UserError(
            f"--tune-metric {name} uses test images: choosing values by them makes the results "
            "look better than they are (use a validation metric, as val_acc or val_loss)"
        )
    allowed = [
        metric.name
        for metric in METRICS.values()
        if metric.higher_is_better is not None
        and metric.of_run
        and metric.name.removeprefix("best_").startswith("val_")
        and "test" not in metric.name
    ]
    if tune_metric is None or name not in allowed:
        raise unknown("--tune-metric", name, allowed)
    unit = f" {tune_metric.unit}" if tune_metric.unit else ""
    return TuneMetric(
        name=tune_metric.name,
        label=tune_metric.label[0].lower() + tune_metric.label[1:],
        higher_is_better=bool(tune_metric.higher_is_better),
        value=lambda summary: (
            summary.get(tune_metric.name) if tune_metric.summary else tune_metric.derive(summary)
        ),
        show=lambda value: tune_metric.show(value) + unit,
    )


def asked_by_experiment(arguments: Namespace) -> dict[str, Any]:
    """Return the options of :func:`.report.summary_table` that the sweep's experiment sets."""
    options = _report_options(arguments)
    keys = ("by", "metric", "target", "allow_confound")
    return {key: options[key] for key in keys if key in options}


def _report_options(arguments: Namespace) -> dict[str, Any]:
    from normbench.sweep.experiment import unfold

    experiment, _ = unfold(arguments.overrides, arguments.config_dir)
    return dict(experiment.report) if experiment else {}


def print_results(arguments: Namespace, result: SweepResult) -> None:
    """Print the table of a sweep's complete cells, with the options that its experiment sets."""
    from rich.console import Console

    names = [
        name for name in result.final_names if (result.store.root / name / "summary.json").is_file()
    ]
    if not names:
        return
    from normbench.report.report import summary_table

    console = Console()
    console.print()
    console.print(summary_table(result.store, names, **asked_by_experiment(arguments)))
    command = ["normbench", "report", str(result.store.root)]
    for key, value in _report_options(arguments).items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    console.print(
        f"{shlex.join(command)} adds statistics, figures and a page",
        markup=False,
        soft_wrap=True,
        emoji=False,
        highlight=False,
    )
