"""The mesh of tiles on a chip, and a message's way across it: first along x, then along y."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dsf.export.placement.chips import LOIHI_1, Chip, Figure
from dsf.shell.errors import UserError

Tile = tuple[int, int]
"""Column and row."""
MESH_FIGURES = ("tiles_x", "tiles_y", "cores_per_tile")


@dataclass(frozen=True, order=True)
class Link:
    """One direction of the wire between two neighbouring tiles of a chip."""

    chip: int
    source: Tile
    target: Tile

    @property
    def quantity(self) -> str:
        """What a message that crosses it counts as."""
        return "hops_east_west" if self.source[1] == self.target[1] else "hops_north_south"

    def __str__(self) -> str:
        (x, y), (to_x, to_y) = self.source, self.target
        return f"chip {self.chip}, tile ({x}, {y}) to ({to_x}, {to_y})"


def with_mesh(chip: Chip) -> Chip:
    """The same chip; where no mesh is published, with Loihi 1's as figures of grade "inferred".

    Raises:
        UserError: the mesh has fewer places than the chip has cores.
    """
    source = f"{LOIHI_1.title}'s mesh: none is published for {chip.title}"
    assumed: dict[str, Any] = {
        name: Figure(getattr(LOIHI_1, name).value, "inferred", source)
        for name in MESH_FIGURES
        if getattr(chip, name).value is None
    }
    chip = dataclasses.replace(chip, **assumed)
    if chip.cores.value is None or chip.cores.value > places(chip):
        raise UserError(
            f"chip '{chip.name}' has {chip.cores.value or 'an unknown number of'} cores and its mesh {places(chip)} "
            "places: give its cores, or tiles_x, tiles_y and cores_per_tile that hold them"
        )
    return chip


def places(chip: Chip) -> int:
    """Cores for which a chip's mesh has room."""
    columns, rows, per_tile = (getattr(chip, name).value for name in MESH_FIGURES)
    return int(columns * rows * per_tile)


def assumptions(chip: Chip) -> list[str]:
    """What a result that depends on the mesh has to say; empty where the mesh is published."""
    figures = [getattr(chip, name) for name in MESH_FIGURES]
    inferred = [figure for figure in figures if figure.grade == "inferred"]
    if not inferred:
        return []
    columns, rows, per_tile = (figure.value for figure in figures)
    return [f"hops, links and tiles assume {columns} x {rows} tiles of {per_tile} cores ({inferred[0].source})"]


def hops(source: Tile, target: Tile) -> tuple[int, int]:
    """Links along x (east-west) and along y (north-south) on the way between two tiles."""
    return abs(source[0] - target[0]), abs(source[1] - target[1])


def route(chip: int, source: Tile, target: Tile) -> Iterator[Link]:
    """The links of that way, in order."""
    here = source
    while here != target:
        axis = 0 if here[0] != target[0] else 1
        step = 1 if target[axis] > here[axis] else -1
        there = (here[0] + step, here[1]) if axis == 0 else (here[0], here[1] + step)
        yield Link(chip, here, there)
        here = there
