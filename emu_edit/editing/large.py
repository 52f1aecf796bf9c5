"""How a picture larger than the model's training pictures is edited.

A network of one size does not know what things look like at another: at twice its size it does
little of what it is asked (docs/editing.md has the numbers). So a larger picture is edited as a
small copy, whose change is put on the picture itself (`upsampling.py`); tiles at the picture's own
size, or the whole of it at once, are there for models that know detail and for whoever asks.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.editing.task_mix import TaskChoice
from emu_edit.editing.upsampling import with_change
from emu_edit.errors import InputError, closest
from emu_edit.images import is_photograph, resize, with_shorter_side

# Ours: at 1.25 times the training pictures' side the released model does most of what it does at
# theirs, at 1.5 times half of it
TIMES = 1.25
# What a line of a photograph's sketch looks like depends on what is beside it: in tiles come lines,
# from a small copy smears (docs/editing.md). Above so many times the model's side the lines would
# be too fine to see, and tiles many.
DRAWN_LOCALLY = frozenset({"sketch"})
MOST_TILED = 16
LEAST_CELLS = 2  # of a tile: fewer cannot overlap


class Way(Enum):
    """whole: as it is; guided: as a small copy, then enlarged; tiles: in overlapping parts."""

    whole = "whole"
    guided = "guided"
    tiles = "tiles"


@dataclass(frozen=True)
class Large:
    """A way to edit a large picture.

    Attributes:
        way: which.
        size: pixels of the copy's shorter side, or of a tile's; None for the model's own, and for
            `whole`.
    """

    way: Way = Way.whole
    size: int | None = None

    def __post_init__(self) -> None:
        """Refuse a size of nothing, and one for `whole`."""
        if self.size is not None and (self.size < 1 or self.way is Way.whole):
            raise InputError(
                f"large {self}: a size of at least 1 goes with guided and tiles, e.g. guided:128"
            )

    def __str__(self) -> str:
        return self.way.name if self.size is None else f"{self.way.name}:{self.size}"

    def settled(self, size: Sequence[int], trained: int) -> "Large":
        """Fill in the size; `whole` for a picture (height, width) that is no larger than it."""
        own = trained if self.size is None else self.size
        reached = min(size) if self.way is Way.guided else max(size)
        return Large() if self.way is Way.whole or reached <= own else Large(self.way, own)

    def shrunk(self, images: UInt8[Tensor, "b 3 H W"]) -> UInt8[Tensor, "b 3 h w"]:
        """Make what is edited of pictures: copies for `guided`, else the pictures themselves."""
        return resize(images, self.edited_size(images.shape[-2:]))

    def edited_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Say (height, width) of what `shrunk` makes."""
        height, width = size
        if self.way is not Way.guided or self.size is None:
            return height, width
        return with_shorter_side(self.size, height=height, width=width)

    def enlarged(
        self,
        images: UInt8[Tensor, "b 3 H W"],
        small: UInt8[Tensor, "b 3 h w"],
        edited: UInt8[Tensor, "b 3 h w"],
    ) -> UInt8[Tensor, "b 3 H W"]:
        """Make the results from the edits of `shrunk`."""
        if self.way is not Way.guided:
            return edited
        rows = zip(images.cpu(), small, edited, strict=True)
        return torch.stack([with_change(*row) for row in rows])

    def tile(self, multiple: int) -> int | None:
        """Say the side of a tile in cells of so many pixels; None where there are no tiles."""
        if self.way is not Way.tiles or self.size is None:
            return None
        return max(self.size // multiple, LEAST_CELLS)

    def describe(self, size: Sequence[int]) -> str:
        """Say in words how a picture of (height, width) is edited; "" for the usual way."""
        height, width = size
        match self.way:
            case Way.whole:
                return ""
            case Way.guided:
                small = "{1}x{0}".format(*self.edited_size(size))
                return f"edited as a copy of {small}, the change put on its {width}x{height} pixels"
            case Way.tiles:
                return f"edited in tiles of {self.size} pixels"


WHOLE = Large()


def way_for(
    large: Large | None, size: Sequence[int], trained: int, *, is_local: bool = False
) -> Large:
    """Decide how a picture of (height, width) is edited; None chooses.

    Args:
        large: the way that is asked for.
        size: of the picture.
        trained: side of the model's training pictures.
        is_local: whether the answer at a place depends on its surroundings alone.
    """
    if large is None and min(size) <= TIMES * trained:
        large = WHOLE
    elif large is None:
        is_tiled = is_local and max(size) <= MOST_TILED * trained
        large = Large(Way.tiles if is_tiled else Way.guided)
    return large.settled(size, trained)


def is_drawn_locally(images: UInt8[Tensor, "b 3 h w"], tasks: Collection[TaskChoice]) -> bool:
    """Whether all pictures are photographs, and all that is asked is drawn place by place."""
    return DRAWN_LOCALLY.issuperset(map(str, tasks)) and all(map(is_photograph, images))


def parse_large(text: str) -> Large:
    """Read `whole`, `guided` or `tiles`, the last two also with a size: `tiles:128`.

    Raises:
        InputError: for another word, or a size that is no whole number of at least 1.
    """
    name, colon, size = text.partition(":")
    names = [way.name for way in Way]
    if name not in names:
        raise InputError(
            f"unknown way {name!r} of editing a large picture; known: {', '.join(names)}."
            f"{closest(name, names)}"
        )
    if colon and not (size.isascii() and size.isdecimal() and len(size) < 7):
        raise InputError(f"large {text!r}: {size!r} is no number of pixels; write e.g. {name}:128")
    return Large(Way[name], int(size) if colon else None)
