"""The figure and the table of the estimation shift."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from normbench.report import sections as content
from normbench.report import tables
from normbench.report.figures import depth, draw
from normbench.report.frames import load
from normbench.report.statistics import sample
from normbench.report.study import studies

LAYERS = {"bn": (1, 2, 3), "xbn": (1, 3), "gn": ()}


def shift(row: dict, layer: int, run: str) -> float:
    """Return a value that depends on the layer, the epoch and the run."""
    return 0.01 * layer * row["epoch"] * (1 + sum(map(ord, run)) % 7)


@pytest.fixture
def probed_store(grid: Callable[..., Path]) -> Path:
    """A store whose runs measured the estimation shift; those of GN only the accuracies."""
    root = grid(norms=tuple(LAYERS), batches=(4, 16), seeds=3, epochs=4)
    for file in root.glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        norm = yaml.safe_load((file.parent / "config.yaml").read_text())["norm"]["name"]
        for row in rows[1::2]:
            prefix = "probe/estimation_shift"
            for at, kind in enumerate(("population", "recomputed", "mini_batch")):
                row[f"{prefix}/{kind}_acc"] = 0.1 * row["epoch"] + 0.01 * at
            for layer in LAYERS[norm]:
                value = shift(row, layer, file.parent.name)
                row |= {
                    f"{prefix}/norm{layer}/depth": layer,
                    f"{prefix}/norm{layer}/mean_shift": value,
                    f"{prefix}/norm{layer}/std_shift": value / 2,
                }
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_lines_show_the_last_epoch_over_depth(probed_store: Path) -> None:
    (study,) = studies(load(probed_store), ("norm", "batch"))
    (drawing,) = depth.draw(study)
    assert drawing.slug == "estimation-shift"
    axes = np.array(drawing.figure.axes).reshape(2, 2)
    assert [axis.get_title() for axis in axes[0]] == ["Batch size 4", "Batch size 16"]
    names = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert names == ["BN", "XBN"]
    assert "GN: no such statistics" in drawing.caption
    for column, batch in enumerate((4, 16)):
        lines = {len(line.get_xdata()): line for line in axes[0, column].lines}
        for norm in ("bn", "xbn"):
            runs = [f.name for f in probed_store.glob(f"digits-resnet8-{norm}-b{batch}-s*")]
            assert len(runs) == 3
            line = lines[len(LAYERS[norm])]
            assert list(line.get_xdata()) == list(LAYERS[norm])
            for layer, drawn in zip(LAYERS[norm], line.get_ydata(), strict=True):
                logs = np.log([shift({"epoch": 4}, layer, run) for run in runs])
                assert np.log(drawn) == pytest.approx(sample(logs).mean)
    assert axes[0, 0].get_yscale() == "log"
    assert len(drawing.points) == 2 * 2 * (3 + 2)


def test_table_has_the_three_accuracies_of_each_cell(probed_store: Path) -> None:
    (study,) = studies(load(probed_store), ("norm", "batch"))
    table = tables.estimation_shift(study)
    assert table is not None
    assert len(table.rows) == 6
    texts = [[entry.text for entry in row] for row in table.rows]
    assert texts[0] == [
        "BN", "4", "3", "40.00 ± 0.00", "41.00 ± 0.00", "42.00 ± 0.00", "–", "–", "–",
    ]  # fmt: skip
    assert {row[0] for row in texts} == {"BN", "GN", "XBN"}
    assert "epoch 4" in table.title
    assert set(table.data["value"]) >= {"population_acc", "recomputed_acc", "mini_batch_acc"}


def test_table_and_figure_are_part_of_a_report(probed_store: Path) -> None:
    request = content.request(None, "norm,batch", "test_acc", None, None)
    (section,), _ = content.sections(load(probed_store), request)
    assert "estimation-shift" in [table.slug for table in section.tables]
    assert "estimation-shift" in [drawing.slug for drawing in draw(section.grid)]


def test_no_figure_or_table_without_the_probe(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=1, epochs=2)
    (study,) = studies(load(root), ("norm", "batch"))
    assert depth.draw(study) == []
    assert tables.estimation_shift(study) is None


def test_nothing_is_cut_off(probed_store: Path) -> None:
    from normbench.report.figures import style

    (study,) = studies(load(probed_store), ("norm", "batch"))
    (drawing,) = depth.draw(study)
    drawing.settle()
    inside = style.styled(drawing.figure.get_tightbbox)()
    width, height = drawing.figure.get_size_inches()
    assert inside.x0 >= -0.02
    assert inside.y0 >= -0.02
    assert inside.x1 <= width + 0.02
    assert inside.y1 <= height + 0.02
