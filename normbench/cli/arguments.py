"""The command line: sub-commands, their options and their help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from normbench import __version__
from normbench.errors import UserError, nearest

RUN = """\
A run is described by KEY=VALUE words; keys that are not named keep their defaults:
  normbench run norm=gn_ws batch=16 dataset=digits arch=resnet8 epochs=5
  normbench run norm=gn norm.groups=4 optimizer.lr=0.05 dataset.train_size=5000
  normbench run --print-config

The last prints all keys with their values. The same command again resumes an interrupted run and
leaves a finished one as it is. `normbench norms` and `normbench data list` list what there is to
choose from."""

SWEEP = """\
Every key takes several values, as a list, a range or a pattern. Quote what the shell would read:
  normbench sweep norm=bn,gn batch=16,64 'seed=range(0,5)' dataset=digits arch=resnet8 epochs=5
  normbench sweep 'norm=glob(gn*)' executor=local executor.workers=2 --dry-run
  normbench sweep +experiment=batch_sweep scale=small
  normbench sweep status

`normbench experiments` lists the ready-made sweeps, and `sweep status` says how the last sweep
stands. executor=local|inline|ray|slurm chooses where the runs are trained. Finished runs are
skipped, and interrupted ones are resumed."""

SHOW = """\
A network is described as for a run, and needs no data set on this machine:
  normbench show arch=resnet50 norm=xbn --plot resnet50.svg
  normbench show arch=resnet50 arch.stem=imagenet --images 224x224x3 --classes 1000"""

DIAGNOSE = """\
Probes measure a finished run's last and best checkpoint as they would have inside the run
(probe=NAME). The values are stored with the run, measured once, and drawn by reports:
  normbench diagnose RUN --probe estimation_shift,train_gap probe.train_gap.images=1000"""

REPORT = """\
For example:
  normbench report --where 'norm in [bn, gn] and batch <= 64' --by norm,batch --out report
  normbench report --by norm,optimizer.lr --metric val_acc --baseline bn"""

NAMES = "name, signature, or the beginning of either"

WHERE = "only the runs that match, as in 'norm in [bn, gn] and batch <= 64'"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that names the nearest correct word."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    @property
    def options(self) -> list[str]:
        """The options of this parser, without those of its sub-commands."""
        return sorted(option for action in self._actions for option in action.option_strings)

    @property
    def commands(self) -> dict[str, Parser]:
        """The parsers of the sub-commands by their names."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def descendants(self) -> Iterator[Parser]:
        """Yield this parser and those of all sub-commands."""
        yield self
        for command in self.commands.values():
            yield from command.descendants()

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
        description="Train networks with different normalization layers and compare them.",
        epilog="A first comparison, in about three minutes and without a download:\n"
        "  normbench sweep +experiment=quickstart\n"
        "  normbench report",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"normbench {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _run(_command(commands, "run", "train one network, or resume its training", RUN))
    _sweep(_command(commands, "sweep", "train one run for each combination of values", SWEEP))
    _report(_command(commands, "report", "write tables, figures and a web page", REPORT))
    _diagnose(_command(commands, "diagnose", "measure the checkpoints of finished runs", DIAGNOSE))
    _list(_command(commands, "list", "list the runs of a store"))
    _show(_command(commands, "show", "show one run, or the layers of a network", SHOW))
    _norms(_command(commands, "norms", "list the normalizations, or explain one"))
    experiments = _command(commands, "experiments", "list the ready-made sweeps, or explain one")
    experiments.add_argument("name", nargs="?", help="an experiment, as in +experiment=NAME")
    _config_dir(experiments)
    _data(_command(commands, "data", "list, download or import data sets"))
    doctor = _command(commands, "doctor", "check this machine and the installation")
    _config_dir(doctor)
    diff = _command(commands, "diff", "compare two runs")
    diff.add_argument("runs", nargs=2, metavar="RUN", help=f"two runs, each by {NAMES}")
    diff.add_argument(
        "--out", metavar="FOLDER", help="also write the comparison and the curves to this folder"
    )
    _store(diff)
    export = _command(commands, "export", "write all results as one table")
    export.add_argument("--where", metavar="FILTER", help=WHERE)
    export.add_argument(
        "--out", metavar="FILE", default="runs.csv", help="file to write (default: %(default)s)"
    )
    export.add_argument(
        "--format", help="csv, md, tex or parquet (default: the suffix of the file)"
    )
    _store(export, positional=True)
    return top


