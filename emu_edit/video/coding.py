"""How pictures are encoded: kinds of files, their codecs, and what an encoder takes.

All that can be refused is refused here, before a frame is edited: an encoder is opened for the size
that it will be given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
from av.codec import Codec, CodecContext
from av.error import FFmpegError

from emu_edit.errors import InputError, closest
from emu_edit.video.clip import VideoInfo
from emu_edit.video.colour import BT709, Colour, assumed_matrix

LOSSLESS = ("ffv1", "bgr0")  # of parts that become pictures or a palette in the end
PART = "nut"  # a container that keeps any time base exactly, and most codecs
PICTURES_COLOUR = Colour(BT709, BT709, BT709, is_full=False)
JPEG_MATRIX = 5  # BT.601, always full range; JFIF 1.02


@dataclass(frozen=True)
class Container:
    """A kind of file, known by its extension.

    Attributes:
        name: FFmpeg's name of it.
        codec: what pictures are encoded with unless told otherwise; None for a palette.
        reorders: whether frames may be stored in another order than shown.
    """

    name: str
    codec: str
    reorders: bool = True


CONTAINERS = {
    ".mp4": Container("mp4", "libx264"),
    ".m4v": Container("mp4", "libx264"),
    ".mov": Container("mov", "libx264"),
    ".mkv": Container("matroska", "libx264"),
    ".webm": Container("webm", "libvpx-vp9"),
    ".avi": Container("avi", "libx264", reorders=False),
    ".gif": Container("gif", "gif"),
    ".apng": Container("apng", "apng"),
    ".png": Container("apng", "apng"),
    ".webp": Container("webp", "libwebp_anim"),
}
FINEST = Fraction(1, 240)  # second that AVI, which stores a gap as empty frames, may count in
ANIMATIONS = {"gif", "apng", "webp"}  # without sound; encoded when the parts are joined
# quality on each encoder's own scale at which a viewer sees no loss at normal size
USUAL_CRF = {"libx264": 18, "libx265": 20, "libvpx-vp9": 24, "libsvtav1": 24}
USUAL_QUANTISER = {"mpeg4": 2, "mjpeg": 2}  # in place of a CRF, 1 to 31
HAVE_CRF = {*USUAL_CRF, *USUAL_QUANTISER, "libx264rgb", "libvpx", "libaom-av1"}
# sides up to which x265 4.2 gets no vector code, which writes beyond 36 to 48 columns of less than
# 32 rows; above, frames of all smaller sizes were tried
SMALL_H265 = 64

FAST = ("ultrafast", "superfast", "veryfast", "faster", "fast")
PRESETS = (*FAST, "medium", "slow", "slower", "veryslow", "placebo")
PRESETS_OF = {"libx264", "libx264rgb", "libx265"}


@dataclass(frozen=True)
class Coding:
    """How pictures are encoded; what is None is the container's usual.

    Attributes:
        codec: FFmpeg's name of an encoder, e.g. libx264, libx265, ffv1.
        crf: quality on the encoder's scale; lower is better and larger.
        preset: how long the encoder may search, e.g. medium.
        pixel_format: e.g. yuv420p; odd sizes take yuv444p where 4:2:0 cannot hold them. One that is
            named is kept, and the frames are padded, see `fitted`.
    """

    codec: str | None = None
    crf: int | None = None
    preset: str | None = None
    pixel_format: str | None = None

    def settled(self, output: Path, size: Sequence[int]) -> "Coding":
        """Fill in what is left open, for a file and (height, width).

        Raises:
            InputError: for an unknown extension, codec, preset or pixel format, a codec that the
                container does not hold, or what the encoder refuses.
        """
        container = container_of(output)
        if container is None or container.name in ANIMATIONS:
            if self != Coding():
                raise InputError(
                    f"{output}: pictures and animations have no codec to choose; leave --codec, "
                    "--crf, --preset and --pixel-format out, or write .mp4"
                )
            return Coding(*LOSSLESS[:1], pixel_format=LOSSLESS[1])
        codec = self.codec or container.codec
        if codec in PRESETS_OF and self.preset not in {None, *PRESETS}:
            raise InputError(
                f"{codec} has no preset {self.preset!r}; it has {', '.join(PRESETS)}."
                f"{closest(self.preset or '', list(PRESETS))}"
            )
        formats = _formats_of(codec)
        is_odd = bool(size[0] % 2 or size[1] % 2)
        roomy = "yuv444p" if "yuv444p" in formats and codec != "libvpx-vp9" else formats[0]
        usual = "yuv420p" if "yuv420p" in formats else formats[0]
        wanted = self.pixel_format or (roomy if is_odd and codec != "libvpx-vp9" else usual)
        if wanted not in formats:
            raise InputError(
                f"{codec} has no pixel format {wanted!r}; it has {', '.join(formats[:12])}."
                f"{closest(wanted, formats)}"
            )
        _check_container(output, container, codec)
        if self.crf is not None and codec not in HAVE_CRF:
            raise InputError(f"{codec} has no quality to choose; leave --crf out")
        crf = (USUAL_CRF | USUAL_QUANTISER).get(codec) if self.crf is None else self.crf
        settled = Coding(codec, crf, self.preset, wanted)
        settled.fitted(size)
        return settled

    def fitted(self, size: Sequence[int]) -> tuple[int, int]:
        """Return (height, width) of what is encoded: `size`, or even where chroma is coarser.

        H.264 and H.265 can neither store an odd size in 4:2:0 nor say that a column is to be cut
        off again, so that the last row and column are repeated instead.

        Raises:
            InputError: if the settled encoder refuses its options, or both sizes.
        """
        height, width = size
        problem = self._problem((height, width))
        if problem is None:
            return height, width
        chroma = av.VideoFormat(self.pixel_format or "", 2, 2)
        rows, columns = 2 // chroma.chroma_height(2), 2 // chroma.chroma_width(2)
        even = (-(-height // rows) * rows, -(-width // columns) * columns)
        if even == (height, width) or self._problem(even) is not None:
            raise self.refused((height, width), problem) from problem
        return even

    def _problem(self, size: tuple[int, int]) -> Exception | None:
        """Open the encoder for once; return why it cannot be."""
        context = CodecContext.create(self.codec or "", "w")
        assert isinstance(context, av.VideoCodecContext)
        context.height, context.width = size
        context.time_base = Fraction(1, 25)
        try:
            context.pix_fmt = self.pixel_format or ""
            context.options = {
                key: str(text) for key, text in self.options(size, reorders=True).items()
            }
            self.tag(context, PICTURES_COLOUR)
            context.open()
        except (FFmpegError, ValueError, OverflowError) as error:
            return error
        return None

    def refused(self, size: tuple[int, int], error: Exception) -> InputError:
        """Say that the encoder does not take its options."""
        options = {"crf": self.crf, "preset": self.preset}
        given = [f"{name} {value}" for name, value in options.items() if value is not None]
        return InputError(
            f"{self.codec} takes no {size[1]}x{size[0]} frames of {self.pixel_format}"
            f"{' with ' * bool(given)}{', '.join(given)} "
            f"({getattr(error, 'strerror', None) or error}); give other options, or another size"
        )

    def options(self, size: tuple[int, int], *, reorders: bool) -> dict[str, object]:
        """Return the encoder's options for (height, width) as FFmpeg names them."""
        given = {"preset": self.preset, "crf": self.crf}
        options: dict[str, object] = {
            name: str(value) for name, value in given.items() if value is not None
        }
        match self.codec:
            case "libvpx-vp9":
                options |= {"b": "0", "row-mt": "1", "cpu-used": options.pop("preset", "4")}
            case "libx265":
                plain = ":asm=0" if min(size) < SMALL_H265 else ""
                options["x265-params"] = f"log-level=none{plain}"  # it talks otherwise
            case "mpeg4" | "mjpeg":
                quantiser = options.pop("crf", "2")
                options |= {"qmin": quantiser, "qmax": quantiser}
        if not reorders:
            options["bf"] = "0"
        return options

    def colour(self, source: Colour | None) -> Colour:
        """Say what the stored numbers mean, for a source of some colour; None is of pictures."""
        if self.codec == "mjpeg":
            return Colour(JPEG_MATRIX, JPEG_MATRIX, JPEG_MATRIX, is_full=True)
        return (source or PICTURES_COLOUR).written()

    def tag(self, context: av.VideoCodecContext, source: Colour | None) -> None:
        """Say in a stream's head what its numbers mean."""
        colour = self.colour(source)
        if not av.VideoFormat(self.pixel_format or "").is_rgb:
            context.colorspace = colour.matrix
            context.color_range = 2 if colour.is_full else 1
        context.color_primaries, context.color_trc = colour.primaries, colour.transfer

    def clock(self, info: VideoInfo) -> Fraction | None:
        """Return the unit in which frames are numbered for an encoder; None tells it true times.

        MPEG-4 counts in at most 65535 parts of a second (ISO/IEC 14496-2, 6.3.3), too few for most
        files; it makes no use of times.
        """
        return Fraction(1, max(1, round(info.rate))) if self.codec == "mpeg4" else None


