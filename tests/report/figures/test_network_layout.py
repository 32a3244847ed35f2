"""The layout of the layers in a network's drawing."""

from itertools import pairwise

import pytest

from normbench.config import compose
from normbench.network import build_model, layer_costs
from normbench.report.figures.network import Wire, arrange


def rows_of(*overrides, shape=(32, 32, 3)):
    return arrange(layer_costs(build_model(compose(overrides), shape, 10)))


def cells_by_name(row):
    return {cell.layer.name.rpartition("_")[2]: cell for cell in row.cells}


def test_each_row_is_a_block():
    rows = rows_of("arch=resnet8", "arch.width=8", "norm=bn")
    assert [row.title for row in rows] == [
        *("stem", "stage1 block1", "stage2 block1", "stage3 block1", "")
    ]
    assert [cell.layer.name for cell in rows[0].cells][:2] == ["images", "stem_conv"]
    assert [cell.layer.name for cell in rows[-1].cells] == ["pool", "logits"]
    assert not any(row.origins for row in rows)


def test_shortcut_has_its_own_lane():
    row = rows_of("arch=resnet8", "arch.width=8", "norm=bn")[2]
    cells = cells_by_name(row)
    assert [cells[name].column for name in ("conv1", "norm1", "relu1", "conv2", "norm2")] == [
        *range(5)
    ]
    assert (cells["conv0"].column, cells["conv0"].lane) == (0, 1)
    assert (cells["add"].column, cells["add"].lane) == (5, 0)
    at = {cell.layer.name.rpartition("_")[2]: index for index, cell in enumerate(row.cells)}
    assert Wire(None, at["conv0"], 1) in row.wires
    assert Wire(at["norm0"], at["add"], 1) in row.wires
    assert row.lanes == 2


def test_identity_shortcut_is_routed_around_the_block():
    row = rows_of("arch=resnet8", "arch.width=8", "norm=bn")[1]
    add = next(index for index, cell in enumerate(row.cells) if cell.layer.kind == "Add")
    assert Wire(None, add, 1) in row.wires
    assert row.lanes == 2


def test_identical_blocks_share_a_row():
    rows = rows_of("arch=resnet50", "arch.width=8", "norm=xbn")
    assert [(row.title, len(row.names)) for row in rows[:-1]] == [
        ("stem", 1),
        ("stage1 block1", 1),
        ("stage1 block2–3", 2),
        ("stage2 block1", 1),
        ("stage2 block2–4", 3),
        ("stage3 block1", 1),
        ("stage3 block2–6", 5),
        ("stage4 block1", 1),
        ("stage4 block2–3", 2),
    ]


def test_rows_name_an_input_that_is_not_the_row_above():
    options = ("arch.width=0.125", "arch.auxiliary_weight=0.3", "norm=bn")
    rows = {row.title: row for row in rows_of("arch=googlenet", *options)}
    assert rows["auxiliary1"].origins == ("inception4a",)
    assert rows["auxiliary2"].origins == ("inception4d",)
    assert not rows["inception4b"].origins
    assert rows["inception3a"].lanes == 4


@pytest.mark.parametrize(
    "overrides",
    [
        ("arch=resnet_v2", "arch.depth=20"),
        ("arch=mobilenet_v2", "arch.alpha=0.35"),
        ("arch=googlenet", "arch.width=0.125", "arch.auxiliary_weight=0.3"),
        ("arch=airbench", "arch.width=0.125"),
        ("arch=mlp_sigmoid",),
        ("arch=vgg11", "arch.width=8"),
        ("arch=conv_encoder", "arch.widths=[8,8]", "arch.halvings=1", "arch.embedding_kernel=2"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_layer_and_connection_is_drawn_without_overlap(overrides):
    norm = "bn" if "mlp" not in overrides[0] else "none"
    costs = layer_costs(build_model(compose([*overrides, f"norm={norm}"]), (32, 32, 3), 10))
    rows = arrange(costs)
    drawn = {cell.layer.name: cell.layer for row in rows for cell in row.cells}
    alike = sum(len(row.cells) * (max(len(row.names), 1) - 1) for row in rows)
    assert len(drawn) + alike == len(costs)
    for row in rows:
        spots = [(cell.column, cell.lane) for cell in row.cells]
        assert len(set(spots)) == len(spots)
        assert len(row.wires) == sum(len(cell.layer.inputs) for cell in row.cells)
        for wire in row.wires:
            goal = row.cells[wire.goal]
            start = -1 if wire.source is None else row.cells[wire.source].column
            assert start < goal.column
            over = [c for c in row.cells if c.lane == wire.lane and start < c.column < goal.column]
            assert not over, wire
        # Tensors in the same lane do not overlap.
        for lane in range(row.lanes):
            spans = sorted(
                (-1 if w.source is None else row.cells[w.source].column, row.cells[w.goal].column)
                for w in row.wires
                if w.lane == lane
            )
            assert all(first[1] <= second[0] for first, second in pairwise(spans)), row.title
