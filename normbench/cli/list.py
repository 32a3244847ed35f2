"""``normbench list``: the runs of a store, one per row."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from normbench.cli.parser import WHERE, Parser, add_sort, add_store, store_of
from normbench.cli.selection import matching
from normbench.cli.terminal import STATUS_STYLE, Column, fitted_table, print_rows, wrapping
from normbench.errors import UserError
from normbench.formats import UNKNOWN, age, count, failure, percent, seconds_since
from normbench.store import annotations
from normbench.store.differences import NAME, as_overrides, differences
from normbench.store.store import Run, Store, StoreError
from normbench.store.tuning import StoreTuning, tuning_of

_EPILOG = """\
For example:
  normbench list --where 'norm == bn and test_acc < 0.6'
  normbench list --sort test_acc"""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--where", metavar="FILTER", help=WHERE)
    add_sort(parser, "runs")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    add_store(parser, positional=True)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    store = Store(store_of(arguments))
    store_name = arguments.store or os.environ.get("NORMBENCH_STORE")
    if store_name and not store.root.is_dir():
        raise UserError(f"there is no store {str(store.root)!r}: no such folder")
    runs = store.runs()
    tuning = tuning_of(store) if runs else None
    places: dict[str, int] = {}
    if runs and (arguments.where is not None or arguments.sort is not None):
        names = ordered(store, arguments.where, arguments.sort)
        places = {name: place for place, name in enumerate(names)}
    if arguments.where is not None:
        runs = [run for run in runs if run.name in places]

    def run_rows() -> list[dict[str, Any]]:
        result = rows(runs, tuning=tuning)
        if arguments.sort is not None:  # runs that cannot be read have no values and come last
            result.sort(key=lambda row: places.get(row["name"], len(places)))
        return result[::-1] if arguments.reverse else result

    if arguments.json:
        print(json.dumps(run_rows(), indent=1))
    elif runs:
        print_rows(run_rows, lambda: table(run_rows()))
    elif arguments.where is not None and store.runs():
        print(f"no run matches --where {arguments.where!r}")
    else:
        print(f"no runs in {store.root}: normbench run creates one")
    return 0


def ordered(store: Store, where: str | None, keys: str | None) -> list[str]:
    """Return the names of the runs that match a filter, sorted by keys.

    Args:
        store: The store.
        where: A filter; None for all runs that can be read.
        keys: Columns of the runs frame, separated by commas. Metrics for which higher is better
            are sorted in descending order, others in ascending order; missing values come last.

    Raises:
        UserError: The filter cannot be read, or there is no such column.
    """
    from normbench.report.sorting import sort_runs

    return list(sort_runs(matching(store, where), keys or "name")["name"])


# --- rows -----------------------------------------------------------------------------------------

_NAME_PARTS = ("dataset", "arch", "norm", "batch", "seed", "signature")


def rows(
    runs: Iterable[Run], now: datetime | None = None, tuning: StoreTuning | None = None
) -> list[dict[str, Any]]:
    """Return a JSON-serializable row for each run.

    Rows are sorted by data set, network, norm, batch size, seed and ``differs``: the keys that
    differ among the runs and that their names do not show, as ``optimizer.lr=0.1``. Accuracies are
    fractions, and ``age_seconds`` counts from the last change of the run. ``trial`` is true for a
    trial of tuning, ``superseded`` for a final run at values that were chosen earlier; ``tuning``
    says which these are. ``tags`` and ``note`` are the user's. Unknown values are None. ``problem``
    is the reason of a run that failed, or whose files cannot be read (status ``unreadable``).
    """
    now = datetime.now(UTC) if now is None else now
    pairs = [_row(run, now) for run in runs]
    diffs = differences([config for _, config in pairs])
    for (row, _), diff in zip(pairs, diffs, strict=True):
        row["differs"] = as_overrides(diff)
        row["trial"] = tuning is not None and row["name"] in tuning.trials
        row["superseded"] = tuning is not None and row["name"] in tuning.superseded
    return sorted((row for row, _ in pairs), key=_order)


def _row(run: Run, now: datetime) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the row of a run without ``differs``, and the run's config."""
    row: dict[str, Any] = {"name": run.name, **dict.fromkeys(_NAME_PARTS), "differs": ""}
    row |= dict.fromkeys(
        ("status", "epoch", "epochs", "val_acc", "test_acc", "best_val_epoch", "best_val_acc")
    )
    row |= dict.fromkeys(("images_per_s", "parameters", "started", "ended", "age_seconds"))
    row |= {"path": str(run.path), "problem": None, "tags": "", "note": ""}
    config: dict[str, Any] = {}
    row |= _name_parts(run, config)  # all that is known if the config cannot be read
    try:
        config = run.config or {}
        row |= _name_parts(run, config)
        row["status"] = run.status
        summary = run.summary or {}
        if row["status"] == "finished":
            row["epochs"] = summary.get("epochs")
            last: Mapping[str, Any] = summary
            row["epoch"] = summary.get("epochs")
        else:
            row["epochs"] = config.get("epochs")
            last = run.last_metrics() or {}
            row["epoch"] = last.get("epoch", 0)
        row["val_acc"] = summary.get("val_acc", last.get("val_acc"))
        row["images_per_s"] = summary.get("images_per_s", last.get("images_per_s"))
        for key in ("test_acc", "best_val_epoch", "best_val_acc", "parameters"):
            row[key] = summary.get(key)
        meta = run.meta or {}
        row["started"], row["ended"] = meta.get("started"), meta.get("ended")
        row["age_seconds"] = seconds_since(row["ended"] or last.get("time") or row["started"], now)
        annotation = annotations.read(run)
        row["tags"], row["note"] = ",".join(annotation.tags), annotation.note
        error = meta.get("error")
        if row["status"] == "failed" and error:
            row["problem"] = failure(error)
    except StoreError as error:
        row["status"], row["problem"] = "unreadable", str(error)
    return row, config


