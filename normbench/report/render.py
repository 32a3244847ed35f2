"""Tables as a terminal shows them, and as Markdown, CSV and LaTeX hold them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from normbench.report.table import Entry, Table

if TYPE_CHECKING:
    import rich.console

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


def terminal(table: Table) -> rich.console.RenderableType:
    """Return what a rich console prints of the table: title, rows, notes.

    Six columns of values fit into 80 characters. The best of a column is bold, ties have a
    dagger, remarks stand on a line of their own.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(
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
    notes = [Text(note, "dim") for note in table.notes]
    return Group(Text(_titled(table), "bold"), *([shown] if table.rows else []), *notes)


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
    if not table.rows:
        return "\n".join([*lines, *table.notes, ""])
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


def latex(table: Table, study: str = "") -> str:
    """Return the table for LaTeX with the package booktabs; the caption is the title.

    Args:
        table: The table.
        study: The slug of its study where a report has several: part of the table's label.
    """
    label = "-".join(part for part in (study, table.slug) if part)
    columns = "l" + "".join(
        "r" if _numeric(table, p) else "l" for p in range(1, len(table.headers))
    )
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        *(["  \\small", "  \\setlength{\\tabcolsep}{4pt}"] if len(table.headers) > 6 else []),
        f"  \\caption{{{latex_text(table.title)}.}}",
        f"  \\label{{tab:{_latex_label(label)}}}",
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
    remarks: dict[str, str] = {}
    for row in table.rows:
        entries = [_latex_entry(each, remarks) for each in row]
        lines.append(f"    {' & '.join(entries)} \\\\")
    lines += ["    \\bottomrule", "  \\end{tabular}"]
    if table.notes or remarks:
        lines += ["", "  \\smallskip", "  \\begin{minipage}{\\linewidth}\\footnotesize"]
        lines += [f"    {latex_text(note)}" for note in table.notes]
        explained = [f"{_raised(sign)} {latex_text(text)}" for text, sign in remarks.items()]
        lines += [f"    {'; '.join(explained)}."] if explained else []
        lines += ["  \\end{minipage}"]
    lines += ["\\end{table}", ""]
    return "\n".join(lines)


def _latex_label(slug: str) -> str:
    """Return a slug in ASCII; other characters are written as their code points."""
    return "".join(c if c.isascii() else f"{ord(c):x}" for c in slug)


def _latex_entry(each: Entry, remarks: dict[str, str]) -> str:
    """Return an entry; its remark becomes a letter, explained below the table."""
    text = latex_text(each.text)
    if each.best:
        text = f"\\textbf{{{text}}}"
    signs = [_LATEX["†"]] if each.tied else []
    if each.remark:
        signs.append(_raised(remarks.setdefault(each.remark, _letter(len(remarks)))))
    return text + "".join(signs)


def _letter(place: int) -> str:
    """Return a, b, …, z, aa, ab, …"""
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(ord("a") + place % 26)


def _raised(sign: str) -> str:
    return f"\\textsuperscript{{{sign}}}"


def latex_text(text: str) -> str:
    """Escape a text for LaTeX; a hyphen before a number becomes a minus sign."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)
