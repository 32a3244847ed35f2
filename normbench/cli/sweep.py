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
Every key takes several values, as a list, a range or a pattern. Quote what the shell would read:
  normbench sweep norm=bn,gn batch=16,64 'seed=range(0,5)' dataset=digits arch=resnet8 epochs=5
  normbench sweep 'norm=glob(gn*)' executor=local executor.workers=2 --dry-run
  normbench sweep +experiment=batch_sweep scale=small
  normbench sweep norm=bn,gn 'seed=range(0,5)' --tune 'optimizer.lr=log(0.025,0.4,5)'
  normbench sweep norm=bn,gn --tune 'optimizer.lr=log(0.01,1)' --sampler tpe --trials 20
  normbench sweep norm=bn,gn 'seed=range(0,3)' dataset=digits arch=resnet8 epochs=5 --until 0.5
  normbench sweep status --watch

`normbench experiments` lists the ready-made sweeps, and `sweep status` says how the last sweep
stands. executor=local|inline|ray|slurm chooses where the runs are trained. Finished runs are
skipped, and interrupted ones are resumed."""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE[,VALUE...]",
        help="a key of the config and its values",
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
        "--skip-invalid", action="store_true", help="leave out combinations that cannot be trained"
    )
    parser.add_argument(
        "--detach", action="store_true", help="go on in the background, without this terminal"
    )
    parser.add_argument(
        "--watch", action="store_true", help="of sweep status: show it until the sweep has ended"
    )
    parser.add_argument("--all", action="store_true", help="of sweep status: list all sweeps")
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE[,...]",
        help="choose the value of a key in each cell by trials, on validation images; may be "
        "repeated, for all combinations",
    )
    tuning.add_argument(
        "--tune-seeds",
        metavar="SEED[,SEED...]",
        help="seeds of the trials, which no final run may have (default: 1000)",
    )
    tuning.add_argument(
        "--tune-epochs", type=int, metavar="N", help="epochs of a trial (default: the final run's)"
    )
    tuning.add_argument(
        "--tune-metric",
        metavar="NAME",
        help="metric of validation images that chooses (default: val_acc)",
    )
    tuning.add_argument(
        "--extend",
        type=int,
        metavar="N",
        help="try up to N further values in each cell whose best value ends its list",
    )
    tuning.add_argument(
        "--sampler",
        metavar="NAME",
        help="have a sampler of Optuna propose the values of --tune, whose ranges are log(0.01,1) "
        "or interval(0,1): tpe, random, qmc or cmaes",
    )
    tuning.add_argument(
        "--trials", type=int, metavar="N", help="values that --sampler proposes in each cell"
    )
    seeds = parser.add_argument_group("as many seeds as needed")
    seeds.add_argument(
        "--until",
        metavar="POINTS",
        type=float,
        help="add seeds until the 95 %% interval of each difference to the baseline is narrower "
        "than ± this",
    )
    seeds.add_argument(
        "--max-seeds",
        metavar="N",
        type=int,
        help="most seeds of a cell that --until trains (default: 20)",
    )
    seeds.add_argument(
        "--baseline", metavar="[KEY=]ROW", help="baseline of --until, as norm=gn (default: bn)"
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
        arguments: The words and options of the command line.
        command: Its words, for the record.
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
            raise UserError(f"{option} goes with --until: --until 0.3 {option} {value}")
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
        raise UserError("--until goes on from the runs that exist: leave out --again")
    experiment, _ = unfold(arguments.overrides, arguments.config_dir)
    asked = dict(experiment.report) if experiment else {}
    rule = NarrowIntervals(
        arguments.until,
        arguments.baseline or asked.get("baseline"),
        str(asked.get("by", "norm,batch")).split(","),
        asked.get("metric", "test_acc"),
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
    """Return what is tuned: as an experiment has it, but for the options that are typed.

    Returns:
        None if nothing is tuned.

    Raises:
        UserError: An option of tuning where nothing is tuned, or a metric that cannot choose a
            value.
    """
    from normbench.sweep.executors.base import choose
    from normbench.sweep.tune import TuneOptions, tuned_by_experiment

    names = {"tune_seeds": "seeds", "tune_epochs": "epochs", "tune_metric": "metric"}
    typed = {
        name: getattr(arguments, name)
        for name in (*names, "extend", "sampler", "trials")
        if getattr(arguments, name) is not None
    }
    _, of_runs = choose(overrides, arguments.config_dir)
    options = tuned_by_experiment(of_runs, arguments.config_dir)
    if arguments.tune:
        options = replace(options or TuneOptions([]), keys=arguments.tune)
    if options is None:
        if typed:
            option = f"--{next(iter(typed)).replace('_', '-')}"
            raise UserError(f"{option} goes with --tune KEY=VALUE,VALUE, which names what is tuned")
        return None
    typed["tune_metric"] = _tune_metric(typed.get("tune_metric", "val_acc"))
    return replace(options, **{names.get(name, name): value for name, value in typed.items()})


def _tune_metric(name: str) -> TuneMetric:
    """Return the metric that chooses a value, of METRICS: one of validation images alone."""
    from normbench.errors import unknown
    from normbench.report.metrics import METRICS
    from normbench.sweep.tune import TuneMetric

    known = METRICS.get(name)
    if known is not None and "test" in {
        word for key in (name, *known.of) for word in key.split("_")
    }:
        raise UserError(
            f"--tune-metric {name} has test images in it: a value chosen by them makes the results "
            "look better than they are (val_acc, val_loss, … choose by validation images)"
        )
    allowed = [
        metric.name
        for metric in METRICS.values()
        if metric.higher_is_better is not None
        and metric.of_run
        and metric.name.removeprefix("best_").startswith("val_")
        and "test" not in metric.name
    ]
    if known is None or name not in allowed:
        raise unknown("--tune-metric", name, allowed)
    unit = f" {known.unit}" if known.unit else ""
    return TuneMetric(
        name=known.name,
        label=known.label[0].lower() + known.label[1:],
        higher_is_better=bool(known.higher_is_better),
        value=lambda summary: summary.get(known.name) if known.summary else known.derive(summary),
        show=lambda value: known.show(value) + unit,
    )


def asked_by_experiment(arguments: Namespace) -> dict[str, Any]:
    """Return the options of :func:`.report.summary_table` that a sweep's experiment asks for."""
    options = _report_options(arguments)
    shown = ("by", "metric", "target", "allow_confound")
    return {key: options[key] for key in shown if key in options}


def _report_options(arguments: Namespace) -> dict[str, Any]:
    from normbench.sweep.experiment import unfold

    experiment, _ = unfold(arguments.overrides, arguments.config_dir)
    return dict(experiment.report) if experiment else {}


def print_results(arguments: Namespace, result: SweepResult) -> None:
    """Print the table of a sweep's complete cells; of an experiment, the one that it asks for."""
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
