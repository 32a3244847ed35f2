"""``normbench completion``: the shell's completion script, and the words that it offers on Tab.

The script makes the shell call ``normbench`` with the variable ``_ARGCOMPLETE`` set whenever Tab is
pressed; :func:`answer` then writes the possible words at the cursor. argcomplete handles the
differences between shells: quotes, word breaks and descriptions.

An argument is completed by its metavar (:data:`COMPLETERS`), so a new option that uses a known
metavar needs no line here. Tab must answer at once, so nothing here imports Hydra, pandas, Keras or
TensorFlow.
"""

from __future__ import annotations

import argparse
import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from argcomplete import finders
from argcomplete.completers import SuppressCompleter
from argcomplete.lexers import split_line
from argcomplete.shell_integration import shellcode

from normbench.cli.parser import Parser
from normbench.components import first_sentence, group_files, header_of, read_keys
from normbench.config import Config, default_store
from normbench.errors import NormbenchError, unknown
from normbench.report.venues import FORMATS, VENUES

SHELLS = ("bash", "zsh", "fish")

_EPILOG = """\
Add this line to the start-up file of your shell:
  bash, in ~/.bashrc:                   eval "$(normbench completion bash)"
  zsh, in ~/.zshrc after compinit:      eval "$(normbench completion zsh)"
  fish, in ~/.config/fish/config.fish:  normbench completion fish | source"""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("shell", metavar="SHELL", help="bash, zsh or fish")


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    if arguments.shell not in SHELLS:
        raise unknown("shell", arguments.shell, SHELLS)
    print(shellcode(["normbench"], shell=arguments.shell), end="")
    return 0


def answer(build_parser: Callable[[Sequence[str]], Parser]) -> NoReturn:
    """Write the possible words at the cursor to file descriptor 8, and end the process.

    Args:
        build_parser: Returns the parser of the command line, with the options of the given
            sub-commands.
    """
    words = _words_before_cursor()
    finder = Finder()
    finder.line = Line(words)
    finder(
        build_parser(words[:1]),
        always_complete_options=False,
        default_completer=SuppressCompleter(),
    )
    raise AssertionError("argcomplete ends the process")


def _words_before_cursor() -> list[str]:
    """Return the words between ``normbench`` and the word at the cursor."""
    line, point = os.environ.get("COMP_LINE", ""), os.environ.get("COMP_POINT", "0")
    # 1 for "normbench …", 3 for "python -m normbench …", as argcomplete's scripts say.
    start = int(os.environ["_ARGCOMPLETE"])
    return split_line(line, int(point))[3][start:]


class Finder(finders.CompletionFinder):
    """argcomplete's finder, adapted to complete each argument by its metavar.

    Attributes:
        line: The words before the cursor.
    """

    line: Line

    def collect_completions(
        self,
        active_parsers: list[argparse.ArgumentParser],
        parsed_args: argparse.Namespace,
        cword_prefix: str,
    ) -> list[str]:
        parser = active_parsers[-1]
        if len(active_parsers) == 1 and self.line.words:
            return []  # of an unknown command
        self.line.parsed = parsed_args
        for action in parser._actions:
            complete = completer_of(action, self.line.command)
            if complete is not None:
                action.completer = _Safe(complete, self.line)  # type: ignore[attr-defined]
        completions = super().collect_completions(active_parsers, parsed_args, cword_prefix)
        if completions or cword_prefix.startswith("-") or getattr(parser, "active_actions", ()):
            return completions
        # Unlike normbench, argparse does not expect further words of a list after an option.
        for action in parser._get_positional_actions():
            if action.nargs in ("*", "+") and (complete := getattr(action, "completer", None)):
                for word, text in complete(cword_prefix).items():
                    if self.validator(word, cword_prefix):
                        completions.append(word)
                        self._display_completions[word] = text
        return completions


Words = Mapping[str, str]
"""Possible words at the cursor, each with a description or ""."""


@dataclass(frozen=True)
class _Safe:
    """A completer for argcomplete that returns nothing if the rest of the line has a mistake."""

    complete: Callable[[Line, str], Words]
    line: Line

    def __call__(self, prefix: str, **options: Any) -> Words:
        try:
            return self.complete(self.line, prefix)
        except (NormbenchError, OSError):
            return {}


