"""The report: tables, figures and a web page on the runs of a store, without TensorFlow.

``normbench.report.report.report`` writes all of them. To analyze a store by hand, as in
``notebooks/analyze_a_store.ipynb``: :func:`load` the store (:func:`load_stores` reads several),
split it into :func:`studies`, :func:`build` the grid of a metric, then make tables and figures of
the grid.

The package can be called: ``normbench.report(…)`` is :func:`normbench.api.report`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from normbench import make_callable

if TYPE_CHECKING:
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

_MODULES = {
    "frames": ("Frames", "load"),
    "grid": ("Grid", "build"),
    "metrics": ("METRICS", "Metric"),
    "stores": ("load_stores",),
    "study": ("Study", "studies"),
}


def __getattr__(name: str) -> Any:
    # Import lazily: shell completion reads the names of metrics and must not wait for pandas.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


make_callable(__name__)
