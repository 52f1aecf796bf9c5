"""From a video to clips: cut where scenes change, every n-th frame, smaller; one clip in memory.

A shot is cut into clips of so many frames, one behind the other; what is left of it at its end is
dropped, or kept if it is long enough. A rate is met by time, not by number: the frame that is shown
when one is due. So a variable frame rate comes out even, and none is taken twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.convert.pair import (
    RawItem,
    Reason,
    RefusedPairError,
    SkippedPair,
    key_of,
    same_size,
    texts_of,
)
from datamodules.shards.clips import MOTION, ClipRecord, check_crf
from emu_edit.errors import InputError
from emu_edit.images import resize, with_shorter_side
from emu_edit.video.cuts import CutDetector, GivenCuts
from emu_edit.video.io import Frame, Video, open_video
from emu_edit.video.motion import motion_score

EARLY = Fraction(1, 20)  # of a frame's time that it may come before it is due: containers round
_OF_CAPTIONS = {
    Reason.missing_instruction: Reason.missing_caption,
    Reason.empty_instruction: Reason.empty_caption,
    Reason.bad_instruction: Reason.bad_caption,
}


@dataclass(frozen=True)
class Cutting:
    """How videos become clips.

    Attributes:
        frames: of a clip, at most.
        least: frames that what is left of a shot needs; None takes whole clips only.
        rate: frames a second; None, or more than a video has, keeps all frames.
        size: pixels of the shorter side that a frame has at most; larger ones are made smaller.
        square: cut out the middle square.
        find_cuts: cut where scenes change; without, a video is one shot, whatever a list says.
        crf: quality of the mp4s, 1 (best) to 51; None loses nothing.
    """

    frames: int = 16
    least: int | None = None
    rate: int | None = None
    size: int = 256
    square: bool = False
    find_cuts: bool = True
    crf: int | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no clips."""
        if self.fewest > self.frames:
            raise InputError(
                f"least={self.least} frames of a clip are more than its frames={self.frames}"
            )
        for name in ("frames", "fewest", "size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} of a clip must be at least 1")
        if self.rate is not None and self.rate < 1:
            raise InputError(f"rate={self.rate} frames a second must be at least 1")
        check_crf(self.crf)

    @property
    def fewest(self) -> int:
        """The number of frames that a clip needs."""
        return self.frames if self.least is None else self.least

    def shrink(self, pixels: UInt8[Tensor, "3 _ _"]) -> UInt8[Tensor, "3 h w"]:
        """Return a frame in the size of the clips."""
        height, width = pixels.shape[-2:]
        if self.square:
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            pixels, height, width = pixels[:, top : top + side, left : left + side], side, side
        if min(height, width) <= self.size:
            return pixels
        return resize(pixels, with_shorter_side(self.size, height=height, width=width))


