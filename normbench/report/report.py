"""The commands that read results: :func:`report`, :func:`diff`, :func:`diff_sides`, :func:`export`.

:func:`summary_table` returns the table printed at the end of a sweep.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from normbench.errors import NormbenchError, UserError, unknown
from normbench.formats import counted
from normbench.report import origin, tables
from normbench.report.caveats import CONFOUND_RULE
from normbench.report.figures import draw
from normbench.report.frames import Frames, as_store, load
from normbench.report.grid import DIVERGED_RULE
from normbench.report.hyperparameters import tables as hyperparameter_tables
from normbench.report.latex import latex
from normbench.report.sections import DRAWN, Request, Section, choose, request, sections
from normbench.report.sides import Published, compare, published
from normbench.report.stores import Stores, load_stores
from normbench.report.study import studies
from normbench.report.table import (
    Table,
    csv,
    markdown,
    markdown_code,
    markdown_text,
    terminal,
)
from normbench.report.venues import DEFAULT, VENUES, Venue
from normbench.store import schema
from normbench.store.store import Store, find_run

if TYPE_CHECKING:
    import rich.console

    from normbench.report.figures.style import Drawing

Say = Callable[[str], None]

MANIFEST = ".normbench-report.json"
"""Lists the files that a report wrote, so that the next report can remove outdated ones."""


def report(
    store: Stores,
    where: str | None = None,
    by: str | Sequence[str] = ("norm", "batch"),
    metric: str = "test_acc",
    baseline: str | None = None,
    target: float | None = None,
    out: Path | str = "report",
    say: Say = print,
    allow_confound: str | Sequence[str] = (),
    shown_as: Path | None = None,
    superseded: bool = False,
    sort: str | None = None,
    reverse: bool = False,
    against: Store | Path | str | None = None,
    rows: str | Sequence[str] = (),
    style: str = DEFAULT,
    formats: str | None = None,
) -> Path:
    """Write tables, figures and a page on the runs of one or several stores.

    Args:
        store: The store, or its folder; or several (:func:`.stores.load_stores`).
        where: A filter on runs (:mod:`normbench.report.where`).
        by: Columns of the config, ``store`` or ``commit``: for rows, for columns, and further ones
            that split studies.
        metric: The metric to compare (:data:`normbench.report.metrics.METRICS`).
        baseline: The row to compare the others with; ``bn`` by default, if there is one.
        target: A validation accuracy, as a fraction, for the table of steps to reach it.
        out: The folder to write to.
        say: Receives each line meant for the user.
        allow_confound: Keys, or groups of keys, in which rows may differ on purpose.
        shown_as: Folder to print as the store's instead of its actual one, relative to the folder
            that contains ``out``.
        superseded: Also show final runs at values that were chosen earlier, as untuned runs.
        sort: Columns of the runs frame to sort the rows by, separated by commas
            (:func:`.sorting.sort_rows`).
        reverse: Reverse the order of the rows.
        against: A store to compare the runs with, such as a published one, config by config
            (:func:`.sides.compare`).
        rows: The rows to show, in this order; all if empty.
        style: The venue that figures and LaTeX tables are made for
            (:data:`normbench.report.venues.VENUES`).
        formats: Formats of figures, such as ``png,pdf``; None for those of the style.

    Returns:
        The page, ``index.html`` in ``out``.

    Raises:
        UserError: An option names something that does not exist, or no runs remain.
        NormbenchError: The store does not exist, or ``out`` cannot be written.
    """
    against_path = None if against is None else str(as_store(against).root)
    options = request(
        where,
        by,
        metric,
        baseline,
        target,
        allow_confound,
        superseded,
        sort,
        reverse,
        against_path,
        rows,
        style,
        formats,
    )
    _check_folder(Path(out))
    comparison = None if against is None else _held_against(store, against, options)
    all_frames, notes = load_stores(store, options.by)
    attrs, all_frames.runs.attrs = all_frames.runs.attrs, {}  # pandas copies them at every step
    frames, more_notes = choose(all_frames, options)
    notes += [*more_notes, *origin.verified(frames)]
    for line in _opening(all_frames, frames, options.where, notes):
        say(line)
    if frames.runs.empty:
        raise UserError(_nothing(all_frames, options.where))
    if shown_as is not None:
        frames = frames.moved(shown_as)
    all_sections, more_notes = sections(frames, options)
    for note in more_notes:
        say(f"note: {note}")
    for section in all_sections:
        printed_notes: set[str] = set()
        for table in section.main:
            fresh_table = replace(
                table, notes=[note for note in table.notes if note not in printed_notes]
            )
            printed_notes.update(table.notes)
            say(text(terminal(fresh_table)) + "\n")
        for finding in section.findings:
            say(f"• {finding.text}")
    if comparison is not None:
        say(text(terminal(comparison.table)) + "\n")
        say(f"• {comparison.lines[0]}")
    drawn_sections = all_sections[:DRAWN]
    if len(all_sections) > len(drawn_sections):
        say(f"note: figures for the {DRAWN} largest of {len(all_sections)} studies, tables for all")
    for section in drawn_sections:
        section.drawings = draw(section.grid, options.venue)
    frames.runs.attrs = attrs
    for line in _boxes([drawing for section in drawn_sections for drawing in section.drawings]):
        say(line)
    try:
        linked_from = None if shown_as is None else Path(Path(out).name)
        page = _write(
            Path(out), frames, all_sections, options, notes + more_notes, comparison, linked_from
        )
    except OSError as error:
        raise NormbenchError(f"cannot write the report to {str(out)!r}: {error.strerror}") from None
    say(f"report: {page}")
    return page


def _held_against(store: Stores, against: Store | Path | str, options: Request) -> Published:
    """Compare a store with a published one.

    Raises:
        UserError: There are several stores, or the two have no config in common.
    """
    if not isinstance(store, Store | Path | str):
        if len(store) != 1:
            raise UserError(f"--against compares one store, not {len(store)}: name one")
        store = store[0]
    frames, _ = load_stores([against, store], ("store",))
    frames, _ = choose(frames, replace(options, superseded=False))
    if frames.runs.empty:
        raise UserError(_nothing(frames, options.where))
    return published(compare(frames, "store", options.metric, same_science=True))


def summary_table(
    store: Store | Path | str,
    names: Collection[str] | None = None,
    by: str | Sequence[str] = ("norm", "batch"),
    metric: str = "test_acc",
    target: float | None = None,
    allow_confound: str | Sequence[str] = (),
) -> rich.console.RenderableType:
    """Return a metric's table for each study of a store, the largest first, for a terminal.

    Print it with ``rich.console.Console().print(summary_table(store))``.

    Args:
        store: The store, or its folder.
        names: Names of the runs to show; None for all.
        by, metric, target, allow_confound: As for :func:`report`.

    Raises:
        UserError: There are no such runs, or no such column or metric.
    """
    from rich.console import Group
    from rich.text import Text

    options = request(None, by, metric, None, target, allow_confound)
    frames, _ = choose(load(store), options)
    if names is not None and not frames.runs.empty:
        frames = frames.select(frames.runs["name"].isin(names))
    if frames.runs.empty:
        raise UserError(_nothing(frames, None))
    all_sections, _ = sections(frames, options)
    renderables: list[rich.console.RenderableType] = []
    for section in all_sections:
        renderables.append(terminal(section.main[0]))
        cautions = [f for f in section.findings if f.strength == "caution"]
        renderables += [Text(caution.text, "dim") for caution in cautions]
    return Group(*renderables)


def diff(
    store: Store | Path | str,
    run_a: str,
    run_b: str,
    out: Path | str | None = None,
    say: Say = print,
) -> None:
    """Print how two runs differ; with ``out``, also write this and their overlaid curves there.

    Args:
        store: The store, or its folder.
        run_a, run_b: A name, a unique prefix of one, a signature, or the path of a run folder,
            which may be in another store.
        out: The folder to write ``diff.md`` and ``curves.png`` (svg, pdf) to.
        say: Takes each line meant for the user.

    Raises:
        UserError: There is no such run, or more than one.
        NormbenchError: A run cannot be read, or ``out`` cannot be written.
    """
    from normbench.report import diff as comparing

    store = as_store(store)
    if out is not None:
        _check_folder(Path(out))
    first, second = (find_run(name, store.root) for name in (run_a, run_b))
    if first.path.resolve() == second.path.resolve():
        raise UserError(f"{run_a!r} and {run_b!r} are the same run, {first.name}: name two")
    pair = comparing.pair(first, second)
    for line in comparing.named(pair):
        say(line)
    for table in comparing.tables(pair):
        say(text(terminal(table)) + "\n")
    if out is not None:
        from normbench.report.figures import overlay

        try:
            drawing = overlay.draw(pair)
            paths = comparing.write(pair, drawing, Path(out))
        except OSError as error:
            raise NormbenchError(f"cannot write to {str(out)!r}: {error.strerror}") from None
        for line in _boxes([drawing]):
            say(line)
        say(f"diff: {paths[0]}")


def diff_sides(
    stores: Stores,
    by: str = "store",
    where: str | None = None,
    metric: str = "test_acc",
    out: Path | str | None = None,
    say: Say = print,
) -> int:
    """Print a verdict on each config that two stores or two commits have in common.

    Args:
        stores: Two stores; with ``by="commit"`` any number.
        by: ``store`` or ``commit``.
        where: A filter on runs.
        metric: The metric whose means over seeds are compared.
        out: The folder to write ``diff.md`` and ``configs.csv`` to.
        say: Takes each line meant for the user.

    Returns:
        1 if any config is different (:data:`normbench.report.sides.RULES`), else 0.

    Raises:
        UserError: A store, filter or metric does not exist, there are not two sides, or the sides
            have no config in common.
        NormbenchError: A store cannot be read, or ``out`` cannot be written.
    """
    from normbench.report import sides as comparing

    if by not in comparing.SIDES:
        raise unknown("side in --by", by, comparing.SIDES)
    options = request(where, (by,), metric, None, None)
    if out is not None:
        _check_folder(Path(out))
    all_frames, notes = load_stores(stores, (by,))
    frames, more_notes = choose(all_frames, replace(options, superseded=True))
    if frames.runs.empty:
        raise UserError(_nothing(all_frames, where))
    sides = comparing.compare(frames, by, metric)
    lines = [f"left out: {item}" for item in all_frames.left_out]
    lines += [f"note: {note}" for note in [*notes, *more_notes]]
    lines += [f"origin: {sentence}" for sentence in sides.origin]
    for line in lines:
        say(line)
    table = comparing.table(sides)
    say(text(terminal(table)) + "\n")
    say(sides.summary)
    if out is not None:
        page = Path(out) / "diff.md"
        head = [f"- {markdown_text(line)}" for line in [*lines, sides.summary]]
        try:
            write_table(table, Path(out), ("csv",))
            content = [
                f"# {markdown_text(' and '.join(sides.names))}",
                "",
                *head,
                "",
                markdown(table),
            ]
            page.write_text("\n".join(content), encoding="utf-8")
        except OSError as error:
            raise NormbenchError(f"cannot write to {str(out)!r}: {error.strerror}") from None
        say(f"diff: {page}")
    return sides.exit_code


FORMATS = ("md", "csv", "tex", "parquet")
"""Formats of :func:`export`."""


def export(
    store: Stores,
    where: str | None = None,
    out: Path | str | None = None,
    format: str | None = None,
    by: str | Sequence[str] = ("norm", "batch"),
    say: Say = print,
    superseded: bool = False,
    hyperparameters: bool = False,
    style: str = DEFAULT,
) -> Path | None:
    """Write one table of all cells of one or several stores, for the appendix of a paper.

    Args:
        store: The store, or its folder; or several (:func:`.stores.load_stores`).
        where: A filter on runs.
        out: The file to write; None to print the table.
        format: One of :data:`FORMATS`; by default the suffix of ``out``, else ``md``. ``csv``
            and ``parquet`` hold the unrounded numbers.
        by: Columns of the config that identify a cell.
        say: Receives each line meant for the user.
        superseded: As for :func:`report`.
        hyperparameters: Whether to write the hyperparameters of the runs instead: those that all
            share, and those that differ. With ``csv`` and ``parquet``, which hold one table per
            file, the shared ones go to a second file, ``NAME-shared.csv``.
        style: The venue that LaTeX is made for (:data:`normbench.report.venues.VENUES`).

    Returns:
        The file; None if the table was printed.

    Raises:
        UserError: The format, filter or column is unknown; Parquet without a file; or no runs
            remain.
        NormbenchError: The store does not exist, or ``out`` cannot be written.
    """
    path = None if out is None else Path(out)
    kind = format or (path.suffix.lstrip(".") if path is not None and path.suffix else "md")
    if kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    if kind == "parquet" and path is None:
        raise UserError("format parquet needs a file: name one with --out")
    options = request(where, by, "test_acc", None, None, superseded=superseded, style=style)
    if path is not None:
        _check_folder(path.parent)
        if path.is_dir():
            raise UserError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    all_frames, notes = load_stores(store, options.by)
    frames, more_notes = choose(all_frames, options)
    if frames.runs.empty:
        raise UserError(_nothing(all_frames, where))
    for note in [*notes, *more_notes]:
        say(f"note: {note}")
    if hyperparameters:
        all_tables = hyperparameter_tables(frames)
    else:
        all_tables = [tables.summary(*studies(frames, options.by))]
    table = all_tables[-1]
    if path is None:
        listing = [table] if kind == "csv" else all_tables
        say("\n".join(_rendered(item, kind, venue=options.venue) for item in listing).rstrip())
        return None
    parts = {path: all_tables}
    if kind in ("csv", "parquet"):  # one table per file
        parts = {path: [table]}
        if len(all_tables) > 1:
            parts[path.with_name(f"{path.stem}-shared{path.suffix}")] = all_tables[:-1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, part in parts.items():
            if kind == "parquet":
                part[0].data.to_parquet(file, index=False)
            else:
                content = "\n".join(_rendered(item, kind, venue=options.venue) for item in part)
                file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise NormbenchError(f"cannot write {str(path)!r}: {error.strerror}") from None
    rows = "cell"
    if hyperparameters:
        rows = "combination" if len(all_tables) > 1 else "hyperparameter"
    say(f"export: {path} ({counted(len(table.rows), rows)})")
    for file in list(parts)[1:]:
        say(f"export: {file} (shared by all runs)")
    return path


def text(renderable: object, width: int | None = None) -> str:
    """Return the text that rich prints, with colors if the terminal supports them."""
    from rich.console import Console

    console = Console(width=width, force_jupyter=False)  # a notebook would be shown an output
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip("\n")


def _boxes(drawings: Sequence[Drawing]) -> list[str]:
    """Return a note on characters that figures show as boxes, if there are any."""
    from normbench.report.figures import style

    sentence = style.lacking(drawings)
    return [f"note: {sentence}"] if sentence else []


def _opening(
    all_frames: Frames, frames: Frames, where: str | None, notes: Sequence[str]
) -> list[str]:
    lines = [
        f"{store.name}: {counted(store.runs, 'run')} in {store.root}" for store in all_frames.stores
    ]
    subject = "together" if all_frames.stores else all_frames.root
    lines.append(f"{subject}: {origin.counts(all_frames)}")
    if where:
        lines.append(f"--where {where!r} keeps {origin.counts(frames)}")
    lines += origin.unfinished(frames)
    lines += [f"left out: {item}" for item in all_frames.left_out]
    lines += [f"origin: {sentence}" for sentence in origin.mixtures(frames.runs)]
    return lines + [f"note: {note}" for note in notes]


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be created because it, or a parent, is a file.

    This is checked before tables and figures are computed, which may take minutes.
    """
    path = folder.absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        raise UserError(f"cannot write to {str(folder)!r}: {existing} is a file, not a folder")


