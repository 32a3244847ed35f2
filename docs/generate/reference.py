"""The pages of the reference, written from the code: :func:`pages`.

They come from the parsers of the command line, from the comments of ``conf/`` (as ``normbench
explain`` reads them), and from the docstrings. TensorFlow and Keras are not imported.
"""

from __future__ import annotations

import ast
import re
from argparse import SUPPRESS
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from normbench.cli import COMMANDS, build_parser
from normbench.cli.experiments import details
from normbench.cli.explain import explained
from normbench.cli.norms import FIELDS, Catalog, Described
from normbench.cli.parser import Parser
from normbench.components import group_file, group_options, header, read_group
from normbench.config import compose
from normbench.report.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]

#: Pages of config groups: their title, what stands above them, and the groups.
GROUPS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "arch": ("Networks", "`arch=NAME` chooses the network.", ("arch",)),
    "dataset": (
        "Data sets",
        "`dataset=NAME` chooses the data set. [Images of your own](../data.md) need no Python.",
        ("dataset",),
    ),
    "optimizer": (
        "Optimizers and schedules",
        "`optimizer=NAME` chooses the optimizer, `schedule=NAME` how its learning rate changes.",
        ("optimizer", "schedule"),
    ),
    "probe": (
        "Probes",
        "`probe=NAME`, or `'probe=[NAME,NAME]'`, measures more than accuracy in a run.",
        ("probe",),
    ),
    "executor": (
        "Executors and loggers",
        "`executor=NAME` chooses where the runs of a sweep are trained, `logger=NAME` where else "
        "the rows of a run are written.",
        ("executor", "logger"),
    ),
}

FACADE = ("run", "sweep", "report", "load", "FinishedRun", "FinishedSweep", "Report")

#: The interfaces that something of one's own implements, or is handed.
INTERFACES = (
    ("A network is handed a", "normbench.norms.norm.Norm"),
    ("A normalization may extend", "normbench.norms.base.ChannelAffine"),
    ("One with statistics of the batch may extend", "normbench.norms.base.BatchStatistics"),
    ("A data set is a", "normbench.data.base.Source"),
    ("It returns", "normbench.data.base.Arrays"),
    ("A probe is a", "normbench.engine.observer.Probe"),
    ("Its values are described by", "normbench.engine.observer.ProbeValue"),
    ("A logger is a", "normbench.engine.observer.Logger"),
    ("An executor is an", "normbench.sweep.executors.base.Executor"),
    ("It is handed a", "normbench.sweep.executors.base.SweepContext"),
    ("It looks at a", "normbench.sweep.executors.base.Stop"),
    ("It tells a", "normbench.sweep.observer.SweepObserver"),
    ("A metric is a", "normbench.report.metrics.Metric"),
)  # fmt: skip


def pages() -> dict[str, str]:
    """Return the pages of the reference by their paths in the site."""
    written = {
        "commands": commands(),
        "keys": keys(),
        "norm": norms(),
        "metrics": metrics(),
        "experiment": experiments(),
        "python": python(),
        "layers": layers(),
        "interfaces": interfaces(),
        **{name: groups(*facts) for name, facts in GROUPS.items()},
    }
    return {f"reference/{name}.md": text for name, text in written.items()}


# --- Markdown -------------------------------------------------------------------------------------


def escaped(text: Any) -> str:
    """Return a text that Markdown shows as it is, in one line, but for its code spans."""

    def plain(piece: str) -> str:
        piece = re.sub(r"([\\`*_\[\]{}#|])", r"\\\1", piece)
        return piece.replace("<", "&lt;").replace(">", "&gt;")

    pieces = re.split(r"(`[^`|]+`)", " ".join(str(text).split()))
    return "".join(piece if index % 2 else plain(piece) for index, piece in enumerate(pieces))


def code(text: Any) -> str:
    """Return a code span, in a table as well; nothing for an empty text."""
    shown = " ".join(str(text).split()).replace("|", "\\|")
    return f"`{shown}`" if shown else ""


def block(text: str) -> str:
    """Return a code block."""
    return f"```text\n{text.strip(chr(10))}\n```"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its cells are Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


