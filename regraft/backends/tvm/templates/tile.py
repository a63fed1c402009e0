"""The tile that a product is computed by."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.backends.tvm.space import Config


@dataclass(frozen=True)
class Tile:
    """A config of this template, by name.

    Fields:
        lanes: f32 numbers in a vector.
        rows, width: of the tile of sums; width is a multiple of the lanes.
        depth: how much of k is summed before the next tile: a divisor of k.
        splits: into how many shares the rows are cut, for more tasks than there are blocks of columns.
    """

    lanes: int
    rows: int
    width: int
    depth: int
    splits: int

    @staticmethod
    def of(config: Config) -> Tile:
        return Tile(**dict(config.values))

    @property
    def vectors(self) -> int:
        return self.width // self.lanes
