"""``normbench data``: list data sets, download one, or import one from files on this machine."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from normbench.cli.parser import Parser, add_config_dir, quiet_tensorflow
from normbench.cli.terminal import Column, fitted_table
from normbench.errors import unknown
from normbench.formats import count

if TYPE_CHECKING:
    from normbench.data.base import Source


def add_arguments(parser: Parser) -> None:
    parser.add_commands("action", "ACTION", required=True)
    listing = parser.add_command("list", "list the data sets and where they are")
    prepare = parser.add_command("prepare", "download a data set and prepare it")
    bring = parser.add_command("import", "prepare a data set from files on this machine")
    bring.add_argument(
        "--from",
        dest="path",
        metavar="PATH",
        required=True,
        help="file or folder, as downloaded or unpacked",
    )
    for action in (prepare, bring):
        hint = ", or tfds:NAME for one of tensorflow-datasets" if action is prepare else ""
        action.add_argument("name", help=f"a data set, as in dataset=NAME{hint}")
    for action in (listing, prepare, bring):
        add_config_dir(action)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    sources = sources_of(arguments.config_dir)
    if arguments.action == "list":
        Console().print(table(rows(sources)))
        print("your own data: " + ", ".join(forms_of(arguments.config_dir)))
        return 0
    quiet_tensorflow()
    if arguments.action == "prepare" and arguments.name.startswith("tfds:"):
        of_tfds(arguments.name.removeprefix("tfds:")).prepare(say=print)
        return 0
    if arguments.name not in sources:
        raise unknown("dataset", arguments.name, sources)
    source = sources[arguments.name]
    if arguments.action == "prepare":
        source.prepare(say=print)
    else:
        source.import_from(arguments.path, say=print)
    return 0


def writes(arguments: Namespace) -> bool:
    return arguments.action != "list"


def sources_of(config_dir: str | None) -> dict[str, Source]:
    """Return the source of every data set that has its own file in ``dataset/``, by name.

    Files for the user's own data (:func:`forms_of`) are left out.
    """
    from normbench.components import is_by_content, make_source, read_group
    from normbench.config import compose, group_options

    names = [
        name
        for name in group_options(config_dir)["dataset"]
        if not is_by_content(read_group("dataset", name, config_dir))
    ]
    return {name: make_source(compose([f"dataset={name}"], config_dir).dataset) for name in names}


def of_tfds(name: str) -> Source:
    """Return the source of a data set of tensorflow-datasets."""
    from normbench.components import make_source, read_group

    return make_source({**read_group("dataset", "tfds"), "id": name})


def forms_of(config_dir: str | None) -> list[str]:
    """Return the overrides that select the user's own data, one text for each form.

    The forms are the files of ``dataset/`` whose data set is identified by its content; the first
    option of such a file locates it.
    """
    from normbench.components import is_by_content, options_of, read_group
    from normbench.config import group_options

    forms = []
    for name in group_options(config_dir)["dataset"]:
        spec = read_group("dataset", name, config_dir)
        if is_by_content(spec):
            first = next(iter(options_of(spec)))
            forms.append(f"dataset={name} dataset.{first}={_WHERE.get(name, 'PATH')}")
    return forms


_WHERE = {"npz": "FILE", "images": "FOLDER", "tfds": "NAME"}


def rows(sources: Mapping[str, Source], data_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """Return a row for each data set, sorted by name.

    Args:
        sources: Sources by the name that ``dataset=`` picks.
        data_dir: The data folder; None for the default one.

    Returns:
        Rows with ``name``, ``title``, ``train`` and ``test`` (numbers of images), ``shape``
        (height, width, channels), ``classes``, ``state`` (``ready``, ``missing``, ``built in`` or
        ``damaged: …``) and ``where`` (a Path, or None).
    """
    return [
        {
            "name": name,
            "title": source.title,
            "train": source.train_count,
            "test": source.test_count,
            "shape": source.shape,
            "classes": source.classes,
            "state": source.state(data_dir),
            "where": source.location(data_dir),
        }
        for name, source in sorted(sources.items())
    ]


_STATE_STYLE = {"ready": "green", "built in": "green", "missing": "yellow"}

_COLUMNS = (
    Column("dataset", lambda row: row["name"], right=False),
    Column("title", lambda row: row["title"], right=False, spare=1, gives_way=True),
    Column("train", lambda row: count(row["train"])),
    Column("test", lambda row: count(row["test"])),
    Column("shape", lambda row: "×".join(map(str, row["shape"])), right=False, spare=3),
    Column("classes", lambda row: str(row["classes"]), spare=2),
    Column("state", lambda row: row["state"], right=False),
    Column("where", lambda row: str(row["where"] or ""), right=False, spare=4, gives_way=True),
)


def table(rows: Sequence[Mapping[str, Any]], width: int | None = None) -> Table:
    """Return rows of :func:`rows` as a table; ``width`` is that of the terminal by default."""

    def style(row: Mapping[str, Any], heading: str) -> str:
        return _STATE_STYLE.get(row["state"], "red") if heading == "state" else ""

    return fitted_table(_COLUMNS, rows, width, style)