# --- the command line so far ----------------------------------------------------------------------


@dataclass
class Line:
    """The command line up to the cursor.

    Attributes:
        words: The words after ``normbench``.
        parsed: The arguments that argparse found among them.
    """

    words: Sequence[str]
    parsed: Namespace = field(default_factory=Namespace)

    @property
    def command(self) -> str:
        return self.words[0] if self.words else ""

    @cached_property
    def files(self) -> dict[tuple[str, str], Path]:
        """The config files of ``conf/`` and ``--config-dir``, by group and name."""
        return group_files(getattr(self.parsed, "config_dir", None))

    def names(self, group: str) -> Words:
        """Return the choices of a config group, each with the first sentence of its file."""
        return {
            name: first_sentence(header_of(file))
            for (file_group, name), file in sorted(self.files.items())
            if file_group == group
        }

    def chosen(self, group: str) -> list[str]:
        """Return the choices of a group that the line names, as in ``norm=bn,gn``."""
        values = [
            word.partition("=")[2]
            for word in self.words
            if word.lstrip("+").partition("=")[0] == group
        ]
        names = [name.strip("[] ") for value in values for name in value.split(",")]
        return [name for name in names if (group, name) in self.files]

    @property
    def store(self) -> Any:
        """The store that the line names, else the default one."""
        from normbench.store.store import Store

        stores = [word.removeprefix("store=") for word in self.words if word.startswith("store=")]
        return Store(getattr(self.parsed, "store", None) or (stores or [default_store()])[-1])


def _with_head(head: str, words: Words) -> Words:
    return {head + word: text for word, text in words.items()}


def _listed(prefix: str, words: Words, separators: str = ",") -> Words:
    """Complete the last item of a list with words that are not in the list yet.

    Args:
        prefix: The list so far, such as ``bn,g``.
        words: The possible items.
        separators: Characters between items.
    """
    end = max(prefix.rfind(separator) for separator in separators) + 1
    items = set(re.split(f"[{re.escape(separators)}]", prefix[:end]))
    return _with_head(prefix[:end], {k: text for k, text in words.items() if k not in items})


# --- what an argument may be ----------------------------------------------------------------------


def paths(line: Line, prefix: str, folders_only: bool = False) -> Words:
    """Complete the path of a file or a folder."""
    head, _, start = prefix.rpartition("/")
    folder = Path(f"{head}/" if head or prefix.startswith("/") else ".").expanduser()
    head = f"{head}/" if "/" in prefix else ""
    words = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") and not start.startswith("."):
            continue
        if entry.is_dir():
            words[f"{head}{entry.name}/"] = ""
        elif not folders_only:
            words[head + entry.name] = ""
    return words


def folders(line: Line, prefix: str) -> Words:
    return paths(line, prefix, folders_only=True)


def runs(line: Line, prefix: str) -> Words:
    """Complete the name or signature of a run in the store; with --restore, of a removed run."""
    if getattr(line.parsed, "restore", False):
        from normbench.cli.rm import removed

        names = list(removed(line.store))
    else:
        names = [run.name for run in line.store.runs()]
    typed_words = set(line.words[1:])
    words = {name: "" for name in names if name not in typed_words}
    if prefix:
        words |= {name.rpartition("-")[2]: name for name in names}
    return words


def tags(line: Line, prefix: str) -> Words:
    """Complete a tag that some run in the store has."""
    from normbench.store.annotations import FILE, read

    annotated_runs = [run for run in line.store.runs() if (run.path / FILE).is_file()]
    return _listed(prefix, {tag: "" for run in annotated_runs for tag in read(run).tags})


def metrics(line: Line, prefix: str) -> Words:
    """Complete the name of a metric, and after a colon its reduction over epochs."""
    from normbench.report.metrics import METRICS, OVER_EPOCHS

    name, colon, _ = prefix.partition(":")
    if not colon:
        return {metric.name: metric.label for metric in METRICS.values()}
    has_epochs = name in METRICS and METRICS[name].epoch
    return {f"{name}:{reduction}": "" for reduction in OVER_EPOCHS} if has_epochs else {}