def _nothing(frames: Frames, where: str | None) -> str:
    if where and not frames.runs.empty:
        return f"--where {where!r} keeps none of the {len(frames.runs)} runs of {frames.folders}"
    if frames.left_out:
        count = len(frames.left_out)
        left_out = "1 folder is" if count == 1 else f"{count} folders are"
        return f"there are no runs in {frames.root} that can be reported: {left_out} left out"
    return f"there are no runs in {frames.root}: train some with normbench run or normbench sweep"


def _write(
    out: Path,
    frames: Frames,
    all_sections: Sequence[Section],
    options: Request,
    notes: Sequence[str],
    comparison: Published | None,
    linked_from: Path | None = None,
) -> Path:
    """Write all files of a report; the page's links start at ``linked_from``, else at ``out``."""
    from normbench.report.figures import style
    from normbench.report.page.build import build

    out.mkdir(parents=True, exist_ok=True)
    paths = frames.write(out / "data")
    for section in all_sections:
        folder = section.study.slug if len(all_sections) > 1 else ""
        for table in section.tables:
            paths += write_table(table, out / "tables" / folder, study=folder, venue=options.venue)
        for drawing in section.drawings:
            paths += style.save(drawing, out / "figures" / folder, options.formats)
    if comparison is not None:
        paths += write_table(comparison.table, out / "tables", venue=options.venue)
    paths += write_table(tables.run_list(frames), out / "tables", ("md",))
    markdown, page = out / "report.md", out / "index.html"
    markdown.write_text(
        _markdown(frames, all_sections, options, notes, comparison), encoding="utf-8"
    )
    page.write_text(
        build(frames, all_sections, options, notes, linked_from or out, comparison),
        encoding="utf-8",
    )
    _remove_old(out, [*paths, markdown, page])
    return page


