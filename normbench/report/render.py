"""Tables as a terminal shows them, and as Markdown, CSV and LaTeX hold them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from normbench.report.table import Entry, Table

if TYPE_CHECKING:
    import rich.table

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "†": r"\textsuperscript{\dag}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "*": r"\textsuperscript{*}",
}


def terminal(table: Table) -> rich.table.Table:
    """Return the table for a rich console, narrow enough for six columns of values in 80.

    The best of a column is bold, ties have a dagger; remarks stand on a line of their own.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(
        title=escape(_titled(table)),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    for place, header in enumerate(table.headers):
        shown.add_column(
            escape(header),
            justify="right" if _numeric(table, place) and place else "left",
            no_wrap=place == 0,
        )
    for row in table.rows:
        shown.add_row(*map(_terminal_entry, row))
    if table.notes:
        shown.caption = escape("\n".join(table.notes))
        shown.caption_justify = "left"
    return shown


def _terminal_entry(each: Entry) -> str:
    from rich.markup import escape

    text = escape(each.text.replace(" ± ", "±")) + ("†" if each.tied else "")
    if each.best:
        text = f"[bold green]{text}[/]"
    return f"{text}\n{escape(each.remark)}" if each.remark else text


def _titled(table: Table) -> str:
    return f"{table.title} (columns: {table.span.lower()})" if table.span else table.title


def markdown(table: Table, heading: str = "##") -> str:
    """Return the table as GitHub-flavoured Markdown under a heading, the notes below it."""
    lines = [f"{heading} {table.title}", ""] if heading else []
    if table.span:
        lines += [f"Columns: {table.span.lower()}.", ""]
    body = [[_markdown_entry(each) for each in row] for row in table.rows]
    headers = [_markdown_text(header) for header in table.headers]
    widths = [max(map(len, column), default=3) for column in zip(headers, *body, strict=True)]
    widths = [max(width, 3) for width in widths]
    rule = [
        "-" * (width - 1) + ":" if place and _numeric(table, place) else "-" * width
        for place, width in enumerate(widths)
    ]
    for cells in (headers, rule, *body):
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"| {' | '.join(padded)} |")
    if table.notes:
        lines += ["", *(f"{_markdown_text(note)}  " for note in table.notes)]
    return "\n".join(lines) + "\n"


def _markdown_entry(each: Entry) -> str:
    text = _markdown_text(each.plain)
    if each.best:
        return f"**{text}**"
    return f"{text} †" if each.tied else text


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\|_*`<>\[\]])", r"\\\1", text)


def _numeric(table: Table, place: int) -> bool:
    return any(row[place].value is not None for row in table.rows)


def csv(table: Table) -> str:
    """Return the table's numbers as CSV: long form, unrounded, stored units."""
    return table.data.to_csv(index=False)


def latex(table: Table) -> str:
    """Return the table for LaTeX with the packages booktabs and threeparttable.

    The caption is the title, the notes stand below the table.
    """
    columns = "l" + "".join(
        "r" if _numeric(table, p) else "l" for p in range(1, len(table.headers))
    )
    lines = [
        "% needs \\usepackage{booktabs,threeparttable}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{latex_text(table.title)}.}}",
        f"  \\label{{tab:{re.sub('[^a-z0-9]+', '-', table.slug.lower()).strip('-')}}}",
        "  \\begin{threeparttable}",
        f"  \\begin{{tabular}}{{{columns}}}",
        "    \\toprule",
    ]
    if table.span:
        count = len(table.headers) - 1
        lines += [
            f"    & \\multicolumn{{{count}}}{{c}}{{{latex_text(table.span)}}} \\\\",
            f"    \\cmidrule(lr){{2-{count + 1}}}",
        ]
    lines.append(f"    {' & '.join(map(latex_text, table.headers))} \\\\")
    lines.append("    \\midrule")
    lines += [f"    {' & '.join(map(_latex_entry, row))} \\\\" for row in table.rows]
    lines += ["    \\bottomrule", "  \\end{tabular}"]
    if table.notes:
        notes = [f"    \\item {latex_text(note)}" for note in table.notes]
        lines += ["  \\begin{tablenotes}\\footnotesize", *notes, "  \\end{tablenotes}"]
    lines += ["  \\end{threeparttable}", "\\end{table}", ""]
    return "\n".join(lines)


def _latex_entry(each: Entry) -> str:
    text = latex_text(each.plain)
    if each.best:
        return f"\\textbf{{{text}}}"
    return f"{text}{_LATEX['†']}" if each.tied else text


def latex_text(text: str) -> str:
    """Escape a text for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)