def keys(line: Line, prefix: str) -> Words:
    """Complete the key of a config, without a value."""
    group, dot, _ = prefix.rpartition(".")
    if dot:
        return {f"{group}.{key}": "" for key in _keys_of_group(line, group.replace(".", "/"))}
    groups = {file_group for file_group, _ in line.files} - {".", "experiment", "executor"}
    return {key: "" for key in (*groups, *_FIELDS) if "/" not in key}


def several_keys(line: Line, prefix: str) -> Words:
    """Complete a list of keys and metrics, as for ``--by`` and ``--sort``."""
    last = re.split(",", prefix)[-1]
    other_keys = {"store": "", "commit": ""} | dict(metrics(line, last))
    return _listed(prefix, {**keys(line, last), **other_keys})


def a_filter(line: Line, prefix: str) -> Words:
    """Complete the last word of a filter."""
    last = re.split(r"[\s(\[,=<>!]", prefix)[-1]
    words = {**keys(line, last), **metrics(line, last), "status": "", "and": "", "or": "", "in": ""}
    if last.startswith("tag."):
        words = _with_head("tag.", tags(line, ""))
    return _with_head(prefix[: len(prefix) - len(last)], words)


def overrides(line: Line, prefix: str) -> Words:
    """Complete ``key=value``, where the value may be a list."""
    key, equals, value = prefix.partition("=")
    sign = key[: len(key) - len(key.lstrip("+"))]
    key = key.lstrip("+")
    if equals:
        if key == "store":
            return _with_head(f"{sign}store=", folders(line, value))
        return _with_head(f"{sign}{key}=", _listed(value, _values(line, key), ",[ "))
    group, dot, _ = key.rpartition(".")
    if dot:
        words = {f"{group}.{name}=": "" for name in _keys_of_group(line, group.replace(".", "/"))}
    else:
        sweeps = line.command == "sweep"
        hidden_groups = {".", "experiment", *(() if sweeps and not sign else ("executor",))}
        groups = {file_group for file_group, _ in line.files} - hidden_groups
        # Offer norm/weight= only once the slash is typed, so that Tab after nor writes norm=.
        words = {f"{g}=": "" for g in sorted(groups) if "/" not in g or "/" in key}
        if "/" not in key:
            words |= {f"{name}=": "" for name in _FIELDS}
        if sweeps and line.chosen("experiment"):
            words["scale="] = ""
        if sweeps:
            words["experiment=" if sign else "+experiment="] = ""
    return _with_head(sign, words)


def _values(line: Line, key: str) -> Words:
    """Return the possible values of a key, if they can be listed."""
    group = {"norm.weight": "norm/weight", "norm.bfn": "norm"}.get(key, key)
    if re.fullmatch(r"norm\.places\.\w+", key):
        group = "norm"
    if names := line.names(group):
        return names
    if key == "scale":
        trees = (read_keys(line.files["experiment", name]) for name in line.chosen("experiment"))
        return {scale: "" for tree in trees for scale in ("full", *(tree.get("scales") or {}))}
    if key == "init":
        return runs(line, "-")
    if key in _FIELDS:
        return {str(value): "" for value in _FIELDS[key]}
    group, _, name = key.rpartition(".")
    values = _keys_of_group(line, group.replace(".", "/")).get(name, ())
    return {"true": "", "false": ""} if any(isinstance(value, bool) for value in values) else {}


def _fields() -> dict[str, tuple[Any, ...]]:
    """Return the config keys that are not groups, each with its possible values."""
    hints = get_type_hints(Config)
    choices: dict[str, tuple[Any, ...]] = {}
    for name, hint in hints.items():
        if get_origin(hint) is dict:
            continue
        options = (hint, *get_args(hint))
        choices[name] = tuple(
            value
            for option in options
            if get_origin(option) is Literal
            for value in get_args(option)
        )
    return choices


_FIELDS = _fields()


