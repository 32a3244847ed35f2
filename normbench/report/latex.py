"""LaTeX tables: :func:`latex` renders a table and fits it to the pages of a venue's template."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from normbench.report.table import Table, TableEntry, is_numeric
from normbench.report.venues import DEFAULT, VENUES, Venue

_SIZES = (("", 1.0, 6.0), (r"\small", 0.9, 4.0), (r"\footnotesize", 0.8, 3.0))
"""Font size command, size as a fraction of the text's, and column padding in points."""

_NAMES = 0.35  # maximum width of a text column, as a fraction of the line
_SPARE = 0.98  # fraction of the line that a table may fill, since widths are estimated
_SPARE_LINES = 5  # lines of text that a float leaves free, for the space around the caption
_HEAD_LINES = 2.5  # height of a tabular's rules and of the space above it, in lines


@dataclass(frozen=True)
class _Layout:
    """Layout of a table.

    Attributes:
        blocks: The columns of each part; parts are placed below each other.
        headers: The headings, each as a list of lines.
        size: Font size command; empty for the size of the text.
        gap: Padding on either side of a column, in points; 0 for LaTeX's default.
        wide: Whether the table spans both columns of a page.
        wrapped: Text columns that are wrapped to a fixed width.
        squeezed: Whether the table is scaled down to the line width, as a last resort.
    """

    blocks: Sequence[Sequence[int]]
    headers: Sequence[Sequence[str]]
    size: str = ""
    gap: float = 0.0
    wide: bool = False
    wrapped: frozenset[int] = frozenset()
    squeezed: bool = False


def latex(table: Table, study: str = "", venue: Venue = VENUES[DEFAULT]) -> str:
    """Return the table as LaTeX that uses the booktabs package.

    Args:
        table: The table.
        study: The slug of its study if the report has several; becomes part of the label.
        venue: The venue whose template the table must fit. A table too wide for a column gets a
            smaller font, then spans both columns of a page, then is split into parts. A table too
            high for a page continues in further floats with the same number.
    """
    label = "-".join(part for part in (study, table.slug) if part)
    layout = _fitted(table, venue) if venue.columns else _plain(table)
    kind = "table*" if layout.wide else "table"
    lines: list[str] = []
    remarks: dict[str, str] = {}
    for number, parts in enumerate(_floats(table, layout, venue)):
        lines += [rf"\end{{{kind}}}", ""] if number else []
        lines += [rf"\begin{{{kind}}}", r"  \centering"]
        lines += [f"  {layout.size}"] if layout.size else []
        lines += [rf"  \setlength{{\tabcolsep}}{{{layout.gap:g}pt}}"] if layout.gap else []
        title = latex_text(table.title)
        if number:
            lines += [r"  \addtocounter{table}{-1}", rf"  \caption[]{{{title} (continued).}}"]
        else:
            lines += [rf"  \caption{{{title}.}}", rf"  \label{{tab:{_latex_label(label)}}}"]
        for place, (columns, rows) in enumerate(parts):
            lines += ["", r"  \medskip"] if place else []
            lines += _tabular(table, layout, columns, rows, remarks)
    if table.notes or remarks:
        lines += ["", r"  \smallskip", r"  \begin{minipage}{\linewidth}\footnotesize"]
        lines += [f"    {latex_text(note)}" for note in table.notes]
        explanations = [f"{_raised(sign)} {latex_text(text)}" for text, sign in remarks.items()]
        lines += [f"    {'; '.join(explanations)}."] if explanations else []
        lines += [r"  \end{minipage}"]
    lines += [rf"\end{{{kind}}}", ""]
    packages = r" and \usepackage{graphicx}" if layout.squeezed else ""
    packages += r" and \usepackage[T1]{fontenc}" if _IN_T1 & {*"".join(lines)} else ""
    needs = [rf"% needs \usepackage{{booktabs}}{packages}"]
    if letters := _foreign(lines):
        needs.append(f"% needs XeLaTeX or LuaLaTeX and a font that has {letters}")
    return "\n".join([*needs, *lines])


