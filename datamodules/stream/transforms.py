"""What is drawn for a pair between shard and batch: crop and flip, no-ops, wordings, substitutes.

A square, or a rectangle of the pair's bucket, is cut and resampled to the training size; a smaller
picture is enlarged. It is as large as fits, so one side is seen whole; along the other it lies in
the middle, or, in training, anywhere. Source, target and mask are cut at the same place, and what
has the training size already is not resampled. A pair that cannot be used gives its position of the
stream to another sample of the same lane, so mixture, batch size, ranks and resume stay what they
are. Draws are keyed by (seed, position), so neither worker nor restart changes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn import functional

from datamodules.shards.shapes import EIGHTHS, SQUARE, sides_of
from datamodules.stream.order import Position
from emu_edit.errors import InputError
from emu_edit.images import resize
from emu_edit.randomness import keyed_generator

SMALLEST = 8  # pixels; one latent pixel of an 8x codec


@dataclass(frozen=True)
class Crop:
    """Cut the largest square, or rectangle of a bucket, out of a pair and resample it.

    Args:
        image_size: side of the square; others have about as many pixels.
        seed: keys the place of what is cut; None cuts in the middle.
        flip: mirror half of the pairs, left to right. Instructions that say "left" or "right", and
            written words, then contradict their pictures.
        buckets: the bucket of pictures from shards of each shape, empty until the shards are known;
            None makes squares of all.
    """

    image_size: int
    seed: int | None = None
    flip: bool = False
    buckets: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        """Refuse sizes no network can use."""
        if self.image_size < SMALLEST:
            raise InputError(f"data.image_size={self.image_size} must be at least {SMALLEST}")
        if self.image_size % self.parts:
            raise InputError(
                f"data.image_size={self.image_size} is no multiple of {self.parts}; the sides of "
                "data.buckets are eighths of it"
            )

    @property
    def parts(self) -> int:
        """In so many equal parts `image_size` is divided for the sides of the results."""
        return 1 if self.buckets is None else EIGHTHS

    def __call__(
        self,
        source: UInt8[Tensor, "3 H W"],
        target: UInt8[Tensor, "3 H W"],
        mask: Bool[Tensor, "H W"] | None,
        position: int,
        shape: str = "",
    ) -> tuple[UInt8[Tensor, "3 h w"], UInt8[Tensor, "3 h w"], Bool[Tensor, "h w"] | None]:
        """Return source, target and mask of the training size; `shape` is that of their shard."""
        size = sides_of((self.buckets or {}).get(shape, SQUARE), self.image_size)
        if tuple(source.shape[-2:]) == size and not self.flip:
            return source, target, mask  # nothing to draw for
        place, coin = 0.5, 1.0
        if self.seed is not None:
            place, coin = keyed_generator(self.seed, "crop", position).random(2).tolist()
        is_flipped = self.flip and coin < 0.5
        return self.at(source, target, mask, size=size, place=place, is_flipped=is_flipped)

    def at(
        self,
        source: UInt8[Tensor, "3 H W"],
        target: UInt8[Tensor, "3 H W"],
        mask: Bool[Tensor, "H W"] | None,
        *,
        size: tuple[int, int] | None = None,
        place: float,
        is_flipped: bool = False,
    ) -> tuple[UInt8[Tensor, "3 h w"], UInt8[Tensor, "3 h w"], Bool[Tensor, "h w"] | None]:
        """Return what is cut at a place along the side that is too long: 0 beginning, 1 end.

        `size` is the height and width of the result, by default the square's.
        """
        size = (self.image_size, self.image_size) if size is None else size
        height, width = source.shape[-2:]
        rows, columns = _largest(height, width, size)
        # a place of 1 would lie one pixel outside
        top = min(int(place * (height - rows + 1)), height - rows)
        left = min(int(place * (width - columns + 1)), width - columns)

        def cut(picture: Tensor) -> Tensor:
            part = picture[..., top : top + rows, left : left + columns]
            return part.flip(-1) if is_flipped else part

        pair = resize(torch.stack([cut(source), cut(target)]), size)
        return pair[0], pair[1], None if mask is None else _resize_mask(cut(mask), size)


@dataclass(frozen=True)
class Noops:
    """Show some pairs as already edited: the target is source, too, and nothing is left to do.

    Pairs of a data set always change something, so a model trained on nothing else also "removes
    the hat" of somebody who wears none, and in a long session damages what it should leave alone.
    For tasks of which a second edit changes nothing: not for "make it bigger" or "brighter".
    Source: ours; measured in benchmarks/README.md.

    Args:
        rates: for each task, the share of its pairs, 0 to 1; tasks left out have none.
        seed: keys the choice.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for task, rate in self.rates.items():
            if not 0 <= rate <= 1:
                raise InputError(f"data.noops.{task}={rate} must be a share from 0 to 1")

    def __call__(self, task: str, position: int) -> bool:
        """Return whether the pair of a task at a position is shown as already edited."""
        rate = self.rates.get(task, 0.0)
        return rate > 0 and keyed_generator(self.seed, "noop", position).random() < rate


@dataclass(frozen=True)
class Wordings:
    """Draw one of the wordings of an instruction, all equally likely, anew each time it is read.

    A data set that says an edit in several ways (`instruction_alt`) teaches a model that they mean
    the same; the first alone would leave the others unread.
    """

    seed: int = 0

    def __call__(self, count: int, position: int) -> int:
        """Return which of `count` wordings is read at a position; 0 is the instruction."""
        return int(keyed_generator(self.seed, "wording", position).integers(count))


def _largest(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the largest part of a picture that has the shape of `size`.

    Whole pixels: what is too long loses up to half a pixel more or less than the shape says.
    """
    rows, columns = size
    if width * rows > height * columns:
        return height, max(1, (2 * height * columns + rows) // (2 * rows))
    return max(1, (2 * width * rows + columns) // (2 * columns)), width


def _resize_mask(mask: Bool[Tensor, "H W"], size: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """Resample so that a pixel is True if any part of it may change: what is kept stays kept."""
    if tuple(mask.shape) == size:
        return mask
    return functional.adaptive_max_pool2d(mask[None].float(), size)[0] > 0


MAX_ATTEMPTS = 8
# the first come from the shard that is open already: on a remote store any other is a download
ATTEMPTS_NEARBY = 4


@dataclass(frozen=True)
class Substitutes:
    """Draw the place of a substitute; another seed, other substitutes."""

    seed: int

    def __call__(
        self, where: Position, sizes: Sequence[int], *, position: int, attempt: int
    ) -> Position:
        """Return where to read in place of `where`, which is bad.

        Attempts 1 to `ATTEMPTS_NEARBY` draw another sample of the shard of `where`, if it has one;
        later ones, up to `MAX_ATTEMPTS`, a sample of any shard of the task.

        Args:
            where: the place that `position` of the stream stands for.
            sizes: samples of each shard of its task.
            position: place in the stream.
            attempt: 1 for the first substitute of this position.
        """
        generator = keyed_generator(self.seed, f"substitute/{attempt}", position)
        # raw words: numpy promises nothing about its bounded integers between versions
        draw = int(generator.bit_generator.random_raw())
        in_shard = sizes[where.shard]
        if attempt <= ATTEMPTS_NEARBY and in_shard > 1:
            return where._replace(sample=(where.sample + 1 + draw % (in_shard - 1)) % in_shard)
        ends = np.cumsum(sizes)
        place = draw % int(ends[-1])
        shard = int(np.searchsorted(ends, place, side="right"))
        first = int(ends[shard]) - sizes[shard]
        return where._replace(shard=shard, sample=place - first)
