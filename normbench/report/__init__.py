"""The report: tables, figures and a page on the runs of a store, without importing TensorFlow.

``normbench.report.report.report`` writes all of them. To analyse a store by hand, as in
``notebooks/analyse_a_store.ipynb``: :func:`load` the store (:func:`load_stores` reads several),
split it into :func:`studies`, :func:`build` the grid of a metric, then make tables and figures of
the grid.
"""

from normbench.report.frames import Frames, load
from normbench.report.grid import Grid, build
from normbench.report.metrics import METRICS, Metric
from normbench.report.stores import load_stores
from normbench.report.study import Study, studies

__all__ = [
    "METRICS",
    "Frames",
    "Grid",
    "Metric",
    "Study",
    "build",
    "load",
    "load_stores",
    "studies",
]