def _tabular(
    table: Table,
    layout: _Layout,
    places: Sequence[int],
    rows: Sequence[int],
    remarks: dict[str, str],
) -> list[str]:
    """Return the lines of a tabular with some columns and rows; collect remarks to explain."""
    columns = "".join(_column(table, place, layout) for place in places)
    lines = [r"  \resizebox{\linewidth}{!}{%"] if layout.squeezed else []
    lines += [rf"  \begin{{tabular}}{{{columns}}}", r"    \toprule"]
    if table.span:
        count = len(places) - 1
        lines += [
            rf"    & \multicolumn{{{count}}}{{c}}{{{latex_text(table.span)}}} \\",
            rf"    \cmidrule(lr){{2-{count + 1}}}",
        ]
    lines.append(rf"    {' & '.join(_heading(layout.headers[p]) for p in places)} \\")
    lines.append(r"    \midrule")
    for row in (table.rows[number] for number in rows):
        entries = [_latex_entry(row[p], remarks, p in layout.wrapped) for p in places]
        lines.append(rf"    {' & '.join(entries)} \\")
    lines += [r"    \bottomrule", r"  \end{tabular}" + "}" * layout.squeezed]
    return lines


def _column(table: Table, place: int, layout: _Layout) -> str:
    if place in layout.wrapped:
        return rf"p{{{_NAMES:g}\linewidth}}"
    return "r" if place and is_numeric(table, place) else "l"


def _heading(lines: Sequence[str]) -> str:
    if len(lines) == 1:
        return _latex_name(lines[0])
    text = r" \\ ".join(map(latex_text, lines))
    return rf"\shortstack{{{text}}}"


# --- fitting a table to a template ----------------------------------------------------------------


def _plain(table: Table) -> _Layout:
    """Return the layout for an unknown template."""
    longest = max((len(row[0].text) for row in table.rows), default=0)
    layout = _Layout([range(len(table.headers))], [[header] for header in table.headers])
    if longest > _LATEX_LONG:
        layout = replace(layout, wrapped=frozenset([0]))
    return replace(layout, size=r"\small", gap=4.0) if len(table.headers) > 6 else layout


def _fitted(table: Table, venue: Venue) -> _Layout:
    """Return the first layout that fits a venue's template.

    The text's font size is tried before smaller ones, and one column before the full page; then
    the table is split into parts, which repeat the columns that name the rows.
    """
    lines = [venue.column, venue.page] if venue.columns > 1 else [venue.page]
    for line in lines:
        for size, share, gap in _SIZES:
            widths, layout = _widths(table, line, venue.text * share, gap)
            layout = replace(layout, size=size, gap=gap, wide=line != lines[0])
            if sum(widths) <= _SPARE * line:
                return layout
    places = range(len(table.headers))
    keys, other_places = places[: table.keys], places[table.keys :]
    line = lines[-1]
    for size, share, gap in _SIZES[1:]:
        widths, layout = _widths(table, line, venue.text * share, gap)
        layout = replace(layout, size=size, gap=gap, wide=line != lines[0])
        room = _SPARE * line - sum(widths[place] for place in keys)
        if all(widths[place] <= room for place in other_places):
            parts = _parts(other_places, widths, room)
            return replace(layout, blocks=[[*keys, *part] for part in parts])
    return replace(layout, squeezed=True)


