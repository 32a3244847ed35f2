"""Reads a store of runs and writes the tables and figures of a paper. Never imports TensorFlow.

By hand, as in ``notebooks/analyse_a_store.ipynb``: :func:`load` a store, part it into
:func:`studies`, :func:`build` the grid of a metric, then make tables and figures of it.
"""

from normbench.report.frames import Frames, load
from normbench.report.grid import Grid, build
from normbench.report.metrics import METRICS, Metric
from normbench.report.study import Study, studies

__all__ = ["METRICS", "Frames", "Grid", "Metric", "Study", "build", "load", "studies"]