def container_of(output: Path) -> Container | None:
    """Return the kind of file that a name's extension stands for; None is a folder of pictures.

    Raises:
        InputError: for an extension that cannot be written.
    """
    suffix = output.suffix.lower()
    if not suffix:
        return None
    if suffix not in CONTAINERS:
        known = list(CONTAINERS)
        raise InputError(
            f"{output}: cannot write {output.suffix!r}, needs one of {', '.join(known)}, or a name "
            f"without extension for a folder of pictures.{closest(suffix, known)}"
        )
    return CONTAINERS[suffix]


def kept_colour(output: Path, info: VideoInfo) -> Colour | None:
    """Return the colour that a file keeps; AVI has no tags, so what is assumed without them."""
    container = container_of(output)
    if container is None or container.name != "avi":
        return info.colour
    matrix = assumed_matrix(info.size[0])
    return Colour(matrix, matrix, matrix, is_full=False)


def avi_clock(info: VideoInfo) -> Fraction | None:
    """Return the seconds of a frame in AVI, which has no times but counts frames.

    None stands for the video's own unit where that is coarse: gaps are stored as empty frames.

    Raises:
        InputError: if a frame is shown more than half a frame before or after its turn.
    """
    times, unit = info.times, info.time_base
    if unit >= FINEST or len(times) < 2:
        return None if unit >= FINEST else 1 / info.rate.limit_denominator(1001)
    step = Fraction(times[-1] - times[0], len(times) - 1)
    if any(abs(time - times[0] - number * step) > step / 2 for number, time in enumerate(times)):
        raise InputError(
            f"{info.path}: has a variable rate, which AVI cannot keep; write .mkv or .mp4"
        )
    return (step * unit).limit_denominator(2**20)


def _formats_of(codec: str) -> list[str]:
    try:
        known = Codec(codec, "w")
    except ValueError as error:
        encoders = [*sorted(USUAL_CRF), "ffv1", *USUAL_QUANTISER]
        raise InputError(
            f"there is no encoder {codec!r} here; for example {', '.join(encoders)}."
            f"{closest(codec, encoders)}"
        ) from error
    if known.type != "video":
        raise InputError(f"{codec} encodes {known.type}, no pictures; for example libx264")
    return [each.name for each in known.video_formats or []] or ["yuv420p"]


def _check_container(output: Path, container: Container, codec: str) -> None:
    with av.open(BytesIO(), "w", format=container.name) as empty:
        held = empty.supported_codecs
    name = Codec(codec, "w").canonical_name
    if name not in held:
        raise InputError(
            f"{output}: {container.name} does not hold {name}, which {codec} makes; leave --codec "
            f"out for {container.codec}, or write .mkv"
        )
    with av.open(BytesIO(), "w", format=PART) as empty:
        if name not in empty.supported_codecs:
            raise InputError(
                f"{codec} makes {name}, which the parts that a video is made of ({PART}) do not "
                "hold; take another encoder, e.g. ffv1"
            )