def _parts(places: Sequence[int], widths: Sequence[float], room: float) -> list[Sequence[int]]:
    """Split columns into as few parts as fit, with similar numbers of columns."""
    for count in range(2, len(places) + 1):
        size = -(-len(places) // count)
        parts = [places[first : first + size] for first in range(0, len(places), size)]
        if all(sum(widths[place] for place in part) <= room for part in parts):
            return parts
    return [[place] for place in places]


def _floats(
    table: Table, layout: _Layout, venue: Venue
) -> list[list[tuple[Sequence[int], list[int]]]]:
    """Distribute a table over as many floats as its height needs.

    Returns:
        For each float its parts, which are placed below each other, each as columns and rows.
    """
    all_rows = list(range(len(table.rows)))
    if not venue.columns or not all_rows:
        return [[(columns, all_rows) for columns in layout.blocks]]
    line = venue.page if layout.wide or venue.columns == 1 else venue.column
    points = venue.text * next(share for size, share, _ in _SIZES if size == layout.size)
    notes = [*table.notes, *{entry.remark for row in table.rows for entry in row if entry.remark}]
    spare = _SPARE_LINES + _lines(table.title, line, venue.text)
    room = venue.text_height - _inches(spare, venue.text)
    room -= _inches(sum(_lines(note, line, 0.8 * venue.text) for note in notes), 0.8 * venue.text)
    floats: list[list[tuple[Sequence[int], list[int]]]] = [[]]
    inches_left = room
    for columns in layout.blocks:
        lines = _HEAD_LINES + max(len(layout.headers[place]) for place in columns)
        head, begins = _inches(lines, points), True
        for number in all_rows:
            wrapped_texts = [table.rows[number][p].text for p in columns if p in layout.wrapped]
            counts = [_lines(text, _NAMES * line, points) for text in wrapped_texts]
            height = _inches(max(counts, default=1), points)
            if floats[-1] and height + begins * head > inches_left:
                floats.append([])
                inches_left, begins = room, True
            if begins:
                floats[-1].append((columns, []))
                inches_left -= head
            floats[-1][-1][1].append(number)
            inches_left -= height
            begins = False
    return floats


def _lines(text: str, width: float, points: float) -> int:
    """Estimate the number of lines of a paragraph of ``width`` inches."""
    return math.ceil(1.1 * text_width(text, points) / width)  # words do not fill lines


def _inches(lines: float, points: float) -> float:
    """Return the height of lines of text in inches."""
    return 1.2 * points * lines / 72


def _widths(table: Table, line: float, points: float, gap: float) -> tuple[list[float], _Layout]:
    """Estimate the width of each column in inches, for a typeface like Times.

    Texts wider than a fraction of the line are wrapped, and headings wider than their column are
    broken between words.
    """
    widths, headers, wrapped_places = [], [], []
    for place, header in enumerate(table.headers):
        entries = [_entry_width(row[place], points) for row in table.rows]
        width = max(entries, default=0.0)
        if width > _NAMES * line and not (place and is_numeric(table, place)):
            width = _NAMES * line
            wrapped_places.append(place)
        header_lines = _broken(header, width, points)
        headers.append(header_lines)
        width = max(width, *(text_width(text, points) for text in header_lines))
        widths.append(width + 2 * gap / 72)
    places = range(len(table.headers))
    return widths, _Layout([places], headers, wrapped=frozenset(wrapped_places))


def _entry_width(entry: TableEntry, points: float) -> float:
    signs = "†" * entry.tied + "a" * bool(entry.remark)
    width = text_width(entry.text, points) + text_width(signs, 0.75 * points)
    return 1.06 * width if entry.best else width  # bold


def _broken(text: str, width: float, points: float) -> list[str]:
    """Break a heading between words into lines of the given width, or of its longest word."""
    first, *words = text.split(" ")
    width = max(width, *(text_width(word, points) for word in (first, *words)))
    lines = [first]
    for word in words:
        if text_width(f"{lines[-1]} {word}", points) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def text_width(text: str, points: float) -> float:
    """Return the width in inches of a text in a typeface like Times."""
    from normbench.report.figures import style  # Matplotlib has the widths of letters

    return style.width_in(text, points, "STIXGeneral")


# --- entries --------------------------------------------------------------------------------------

_MATH = {
    "°": r"^{\circ}",
    "²": "^2",
    "³": "^3",
    "⁸": "^8",
    "⁻": "^{-}",
    "ᵀ": r"^{\top}",
    "µ": r"\mu",
    "·": r"\cdot",
    "≥": r"\geq",
    "≤": r"\leq",
    "≠": r"\neq",
    "≈": r"\approx",
    "→": r"\rightarrow",
    "←": r"\leftarrow",
    "√": r"\surd",
    "∇": r"\nabla",
    "∞": r"\infty",
    "‖": r"\|",
    "Δ": r"\Delta",
    "Σ": r"\Sigma",
    "α": r"\alpha",
    "β": r"\beta",
    "γ": r"\gamma",
    "ε": r"\varepsilon",
    "η": r"\eta",
    "κ": r"\kappa",
    "λ": r"\lambda",
    "μ": r"\mu",
    "ν": r"\nu",
    "σ": r"\sigma",
    "τ": r"\tau",
    "χ": r"\chi",
}
"""Signs of metrics, keys and findings, which pdfLaTeX only sets as mathematics."""

_IN_T1 = frozenset("«»ÐÞðþĄąĐđĘęĮįŊŋŲų")
"""Letters that pdfLaTeX sets with the encoding T1 but not with its default."""

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
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "−": "$-$",
    "…": r"\dots{}",
    **{sign: f"${command}$" for sign, command in _MATH.items()},
    "[": "{[}",  # not an option of the line break before it
    "]": "{]}",
}


