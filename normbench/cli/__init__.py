"""The command line. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from normbench.cli import streams
from normbench.cli.arguments import help_of, parse, parser
from normbench.errors import NormbenchError, UserError, reason

INTERRUPTED = 130


def entry() -> NoReturn:
    """Run `main` as a process of its own; output that is lost and a late Ctrl-C do not end it."""
    streams.protect()
    try:
        code = main()
    except KeyboardInterrupt:  # while main told of the one before
        code = INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if reason := streams.loss():
        print(f"normbench: standard output could not be written: {reason}", file=sys.stderr)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 where a run or the environment failed; 2 for a mistake in what was asked for; 130
        where it was interrupted.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parse(given)
        if arguments.command is None:
            parser().print_help()
            return 0
        if _asks_nothing(arguments):
            print(help_of(arguments.command), end="")
            example = "dataset=digits arch=resnet8 epochs=5"
            raise UserError(f"{arguments.command} needs KEY=VALUE words, as {example}")
        signal.signal(signal.SIGTERM, _interrupt)
        _missing_checksums()  # of an earlier command of this process, or of its own reading
        code = _COMMANDS[arguments.command](arguments, ["normbench", *given])
        if note := _missing_checksums():
            print(f"normbench: note: {note}", file=sys.stderr)
        return 1 if code == 0 and _only_prints(arguments) and streams.loss() else code
    except NormbenchError as error:
        if "--debug" in given:
            raise
        print(f"normbench: {reason(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("normbench: interrupted; run the same command again to resume", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if "--debug" in given:
            raise
        print(f"normbench: {reason(error)} (--debug shows the traceback)", file=sys.stderr)
        return 1


def _asks_nothing(arguments: Namespace) -> bool:
    """Whether a command that trains for hours was typed without saying what to train."""
    if arguments.command not in ("run", "sweep") or arguments.overrides:
        return False
    return not any(getattr(arguments, name, False) for name in ("print_config", "resume"))


def _store(arguments: Namespace) -> str:
    """Return the folder of runs of a command that reads them."""
    if arguments.store is not None:
        return arguments.store
    from normbench.config import default_store

    return default_store()


def _overrides(arguments: Namespace) -> list[str]:
    """Return the overrides of a run or a sweep; ``--store`` is one of them."""
    named = any(word.lstrip("+").startswith("store=") for word in arguments.overrides)
    if arguments.store is None or named:
        return arguments.overrides
    from normbench.overrides import quoted

    return [*arguments.overrides, f"store={quoted(arguments.store)}"]


def _only_prints(arguments: Namespace) -> bool:
    """Return whether a command has no result but the text that it prints."""
    if arguments.command in ("run", "sweep"):
        planned = getattr(arguments, "print_config", False) or getattr(arguments, "dry_run", False)
        return planned or arguments.overrides[:1] == ["status"]
    if arguments.command == "data":
        return arguments.action == "list"
    if arguments.command in ("report", "diagnose", "export"):
        return False
    return getattr(arguments, "out", None) is None and getattr(arguments, "plot", None) is None


def _missing_checksums() -> str:
    """Return a note on the runs without checksums read since the last call; "" for none."""
    if "normbench.store.store" not in sys.modules:
        return ""
    from normbench.store.store import note_on_checksums

    return note_on_checksums()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _run(arguments: Namespace, command: list[str]) -> int:
    if arguments.multirun:
        return _multirun(arguments)
    from normbench.config import compose
    from normbench.store.store import Store

    if arguments.again and arguments.resume:
        raise UserError("--resume continues a run and --again starts it anew: give one of them")
    config = compose(_overrides(arguments), arguments.config_dir)
    if arguments.print_config:
        import yaml

        print(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), end="")
        return 0
    _keep_quiet()
    from normbench.cli.screen import RunScreen
    from normbench.engine.train import train

    with RunScreen() as screen:
        screen.waits_for("starting Keras")
        outcome = train(
            config,
            Store(config.store),
            observer=screen,
            command=command,
            must_exist=arguments.resume,
            again=arguments.again,
        )
    if not outcome.trained:
        from normbench.formats import nothing_to_train

        print(nothing_to_train(outcome.summary))
        print(f"  folder  {outcome.run.path}")
        from normbench.engine.diagnose import trained_without
        from normbench.store.provenance import changed_since

        recorded = (outcome.run.meta or {}).get("own")
        changes = changed_since(outcome.run.config or {}, recorded, config)
        for line in [*trained_without([(config, outcome.run)], arguments.config_dir), *changes]:
            print(f"  {line}")
        if changes:
            print("  --again sets its folder aside and trains it from its first step")
    return 0


def _multirun(arguments: Namespace) -> int:
    for option in ("resume", "again", "print_config"):
        if getattr(arguments, option):
            raise UserError(f"--{option.replace('_', '-')} is for one run, --multirun for several")
    _keep_quiet()
    from normbench.cli.multirun import multirun

    multirun(_overrides(arguments), arguments.config_dir)
    return 0


def _sweep(arguments: Namespace, command: list[str]) -> int:
    from normbench.store.store import Store
    from normbench.sweep.sweep import status, sweep

    if arguments.overrides[:1] == ["status"]:
        names = [word for word in arguments.overrides[1:] if not word.startswith("store=")]
        if len(names) > 1:
            raise UserError(f"sweep status takes one name, got {', '.join(names)}")
        return status(Store(_store(arguments)), names[0] if names else None)
    _keep_quiet()
    outcome = sweep(
        _overrides(arguments),
        command,
        config_dir=arguments.config_dir,
        dry_run=arguments.dry_run,
        retry_failed=arguments.retry_failed,
        skip_invalid=arguments.skip_invalid,
        again=arguments.again,
    )
    if outcome.interrupted:
        raise KeyboardInterrupt
    if not arguments.dry_run:
        _show_results(arguments, outcome)
    return outcome.exit_code


def _show_results(arguments: Namespace, outcome: Any) -> None:
    """Print the table of a sweep's cells that are complete, the experiment's own if it is one."""
    from rich.console import Console

    names = [cell.name for cell in outcome.plan.cells]
    names = [name for name in names if (outcome.store.root / name / "summary.json").is_file()]
    if not names:
        return
    from normbench.report.report import summary_table
    from normbench.sweep.experiment import unfold

    experiment, _ = unfold(arguments.overrides, arguments.config_dir)
    options = dict(experiment.report) if experiment else {}
    shown = {
        key: options[key] for key in ("by", "metric", "target", "allow_confound") if key in options
    }
    console = Console()
    console.print()
    console.print(summary_table(outcome.store, names, **shown))
    store = outcome.store.root
    command = ["normbench", "report", str(store)]
    for key, value in options.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    console.print(
        f"{shlex.join(command)} adds statistics, figures and a page",
        markup=False,
        soft_wrap=True,
        emoji=False,
        highlight=False,
    )


def _report(arguments: Namespace, command: list[str]) -> int:
    from normbench.report.report import report

    report(
        _store(arguments),
        where=arguments.where,
        by=arguments.by,
        metric=arguments.metric,
        baseline=arguments.baseline,
        target=arguments.target,
        out=arguments.out,
        allow_confound=arguments.allow_confound,
    )
    return 0


def _diagnose(arguments: Namespace, command: list[str]) -> int:
    from normbench.cli.diagnosis_table import page, rows
    from normbench.engine.diagnose import diagnose
    from normbench.store.store import Store

    words = [word for word in arguments.overrides if not word.startswith("store=")]
    names = [word for word in words if "=" not in word]
    if not names:
        raise UserError("diagnose needs a run: its name, its signature, or the start of either")
    _keep_quiet()
    store = Store(_store(arguments))
    outcome = diagnose(
        store,
        names,
        [name for given in arguments.probe or () for name in given.split(",")],
        [word for word in words if "=" in word],
        config_dir=arguments.config_dir,
        again=arguments.again,
        command=command,
        say=lambda line: print(line, file=sys.stderr),
    )
    if sys.stdout.isatty():
        from rich.console import Console

        from normbench.store.differences import as_overrides, differences

        found = differences([store.run(name).config or {} for name in outcome.lines])
        differs = dict(zip(outcome.lines, map(as_overrides, found), strict=True))
        Console().print(page(outcome.lines, differs=differs))
    else:  # a pipe has no width
        from normbench.cli.listing import tsv

        print(tsv(rows(outcome.lines)), end="")
    return outcome.exit_code


def _list(arguments: Namespace, command: list[str]) -> int:
    from rich.console import Console

    from normbench.cli.listing import rows, runs_table, tsv
    from normbench.store.store import Store

    store = Store(_store(arguments))
    if not store.root.is_dir() and (arguments.store or os.environ.get("NORMBENCH_STORE")):
        raise UserError(f"there is no store {str(store.root)!r}: no such folder")
    runs = store.runs()
    if arguments.json:
        import json

        print(json.dumps(rows(runs), indent=1))
        return 0
    if not runs:
        print(f"no runs in {store.root}: normbench run makes one")
        return 0
    if sys.stdout.isatty():
        Console().print(runs_table(runs))
    else:  # a pipe has no width
        print(tsv(rows(runs)))
    return 0


def _show(arguments: Namespace, command: list[str]) -> int:
    if any("=" in word for word in arguments.overrides):
        return _show_network(arguments)
    if len(arguments.overrides) > 1:
        raise UserError(f"show takes one run, got {', '.join(arguments.overrides)}")
    for option in ("plot", "images", "classes"):
        if getattr(arguments, option) is not None:
            raise UserError(
                f"--{option} is for a network, as in: normbench show arch=resnet8 --{option} …"
            )
    from rich.console import Console

    from normbench.cli.listing import run_details
    from normbench.store.store import Store

    Console().print(run_details(Store(_store(arguments)).find(arguments.overrides[0])))
    return 0


def _show_network(arguments: Namespace) -> int:
    from normbench.config import compose

    config = compose(arguments.overrides, arguments.config_dir)
    _keep_quiet()
    from normbench.report.network import network_of, page, rows

    if arguments.plot:  # before what takes seconds
        from normbench.report.figures.network import check_file, save

        check_file(arguments.plot)
    shown = network_of(config, arguments.images, arguments.classes)
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(page(shown))
    else:
        from normbench.cli.listing import tsv

        print(tsv(rows(shown)), end="")
    if arguments.plot:
        file = save(shown, arguments.plot, say=lambda line: print(line, file=sys.stderr))
        print(f"drawn: {file}", file=sys.stderr)
    return 0


def _norms(arguments: Namespace, command: list[str]) -> int:
    from rich.console import Console

    from normbench.cli.norms import Catalogue, details, page, rows
    from normbench.components import header
    from normbench.config import compose, group_options

    folder = arguments.config_dir
    groups = group_options(folder)
    catalogue = Catalogue(
        groups["norm"],
        groups["norm/weight"],
        lambda override: compose([override], folder).norm,
        lambda group, name: header(group, name, folder),
    )
    if arguments.name:
        Console().print(details(catalogue.entry(arguments.name)))
    elif sys.stdout.isatty():
        Console().print(page(catalogue))
    else:
        from normbench.cli.listing import tsv

        print(tsv(rows(catalogue)))
    return 0


def _experiments(arguments: Namespace, command: list[str]) -> int:
    from normbench.cli.experiments import details, page, rows

    folder = arguments.config_dir
    if arguments.name:
        print(details(arguments.name, folder))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(page(folder))
    else:
        from normbench.cli.listing import tsv

        print(tsv(rows(folder)))
    return 0


def _data(arguments: Namespace, command: list[str]) -> int:
    from normbench.cli import data as commands

    sources = _sources(arguments.config_dir)
    if arguments.action == "list":
        from rich.console import Console

        from normbench.cli.listing import datasets_table

        Console().print(datasets_table(commands.list_datasets(sources)))
        return 0
    if arguments.name not in sources:
        from normbench.errors import unknown

        raise unknown("dataset", arguments.name, sources)
    _keep_quiet()
    source = sources[arguments.name]
    if arguments.action == "prepare":
        commands.prepare(source, say=print)
    else:
        commands.import_from(source, arguments.path, say=print)
    return 0


def _sources(config_dir: str | None) -> dict[str, Any]:
    """Every data set of ``conf/dataset/`` with its source."""
    from normbench.components import make_source
    from normbench.config import compose, group_options

    names = group_options(config_dir)["dataset"]
    return {name: make_source(compose([f"dataset={name}"], config_dir).dataset) for name in names}


def _doctor(arguments: Namespace, command: list[str]) -> int:
    from rich.console import Console

    from normbench.cli.data import list_datasets
    from normbench.cli.doctor import collect, exit_code, render

    listed = list_datasets(_sources(arguments.config_dir))
    findings = collect(datasets=[(each["name"], each["state"]) for each in listed])
    Console().print(render(findings))
    return exit_code(findings)


def _diff(arguments: Namespace, command: list[str]) -> int:
    from normbench.report.report import diff

    diff(_store(arguments), *arguments.runs, out=arguments.out)
    return 0


def _export(arguments: Namespace, command: list[str]) -> int:
    from normbench.report.report import export

    export(_store(arguments), arguments.where, arguments.out, arguments.format)
    return 0


def _keep_quiet() -> None:
    """Keep TensorFlow's start-up messages off the screen; must come before it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


_COMMANDS: dict[str, Callable[[Namespace, list[str]], int]] = {
    "run": _run,
    "sweep": _sweep,
    "report": _report,
    "diagnose": _diagnose,
    "list": _list,
    "show": _show,
    "norms": _norms,
    "experiments": _experiments,
    "data": _data,
    "doctor": _doctor,
    "diff": _diff,
    "export": _export,
}
