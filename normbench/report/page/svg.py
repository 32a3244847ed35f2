"""A drawing as inline SVG, with colors for light and dark pages and tooltips at its values."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import Any

from normbench.report.figures import style

_VARIABLES = {style.INK: "--ink", style.GRID: "--grid", style.PAPER: "--paper"} | {
    color: f"--s-{color[1:]}" for color in style.COLORS
}
_COLORS = re.compile("|".join(map(re.escape, _VARIABLES)), re.I)

DARK = {
    style.BLUE: "#4ea6e6",
    style.VERMILION: "#f08040",
    style.GREEN: "#2fc496",
    style.PURPLE: "#e39ac3",
    style.SKY: "#8acdf5",
    style.ORANGE: "#f2b83a",
    style.GRAY: "#a2a2a8",
    style.WINE: "#d0699f",
    style.INDIGO: "#8f8fea",
    style.OLIVE: "#c3c35a",
    style.TEAL: "#6fd0c2",
    style.SAND: "#d8c468",
}
"""Colors of series on a dark page, each a lighter variant."""


def variables() -> tuple[str, str]:
    """Return the CSS declarations of the series' colors, for a light and a dark page."""
    light = "".join(f"--s-{color[1:]}:{color};" for color in style.COLORS)
    dark = "".join(f"--s-{color[1:]}:{DARK[color]};" for color in style.COLORS)
    return light, dark


def inline(drawing: style.Drawing, prefix: str, target: Callable[[Any], str]) -> str:
    """Return a drawing as an ``<svg>`` element.

    Args:
        drawing: The figure and its values.
        prefix: Prefix of every id, so that a page can contain several drawings.
        target: Returns the id of a cell on the page from the key of a point, or an empty string.
    """
    text = drawing.svg()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = _COLORS.sub(lambda match: f"var({_VARIABLES[match[0].lower()]})", text)
    width, height = _size(text)
    head = (
        f'<svg class="figure" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(drawing.caption)}" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    body = text[text.index(">") + 1 : text.rindex("</svg>")]
    marks = []
    for hit in drawing.hits():
        where = target(hit.key)
        link = f' data-cell="{where}"' if where else ""
        marks.append(
            f'<circle class="hit" cx="{hit.x * width:.1f}" cy="{hit.y * height:.1f}" r="3.5" '
            f'data-tip="{escape(hit.text)}"{link}/>'
        )
    return f"{head}{body}{''.join(marks)}</svg>"


def _size(text: str) -> tuple[float, float]:
    match = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    if match is None:
        raise ValueError("Matplotlib wrote an SVG without a viewBox")
    return float(match[1]), float(match[2])
