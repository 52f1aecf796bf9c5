"""Clips as members of a shard: a film strip in one PNG, or one mp4.

A film strip is a picture with the frames below each other, the first at the top: lossless, opened
by every viewer, and a picture to all that reads, indexes and checks shards. How many frames it has,
and how many are shown in a second, stands in the json of the sample. An mp4 is smaller: H.264
of the RGB values themselves loses nothing, with `crf` it is 4:4:4 in BT.709, converted and tagged
explicitly (PyAV otherwise writes BT.601 pixels without saying so). Masks are always strips.

A clip that nobody edited has the task `caption`: its instruction is the caption, its target the
frames, and there is no source. Whoever generates from texts reads text and target as of any edit.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import UInt8
from torch import Tensor

from datamodules.shards.writer import PairRecord, png_of
from emu_edit.errors import BadImageError, InputError
from emu_edit.images import decode_rgb
from emu_edit.pictures import MAX_PIXELS, MAX_SIDE

CLIP = "clip"  # entry of a sample's json
MOTION = "motion"  # and another: its score, see `emu_edit.video.motion`
MP4_MAGIC = b"ftyp"  # at byte 4 of an mp4
WORST_CRF = 51
BT709 = 1  # primaries, transfer and matrix alike, in ITU-T H.273

Frames = UInt8[np.ndarray, "f h w 3"]


@dataclass(frozen=True, kw_only=True)
class ClipRecord(PairRecord):
    """A clip on its way into a shard; pictures and mask are strips of its frames.

    Attributes:
        frames: how many there are.
        rate: frames a second.
        movie: write mp4s.
        crf: quality of the mp4s, 1 (best) to 51; None loses nothing.
        cuts: the first frame of each shot but the first.
    """

    frames: int
    rate: int
    movie: bool = False
    crf: int | None = None
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could not be read back."""
        super().__post_init__()
        if self.frames < 1 or len(self.source) % self.frames:
            raise InputError(
                f"{self.key}: a strip of {len(self.source)} rows does not have {self.frames} frames"
            )
        if self.rate < 1:
            raise InputError(f"{self.key}: rate={self.rate} frames a second must be at least 1")
        rows, width = self.source.shape[:2]
        is_picture = not self.movie or self.mask is not None
        if rows * width > MAX_PIXELS or (is_picture and rows > MAX_SIDE):
            height = rows // self.frames
            raise InputError(
                f"{self.key}: {self.frames} frames of {width}x{height} are more than a reader "
                f"takes, {MAX_PIXELS / 1e6:.0f} megapixels and, as a strip, {MAX_SIDE} rows; take "
                "fewer frames or smaller ones"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return len(self.source) // self.frames, self.source.shape[1]

    def views(self) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
        """Yield role and pixels of every frame."""
        for role, strip in self._roles().items():
            yield from ((role, frame) for frame in self._frames(strip))

    def pictures(self) -> dict[str, bytes]:
        """Return name ending and content of the strips or mp4s."""
        strips = self._roles()
        if not self.movie:
            return {f"{role}.png": png_of(strip) for role, strip in strips.items()}
        return {
            f"{role}.mp4": encode_mp4(self._frames(strip), self.rate, self.crf)
            for role, strip in strips.items()
        }

    def _frames(self, strip: UInt8[np.ndarray, "rows w 3"]) -> Frames:
        return strip.reshape(self.frames, -1, *strip.shape[1:])

    def text(self) -> dict[str, object]:
        """Return what the json says."""
        clip = {"frames": self.frames, "rate": self.rate, "cuts": list(self.cuts)}
        return {**super().text(), CLIP: clip}


@dataclass(frozen=True)
class ClipFacts:
    """What the json of a sample says of its clip."""

    frames: int
    rate: int
    cuts: tuple[int, ...]

    @staticmethod
    def of(text: dict[str, Any]) -> "ClipFacts | None":
        """Return the facts; None if there are none, or they cannot be."""
        clip = text.get(CLIP)
        if not isinstance(clip, dict):
            return None
        frames, rate, cuts = clip.get("frames"), clip.get("rate"), clip.get("cuts", [])
        if not isinstance(cuts, list) or not all(
            type(number) is int and number > 0 for number in (frames, rate, *cuts)
        ):
            return None
        return ClipFacts(frames, rate, tuple(cuts)) if frames and rate else None


def check_crf(crf: int | None) -> None:
    """Refuse a quality that is none.

    Raises:
        InputError: if it is not of 1 to 51.
    """
    if crf is not None and not 1 <= crf <= WORST_CRF:
        raise InputError(f"crf={crf} must be 1 (best) to {WORST_CRF}, or left out to lose nothing")


def encode_mp4(frames: Frames, rate: int, crf: int | None = None) -> bytes:
    """Return frames as an H.264 mp4; without `crf` every value survives.

    Raises:
        InputError: if the quality is none.
    """
    check_crf(crf)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        quality = {"qp": "0"} if crf is None else {"crf": str(crf)}
        # one thread: what x264 writes depends on their number
        options = {**quality, "preset": "veryfast", "threads": "1"}
        stream = container.add_stream(
            "libx264rgb" if crf is None else "libx264", rate=rate, options=options
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24" if crf is None else "yuv444p"
        if crf is not None:
            context = stream.codec_context
            context.color_primaries = context.color_trc = context.colorspace = BT709
            context.color_range = ColorRange.MPEG
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame if crf is None else _to_bt709(frame)))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_strip(data: bytes, where: str = "") -> UInt8[Tensor, "3 rows w"]:
    """Decode a picture, or a video as the strip of its frames.

    Raises:
        BadImageError: one line starting with `where`.
    """
    if not is_movie(data):
        return decode_rgb(data, where=where, is_strip=True)
    frames = torch.from_numpy(decode_mp4(data, where))
    return frames.flatten(0, 1).permute(2, 0, 1).contiguous()


def is_movie(data: bytes) -> bool:
    """Tell an mp4 from a picture, by its first bytes."""
    return data[4:8] == MP4_MAGIC


def decode_mp4(data: bytes, where: str = "") -> Frames:
    """Decode the frames of a video.

    Raises:
        BadImageError: one line starting with `where`, if it is no video, or has more pixels than
            a picture may have.
    """
    frames: list[np.ndarray] = []
    try:
        with av.open(io.BytesIO(data), "r") as container:
            if not container.streams.video:
                raise BadImageError(f"{where}: is a file without a video stream")
            for frame in container.decode(video=0):
                if frame.width * frame.height * (len(frames) + 1) > MAX_PIXELS:
                    raise BadImageError(
                        f"{where}: has more than {len(frames)} frames of {frame.width}x"
                        f"{frame.height}, allowed are {MAX_PIXELS} pixels in all"
                    )
                frames.append(_to_rgb(frame))
    except FFmpegError as error:
        raise BadImageError(f"{where}: cannot be decoded as video ({error})") from error
    if not frames:
        raise BadImageError(f"{where}: is a video without frames")
    return np.stack(frames)


def _to_bt709(frame: av.VideoFrame) -> av.VideoFrame:
    return frame.reformat(
        format="yuv444p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )


def _to_rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    if frame.format.is_rgb:
        return frame.to_ndarray(format="rgb24")
    matrix = Colorspace.ITU709 if frame.colorspace == BT709 else frame.colorspace
    return frame.reformat(format="rgb24", src_colorspace=matrix).to_ndarray()
