"""What the figures of some frames do, told from readings alone: who is who, who moved where.

A figure is found again by its name, or else by its place, so that one that changes what it is stays
one figure whose identity is not kept. Ways are those in the world as far as the background
shows the camera: in front of a plain colour, what a pan does is told of the figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan2, hypot, pi

import numpy as np

from datamodules.world.clips.motion import DIRECTIONS
from datamodules.world.find import overlap
from datamodules.world.read import ReadFigure, Reading

MOVES = 0.08  # of the world's side; the shortest way of the world is 0.12
SAME_PLACE = 0.3  # intersection over union of the boxes of a figure in neighbouring frames


@dataclass(frozen=True)
class Track:
    """A figure over some frames.

    Attributes:
        names: its full name in each frame; None where it was not read.
        dx: its way to the right from the first frame it was read in to the last, in fractions of
            the world's side, from the line that fits its places best.
        dy: its way down.
    """

    names: tuple[str | None, ...]
    dx: float
    dy: float

    @property
    def name(self) -> str:
        """What it is in most frames; of equals the first."""
        read = [name for name in self.names if name is not None]
        return max(read, key=read.count)

    @property
    def is_kept(self) -> bool:
        """Whether it was read in all frames, always as the same."""
        return len(set(self.names)) == 1

    @property
    def way(self) -> float:
        """How far it went, in fractions of the world's side."""
        return hypot(self.dx, self.dy)

    @property
    def direction(self) -> str | None:
        """The nearest of the world's eight directions, e.g. "up to the left"; None if it stays."""
        if self.way < MOVES:
            return None
        eighth = round(atan2(self.dy, self.dx) / (pi / 4)) % 8
        x, y = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))[eighth]
        return next(words for words, step in DIRECTIONS.items() if step == (x, y))


def track(readings: Sequence[Reading]) -> tuple[Track, ...]:
    """Return what each figure of some frames does; the frames are of one shot, evenly apart."""
    found: list[dict[int, ReadFigure]] = []
    for number, reading in enumerate(readings):
        left = list(reading.figures)
        for by_name in (True, False):
            for one in found:
                again = None if number in one else _again(one, left, by_name=by_name)
                if again is not None:
                    left.remove(again)
                    one[number] = again
        found += [{number: read} for read in left]
    return tuple(_track(one, readings) for one in found)


def _again(
    one: dict[int, ReadFigure], left: list[ReadFigure], *, by_name: bool
) -> ReadFigure | None:
    """Return what a figure of earlier frames is now: one of a name it had, or where it was last."""
    if by_name:
        names = {read.figure.full_name for read in one.values()}
        return next((read for read in left if read.figure.full_name in names), None)
    box = one[max(one)].box
    near = [read for read in left if overlap(read.box, box) >= SAME_PLACE]
    return max(near, key=lambda read: overlap(read.box, box), default=None)


def _track(one: dict[int, ReadFigure], readings: Sequence[Reading]) -> Track:
    names = tuple(
        one[number].figure.full_name if number in one else None for number in range(len(readings))
    )
    places = np.array([_in_world(one[number], readings[number]) for number in sorted(one)])
    at = np.array(sorted(one), dtype=float)
    if len(at) < 2:
        return Track(names, 0.0, 0.0)
    slope = np.polyfit(at, places, 1)[0]
    dx, dy = (slope * (at[-1] - at[0])).tolist()
    return Track(names, dx, dy)


def _in_world(read: ReadFigure, reading: Reading) -> tuple[float, float]:
    view, figure = reading.view, read.figure
    return view.left + view.side * figure.x, view.top + view.side * figure.y
