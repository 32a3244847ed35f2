"""The figures of a report, a file a figure; :data:`FIGURES` lists them and :func:`draw` draws them.

Each module listed has a function ``figures(grid)`` that returns its drawings of one metric over a
study, an empty list where the figure does not apply. A new figure is its file and one line here.
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
    "batch",  # the metric against the columns, and the error of an accuracy
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
"""Modules of this package, in the order of the page: the first drawings stand at its top."""


def draw(grid: Grid, venue: Venue = VENUES[DEFAULT]) -> list[Drawing]:
    """Draw all figures that apply to a study for a venue, each with a file name of its own."""
    from normbench.report.figures import style

    drawings = []
    with style.made_for(venue):
        for name in FIGURES:
            drawings += import_module(f"{__name__}.{name}").figures(grid)
    # Names of layers that differ in case or in punctuation alone would share a file.
    slugs = labels.slugs(
        [drawing.slug for drawing in drawings], [drawing.caption for drawing in drawings]
    )
    for drawing, slug in zip(drawings, slugs, strict=True):
        drawing.slug = slug
    return drawings
