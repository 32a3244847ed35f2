"""Where each layer goes in a network's drawing: a row a block, a column a step, a lane a branch.

Knows nothing of the network but what :func:`normbench.archs.cost.layer_costs` says of its layers;
blocks are told by their layers' names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imports Keras
    from normbench.archs.cost import LayerCost

_BLOCK = re.compile(r"(.*?block\d+|[^_]+)(?:_|$)")


@dataclass(frozen=True)
class Cell:
    """A layer, its column and its lane within the row, both from 0."""

    layer: LayerCost
    column: int
    lane: int


@dataclass(frozen=True)
class Wire:
    """A tensor's way from a cell (None: from where the row begins) to another, mostly in ``lane``.

    ``source`` and ``goal`` are positions in the row's cells.
    """

    source: int | None
    goal: int
    lane: int


@dataclass(frozen=True)
class Row:
    """One block, or several in a row that are alike.

    Attributes:
        names: Of the blocks; empty for single layers that belong to no block.
        cells: Its layers.
        wires: What connects them.
        origins: Names of the rows that its input comes from, where not the row above.
    """

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    wires: tuple[Wire, ...]
    origins: tuple[str, ...]

    @property
    def lanes(self) -> int:
        """How many lanes it has."""
        return 1 + max(each.lane for each in (*self.cells, *self.wires))

    @property
    def title(self) -> str:
        """The blocks' names: ``stage1 block2–3``."""
        if not self.names:
            return ""
        first, last = (self.names[at].replace("_", " ") for at in (0, -1))
        if first == last:
            return first
        number = re.search(r"\d+$", last)
        return f"{first}–{number[0]}" if number else f"{first} – {last}"


def arrange(layers: Sequence[LayerCost]) -> list[Row]:
    """Arrange a network's layers, in the order of ``layer_costs``, in rows from top to bottom.

    Layers whose names begin alike, up to ``blockN`` or else the first underscore, are a block;
    blocks in a row that have the same structure share a row.
    """
    blocks = _blocks(layers)
    home = {layer.name: index for index, (_, own) in enumerate(blocks) for layer in own}
    rows: list[Row] = []
    for index, (name, own) in enumerate(blocks):
        names = {layer.name for layer in own}
        outside = {home[each] for layer in own for each in layer.inputs if each not in names}
        row = _row(own)
        row = Row(
            (name,) if name else (),
            row.cells,
            row.wires,
            tuple(blocks[each][0] or blocks[each][1][-1].name for each in sorted(outside))
            if outside - {index - 1}
            else (),
        )
        if rows and name and _alike(rows[-1], row):
            rows[-1] = Row((*rows[-1].names, name), row.cells, row.wires, row.origins)
        else:
            rows.append(row)
    return rows


def _blocks(layers: Sequence[LayerCost]) -> list[tuple[str, list[LayerCost]]]:
    """Part the layers into blocks, the images at the beginning of the first.

    Single layers are gathered under an empty name, or stand at the beginning of the next block if
    they have no weights.
    """

    def name_of(layer: LayerCost) -> str:
        found = _BLOCK.match(layer.name)
        return found[1] if found else layer.name

    blocks: list[tuple[str, list[LayerCost]]] = []
    single = [layer for layer in layers if not layer.inputs]
    for name, grouped in groupby((layer for layer in layers if layer.inputs), name_of):
        own = list(grouped)
        if len(own) == 1:
            single += own
        elif any(layer.parameters for layer in single):
            blocks += [("", single), (name, own)]
            single = []
        else:
            blocks.append((name, single + own))
            single = []
    return [*blocks, ("", single)] if single else blocks


def _row(layers: Sequence[LayerCost]) -> Row:
    cells: list[Cell] = []
    at: dict[str, int] = {}
    goes_on: set[str] = set()  # whose lane a later layer has taken over
    lanes = 0
    for layer in layers:
        inside = [each for each in layer.inputs if each in at]
        column = 1 + max((cells[at[each]].column for each in inside), default=-1)
        if inside and inside[0] not in goes_on:
            lane = cells[at[inside[0]]].lane
            goes_on.add(inside[0])
        else:
            lane, lanes = lanes, lanes + 1
        at[layer.name] = len(cells)
        cells.append(Cell(layer, column, lane))
    return Row((), tuple(cells), tuple(_wires(cells, at, lanes)), ())


def _wires(cells: Sequence[Cell], at: dict[str, int], lanes: int) -> list[Wire]:
    wires = []
    for goal, cell in enumerate(cells):
        for name in dict.fromkeys(each if each in at else None for each in cell.layer.inputs):
            source = None if name is None else at[name]
            column = -1 if source is None else cells[source].column
            lane = cell.lane if source is None else cells[source].lane
            if column + 1 < cell.column and not _free(cells, lane, column, cell.column):
                lane, lanes = lanes, lanes + 1
            elif column + 1 == cell.column and not _joins(cells, lane, cell):
                lane = cell.lane
            wires.append(Wire(source, goal, lane))
    return wires


def _free(cells: Sequence[Cell], lane: int, after: int, before: int) -> bool:
    """Whether nothing stands in a lane between two columns."""
    return not any(each.lane == lane and after < each.column < before for each in cells)


def _joins(cells: Sequence[Cell], lane: int, goal: Cell) -> bool:
    """Whether a branch in ``lane`` ends in ``goal``, which stands in another."""
    return lane > goal.lane


def _alike(row: Row, other: Row) -> bool:
    def form(each: Row) -> tuple[object, ...]:
        return tuple(
            (
                cell.layer.kind,
                cell.layer.about,
                cell.layer.place,
                cell.layer.parametrization,
                cell.layer.output_shape,
                cell.layer.parameters,
                cell.column,
                cell.lane,
            )
            for cell in each.cells
        )

    return form(row) == form(other) and row.wires == other.wires and not other.origins