@dataclass
class _Piece:
    """Frames of one shot on their way to a clip, and which of the video they are."""

    first: int
    begins_shot: bool
    last: int = 0
    sources: list[UInt8[Tensor, "3 h w"]] = field(default_factory=list)
    targets: list[UInt8[Tensor, "3 h w"]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RawClip(RawItem):
    """A listed video: before and after an edit, or one with its caption as the instruction.

    Attributes:
        target: the video that the text asks for.
        source: the video before; None where nobody edited anything.
        cuts: the first frame of each shot but the first; None looks for them.
        cutting: how it becomes clips.
    """

    target: Path
    source: Path | None = None
    cuts: tuple[int, ...] | None = None
    cutting: Cutting

    def read(self, task: str, *, resize_above: float | None) -> Iterator[ClipRecord | SkippedPair]:
        """Yield the clips, and the shots that are too short for one."""
        texts = self._texts()
        target = _opened(self.target, Reason.missing_target)
        for piece in self._pieces(target, resize_above):
            place = f"{self.name}, frames {piece.first} to {piece.last}"
            found, needed = len(piece.targets), self.cutting.fewest
            if found >= needed:
                yield self._clip(piece, place, task, texts, target.info.rate)
            elif piece.begins_shot:
                detail = f"a shot of {found} frames, a clip needs {needed}"
                yield SkippedPair(place, Reason.too_short, detail)

    def _texts(self) -> tuple[str, str, str]:
        if self.source is not None:
            return texts_of(self)
        try:
            caption, _, _ = texts_of(self, what="caption")
        except RefusedPairError as error:
            reason = _OF_CAPTIONS.get(error.reason, error.reason)
            raise RefusedPairError(reason, str(error)) from error
        return caption, "", caption

    def _clip(
        self, piece: _Piece, place: str, task: str, texts: tuple[str, str, str], rate: Fraction
    ) -> ClipRecord | SkippedPair:
        target = _strip(piece.targets)
        frames = target.reshape(len(piece.targets), -1, *target.shape[1:])
        source = _strip(piece.sources) if piece.sources else target
        # one file named for both sides is a clip that is to be edited, for who takes such
        is_pair = source is not target and self.source != self.target
        if is_pair and np.array_equal(source, target):
            what = "source and target have the same pixels"
            return SkippedPair(place, Reason.identical_pair, what)
        own = max(1, round(rate))
        return ClipRecord(
            key=key_of(f"{self.identity} {piece.first}"),
            source=source,
            target=target,
            instruction=texts[0],
            task=task,
            source_caption=texts[1],
            target_caption=texts[2],
            extra={**self.extra, "origin": place, MOTION: round(motion_score(frames), 4)},
            frames=len(piece.targets),
            rate=own if self.cutting.rate is None else min(own, self.cutting.rate),
            movie=True,
            crf=self.cutting.crf,
        )

    def _pieces(self, target: Video, resize_above: float | None) -> Iterator[_Piece]:
        """Yield the pieces of all shots; one that ends a shot may be short."""
        cutting, unit = self.cutting, target.info.time_base
        begins_shot = self._cuts(target.info.frames)
        piece, start, moment = _Piece(0, begins_shot=True), 0, -1
        for number, (frame, before) in enumerate(self._frames(target, resize_above)):
            if begins_shot(number, before) and number > 0:
                yield piece
                piece, start, moment = _Piece(number, begins_shot=True), frame.time, -1
            start = frame.time if number == 0 else start
            now = number
            if cutting.rate is not None:
                now = floor((frame.time - start) * unit * cutting.rate + EARLY)
            if now == moment:
                continue
            moment = now
            if len(piece.targets) == cutting.frames:
                yield piece
                piece = _Piece(number, begins_shot=False)
            piece.last = number
            piece.targets.append(cutting.shrink(frame.pixels))
            if self.source is not None:
                piece.sources.append(cutting.shrink(before))
        yield piece

    def _cuts(self, frames: int) -> Callable[[int, UInt8[Tensor, "3 h w"]], bool]:
        """Return what tells whether a shot begins with the next frame."""
        cuts = self.cuts if self.cutting.find_cuts else ()
        if cuts is None:
            detector = CutDetector()
            return lambda _, pixels: detector.is_cut(pixels)
        try:
            starts = GivenCuts.of(cuts, frames).starts
        except InputError as error:
            raise RefusedPairError(Reason.bad_line, f"{self.name}: {error}") from error
        return lambda number, _: number in starts

    def _frames(
        self, target: Video, resize_above: float | None
    ) -> Iterator[tuple[Frame, UInt8[Tensor, "3 h w"]]]:
        """Yield every frame of the target with the source's pixels, its own without a source."""
        if self.source is None:
            yield from ((frame, frame.pixels) for frame in _decoded(target))
            return
        source = _opened(self.source, Reason.missing_source)
        lengths = source.info.frames, target.info.frames
        if lengths[0] != lengths[1]:
            detail = f"source and target have {lengths[0]} and {lengths[1]} frames"
            raise RefusedPairError(Reason.lengths_differ, detail)
        for before, after in zip(_decoded(source), _decoded(target), strict=False):
            pixels = same_size(after.pixels, before.pixels, resize_above)
            yield replace(after, pixels=pixels), before.pixels


def _opened(path: Path, missing: Reason) -> Video:
    if not path.exists():
        raise RefusedPairError(missing, f"{path}: no such file")
    try:
        return open_video(path)
    except InputError as error:
        raise RefusedPairError(Reason.unreadable_video, str(error)) from error


def _decoded(video: Video) -> Iterator[Frame]:
    try:
        yield from video.frames()
    except InputError as error:
        raise RefusedPairError(Reason.unreadable_video, str(error)) from error


def _strip(frames: list[UInt8[Tensor, "3 h w"]]) -> UInt8[np.ndarray, "rows w 3"]:
    """Return frames below each other."""
    return torch.cat(frames, dim=1).permute(1, 2, 0).contiguous().numpy()
