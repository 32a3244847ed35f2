"""Listings of runs: a store's runs as rows and as a table, and one run in full."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normbench.formats import (
    UNKNOWN,
    age,
    count,
    duration,
    failure,
    percent,
    printable,
    size,
    small,
)
from normbench.store.differences import NAME, as_overrides, differences
from normbench.store.store import Run, StoreError

STATUS_STYLE = {
    "finished": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "diverged": "magenta",
    "failed": "red",
    "unreadable": "red",
    "missing": "dim",
}

_PARTS = ("dataset", "arch", "norm", "batch", "seed", "signature")


def as_text(value: Any, style: str = "") -> Text:
    """Return a value for a rich table as the text that it is: no markup, no terminal escapes."""
    return Text(printable(str(value)), style)


def _parts(run: Run, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a run's name, from the config where the name does not tell them."""
    match = NAME.fullmatch(run.name)
    if match:
        return {**match.groupdict(), "batch": int(match["batch"]), "seed": int(match["seed"])}
    parts = {key: config.get(key) for key in _PARTS}
    return {
        key: value.get("name") if isinstance(value, dict) else value for key, value in parts.items()
    }


def _since(stamp: Any, now: datetime) -> float | None:
    """Seconds from an ISO-8601 time until ``now``; None where there is no such time."""
    try:
        return (now - datetime.fromisoformat(stamp)).total_seconds()
    except (TypeError, ValueError):
        return None


def _row(run: Run, now: datetime) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the row of a run but for ``differs``, and the run's config."""
    row: dict[str, Any] = {"name": run.name, **dict.fromkeys(_PARTS), "differs": ""}
    row |= dict.fromkeys(
        ("status", "epoch", "epochs", "val_acc", "test_acc", "best_val_epoch", "best_val_acc")
    )
    row |= dict.fromkeys(("images_per_s", "parameters", "started", "ended", "age_seconds"))
    row |= {"path": str(run.path), "problem": None}
    config: dict[str, Any] = {}
    row |= _parts(run, config)  # those that its name tells, for a run of which no more can be read
    try:
        config = run.config or {}
        row |= _parts(run, config)
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
        row["age_seconds"] = _since(row["ended"] or last.get("time") or row["started"], now)
        error = meta.get("error")
        if row["status"] == "failed" and error:
            row["problem"] = failure(error)
    except StoreError as error:
        row["status"], row["problem"] = "unreadable", str(error)
    return row, config


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    texts = [str(row[key] or "") for key in ("dataset", "arch", "norm")]
    numbers = [row[key] if isinstance(row[key], int) else -1 for key in ("batch", "seed")]
    return (*texts, *numbers, row["differs"], row["name"])


def rows(runs: Iterable[Run], now: datetime | None = None) -> list[dict[str, Any]]:
    """Return what is worth listing of runs, a dict each, ready for JSON.

    Sorted by data set, network, norm, batch size, seed and what differs. A run whose files cannot
    be read has the status ``unreadable`` and says why in ``problem``; so does a failed one.
    ``differs`` has the keys that differ among the runs and that their names do not show, as
    ``optimizer.lr=0.1``. Unknown is None; accuracies are fractions, ``age_seconds`` is since the
    run last did something.
    """
    now = datetime.now(UTC) if now is None else now
    listed = [_row(run, now) for run in runs]
    found = differences([config for _, config in listed])
    for (row, _), differs in zip(listed, found, strict=True):
        row["differs"] = as_overrides(differs)
    return sorted((row for row, _ in listed), key=_order)