# --- commands -------------------------------------------------------------------------------------


def commands() -> str:
    """Return the page of all commands with their options."""
    top = build_parser()
    rows = [
        (f"[{name}](#normbench-{name})", escaped(summary)) for name, summary in COMMANDS.items()
    ]
    parts = ["# Commands", "`normbench COMMAND --help` shows the same in a terminal."]
    parts.append(table(("command", "use"), rows))
    for name in COMMANDS:
        for parser in top.commands[name].descendants():
            parts += _command(parser)
    return page(*parts)


def _command(parser: Parser) -> list[str]:
    level = "#" * len(parser.prog.split())
    formatter = parser._get_formatter()
    parts = [f"{level} {parser.prog}", escaped(parser.description or "")]
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    parts.append(block(usage))
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if action.help == SUPPRESS or action.dest in ("help", "command"):
                continue
            shown = formatter._format_action_invocation(action)
            about = formatter._expand_help(action) if action.help else ""
            rows.append((code(shown), escaped(about)))
        if rows:
            named = group.title in ("positional arguments", "options")
            parts += [
                "" if named else f"Options of {group.title}:",
                table(("word", "meaning"), rows),
            ]
    return [*parts, *_epilog(parser.epilog or "")]


def _epilog(text: str) -> list[str]:
    """Return the text below a command's help; its indented lines are commands to type."""
    parts = []
    for indented, lines in re.findall(r"((?:^  .*\n?)+)|((?:^(?!  ).*\n?)+)", text, re.M):
        if indented:
            parts.append(block(re.sub(r"^  ", "", indented, flags=re.M)))
        else:
            parts.append("\n\n".join(escaped(piece) for piece in lines.strip().split("\n\n")))
    return parts


# --- config groups --------------------------------------------------------------------------------


def keys() -> str:
    """Return the page of the keys at the top of the config, and of the groups."""
    rows = explained(None)
    every = group_options()
    linked = {group: name for name, (_, _, groups) in GROUPS.items() for group in groups}
    linked |= {"norm": "norm", "norm/weight": "norm", "experiment": "experiment"}
    groups = [
        (f"[{code(group)}]({linked[group]}.md)", str(len(names)), code(", ".join(names)))
        for group, names in every.items()
    ]
    plain = [row for row in rows if row["key"] not in every]
    return page(
        "# Keys",
        "A run is described by `KEY=VALUE` words. `normbench explain KEY` says what a key means, "
        "and `normbench run … --print-config` prints all of them with their values.",
        _keys(plain),
        "## Groups",
        "A group has files to choose from, each with keys of its own.",
        table(("group", "choices", "names"), groups),
    )


