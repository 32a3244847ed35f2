"""Venues: sizes and fonts of figures and LaTeX tables; :data:`VENUES` lists them.

A new venue is one entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from normbench.errors import UserError, unknown

FORMATS = ("png", "svg", "pdf")
"""Formats of figures."""


@dataclass(frozen=True)
class Venue:
    """The sizes of figures and tables for a paper, a page or slides.

    Attributes:
        column: Width of a narrow figure, in inches.
        page: Width of a figure with several panels side by side, in inches.
        size: Font size of the labels in a figure, in points; tick labels and legends are a
            fifteenth smaller.
        fonts: Font families of figures; the first one installed is used. The last ships with
            Matplotlib.
        formats: Default formats of figures. The page of a report always includes the SVG.
        columns: Number of text columns in the venue's template; 0 if tables need not fit.
        text: Font size of the template's text in points, for tables.
        text_height: Height of the template's text in inches, which no table exceeds.
        tallest: Height in inches that a taller figure is reduced to, by at most a quarter, so that
            its panels stay readable.
    """

    column: float
    page: float
    size: float = 7.5
    fonts: tuple[str, ...] = ("DejaVu Sans",)
    formats: tuple[str, ...] = ("png", "svg")
    columns: int = 0
    text: float = 10.0
    text_height: float = 9.0
    tallest: float = math.inf


_TIMES = ("STIXGeneral",)  # Times-like, and ships with Matplotlib
_SANS = ("Arial", "Helvetica", "Liberation Sans", "DejaVu Sans")
_MM = 1 / 25.4

VENUES = {
    # A4 or letter paper with any template: the default style of reports.
    "paper": Venue(3.4, 7.0),
    # neurips_2024.sty: \textwidth 5.5 in, \textheight 9 in, one column, \normalsize 10 pt, Times.
    "neurips": Venue(3.4, 5.5, 8.0, _TIMES, FORMATS, columns=1),
    # icml2024.sty: \textwidth 6.75 in, \textheight 9 in, \columnsep 0.25 in, so columns of 3.25 in;
    # Times, 10 pt.
    "icml": Venue(3.25, 6.75, 8.0, _TIMES, FORMATS, columns=2),
    # cvpr.sty: \textwidth 6.875 in, \textheight 8.875 in, \columnsep 0.3125 in, so columns of
    # 3.28 in, which the instructions round to 3 1/4 in; Times, 10 pt.
    "cvpr": Venue(3.25, 6.875, 8.0, _TIMES, FORMATS, columns=2, text_height=8.875),
    # "Nature: formatting guide", figures: 89 mm and 183 mm wide, sans-serif letters of 5 to 7 pt.
    "nature": Venue(89 * _MM, 183 * _MM, 7.0, _SANS, FORMATS, columns=2),
    # A slide of 13.33 × 7.5 in (16:9) with margins: one wide figure, or two narrow ones.
    # The title of a slide leaves about 6.3 in for a figure.
    "slides": Venue(6.2, 12.6, 14.0, tallest=6.3),
}
"""The venues, by the name given to ``--style``."""

DEFAULT = "paper"


def find_venue(name: str) -> Venue:
    """Return a venue.

    Raises:
        UserError: There is no venue with this name.
    """
    if name not in VENUES:
        raise unknown("style", name, VENUES)
    return VENUES[name]


def parse_formats(text: str | None, venue: Venue) -> tuple[str, ...]:
    """Parse ``png,pdf``; None returns the formats of the venue.

    Raises:
        UserError: A format does not exist, or none is named.
    """
    if text is None:
        return venue.formats
    names = [name.strip().removeprefix(".").lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise unknown("format in --formats", name, FORMATS)
    if not names:
        raise UserError(f"--formats needs at least one of {', '.join(FORMATS)}")
    return tuple(format for format in FORMATS if format in names)