def _keys_of_group(line: Line, group: str) -> dict[str, list[Any]]:
    """Return the keys of the choices of a group that the line names, or of all choices.

    Returns:
        By key, as ``groups`` or ``bfn.groups``, the values that the files have.
    """
    names = line.chosen(group) or [name for file_group, name in line.files if file_group == group]
    values: dict[str, list[Any]] = {}
    for name in names:
        for key, value in _keys_of_file(line, group, name):
            values.setdefault(key, []).append(value)
    return values


def _keys_of_file(line: Line, group: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys in a file of a group, and in the file that it extends."""
    if (group, name) not in line.files:
        return
    tree = read_keys(line.files[group, name])
    for entry in tree.pop("defaults", None) or ():
        if isinstance(entry, str) and entry != "_self_":
            yield from _keys_of_file(line, group, entry)
    for key, value in tree.items():
        if key in ("name", "_target_"):
            continue
        if isinstance(value, Mapping) and value:
            yield from ((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, value


def _either(*completers: Callable[[Line, str], Words]) -> Callable[[Line, str], Words]:
    return lambda line, prefix: {
        word: text for complete in completers for word, text in complete(line, prefix).items()
    }


def _of_group(*groups: str) -> Callable[[Line, str], Words]:
    return lambda line, prefix: {
        name: text for group in groups for name, text in line.names(group).items()
    }


def _one_of(*words: str) -> Callable[[Line, str], Words]:
    return lambda line, prefix: dict.fromkeys(words, "")


def _status_or_overrides(line: Line, prefix: str) -> Words:
    first = len(line.words) == 1
    return {**({"status": "show a sweep's progress"} if first else {}), **overrides(line, prefix)}


def _samplers(line: Line, prefix: str) -> Words:
    from normbench.sweep.sampler import SAMPLERS

    return dict.fromkeys(SAMPLERS, "")


COMPLETERS: dict[str, Callable[[Line, str], Words]] = {
    "FILE": paths,
    "PATH": paths,
    "FOLDER": folders,
    "STORE": folders,
    "RUN": runs,
    "RUN|STORE": _either(runs, folders),
    "STORE|RUN": _either(runs, folders),
    "RUN|KEY=VALUE": _either(runs, overrides),
    "KEY=VALUE": overrides,
    "KEY=VALUE[,VALUE...]": _status_or_overrides,
    "KEY=VALUE,VALUE[,...]": overrides,
    "KEY": lambda line, prefix: (overrides if "=" in prefix else keys)(line, prefix),
    "KEY[,KEY...]": several_keys,
    "FILTER": a_filter,
    "TAG[,TAG...]": tags,
    "SIDE": _one_of("store", "commit"),
    "ROW": _of_group("norm"),
    "ROW[,ROW...]": lambda line, prefix: _listed(prefix, line.names("norm")),
    "STYLE": _one_of(*VENUES),
    "FORMAT[,FORMAT...]": lambda line, prefix: _listed(prefix, dict.fromkeys(FORMATS, "")),
    "SHELL": _one_of(*SHELLS),
    "NAME[,NAME...]": lambda line, prefix: _listed(prefix, line.names("probe")),
}
"""Completers of arguments, by metavar."""

_NAMES: dict[tuple[str, str], Callable[[Line, str], Words]] = {
    ("", "metric"): metrics,
    ("", "tune_metric"): metrics,
    ("", "sampler"): _samplers,
    ("", "format"): _one_of("md", "csv", "tex", "parquet", "keras", "savedmodel", "onnx"),
    ("norms", "name"): _of_group("norm", "norm/weight"),
    ("experiments", "name"): _of_group("experiment"),
    ("data", "name"): _of_group("dataset"),
}
"""Completers of arguments whose metavar is ambiguous, by command ("": any) and name."""


def completer_of(action: argparse.Action, command: str) -> Callable[[Line, str], Words] | None:
    """Return the completer of an argument; None if its values are unknown."""
    for owner in (command, ""):
        if (owner, action.dest) in _NAMES:
            return _NAMES[owner, action.dest]
    return COMPLETERS.get(action.metavar) if isinstance(action.metavar, str) else None