def _latex_label(slug: str) -> str:
    """Return a slug in ASCII; other characters are replaced by their code points.

    Slugs contain no plus sign, so different slugs stay different.
    """
    return "".join(c if c.isascii() else f"+{ord(c):x}+" for c in slug)


def _latex_entry(entry: TableEntry, remarks: dict[str, str], breakable: bool) -> str:
    """Return an entry; its remark becomes a letter that is explained below the table."""
    text = _latex_name(entry.text, breakable)
    if entry.best:
        text = f"\\textbf{{{text}}}"
    signs = [_LATEX["†"]] if entry.tied else []
    if entry.remark:
        signs.append(_raised(remarks.setdefault(entry.remark, _letter(len(remarks)))))
    return text + "".join(signs)


def _letter(place: int) -> str:
    """Return a, b, …, z, aa, ab, …"""
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(ord("a") + place % 26)


def _raised(sign: str) -> str:
    return f"\\textsuperscript{{{sign}}}"


def latex_text(text: str) -> str:
    """Escape text for LaTeX; a hyphen before a number becomes a minus sign."""
    split_text = re.sub("-(?=-)", "-\0", text)  # two hyphens would become a dash
    escaped_text = "".join(_LATEX.get(character, character) for character in split_text)
    escaped_text = re.sub(r"(?<![\w\0-])-(?=\d)", "$-$", escaped_text)
    return escaped_text.replace("\0", "{}")


_LATEX_LONG = 40  # maximum length of a name on one line
_LATEX_BREAK = 12  # characters between possible breaks of a longer name


def _latex_name(text: str, breakable: bool = False) -> str:
    """Escape a name; allow breaks in and after words if it is long or ``breakable``."""
    if len(text) <= (_LATEX_BREAK if breakable else _LATEX_LONG):
        return latex_text(text)
    parts = [
        word[start : start + _LATEX_BREAK]
        for word in re.findall(r"[^-_/=,;.+ ]*[-_/=,;.+ ]*", text)
        for start in range(0, len(word), _LATEX_BREAK)
    ]
    return r"\allowbreak{}".join(map(latex_text, parts))


_PUNCTUATION = "‐‑‒–—‘’“”‡•⁄€"  # beyond the Latin letters, but known to pdfLaTeX
_LACKING = "ĦħĸĿŀŉŦŧſ"  # of the Latin letters up to U+017F


def _foreign(lines: Sequence[str]) -> str:
    """Return the characters that pdfLaTeX cannot set, each once."""
    letters = (c for c in "".join(lines) if not c.isascii() and c not in _PUNCTUATION)
    return "".join(dict.fromkeys(c for c in letters if ord(c) > 0x17F or c in _LACKING))
