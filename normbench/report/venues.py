"""Venues: the widths and type that figures and LaTeX tables are made for; :data:`VENUES`.

A new venue is one entry.
"""

from __future__ import annotations

from dataclasses import dataclass

from normbench.errors import UserError, unknown

FORMATS = ("png", "svg", "pdf")
"""Formats of figures."""


@dataclass(frozen=True)
class Venue:
    """The sizes of figures and tables for a paper, a page or slides.

    Attributes:
        column: Width of a narrow figure, inches.
        page: Width of a figure with several panels beside each other, inches.
        size: Size of the labels in a figure, points; numbers of axes and names in legends are a
            fifteenth smaller.
        fonts: Families of the figures' text, the first that is installed; the last comes with
            Matplotlib.
        formats: Files written of each figure unless the user names others. The page of a report has
            the SVG in any case.
        columns: Columns of text that the venue's template has; 0 where tables do not have to fit.
        text: Size of the template's text in points, for tables.
    """

    column: float
    page: float
    size: float = 7.5
    fonts: tuple[str, ...] = ("DejaVu Sans",)
    formats: tuple[str, ...] = ("png", "svg")
    columns: int = 0
    text: float = 10.0


_TIMES = ("STIXGeneral",)  # Times-like, and ships with Matplotlib
_SANS = ("Arial", "Helvetica", "Liberation Sans", "DejaVu Sans")
_MM = 1 / 25.4

VENUES = {
    # A4 or letter paper of any template: what reports look like where no venue is named.
    "paper": Venue(3.4, 7.0),
    # neurips_2024.sty: \textwidth 5.5 in, one column, \normalsize 10 pt, Times (ptm).
    "neurips": Venue(3.4, 5.5, 8.0, _TIMES, FORMATS, columns=1),
    # icml2024.sty: \textwidth 6.75 in, \columnsep 0.25 in, so columns of 3.25 in; Times, 10 pt.
    "icml": Venue(3.25, 6.75, 8.0, _TIMES, FORMATS, columns=2),
    # cvpr.sty: \textwidth 6.875 in, \columnsep 0.3125 in, so columns of 3.28 in, which the
    # instructions round to 3 1/4 in; Times, 10 pt.
    "cvpr": Venue(3.25, 6.875, 8.0, _TIMES, FORMATS, columns=2),
    # "Nature: formatting guide", figures: 89 mm and 183 mm wide, sans-serif letters of 5 to 7 pt.
    "nature": Venue(89 * _MM, 183 * _MM, 7.0, _SANS, FORMATS, columns=2),
    # A slide of 13.33 × 7.5 in (16:9) with margins: one wide figure, or two narrow ones.
    "slides": Venue(6.2, 12.6, 14.0),
}
"""The venues by the name that ``--style`` takes."""

DEFAULT = "paper"


def find_venue(name: str) -> Venue:
    """Return a venue.

    Raises:
        UserError: There is none of this name.
    """
    if name not in VENUES:
        raise unknown("style", name, VENUES)
    return VENUES[name]


def parse_formats(text: str | None, venue: Venue) -> tuple[str, ...]:
    """Read ``png,pdf``; those of the venue where it is None.

    Raises:
        UserError: There is no such format, or none is named.
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