def tsv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as tab-separated text with a line of names; unknown is empty."""

    def cell(value: Any) -> str:
        return "" if value is None else printable(" ".join(str(value).split()))

    names = list(rows[0]) if rows else []
    lines = [names, *([cell(row[name]) for name in names] for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines if names)


def _epoch_cell(row: Mapping[str, Any]) -> str:
    if row["epoch"] is None:
        return UNKNOWN
    return f"{row['epoch']}/{row['epochs']}" if row["epochs"] is not None else str(row["epoch"])


class Column(NamedTuple):
    heading: str
    write: Callable[[Mapping[str, Any]], str]
    right: bool = True
    #: Where room is short the column with the highest number goes first; 0 stays.
    spare: int = 0
    #: Narrowed where the table is still too wide, and its text is cut; with ``wraps`` it goes on
    #: in a further line instead.
    gives_way: bool = False
    wraps: bool = False


#: Columns that a text which wraps is given at least, as far as it is that long.
_WRAPS_AT = 28


def fitted_table(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    width: int,
    style: Callable[[Mapping[str, Any], str], str],
) -> Table:
    """Return a table of at most ``width`` columns; ``style`` is asked with a row and a heading."""
    cells = {
        column.heading: [column.heading, *(printable(column.write(row)) for row in rows)]
        for column in columns
    }
    needs = {heading: max(map(cell_len, texts)) for heading, texts in cells.items()}
    shown = [column for column in columns if not column.wraps or any(cells[column.heading][1:])]
    for column in shown:
        if column.wraps:
            needs[column.heading] = min(needs[column.heading], _WRAPS_AT)
    room = width - sum(needs[column.heading] for column in shown)
    gap = 2 if room >= 2 * (len(shown) - 1) else 1
    while sum(needs[column.heading] + gap for column in shown) - gap > width:
        least = max(shown, key=lambda column: column.spare)
        if not least.spare:
            break
        shown.remove(least)
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for column in shown:
        # Rich narrows columns that may wrap first: names, where it is still too wide.
        justify = "right" if column.right else "left"
        narrowed = column.gives_way or column.wraps
        table.add_column(column.heading, justify=justify, no_wrap=not narrowed)
    for index, row in enumerate(rows, start=1):
        table.add_row(
            *(
                Text(
                    cells[column.heading][index],
                    style(row, column.heading),
                    no_wrap=not column.wraps,
                    overflow="fold" if column.wraps else "ellipsis",
                )
                for column in shown
            )
        )
    return table


def _or_unknown(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: UNKNOWN if row[key] is None else str(row[key])


_RUN_COLUMNS = (
    Column("dataset", lambda row: row["dataset"] or row["name"], right=False, gives_way=True),
    Column("arch", _or_unknown("arch"), right=False, gives_way=True),
    Column("norm", _or_unknown("norm"), right=False, gives_way=True),
    Column("batch", _or_unknown("batch")),
    Column("seed", _or_unknown("seed")),
    Column("differs in", lambda row: row["differs"], right=False, wraps=True),
    Column("status", _or_unknown("status"), right=False),
    Column("epoch", _epoch_cell, spare=1),
    Column("val acc", lambda row: percent(row["val_acc"]), spare=2),
    Column("test acc", lambda row: percent(row["test_acc"])),
    Column("images/s", lambda row: count(row["images_per_s"]), spare=4),
    Column("age", lambda row: age(row["age_seconds"]), spare=5),
    Column("signature", _or_unknown("signature"), right=False, spare=3),
)


def rows_table(rows: Sequence[Mapping[str, Any]], width: int | None = None) -> Table:
    """Return rows (of `rows`) as a table that fits ``width`` columns (the terminal's where None).

    Where room is short, columns go in the order age, images/s, signature, val acc, epoch.
    """

    def style(row: Mapping[str, Any], heading: str) -> str:
        return STATUS_STYLE.get(row["status"], "") if heading == "status" else ""

    return fitted_table(_RUN_COLUMNS, rows, Console().width if width is None else width, style)


def runs_table(runs: Iterable[Run], width: int | None = None) -> Table:
    """Return a store's runs as a table (see `rows_table`)."""
    return rows_table(rows(runs), width)


def _epoch_seconds(row: Mapping[str, Any]) -> float | None:
    seconds = row.get("train_seconds")
    return None if seconds is None else seconds + (row.get("eval_seconds") or 0)


_EPOCH_COLUMNS = (
    Column("epoch", lambda row: str(row.get("epoch"))),
    Column("lr", lambda row: small(row.get("lr")), spare=4),
    Column("train loss", lambda row: small(row.get("train_loss")), spare=1),
    Column("train acc", lambda row: percent(row.get("train_acc")), spare=2),
    Column("val loss", lambda row: small(row.get("val_loss")), spare=3),
    Column("val acc", lambda row: percent(row.get("val_acc"))),
    Column("images/s", lambda row: count(row.get("images_per_s")), spare=5),
    Column("time", lambda row: duration(_epoch_seconds(row)), spare=6),
)


def epochs_table(
    metrics: Sequence[Mapping[str, Any]], width: int, best: int | None = None
) -> Table:
    """Return epochs (rows of ``metrics.jsonl``) as a table that fits ``width`` columns.

    Args:
        best: the epoch whose validation accuracy is set off.
    """

    def style(row: Mapping[str, Any], heading: str) -> str:
        return "bold green" if heading == "val acc" and row.get("epoch") == best else ""

    table = fitted_table(_EPOCH_COLUMNS, metrics, width, style)
    table.header_style = "dim"
    return table


_STATE_STYLE = {"ready": "green", "built in": "green", "missing": "yellow"}

_DATASET_COLUMNS = (
    Column("dataset", lambda row: row["name"], right=False),
    Column("title", lambda row: row["title"], right=False, spare=1, gives_way=True),
    Column("train", lambda row: count(row["train"])),
    Column("test", lambda row: count(row["test"])),
    Column("shape", lambda row: "×".join(map(str, row["shape"])), right=False, spare=3),
    Column("classes", lambda row: str(row["classes"]), spare=2),
    Column("state", lambda row: row["state"], right=False),
    Column("where", lambda row: str(row["where"] or ""), right=False, spare=4, gives_way=True),
)


def datasets_table(datasets: Sequence[Mapping[str, Any]], width: int | None = None) -> Table:
    """Return data sets as a table that fits ``width`` columns (the terminal's where None).

    Args:
        datasets: rows with ``name``, ``title``, ``train``, ``test``, ``shape``, ``classes``,
            ``state`` and ``where``.
    """

    def style(row: Mapping[str, Any], heading: str) -> str:
        return _STATE_STYLE.get(row["state"], "red") if heading == "state" else ""

    return fitted_table(
        _DATASET_COLUMNS, datasets, Console().width if width is None else width, style
    )


def _grid(pairs: Iterable[tuple[str, Any]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in pairs:
        grid.add_row(as_text(key), value if isinstance(value, Text) else as_text(value))
    return grid


def _value(value: Any) -> str:
    """A config's value in one line: a group is its name and its options."""
    if not isinstance(value, dict):
        return "null" if value is None else str(value)
    options = [
        f"{key}={_value(item)}" for key, item in value.items() if key not in ("name", "_target_")
    ]
    return "  ".join([str(value["name"]), *options] if "name" in value else options)


def _git(state: Mapping[str, Any] | None) -> str:
    if not state:
        return "not a git checkout"
    return f"{str(state.get('commit'))[:12]}{' with changes' if state.get('dirty') else ''}"


def _provenance(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [("started", meta.get("started")), ("ended", meta.get("ended"))]
    sessions = meta.get("sessions") or []
    if len(sessions) > 1:
        pairs.append(
            (
                "sessions",
                f"{len(sessions)}, the last from epoch "
                f"{sessions[-1].get('from_epoch')} on {sessions[-1].get('host')}",
            )
        )
    pairs.append(("command", shlex.join(map(str, meta.get("command") or [])) or None))
    pairs.append(("commit", _git(meta.get("git"))))
    if "git_folder" in meta:
        pairs.append(("folder's commit", _git(meta["git_folder"])))
    versions = (meta.get("versions") or {}).items()
    pairs.append(("versions", "  ".join(f"{name} {number}" for name, number in versions) or None))
    pairs += [("host", meta.get("host")), ("processor", meta.get("processor"))]
    pairs.append(("devices", ", ".join(map(str, meta.get("devices") or [])) or None))
    parts = meta.get("micro_batches") or []
    if any(each["count"] > 1 for each in parts):
        told = [f"{each['count']} from epoch {each['epoch'] + 1} on" for each in parts]
        pairs.append(("micro-batches", ", ".join(told)))
    engine = (meta.get("engine") or {}).items()
    pairs.append(("engine", "  ".join(f"{key}={value}" for key, value in engine) or None))
    return [(key, str(value)) for key, value in pairs if value is not None]


def _state(run: Run) -> list[tuple[str, Any]]:
    status = run.status
    pairs: list[tuple[str, Any]] = [("status", Text(status, STATUS_STYLE.get(status, "")))]
    error = (run.meta or {}).get("error")
    if error and status == "failed":
        pairs.append(("error", failure(error)))
    owner = run.owner
    if owner:
        said = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('started')}"
        pairs.append(("owner", said))
    return [*pairs, ("folder", run.path)]


_ACCURACIES = ("train_acc", "val_acc", "test_acc", "best_val_acc", "best_val_test_acc")


def _summary(run: Run) -> list[tuple[str, str]]:
    def write(key: str, value: Any) -> str:
        if key == "images_per_s":
            return count(value)
        if key in _ACCURACIES:
            return percent(value)
        if key.endswith("_seconds"):
            return duration(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return count(value)
        return (
            small(value) if isinstance(value, float) else UNKNOWN if value is None else str(value)
        )

    return [(key, write(key, value)) for key, value in (run.summary or {}).items()]


def _checkpoints(run: Run) -> list[tuple[str, str]]:
    pairs = []
    for name, best in (("last", False), ("best", True)):
        info = run.checkpoint_info(best)
        if info is not None:
            path = run.path / "checkpoint" / f"{name}.npz"
            after = f"after epoch {info['epoch']}, " if "epoch" in info else ""
            pairs.append((name, f"{after}{size(path.stat().st_size)}"))
    return pairs


def run_details(run: Run, width: int | None = None) -> Group:
    """Return all there is to say of one run: state, config, provenance, epochs, summary, files.

    What cannot be read is said in its place, so that a damaged run can be looked at, too.
    """
    width = Console().width if width is None else width
    shown: list[RenderableType] = [as_text(run.name, "bold")]

    def last_epochs() -> Table | None:
        metrics = run.metrics()
        known = [row for row in metrics if row.get("val_acc") is not None]
        best = max(known, key=lambda row: row["val_acc"])["epoch"] if known else None
        return epochs_table(metrics[-5:], width - 2, best) if metrics else None

    def part(title: str, make: Any) -> None:
        try:
            made = make()
        except StoreError as error:
            made = as_text(error, "red")
        if isinstance(made, list):
            made = _grid(made) if made else None
        if made is not None:
            if title:
                shown.append(Text(title, "bold"))
            shown.append(Padding(made, (0, 0, 0, 2), expand=False))

    part("", lambda: _state(run))
    part("summary", lambda: _summary(run))
    part("last epochs", last_epochs)
    part("config", lambda: [(key, _value(value)) for key, value in (run.config or {}).items()])
    part("provenance", lambda: _provenance(run.meta or {}))
    part("checkpoints", lambda: _checkpoints(run))
    return Group(*shown)