def write_table(
    table: Table,
    folder: Path,
    kinds: Sequence[str] = ("md", "csv", "tex"),
    study: str = "",
    venue: Venue = VENUES[DEFAULT],
) -> list[Path]:
    """Write a table as Markdown, CSV and LaTeX; return the files.

    Args:
        table: The table.
        folder: The folder to write to, created if it does not exist.
        kinds: Suffixes of the files.
        study: The slug of the table's study if the report has several.
        venue: The venue whose template the LaTeX table must fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in kinds:
        path = folder / f"{table.slug}.{kind}"
        path.write_text(_rendered(table, kind, study, venue), encoding="utf-8")
        paths.append(path)
    return paths


def _rendered(table: Table, kind: str, study: str = "", venue: Venue = VENUES[DEFAULT]) -> str:
    if kind == "tex":
        return latex(table, study, venue)
    return csv(table) if kind == "csv" else markdown(table)


def _markdown(
    frames: Frames,
    all_sections: Sequence[Section],
    options: Request,
    notes: Sequence[str],
    comparison: Published | None,
) -> str:
    origin_lines = origin.unfinished(frames, named=len(frames.runs))
    origin_lines += [f"left out: {item}" for item in frames.left_out]
    origin_lines += [f"origin: {sentence}" for sentence in origin.mixtures(frames.runs)]
    escape = markdown_text
    lines = ["# Report", "", f"{escape(origin.counts(frames))}.", ""]
    lines += [f"- {escape(line)}" for line in [*origin_lines, *notes]]
    if options.where:
        lines.append(f"- only runs with {markdown_code(options.where)}")
    for section in all_sections:
        part = f"{section.study.slug}/" if len(all_sections) > 1 else ""
        lines += ["", f"## {escape(section.study.title)}", ""]
        lines += [f"- {escape(finding.text)}" for finding in section.findings]
        for drawing in section.drawings:
            caption = escape(drawing.caption)
            file = f"figures/{part}{drawing.slug}.{options.formats[0]}"
            lines += ["", f"![{caption}]({file})", "", f"*{caption}*"]
        for table in section.tables:
            lines += ["", markdown(table, "###").rstrip()]
    if comparison is not None:
        lines += ["", f"## {escape(comparison.title)}", ""]
        lines += [f"- {escape(line)}" for line in comparison.lines]
        lines += ["", markdown(comparison.table, "###").rstrip()]
    lines += ["", "## Rules", "", escape(DIVERGED_RULE), "", escape(CONFOUND_RULE), ""]
    return "\n".join(lines)


def _remove_old(out: Path, paths: Sequence[Path]) -> None:
    """Remove files that an earlier report wrote and this one did not; write the manifest."""
    manifest = out / MANIFEST
    names = {path.relative_to(out).as_posix() for path in paths}
    try:
        manifest_names = schema.parse(manifest.read_bytes())
        schema.sequence(schema.text())(manifest_names, MANIFEST)
        old_names = set(manifest_names)
    except (OSError, ValueError):
        old_names = set()
    for name in old_names - names:
        path = (out / name).resolve()
        if path.is_relative_to(out.resolve()):
            path.unlink(missing_ok=True)
    manifest.write_text(json.dumps(sorted(names), indent=0), encoding="utf-8")
