"""Where a video cuts from one scene to the next, found on frames as they come.

Whatever an editor remembers of earlier frames is wrong after a cut, so it is reset there. A cut
changes what is where and which colours there are at once; motion changes mostly the former, a flash
of light mostly the latter.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from emu_edit.errors import InputError

SIDE = 16  # frames are compared at 16 x 16
BINS = 16  # of a histogram, of luma and both differences of colour
LEAST = 0.22  # of the product of both changes, from 0 to 1, that a cut makes; ours, see the tests
TIMES = 3.0  # as large as usually lately, because a shaky shot changes all the time
MEMORY = 12  # frames that "lately" means


@dataclass
class CutDetector:
    """Tell for each frame whether a new scene begins with it; remembers a dozen numbers.

        place = 4 mean |a - b| over both frames at 16 x 16, levels from 0 to 1, at most 1
        colours = half the sum of |histogram a - histogram b| over luma and chroma, from 0 to 1
        change = sqrt(place * colours)

    A frame begins a scene if its change is at least `LEAST` and `TIMES` the median of the last
    ones. Source: two features as in PySceneDetect's detectors; combination and numbers are ours.
    """

    before: tuple[Tensor, Tensor] | None = None
    lately: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))

    def is_cut(self, pixels: UInt8[Tensor, "3 h w"]) -> bool:
        """Tell whether a scene begins with the next frame; the first one begins one, too."""
        small, before = _features(pixels), self.before
        self.before = small
        if before is None:
            return True
        place = min(1.0, 4 * (small[0] - before[0]).abs().mean().item())
        colours = (small[1] - before[1]).abs().sum().item() / 2
        change = (place * colours) ** 0.5
        usual = median(self.lately) if self.lately else 0.0
        if change >= LEAST and change >= TIMES * usual:
            self.lately.clear()
            return True
        self.lately.append(change)
        return False


@dataclass(frozen=True)
class GivenCuts:
    """Scenes begin at the frames that somebody names, counted from 0.

    Raises:
        InputError: if one is not of the video, or they do not rise.
    """

    starts: frozenset[int]

    @staticmethod
    def of(starts: Sequence[int], frames: int) -> "GivenCuts":
        """Check a list against a video of so many frames."""
        for start in starts:
            if not 0 <= start < frames:
                raise InputError(
                    f"a cut at frame {start}: the video has the frames 0 to {frames - 1}"
                )
        if list(starts) != sorted(set(starts)):
            raise InputError(f"cuts have to rise, got {', '.join(map(str, starts))}")
        return GivenCuts(frozenset(starts))


def scene_starts(
    frames: Iterator[UInt8[Tensor, "3 h w"]], given: GivenCuts | None, first: int = 0
) -> Iterator[tuple[UInt8[Tensor, "3 h w"], bool]]:
    """Pair every frame with whether a scene begins there; `given` None detects cuts.

    `first` is the number of the first frame, with which a scene begins in any case.
    """
    detector = CutDetector()
    for number, pixels in enumerate(frames, first):
        starts = detector.is_cut(pixels) if given is None else number in given.starts
        yield pixels, starts or number == first


def _features(pixels: UInt8[Tensor, "3 h w"]) -> tuple[Float[Tensor, "3 s s"], Float[Tensor, " n"]]:
    # at most 128 pixels a side are looked at: enough for histograms, and quick at any size
    step = max(1, min(pixels.shape[-2:]) // 128)
    levels = pixels[:, ::step, ::step].float() / 255
    small = functional.adaptive_avg_pool2d(levels, SIDE)
    red, green, blue = levels
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    parts = (luma, (blue - luma) / 1.772 + 0.5, (red - luma) / 1.402 + 0.5)  # ITU-R BT.601
    histograms = [torch.histc(part, BINS, 0.0, 1.0) / part.numel() for part in parts]
    return small, torch.cat(histograms) / len(parts)
