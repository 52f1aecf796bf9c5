"""What a video is to the rest of this room: frames with times, and a stretch of such frames.

A stretch keeps the numbers that its frames have in the whole video, on which their noise and the
names of cuts depend; it is shown from the moment at which the whole video begins.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.video.colour import Colour


@dataclass(frozen=True)
class Frame:
    """A picture and when it is shown, in units of its video's time base.

    Attributes:
        pixels: upright RGB.
        time: when it appears, counted as its file counts.
        duration: how long it is shown; at least 1.
    """

    pixels: UInt8[Tensor, "3 h w"]
    time: int
    duration: int


@dataclass(frozen=True)
class Span:
    """The part of a file's time that is taken, in its own seconds.

    Attributes:
        begin: what comes before is left out; None leaves nothing out.
        end: what begins then or later is left out; None leaves nothing out.
        earlier: by so many seconds everything is moved.
    """

    begin: Fraction | None
    end: Fraction | None
    earlier: Fraction


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, known before its first frame is edited.

    Attributes:
        path: the file or folder.
        size: height and width of its frames, upright.
        time_base: seconds in a unit of time.
        times: when its frames appear, in units.
        rate: frames a second on average.
        colour: of its frames; None where they are pictures.
        aspect: of a pixel, width to height, upright.
        notes: what is done to its frames besides decoding, a few words each.
        has_others: whether it has sound or subtitles.
        starts_before_zero: whether anything in it has a negative time, as the run-in of AAC has.
        first: number of its first frame in the file, 0 unless it is a stretch.
        span: the stretch of the file that it is; None for all.
    """

    path: Path
    size: tuple[int, int]
    time_base: Fraction
    times: Sequence[int] = field(repr=False)
    rate: Fraction
    colour: Colour | None = None
    aspect: Fraction = Fraction(1)
    notes: tuple[str, ...] = ()
    has_others: bool = False
    starts_before_zero: bool = False
    first: int = 0
    span: Span | None = None

    @property
    def frames(self) -> int:
        """How many it has."""
        return len(self.times)

    @property
    def seconds(self) -> Fraction:
        """How long it lasts."""
        return self.frames / self.rate


@runtime_checkable
class Video(Protocol):
    """A video that is known and can be read, as often as one likes."""

    info: VideoInfo

    def frames(self, first: int = 0) -> Iterator[Frame]:
        """Yield every frame from one on; those before are decoded at most."""
        ...


class Stretch:
    """The frames of a video with start <= time < end, in seconds from its first frame.

    Frames are decoded from the beginning and not sought for: what a decoder gives after a jump is
    not the same in every file.
    """

    def __init__(self, video: Video, start: Fraction | None, end: Fraction | None) -> None:
        """Find the frames; None is the beginning, or the end.

        Raises:
            InputError: if the times are not of the video, or no frame is between them.
        """
        whole = video.info
        _check_times(whole, start, end)
        unit, zero = whole.time_base, whole.times[0]
        a = 0 if start is None else bisect_left(whole.times, zero + start / unit)
        b = whole.frames if end is None else bisect_left(whole.times, zero + end / unit)
        if a >= b:
            raise InputError(
                f"{whole.path}: no frame begins from {said(start or Fraction(0))} to "
                f"{said(whole.seconds if end is None else end)}; give a longer stretch"
            )
        self.video = video
        self._earlier = whole.times[a] - zero
        span = Span(
            whole.times[a] * unit if a else None,
            whole.times[b] * unit if b < whole.frames else None,
            self._earlier * unit,
        )
        last = zero * unit + whole.seconds if span.end is None else span.end
        self.info = replace(
            whole,
            times=[time - self._earlier for time in whole.times[a:b]],
            rate=(b - a) / (last - whole.times[a] * unit),
            starts_before_zero=whole.starts_before_zero and (a == 0 or zero < 0),
            first=whole.first + a,
            span=span,
        )

    def frames(self, first: int = 0) -> Iterator[Frame]:
        """Yield every frame, at the time at which the stretch shows it."""
        a = self.info.first - self.video.info.first
        for frame in islice(self.video.frames(a + first), self.info.frames - first):
            yield replace(frame, time=frame.time - self._earlier)


def said(seconds: Fraction) -> str:
    """Say a time so that it can be given again: never later than it is, "1:02:03.5" or "7.25 s"."""
    thousandths = int(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    words = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    if not minutes:
        return f"{words} s"
    words = words if rest >= 10_000 else f"0{words}"
    return f"{minutes // 60}:{minutes % 60:02d}:{words}"


def _check_times(whole: VideoInfo, start: Fraction | None, end: Fraction | None) -> None:
    if start is not None and end is not None and start >= end:
        raise InputError(f"the start, {said(start)}, has to come before the end, {said(end)}")
    for name, time in (("start", start), ("end", end)):
        if time is not None and time > whole.seconds:
            raise InputError(
                f"{whole.path}: lasts {said(whole.seconds)}, the {name} asked for is at "
                f"{said(time)}; give an earlier one, or none"
            )