def help_of(command: str) -> str:
    """Return the help of a sub-command."""
    return parser().commands[command].format_help()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; overrides may stand before and after options.

    ``store`` is the folder that the command line names, or None.

    Raises:
        UserError: An unknown command or option, with the nearest correct one; or two stores.
    """
    top = parser()
    if argv and argv[0].startswith("-") and argv[0].partition("=")[0] not in top.options:
        raise _unknown_option(argv[0], top, top)
    arguments, rest = top.parse_known_args(argv)
    chosen = top
    for name in (arguments.command, getattr(arguments, "action", None)):
        chosen = chosen.commands[name] if name else chosen
    for word in rest:
        if word.startswith("-"):
            raise _unknown_option(word, chosen, top)
        if not hasattr(arguments, "overrides"):
            raise UserError(f"{arguments.command} cannot take {word!r} (see {chosen.prog} --help)")
        arguments.overrides.append(word)
    if hasattr(arguments, "store"):
        arguments.store = _named_store(arguments)
    _refuse_empty(argv)
    return arguments


def _named_store(arguments: argparse.Namespace) -> str | None:
    """Return the store that is named, by ``--store``, as a word of its own or as ``store=``."""
    words = [getattr(arguments, "folder", None) or "", *getattr(arguments, "overrides", ())]
    named = [word.removeprefix("store=") for word in words if word.startswith("store=")]
    if not named and words[0]:
        named = [words[0]]
    if arguments.store is not None:
        named.append(arguments.store)
    if len(set(named)) > 1:
        raise UserError(f"two stores are named: {named[0]!r} and {named[-1]!r}")
    if getattr(arguments, "folder", None) == "" or (named and not named[0].strip()):
        raise UserError("the store is empty: name a folder, or none for the default")
    return named[0] if named else None


def _unknown_option(word: str, chosen: Parser, top: Parser) -> UserError:
    """Build the error for an option that the chosen command does not have."""
    name = word.partition("=")[0]
    having = [each.prog for each in top.descendants() if name in each.options]
    if having and chosen is top:
        return UserError(f"{name} stands after the command, as in: {having[0]} {name}")
    if having:
        verb = "has" if len(having) == 1 else "have"
        return UserError(f"{chosen.prog} has no option {name}: {', '.join(having)} {verb} it")
    close = nearest(name, chosen.options)
    hint = f": did you mean {close}?" if close else ""
    return UserError(f"unknown option {word!r}{hint} (see {chosen.prog} --help)")


def _refuse_empty(argv: Sequence[str]) -> None:
    """Refuse an option or a word that is an empty text, as an unset shell variable leaves it."""
    for before, word in zip(["", *argv], argv, strict=False):
        option = word[:-1] if word.startswith("--") and word.endswith("=") else before
        if word and option == before:
            continue
        named = option if option.startswith("--") else "an argument"
        raise UserError(f"{named} is empty: give it a value or leave it out")


def _command(commands: argparse._SubParsersAction, name: str, does: str, more: str = "") -> Parser:
    made = commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return made


def _run(run: Parser) -> None:
    run.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="a key of the config and its value"
    )
    run.add_argument(
        "--resume", action="store_true", help="resume an existing run; never start a new one"
    )
    run.add_argument(
        "--again",
        action="store_true",
        help="move the run's folder aside and train the run again from its first step",
    )
    run.add_argument("--multirun", action="store_true", help="use Hydra's own sweeper and launcher")
    run.add_argument("--print-config", action="store_true", help="print the config and exit")
    _store(run)
    _config_dir(run)


def _sweep(sweep: Parser) -> None:
    sweep.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE[,VALUE...]",
        help="a key of the config and its values",
    )
    sweep.add_argument(
        "--dry-run",
        action="store_true",
        help="list the runs with their state and expected time",
    )
    sweep.add_argument(
        "--retry-failed", action="store_true", help="also train the runs that failed before"
    )
    sweep.add_argument(
        "--again",
        action="store_true",
        help="move the folders of all runs aside and train them again from their first step",
    )
    sweep.add_argument(
        "--skip-invalid", action="store_true", help="leave out combinations that cannot be trained"
    )
    _store(sweep)
    _config_dir(sweep)


def _report(report: Parser) -> None:
    report.add_argument("--where", metavar="FILTER", help=WHERE)
    report.add_argument(
        "--by",
        metavar="KEY[,KEY...]",
        default="norm,batch",
        help="config keys of the rows, of the columns, and of separate tables "
        "(default: %(default)s)",
    )
    report.add_argument(
        "--metric", default="test_acc", help="metric to compare (default: %(default)s)"
    )
    report.add_argument(
        "--baseline", metavar="ROW", help="row that the others are compared with (default: bn)"
    )
    report.add_argument(
        "--target",
        metavar="ACCURACY",
        type=float,
        help="also compare the steps to this validation accuracy, as in 0.9",
    )
    report.add_argument(
        "--allow-confound",
        default="",
        metavar="KEY[,KEY...]",
        help="keys in which rows may differ on purpose, as in optimizer.lr",
    )
    report.add_argument(
        "--out", metavar="FOLDER", default="report", help="folder to write (default: %(default)s)"
    )
    _store(report, positional=True)


def _diagnose(diagnose: Parser) -> None:
    diagnose.add_argument(
        "overrides",
        nargs="*",
        metavar="RUN|KEY=VALUE",
        help=f"runs, each by {NAMES}; and options of probes",
    )
    diagnose.add_argument(
        "--probe", action="append", metavar="NAME[,NAME...]", help="probes to use (default: all)"
    )
    diagnose.add_argument(
        "--again", action="store_true", help="repeat measurements that were made before"
    )
    _store(diagnose)
    _config_dir(diagnose)


def _list(listing: Parser) -> None:
    listing.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    _store(listing, positional=True)


def _show(show: Parser) -> None:
    show.add_argument(
        "overrides",
        nargs="+",
        metavar="RUN|KEY=VALUE",
        help=f"a run by {NAMES}; or a network by its keys",
    )
    show.add_argument(
        "--plot", metavar="FILE", help="also draw the network to a .png, .svg or .pdf file"
    )
    show.add_argument(
        "--images", metavar="HxWxC", help="size of the images (default: the data set's)"
    )
    show.add_argument(
        "--classes", metavar="N", type=int, help="number of classes (default: the data set's)"
    )
    _store(show)
    _config_dir(show)


def _norms(norms: Parser) -> None:
    norms.add_argument("name", nargs="?", help="a normalization, as in norm=NAME")
    _config_dir(norms)


def _data(data: Parser) -> None:
    actions = data.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=Parser
    )
    _config_dir(_command(actions, "list", "list the data sets and where they are"))
    prepare = _command(actions, "prepare", "download a data set and prepare it")
    bring = _command(actions, "import", "prepare a data set from files on this machine")
    bring.add_argument(
        "--from",
        dest="path",
        metavar="PATH",
        required=True,
        help="file or folder, as downloaded or unpacked",
    )
    for each in (prepare, bring):
        each.add_argument("name", help="a data set, as in dataset=NAME")
        _config_dir(each)


def _store(command: Parser, positional: bool = False) -> None:
    """Add ``--store``; with ``positional``, the folder as a word of its own does as well."""
    if positional:
        command.add_argument("folder", nargs="?", metavar="STORE", help="the same as --store STORE")
    command.add_argument(
        "--store",
        metavar="FOLDER",
        help="folder of runs (default: $NORMBENCH_STORE if set, else runs)",
    )


def _config_dir(command: Parser) -> None:
    command.add_argument(
        "--config-dir",
        metavar="FOLDER",
        help="a folder of your own config groups, laid out like conf/",
    )