def comment(group: str, name: str) -> str:
    """Return the comment at the top of a file of ``conf/``; its indented lines are a code block."""
    lines = []
    for line in group_file(group, name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(re.sub(r"^# ?", "", line))
    return page(*_epilog("\n".join(lines))).strip()


def _keys(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "It has no keys."
    return table(
        ("key", "default", "meaning"),
        [(code(row["key"]), code(row["value"]), escaped(row["meaning"])) for row in rows],
    )


def groups(title: str, above: str, names: Sequence[str]) -> str:
    """Return the page of some config groups: each choice with its keys."""
    parts = [f"# {title}", above]
    for group in names:
        for name in group_options()[group]:
            parts += [
                f"## {group}={name}",
                comment(group, name),
                _summary(group, name),
                _keys(explained(f"{group}={name}")),
            ]
    return page(*parts)


def _summary(group: str, name: str) -> str:
    """Return the first paragraph of the docstring of what a choice builds, and its path."""
    path = read_group(group, name).get("_target_")
    if not path:
        return ""
    summary = Described(path).summary.replace("``", "`")
    return f"{code(path)}: {summary}"


def experiments() -> str:
    """Return the page of the ready-made sweeps."""
    parts = ["# Experiments", "`normbench sweep +experiment=NAME` trains one of these sweeps."]
    for name in group_options()["experiment"]:
        parts += [f"## {name}", block(details(name))]
    return page(*parts)


# --- normalizations -------------------------------------------------------------------------------


def norms() -> str:
    """Return the page of the normalizations and weight parametrizations."""
    every = group_options()
    catalog = Catalog(
        every["norm"],
        every["norm/weight"],
        lambda override: compose([override]).norm,
        header,
    )
    parts = [
        "# Normalizations",
        "`norm=NAME` chooses the normalization and `norm/weight=NAME` a parametrization of the "
        "weights: any goes with any. The layers behind them are [plain Keras layers](layers.md).",
    ]
    chosen = [(f"norm={name}", catalog.norm(name)) for name in every["norm"]]
    chosen += [(f"norm/weight={name}", catalog.weight(name)) for name in every["norm/weight"]]
    for choice, entry in chosen:
        facts = [(name.replace("_", " "), escaped(getattr(entry, name))) for name in FIELDS]
        options = [(code(o.key), code(o.value), escaped(o.about)) for o in entry.options]
        parts += [
            f"## {choice}",
            comment(*choice.split("=")),
            table(("about", "the layer"), facts),
            table(("key", "default", "meaning"), options) if options else "",
            _layers_of(choice),
        ]
    return page(*parts)


def _layers_of(choice: str) -> str:
    """Return links to the layers that a choice of ``conf/norm`` builds."""
    spec = compose([choice]).norm
    spec = spec["weight"] if choice.startswith("norm/weight") else spec
    known = {path.rpartition(".")[2]: path for path in _layers()}
    found: list[str] = []

    def visit(value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                name = str(item).rpartition(".")[2]
                if key == "_target_" and name in known and name not in found:
                    found.append(name)
                visit(item)

    visit(spec)
    links = ", ".join(f"[`{name}`][{known[name]}]" for name in found)
    return f"In Python: {links}" if links else ""


# --- the rest -------------------------------------------------------------------------------------


def metrics() -> str:
    """Return the page of the metrics."""
    better = {None: "", True: "higher", False: "lower"}
    rows = [
        (
            code(metric.name),
            escaped(metric.axis),
            better[metric.higher_is_better],
            "run" if metric.of_run else "epoch",
        )
        for metric in METRICS.values()
    ]
    return page(
        "# Metrics",
        "`--metric NAME` of `report`, `power` and others takes these. Of a number for each epoch "
        "it takes the last epoch's, or with `NAME:best`, `:mean`, `:min` or `:max` what is taken "
        "of all. A value of a [probe](probe.md) is named as `gradients/angle`; "
        "`normbench report --metrics` lists what a store has.",
        table(("metric", "meaning", "better", "one for each"), rows),
    )


def python() -> str:
    """Return the page of the commands in Python."""
    objects = [f"::: normbench.api.{name}" for name in FACADE]
    objects += ["::: normbench.errors.UserError", "::: normbench.errors.NormbenchError"]
    return page("# Python", "How to use them: [in Python](../python.md).", *objects)


def _layers() -> list[str]:
    """Return the paths of the public layers, those to be measured only at the end."""
    found = []
    files = sorted((ROOT / "normbench" / "norms").rglob("*.py"), key=lambda f: (len(f.parts), f))
    for file in files:
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                found += [f"{module}.{name}" for name in ast.literal_eval(node.value)]
    shown = {path for _, path in INTERFACES}
    return [path for path in found if path not in shown]


def layers() -> str:
    """Return the page of the public layers."""
    return page(
        "# Layers",
        "Plain Keras 3 layers, which serve without the rest: "
        "`from normbench.norms import GroupNormalization`. "
        "[Normalizations](norm.md) says which `norm=NAME` builds which.",
        *(f"::: {path}\n    options:\n      members: false\n" for path in _layers()),
    )


def interfaces() -> str:
    """Return the page of what components of one's own implement."""
    parts = [
        "# Interfaces",
        "A component of your own implements one of these, or is handed it; "
        "[Components](../adding.md) shows one of each whole.",
    ]
    links = [f"- {words} [`{path.rpartition('.')[2]}`][{path}]." for words, path in INTERFACES]
    *others, metric = (f"::: {path}" for _, path in INTERFACES)
    metric += "\n    options:\n      members: false\n"
    return page(*parts, "\n".join(links), *others, metric)