def _name_parts(run: Run, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a run's name; from the config if the name cannot be parsed."""
    match = NAME.fullmatch(run.name)
    dataset = config.get("dataset")
    title = dataset.get("title") if isinstance(dataset, dict) else None
    title_part = {"dataset": title} if title else {}  # the title that tables use for user images
    if match:
        numbers = {key: int(match[key]) for key in ("batch", "seed")}
        return {**match.groupdict(), **numbers, **title_part}
    parts = {key: config.get(key) for key in _NAME_PARTS}
    names = {
        key: value.get("name") if isinstance(value, dict) else value for key, value in parts.items()
    }
    return {**names, **title_part}


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    texts = [str(row[key] or "") for key in ("dataset", "arch", "norm")]
    numbers = [row[key] if isinstance(row[key], int) else -1 for key in ("batch", "seed")]
    return (*texts, *numbers, row["differs"], row["name"])


# --- the table ------------------------------------------------------------------------------------


def _text(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: UNKNOWN if row[key] is None else str(row[key])


def _phase(row: Mapping[str, Any]) -> str:
    return next((word for word in ("trial", "superseded") if row.get(word)), "")


def _epoch(row: Mapping[str, Any]) -> str:
    if row["epoch"] is None:
        return UNKNOWN
    return f"{row['epoch']}/{row['epochs']}" if row["epochs"] is not None else str(row["epoch"])


_COLUMNS = (
    Column("dataset", lambda row: row["dataset"] or row["name"], right=False, gives_way=True),
    Column("arch", _text("arch"), right=False, gives_way=True),
    Column("norm", _text("norm"), right=False, gives_way=True),
    Column("batch", _text("batch")),
    Column("seed", _text("seed")),
    wrapping("differs in", lambda row: row["differs"]),
    Column("status", _text("status"), right=False),
    Column("epoch", _epoch, spare=1),
    Column("val acc", lambda row: percent(row["val_acc"]), spare=2),
    Column("test acc", lambda row: percent(row["test_acc"])),
    Column("images/s", lambda row: count(row["images_per_s"]), spare=4),
    Column("age", lambda row: age(row["age_seconds"]), spare=5),
    Column("signature", _text("signature"), right=False, spare=3),
)


def table(rows: Sequence[Mapping[str, Any]], width: int | None = None) -> Table:
    """Return rows of :func:`rows` as a table.

    Args:
        rows: The rows.
        width: Width in characters; that of the terminal by default.
    """

    def style(row: Mapping[str, Any], heading: str) -> str:
        return STATUS_STYLE.get(row["status"], "") if heading == "status" else ""

    columns = list(_COLUMNS)
    if any(row["tags"] for row in rows):
        columns.append(wrapping("tags", lambda row: row["tags"]))
    if any(map(_phase, rows)):
        place = [column.heading for column in columns].index("status")
        columns.insert(place, Column("phase", _phase, right=False))
    return fitted_table(columns, rows, width, style)
