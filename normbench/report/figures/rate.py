"""The figure of the learning rate against epochs."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from normbench.report import names as labels
from normbench.report.bands import joined
from normbench.report.figures import curves, style
from normbench.report.grid import Grid
from normbench.report.metrics import METRICS
from normbench.report.study import Study

_SAME = 1e-6  # relative


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the learning rate if any run recorded it."""
    return [draw(grid.study)] if joined(grid.study)["lr"].notna().any() else []


@style.styled
def draw(study: Study) -> style.Drawing:
    """Draw one line for each column if all rows have the same rates, else a panel for each."""
    rates = joined(study)
    spread = rates.groupby(["column", "epoch"])["lr"].agg(["min", "max"])
    if ((spread["max"] - spread["min"]) > _SAME * spread["max"].abs()).any():
        return curves.draw(study, METRICS["lr"])
    columns = [column for column in study.columns if (rates["column"] == column).any()]
    figure, axes = style.new(
        style.column(), 2.25 + style.legend_height([study.column(c) for c in columns], width=6)
    )
    axis = axes[0, 0]
    handles = []
    for place, column in enumerate(columns):
        look = style.look(study.column_factor, column, columns)
        means = rates[rates["column"] == column].groupby("epoch")["lr"].mean()
        markers = style.sparse_mark(look, len(means), place)
        axis.plot(means.index, means, color=look.color, linestyle=look.dashes, **markers)
        handles.append(style.handle(look, study.column(column)))
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlabel("Epoch")
    axis.set_ylabel("Learning rate")
    factor = labels.factor(study.column_factor).lower() if study.column_factor else ""
    style.legend(figure, handles if factor else [], 6, labels.factor(study.column_factor))
    return style.Drawing(
        "lr-curves",
        f"Learning rate at the end of each epoch{f' by {factor}' if factor else ''}, the same for "
        f"all rows: {study.heading}.",
        figure,
    )
