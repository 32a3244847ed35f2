"""What the command line takes: the sub-commands and their options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from normbench import __version__
from normbench.errors import UserError, nearest

OVERRIDES = """\
A run is described by overrides, as KEY=VALUE:
  dataset=cifar10|cifar100|mnist|fashion_mnist|digits   arch=resnet20   norm=bn|gn|gn_ws|...
  batch=128   epochs=100   seed=0   precision=float32   backend=tensorflow   store=runs
  optimizer.lr=0.1   norm.groups=8   dataset.train_size=5000   ...
`normbench run --print-config` shows them all with their values."""

SWEEP = """

A sweep takes several values of a key (norm=bn,gn seed=range(0,5) norm=glob(gn*)), and says with
executor=local|inline|ray|slurm what carries it out (executor.workers=2).
`normbench sweep status [NAME] [--store runs]` shows how a sweep stands, from any terminal."""

SHOW = """\
A network is described by overrides, as for a run, and needs no data set on this machine:
  normbench show arch=resnet50 norm=xbn --plot resnet50.svg
  normbench show arch=resnet50 arch.stem=imagenet --images 224x224x3 --classes 1000"""


DIAGNOSE = """\
What probes measure inside a run (probe=NAME) is measured in the run's last and best checkpoint,
unless it is known already, and kept beside the run; reports draw both alike:
  normbench diagnose RUN --probe estimation_shift,train_gap probe.train_gap.images=1000"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that names the nearest correct word."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def options(self) -> list[str]:
        """Return the options of this parser and of its sub-commands."""
        found: list[str] = []
        for action in self._actions:
            found += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for each in action.choices.values():
                    found += each.options()
        return sorted(set(found))

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            name, allowed = choice.groups()
            names = [each.strip(" '") for each in allowed.split(",")]
            close = nearest(name, names)
            hint = f": did you mean {close!r}?" if close else ""
            message = f"unknown command {name!r}{hint} (allowed: {', '.join(names)})"
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    """Build the parser of the whole command line."""
    top = Parser(
        prog="normbench",
        description="The bench on which normalization layers are compared.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"normbench {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _run(_command(commands, "run", "train one run, or what is left of it", OVERRIDES))
    _sweep(_command(commands, "sweep", "train every cell of a grid", OVERRIDES + SWEEP))
    _report(_command(commands, "report", "write tables, figures and a page from a store"))
    _diagnose(_command(commands, "diagnose", "measure in the checkpoints of runs", DIAGNOSE))
    _list(_command(commands, "list", "show a store's runs as a table"))
    _show(_command(commands, "show", "show one run, or the network of one", SHOW))
    _norms(_command(commands, "norms", "list the normalizations, or show one"))
    experiments = _command(commands, "experiments", "list the ready-made sweeps, or show one")
    experiments.add_argument("name", nargs="?", help="as in +experiment=NAME")
    _config_dir(experiments)
    _data(_command(commands, "data", "list, prepare or import data sets"))
    doctor = _command(commands, "doctor", "say what this machine has and what is missing")
    _config_dir(doctor)
    diff = _command(commands, "diff", "compare two runs")
    diff.add_argument("runs", nargs=2, metavar="RUN")
    diff.add_argument("--out", help="folder for the overlaid curves")
    _store(diff)
    export = _command(commands, "export", "write one table of runs for a paper's appendix")
    export.add_argument("store", nargs="?", default="runs", help="folder of runs (runs)")
    export.add_argument("--where", help="which runs, as 'norm in [bn, gn] and batch <= 64'")
    export.add_argument("--out", default="runs.csv", help="file to write (runs.csv)")
    export.add_argument("--format", help="csv, md, tex or parquet; by the file's name if left out")
    return top


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; overrides may stand before and after options.

    Raises:
        UserError: An unknown command or option, with the nearest correct one.
    """
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    for word in rest:
        if word.startswith("-"):
            close = nearest(word.partition("=")[0], top.options())
            hint = f": did you mean {close}?" if close else ""
            raise UserError(f"unknown option {word!r}{hint} (see normbench --help)")
        if not hasattr(arguments, "overrides"):
            raise UserError(f"{arguments.command} cannot take {word!r} (see normbench --help)")
        arguments.overrides.append(word)
    return arguments


def _command(commands: argparse._SubParsersAction, name: str, does: str, more: str = "") -> Parser:
    made = commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def _run(run: Parser) -> None:
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    run.add_argument(
        "--resume", action="store_true", help="go on with a run that exists; never begin one"
    )
    run.add_argument(
        "--multirun", action="store_true", help="hand over to Hydra's own sweeper and launcher"
    )
    run.add_argument("--print-config", action="store_true", help="show the config and stop")
    _config_dir(run)


def _sweep(sweep: Parser) -> None:
    sweep.add_argument("overrides", nargs="*", metavar="KEY=VALUE[,VALUE...]")
    sweep.add_argument(
        "--dry-run", action="store_true", help="show each cell with its state and time, and stop"
    )
    sweep.add_argument(
        "--retry-failed", action="store_true", help="train cells that failed before, too"
    )
    sweep.add_argument(
        "--skip-invalid", action="store_true", help="leave out cells that cannot be trained"
    )
    sweep.add_argument("--store", default="runs", help="for status: folder of runs (runs)")
    _config_dir(sweep)


def _report(report: Parser) -> None:
    report.add_argument("store", nargs="?", default="runs", help="folder of runs (runs)")
    report.add_argument("--where", help="which runs, as 'norm in [bn, gn] and batch <= 64'")
    report.add_argument("--by", default="norm,batch", help="rows,columns of the tables")
    report.add_argument("--metric", default="test_acc", help="what is compared (test_acc)")
    report.add_argument("--baseline", help="what the others are compared with (bn)")
    report.add_argument("--target", type=float, help="accuracy for the table of steps to reach it")
    report.add_argument(
        "--allow-confound",
        default="",
        metavar="KEY[,KEY...]",
        help="keys in which rows may differ on purpose, as optimizer.lr",
    )
    report.add_argument("--out", default="report", help="folder to write to (report)")


def _diagnose(diagnose: Parser) -> None:
    diagnose.add_argument(
        "overrides",
        nargs="*",
        metavar="RUN|KEY=VALUE",
        help="runs: a name, a signature, or the start of either; options of probes",
    )
    diagnose.add_argument(
        "--probe", action="append", metavar="NAME[,NAME...]", help="what is measured (all there is)"
    )
    diagnose.add_argument(
        "--again", action="store_true", help="measure also what was measured before"
    )
    _store(diagnose)
    _config_dir(diagnose)


def _list(listing: Parser) -> None:
    listing.add_argument("--json", action="store_true", help="one JSON list, not a table")
    _store(listing)


def _show(show: Parser) -> None:
    show.add_argument(
        "overrides",
        nargs="+",
        metavar="RUN|KEY=VALUE",
        help="a run: its name, its signature, or the start of either; or a network, by overrides",
    )
    show.add_argument("--plot", metavar="FILE", help="draw the network (.png, .svg or .pdf)")
    show.add_argument("--images", metavar="HxWxC", help="size of its images (the data set's)")
    show.add_argument("--classes", type=int, help="number of its logits (the data set's)")
    _store(show)
    _config_dir(show)


def _norms(norms: Parser) -> None:
    norms.add_argument("name", nargs="?", help="as in norm=NAME")
    _config_dir(norms)


def _data(data: Parser) -> None:
    actions = data.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=Parser
    )
    _config_dir(_command(actions, "list", "show the data sets and which are prepared"))
    prepare = _command(actions, "prepare", "download a data set")
    bring = _command(actions, "import", "take a data set from files on disk")
    bring.add_argument(
        "--from", dest="path", required=True, help="file or folder, as downloaded or unpacked"
    )
    for each in (prepare, bring):
        each.add_argument("name", help="as in dataset=NAME")
        _config_dir(each)


def _store(command: Parser) -> None:
    command.add_argument("--store", default="runs", help="folder of runs (runs)")


def _config_dir(command: Parser) -> None:
    command.add_argument("--config-dir", help="a further folder with config groups, like conf/")
