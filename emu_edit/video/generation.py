"""Videos made of videos by a generator: what comes after one, and what comes between its frames.

Frames are read, drawn and handed on as they come, at exact times: whatever the rate of the source,
new frames come at its average rate after it, or divide the time between two of its frames evenly.
Source: of what is drawn, Emu Video, Girdhar et al. 2023, arXiv:2311.10709, section 3.4.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.editing.animate import Animator, Drawing, extend
from emu_edit.editing.interpolate import check_factor, interpolate
from emu_edit.errors import InputError
from emu_edit.images import resize, with_shorter_side
from emu_edit.video.clip import Frame, Video, VideoInfo

Picture = UInt8[Tensor, "3 h w"]


@dataclass(frozen=True)
class Footage:
    """A video as it is read for a generator.

    Attributes:
        video: the source.
        size: first resized, shorter side in pixels; None leaves its frames.
    """

    video: Video
    size: int | None = None

    @property
    def info(self) -> VideoInfo:
        """What the video is, at the size that is drawn."""
        info = self.video.info
        if self.size is None:
            return info
        height, width = info.size
        return replace(info, size=with_shorter_side(self.size, height=height, width=width))

    def frames(self) -> Iterator[Frame]:
        """Yield its frames at that size."""
        size = self.info.size
        for frame in self.video.frames():
            yield replace(frame, pixels=resize(frame.pixels, size))


def extended(
    animator: Animator, footage: Footage, drawing: Drawing, new: int
) -> tuple[VideoInfo, Iterator[Frame]]:
    """Return a video that is the given one, frame by frame as it was, and goes on.

    Args:
        animator: the model, of `Given.past` or `Given.first`.
        footage: the video.
        drawing: what comes.
        new: how many frames.

    Raises:
        InputError: if the model takes no past, or the video is too short or far too large.
    """
    animator.check_extends(f"frames={new}")
    info, told = footage.info, len(animator.places)
    animator.video.check_size(*info.size)
    if info.frames < told:
        raise InputError(
            f"{info.path}: has {info.frames} frames, this model goes on from {told}; give a longer "
            "video"
        )
    step = 1 / (info.rate * info.time_base)
    end = info.times[0] + round(info.seconds / info.time_base)
    added = [end + round(number * step) for number in range(new + 1)]
    times = [*info.times, *added[:-1]]

    def frames() -> Iterator[Frame]:
        recent: deque[Picture] = deque(maxlen=told)
        for frame in footage.frames():
            recent.append(frame.pixels)
            yield frame
        pieces = extend(animator, torch.stack(list(recent)), drawing, new)
        yield from timed((pixels for piece in pieces for pixels in piece), added)

    return replace(info, times=times), frames()


def interpolated(
    animator: Animator,
    footage: Footage,
    drawing: Drawing,
    *,
    factor: int,
    redraw: bool = False,
    same_length: bool = False,
) -> tuple[VideoInfo, Iterator[Frame]]:
    """Return a video with so many times the frames a second, its own frames among them.

    n frames become N (n + 1) + 1: N begin before the first and N end after the last, and all is
    shown later by as much. With `same_length` these are left out and N - 1 follow the last, so that
    N n frames take the time that n took.

    Args:
        animator: the model, of `Given.interleaved`.
        footage: the video.
        drawing: what it shows; its caption may be "".
        factor: N.
        redraw: as of `interpolate`.
        same_length: whether it begins and ends with the source.

    Raises:
        InputError: if the model draws no frames between, or not so many, or the video has one frame
            or is far too large.
    """
    check_factor(animator, factor)
    info = footage.info
    animator.video.check_size(*info.size)
    if info.frames < 2:
        raise InputError(
            f"{info.path}: has {info.frames} frame, and frames between need 2; give a longer video"
        )
    times = _between(info, factor)
    first, count = (factor, factor * info.frames) if same_length else (0, len(times) - 1)
    earlier = 0 if same_length else times[0] - times[factor]
    shown = [time - earlier for time in times[first : first + count + 1]]

    def frames() -> Iterator[Frame]:
        own = (frame.pixels for frame in footage.frames())
        pieces = interpolate(animator, own, drawing, factor=factor, redraw=redraw)
        drawn = (pixels for piece in pieces for pixels in piece)
        yield from timed(islice(drawn, first, first + count), shown)

    unit, rate = info.time_base / factor, info.rate * factor
    return replace(info, times=shown[:-1], time_base=unit, rate=rate), frames()


def _between(info: VideoInfo, factor: int) -> list[int]:
    """Return when the frames of an interpolated video begin, and when the last one ends.

    In units of the source's by the factor, in which each gap between two frames divides evenly.
    """
    end = info.times[0] + round(info.seconds / info.time_base)
    known = [*info.times, max(end, info.times[-1] + 1)]
    gaps = [later - time for time, later in pairwise(known)]
    # the first gap comes before the first frame, too, and the last one after the last frame's end
    starts = [known[0] - gaps[0], *known]
    return [
        factor * start + part * gap
        for start, gap in zip(starts, [gaps[0], *gaps, gaps[-1]], strict=True)
        for part in range(factor)
    ][: factor * (info.frames + 1) + 2]


def timed(pictures: Iterator[Picture], times: list[int]) -> Iterator[Frame]:
    """Give each picture its time; the last of the times is when the last picture ends."""
    for pixels, time, after in zip(pictures, times, times[1:], strict=False):
        yield Frame(pixels, time, max(1, after - time))
