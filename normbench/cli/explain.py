"""``normbench explain``: the keys and choices of the config, in the words of ``conf/``.

A key's meaning is the comment on its line, or else the description of that argument in the
docstring of the class or function that the file builds.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from normbench.cli.norms import Described
from normbench.cli.parser import Parser, add_config_dir
from normbench.cli.terminal import Column, fitted_table, print_rows, wrapping
from normbench.components import (
    conf_dir,
    first_sentence,
    group_file,
    group_options,
    header,
    read_group,
)
from normbench.errors import unknown
from normbench.formats import counted

_HIDDEN = ("defaults", "hydra", "name", "_target_")


def add_arguments(parser: Parser) -> None:
    parser.epilog = """\
For example:
  normbench explain                  # all keys and groups
  normbench explain batch            # one key
  normbench explain arch             # the choices of a group
  normbench explain arch=resnet20    # the keys of one choice
  normbench explain optimizer.lr     # a key of a group, in every choice that has it"""
    parser.add_argument("word", nargs="?", metavar="KEY", help="a key, a group or GROUP=NAME")
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    rows = explained(arguments.word, arguments.config_dir)
    print_rows(lambda: rows, lambda: page(arguments.word, rows, arguments.config_dir))
    return 0


def explained(word: str | None, config_dir: str | None = None) -> list[dict[str, Any]]:
    """Return rows with ``key``, ``value`` and ``meaning``; for a group ``choice`` and ``meaning``.

    Args:
        word: ``batch``, ``arch``, ``arch=resnet20``, ``arch.depth``; None for all keys.
        config_dir: Additional folder of config groups.

    Raises:
        UserError: There is no such key, group or choice.
    """
    groups = group_options(config_dir)
    if word is None:
        return [
            *_keys(conf_dir().joinpath("config.yaml").read_text(encoding="utf-8"), "", None),
            *(
                {
                    "key": group,
                    "value": counted(len(names), "choice"),
                    "meaning": f"normbench explain {group} lists them",
                }
                for group, names in groups.items()
            ),
        ]
    group, equals, name = _parts(word)
    if equals:
        if group not in groups:
            raise unknown("group", group, groups)
        return _of_choice(group, name, config_dir)
    if group in groups:
        return [
            {
                "choice": f"{group}={name}",
                "meaning": first_sentence(header(group, name, config_dir)),
            }
            for name in groups[group]
        ]
    parent, _, key = group.rpartition(".")
    if parent in groups:
        return _of_key(parent, key, groups[parent], config_dir)
    top = explained(None, config_dir)
    matches = [row for row in top if row["key"] == word]
    if not matches:
        raise unknown("key", word, [row["key"] for row in top])
    return matches


def _parts(word: str) -> tuple[str, str, str]:
    """Split ``GROUP=NAME``; the group ``norm/weight`` may be written as its key."""
    group, equals, name = word.partition("=")
    return group.removeprefix("+").replace("norm.weight", "norm/weight"), equals, name


def _of_choice(group: str, name: str, config_dir: str | None) -> list[dict[str, Any]]:
    """Return the keys of a group's file, and of the file that it starts from."""
    file = group_file(group, name, config_dir)
    values = read_group(group, name, config_dir)
    rows: list[dict[str, Any]] = []
    for entry in values.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            rows += _of_choice(group, entry, config_dir)
    target = values.get("_target_")
    own_rows = _keys(file.read_text(encoding="utf-8"), f"{group.replace('/', '.')}.", target)
    own_keys = {row["key"] for row in own_rows}
    return [row for row in rows if row["key"] not in own_keys] + own_rows


def _of_key(
    group: str, key: str, names: Sequence[str], config_dir: str | None
) -> list[dict[str, Any]]:
    """Return a key's row for each choice of a group that has it; equal rows are merged."""
    choices: dict[tuple[str, str], list[str]] = {}
    keys: set[str] = set()
    for name in names:
        for row in _of_choice(group, name, config_dir):
            keys.add(row["key"].rpartition(".")[2])
            if row["key"].endswith(f".{key}"):
                choices.setdefault((row["value"], row["meaning"]), []).append(name)
    if not choices:
        raise unknown("key", f"{group}.{key}", {f"{group}.{other}" for other in keys})
    default_meaning = next((meaning for _, meaning in choices if meaning), "")
    return [
        {
            "key": f"{group.replace('/', '.')}.{key}",
            "value": value,
            "meaning": meaning or default_meaning,
            "in": ", ".join(choice_names),
        }
        for (value, meaning), choice_names in choices.items()
    ]


def _keys(text: str, prefix: str, target: str | None) -> list[dict[str, Any]]:
    """Return the top-level keys of a YAML text, with their comments."""
    rows = []
    documentation: Described | None = None
    for line in text.splitlines():
        match = re.match(r"([A-Za-z_]\w*):\s*(.*?)\s*(?:#\s*(.*))?$", line)
        if not match or match[1] in _HIDDEN or match[2] == "{}":
            continue
        meaning = match[3] or ""
        if not meaning and target:
            documentation = documentation or Described(target)
            meaning = documentation.about(match[1])
        rows.append({"key": f"{prefix}{match[1]}", "value": match[2], "meaning": meaning})
    return rows


def page(
    word: str | None, rows: Sequence[dict[str, Any]], config_dir: str | None
) -> RenderableType:
    """Return the rows for a terminal, under the header of a choice."""
    columns = [
        Column(name, lambda row, name=name: str(row.get(name) or ""), right=False)
        if name not in ("meaning", "in")
        else wrapping(name, lambda row, name=name: row[name])
        for name in (rows[0] if rows else ())
    ]
    table = fitted_table(columns, rows)
    group, equals, name = _parts(word or "")
    if not equals:
        return table
    return Group(Text(header(group, name, config_dir)), Text(), table)
