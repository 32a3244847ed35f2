"""The figures of a report: :data:`FIGURES` lists their modules and :func:`draw` draws them.

Each module listed has a function ``figures(grid)`` that returns its drawings of one metric over a
study, or an empty list if the figure does not apply. To add a figure, add a module and a line here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from normbench.report import names as labels
from normbench.report.venues import DEFAULT, VENUES, Venue

if TYPE_CHECKING:  # style imports Matplotlib
    from normbench.report.figures.style import Drawing
    from normbench.report.grid import Grid

FIGURES = (
    "batch",  # the metric against the columns; for an accuracy, also the error
    "tuning",  # sensitivity to tuned keys, expected best of n trials
    "heatmap",  # differences to the baseline
    "time",  # the metric against training time; throughput
    "profile",  # probability of improvement and performance profiles over all columns
    "rate",  # the learning rate
    "curves",  # metrics against epochs
    "smoothness",  # of the loss along the gradient (probe)
    "layers",  # values of layers over training (probes)
    "percentiles",  # of layers' inputs over training (probe)
    "depth",  # the estimation shift over depth (probe)
    "batch_dependence",  # of logits on the mini-batch (probe)
)
"""Modules of this package, in the order of the page, whose first drawings are at the top."""


def draw(grid: Grid, venue: Venue = VENUES[DEFAULT]) -> list[Drawing]:
    """Draw all figures that apply to a study for a venue, each with a unique file name."""
    from normbench.report.figures import style

    drawings = []
    with style.made_for(venue):
        for name in FIGURES:
            drawings += import_module(f"{__name__}.{name}").figures(grid)
    # Layer names that differ only in case or punctuation would otherwise share a file.
    slugs = labels.slugs(
        [drawing.slug for drawing in drawings], [drawing.caption for drawing in drawings]
    )
    for drawing, slug in zip(drawings, slugs, strict=True):
        drawing.slug = slug
    return drawings
