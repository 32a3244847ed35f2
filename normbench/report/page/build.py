"""The page of a report: :func:`build` renders its sections as one HTML file."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup

import normbench
from normbench.report import names as labels
from normbench.report import origin
from normbench.report.caveats import CONFOUND_RULE
from normbench.report.frames import Frames, is_config
from normbench.report.grid import DIVERGED_RULE
from normbench.report.page import svg
from normbench.report.sections import Request, Section
from normbench.report.sides import Published
from normbench.report.table import Table, TableEntry
from normbench.report.tables import run_list

_HERE = Path(__file__).parent
_MAIN = 3  # number of figures at the top of a study
_FILTERED = 10  # minimum number of rows for a table to get a filter field


@dataclass(frozen=True)
class Names:
    """The ids of cells on the page: by study and (row, column), by runs of a cell, and by run."""

    by_key: dict[tuple[int, Any, Any], str]
    by_runs: dict[tuple[str, ...], str]
    of_run: dict[str, str]
    titles: dict[str, str]


def build(
    frames: Frames,
    found: Sequence[Section],
    asked: Request,
    notes: Sequence[str],
    out: Path,
    held: Published | None = None,
) -> str:
    """Return the page.

    Args:
        frames: The runs reported.
        found: The studies, with their figures drawn.
        asked: The options of the report.
        notes: Notes on the request.
        out: The folder of the report; links to files are relative to it.
        held: The comparison with a published store, if there is one.
    """
    names = _names(found)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        link=lambda entry: names.by_runs.get(entry.runs, ""), is_number=_is_number, minus=_minus
    )
    light, dark = svg.variables()
    return environment.get_template("template.html").render(
        version=normbench.__version__,
        store=frames.folders,
        counts=origin.counts(frames),
        unfinished=origin.unfinished(frames, named=len(frames.runs)),
        left_out=frames.left_out,
        mixtures=origin.mixtures(frames.runs),
        notes=notes,
        asked=asked,
        held=held,
        held_table=held and _table(held.table, "tables/against"),
        sections=[
            _section(i, section, names, len(found), asked.formats)
            for i, section in enumerate(found)
        ],
        runs=_runs(frames, names, out),
        details=Markup(_script_json(_details(frames, names))),
        common=_common(frames.runs),
        commands=origin.commands(frames.runs),
        report_command=origin.report_command(frames.roots, asked),
        environment=origin.environment(frames.runs),
        rules=[DIVERGED_RULE, CONFOUND_RULE],
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        js=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        light=Markup(light),
        dark=Markup(dark),
    )


def _names(sections: Sequence[Section]) -> Names:
    names = Names({}, {}, {}, {})
    for i, section in enumerate(sections):
        for j, (key, cell) in enumerate(section.grid.cells.items()):
            name = f"c{i}-{j}"
            names.by_key[i, key[0], key[1]] = name
            names.by_runs[cell.runs] = name
            names.of_run.update(dict.fromkeys(cell.runs, name))
            study = section.study
            where = study.row(cell.row)
            if study.column_factor:
                factor = labels.factor(study.column_factor).lower()
                where += f", {factor} {study.column(cell.column)}"
            names.titles[name] = where + (f" ({study.title})" if len(sections) > 1 else "")
    return names


def _section(
    place: int, section: Section, names: Names, count: int, formats: Sequence[str]
) -> dict[str, Any]:
    def target(key: Any) -> str:
        return names.by_key.get((place, key[0], key[1]), "")

    folder = f"{section.study.slug}/" if count > 1 else ""
    figures = [
        {
            "svg": Markup(svg.inline(drawing, f"f{place}-{number}", target)),
            "caption": drawing.caption,
            "wide": drawing.wide,
            "href": f"figures/{folder}{drawing.slug}",
            "kinds": formats,
        }
        for number, drawing in enumerate(section.drawings)
    ]
    tables = [_table(table, f"tables/{folder}{table.slug}") for table in section.tables]
    findings = [
        {
            "text": _minus(finding.text),
            "strength": finding.strength,
            "cells": [(name, names.titles[name]) for name in map(target, finding.cells) if name],
        }
        for finding in section.findings
    ]
    return {
        "id": f"study-{place}",
        "title": section.study.title,
        "findings": findings,
        "main_figures": figures[:_MAIN],
        "more_figures": figures[_MAIN:],
        "main_tables": tables[: len(section.main)],
        "more_tables": tables[len(section.main) :],
    }


def _table(table: Table, href: str) -> dict[str, Any]:
    return {
        "title": table.title,
        "headers": table.headers,
        "span": table.span,
        "rows": table.rows,
        "notes": table.notes,
        "filtered": len(table.rows) >= _FILTERED,
        "href": href,
        "numeric": [
            any(row[place].value is not None for row in table.rows)
            for place in range(len(table.headers))
        ],
    }


def _runs(frames: Frames, names: Names, out: Path) -> dict[str, Any]:
    """Return the list of runs, sorted by cell; the first run of a cell has the cell's id."""
    listing = run_list(frames)
    order = {name: place for place, name in enumerate(names.titles)}
    rows = []
    seen_cells: set[str] = set()
    paths = dict(zip(frames.runs["name"], frames.runs["path"], strict=True))
    pairs = [(names.of_run.get(row[0].text, ""), row) for row in listing.rows]
    for cell, row in sorted(pairs, key=lambda pair: order.get(pair[0], len(order))):
        folder = os.path.relpath(paths[row[0].text], out)
        rows.append(
            {
                "cell": cell,
                "id": cell if cell and cell not in seen_cells else "",
                "name": row[0].text,
                "href": quote(Path(folder).as_posix()),
                "entries": row[1:],
            }
        )
        seen_cells.add(cell)
    table = _table(listing, "tables/runs")
    return {"headers": listing.headers, "rows": rows, "numeric": table["numeric"]}


def _details(frames: Frames, names: Names) -> dict[str, Any]:
    """Return the details of each run, which the page shows on demand."""
    runs = frames.runs
    varying_keys = [c for c in runs.columns if is_config(c) and runs[c].nunique(dropna=False) > 1]
    columns = [*varying_keys, "commit", "host", "started", "ended", "signature", "weights_sha256"]
    columns += [c for c in ("diverged_epoch", "error_type", "error_message") if c in runs]
    details = {}
    for record in runs.to_dict("records"):
        facts = {c: labels.plain(record[c]) for c in columns if c in record and _known(record[c])}
        details[record["name"]] = {
            "facts": facts,
            "command": shlex.join(json.loads(record["command"])),
        }
    return {"runs": details, "cells": names.titles}


def _common(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the config keys that all runs share."""
    shared_keys = [c for c in runs.columns if is_config(c) and runs[c].nunique(dropna=False) == 1]
    return [
        (labels.plain(c), labels.plain(runs[c].iloc[0]))
        for c in shared_keys
        if _known(runs[c].iloc[0])
    ]


def _known(value: Any) -> bool:
    return value is not None and value is not pd.NA and value == value


def _is_number(entry: TableEntry) -> bool:
    return entry.value is not None


def _minus(text: str) -> str:
    """Write negative numbers with a true minus sign."""
    return "".join(
        "−" if c == "-" and text[i + 1 : i + 2].isdigit() and text[i - 1 : i] in ("", " ") else c
        for i, c in enumerate(text)
    )


def _script_json(value: Any) -> str:
    """Return JSON that cannot end the script element around it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
