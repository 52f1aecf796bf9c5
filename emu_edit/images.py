"""The border of pixels: where uint8 becomes float, and where a file becomes a tensor.

Outside networks a picture is uint8 "3 h w" RGB, inside it is float in [-1, 1]. Files of strangers
are read here under fixed rules: three formats, chosen by content and never by name; size limits
checked on the header, before a single pixel is decoded; every odd mode brought to RGB in a stated
way, or refused by name. Metadata never leaves: what is written holds pixels only.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from emu_edit.errors import BadImageError, InputError
from emu_edit.files import atomic_file

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64 * 2**20  # 192 MiB as uint8 RGB, above any camera photo in the public edit sets
MAX_SIDE = 16384  # WebP's own limit is 16383
MAX_ASPECT = 20  # a strip thinner than 1:20 survives no crop or resize
MIN_SIDE = 8  # one latent pixel of an 8x codec
MAX_BYTES = 256 * 2**20  # a 64-megapixel picture stored without any compression still fits
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)
# a side this many times the training pictures' shows the network nothing it knows, and takes
# minutes: time grows with the fourth power
MOST_TIMES_LARGER = 16

JPEG_QUALITY = 95
EXTENSIONS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

ORIENTATION_TAG = 0x0112  # EXIF 2.3, table 4
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow lets faults in its readers out as they are. OSError, ValueError and SyntaxError were seen
# in 150,000 damaged files; IndexError, TypeError and struct.error are what Image.open expects.
_READER_ERRORS = (
    *(OSError, ValueError, SyntaxError, IndexError, TypeError),
    *(struct.error, EOFError, OverflowError, MemoryError),
)

# first bytes of what people give most often by mistake, so that the message can say what came
_SIGNATURES = (
    (b"\xff\xd8\xff", 0, "a damaged JPEG"),
    (b"\x89PNG\r\n\x1a\n", 0, "a damaged PNG"),
    (b"WEBP", 8, "a damaged WebP"),
    (b"GIF8", 0, "a GIF"),
    (b"II*\0", 0, "a TIFF"),
    (b"MM\0*", 0, "a TIFF"),
    (b"BM", 0, "a BMP"),
    (b"%!PS", 0, "PostScript"),
    (b"%PDF", 0, "a PDF"),
    (b"ftyp", 4, "HEIC, AVIF or a video"),
    (b"version https://git-lfs", 0, "a Git LFS pointer; run `git lfs pull`"),
    (b"<svg", 0, "SVG"),
    (b"<", 0, "a web page or XML"),
)


def to_float(images: UInt8[Tensor, "... 3 h w"]) -> Float[Tensor, "... 3 h w"]:
    """Map uint8 to float32 in [-1, 1]: x / 127.5 - 1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "... 3 h w"]) -> UInt8[Tensor, "... 3 h w"]:
    """Map [-1, 1] to uint8: clamp, then ROUND, so that all 256 levels survive the round trip.

    round((x + 1) * 127.5), computed in float32 whatever comes in. A bfloat16 picture has 8 bits of
    mantissa and has already lost levels before it arrives here: cast a codec's output to float32
    where it is computed.

    Raises:
        ValueError: if a value is NaN, which no cast to uint8 defines.
    """
    levels = (images.float().clamp(-1, 1) + 1) * 127.5
    if levels.isnan().any():
        raise ValueError(
            "the picture holds NaN, needs numbers in [-1, 1]; check the network that made it"
        )
    return levels.round().to(torch.uint8)


def to_pil(image: UInt8[Tensor, "3 h w"]) -> Image.Image:
    """Return the picture as a PIL image of mode RGB; it owns its memory."""
    return Image.fromarray(np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()))


def from_pil(
    image: Image.Image, *, background: tuple[int, int, int] = WHITE, where: str = ""
) -> UInt8[Tensor, "3 h w"]:
    """Bring any PIL image to RGB by the rules of `decode_rgb`; the argument is not changed.

    Raises:
        BadImageError: if size, mode or pixel data are refused.
    """
    with _reading(where):
        return _to_tensor(_to_rgb(image, background, where))


def decode_rgb(
    data: bytes,
    *,
    background: tuple[int, int, int] = WHITE,
    where: str = "",
    most_pixels: int = MAX_PIXELS,
) -> UInt8[Tensor, "3 h w"]:
    """Decode one JPEG, PNG or WebP of unknown origin.

    Size limits are checked on the header. Transparency of any kind is composited on `background`,
    CMYK is converted, 16-bit grey is scaled (65535 is white), EXIF orientation is applied. A
    multi-picture JPEG (MPO, as phones write for depth or HDR) gives its first picture; an animated
    PNG or WebP is refused.

    Raises:
        BadImageError: one line starting with `where`.
    """
    with _reading(where):
        image = _open(data, where)
        width, height = image.size
        if most_pixels < width * height <= MAX_PIXELS:
            most = f"at most {most_pixels / 1e6:.1f} megapixels are decoded; make it smaller"
            raise _bad(where, f"is {width}x{height}, {most}")
        return _to_tensor(_to_rgb(image, background, where))


def decode_mask(data: bytes, where: str = "") -> Bool[Tensor, "h w"]:
    """Decode an edit mask: white (128 and above) is True and means "may change".

    Raises:
        BadImageError: as `decode_rgb`; and if the mask has transparent pixels, because data sets
            disagree on whether those mean "edit here" or "keep".
    """
    with _reading(where):
        image = _open(data, where)
        on_white = _upright(image, WHITE, where)
        if image.has_transparency_data:
            on_black = _upright(image, BLACK, where)
            if on_white.tobytes() != on_black.tobytes():
                raise _bad(
                    where,
                    "the mask has transparent pixels; write white (may change) on opaque black",
                )
        is_grey = on_white.mode in {"1", "L"}  # most masks: RGB and back would cost a third more
        grey = (on_white if is_grey else on_white.convert("RGB")).convert("L")
        return torch.from_numpy(np.asarray(grey) >= 128)


def read_image(
    path: Path | str, *, background: tuple[int, int, int] = WHITE
) -> UInt8[Tensor, "3 h w"]:
    """Read and decode one picture file by the rules of `decode_rgb`.

    Raises:
        BadImageError: if there is no such regular file, or its content is refused.
    """
    return decode_rgb(read_image_bytes(path), background=background, where=str(path))


def read_image_bytes(path: Path | str) -> bytes:
    """Return the bytes of a regular file of at most `MAX_BYTES`.

    Raises:
        BadImageError: if the file is missing, a folder or a device, empty, too large, or may not be
            read.
    """
    where, path = str(path), Path(path)
    if "\0" in where:
        raise _bad(where, "a file name cannot hold a NUL character")
    try:
        if path.is_dir():
            raise _bad(where, "is a folder, needs a picture file")
        if not path.exists():
            raise _bad(where, "no such file")
        if not path.is_file():  # a pipe or a device would block or never end
            raise _bad(where, "is not a regular file, needs a picture file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _bad(where, f"is {size} bytes, a picture may have at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise _bad(where, f"cannot be read ({error.strerror})") from error


def encode_png(image: UInt8[Tensor, "3 h w"]) -> bytes:
    """Return the picture as a PNG without metadata."""
    return encode_image(image, "PNG")


def encode_image(image: UInt8[Tensor, "3 h w"], kind: str) -> bytes:
    """Return the picture as a file of one of `FORMATS`, without metadata; JPEG loses detail."""
    buffer = io.BytesIO()
    if kind == "JPEG":
        # 4:4:4: chroma subsampling would bleed an edit's colour over its border
        to_pil(image).save(buffer, kind, quality=JPEG_QUALITY, subsampling=0)
    elif kind == "WEBP":
        to_pil(image).save(buffer, kind, lossless=True)
    else:
        to_pil(image).save(buffer, kind)
    return buffer.getvalue()


def format_of(path: Path) -> str:
    """Return which of `FORMATS` the extension of a file to write stands for.

    Raises:
        InputError: for another extension.
    """
    kind = EXTENSIONS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(EXTENSIONS)
        raise InputError(
            f"{_printable(str(path))}: cannot write {path.suffix!r}, needs one of {known}"
        )
    return kind


def write_image(path: Path | str, image: UInt8[Tensor, "3 h w"]) -> None:
    """Write the picture by extension: .png and .webp lossless, .jpg with quality 95.

    The file appears complete or not at all; an existing one is replaced.

    Raises:
        InputError: for another extension, a missing folder, or a place that cannot be written.
    """
    path = Path(path)
    _write_atomically(path, encode_image(image, format_of(path)))


def save_png(path: Path | str, image: UInt8[Tensor, "3 h w"]) -> None:
    """Write the picture as PNG, complete or not at all.

    Raises:
        InputError: if the name does not end in .png, or the place cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{_printable(str(path))}: cannot write {path.suffix!r}, needs .png")
    _write_atomically(path, encode_png(image))


def resize(images: UInt8[Tensor, "... 3 _ _"], size: tuple[int, int]) -> UInt8[Tensor, "... 3 _ _"]:
    """Resample to `size` = (height, width) with an anti-aliased Lanczos filter.

    In 8 bits all the way: a large photo costs no float copy. Equal size returns the argument
    itself.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"cannot resize to {size}, needs a height and a width of at least 1")
    if tuple(images.shape[-2:]) == size:
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    resampled = [
        _to_tensor(to_pil(image).resize((width, height), Image.Resampling.LANCZOS))
        for image in flat
    ]
    return torch.stack(resampled).reshape(*images.shape[:-2], height, width)


def with_shorter_side(size: int, *, height: int, width: int) -> tuple[int, int]:
    """Return height and width in the same proportion, the shorter of them `size`."""
    shorter = min(height, width)
    return round(height * size / shorter), round(width * size / shorter)


def is_far_larger(trained: int, *, height: int, width: int, times: int = MOST_TIMES_LARGER) -> bool:
    """Tell whether a side is more than `times` that of the training pictures."""
    return max(height, width) > times * trained


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn whatever a decoder raises into BadImageError; keep Pillow's warnings in here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadImageError:
        raise
    except _READER_ERRORS as error:
        raise _bad(where, f"cannot be decoded ({error or type(error).__name__})") from error


def _open(data: bytes, where: str) -> Image.Image:
    if not data:
        raise _bad(where, "is empty (0 bytes), needs a JPEG, PNG or WebP picture")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own limit, above ours
        raise _bad(where, f"has more than {MAX_PIXELS} pixels, it is not decoded") from error
    except Image.UnidentifiedImageError as error:
        came = next(
            (name for mark, at, name in _SIGNATURES if data[at:].startswith(mark)), "no picture"
        )
        raise _bad(where, f"is {came}, needs a JPEG, PNG or WebP picture") from error


def _check(image: Image.Image, where: str) -> None:
    """Refuse sizes and kinds; reads the header only."""
    width, height = image.size
    long, short = max(width, height), min(width, height)
    if width * height > MAX_PIXELS or long > MAX_SIDE:
        limits = f"at most {MAX_PIXELS} pixels and {MAX_SIDE} a side"
        raise _bad(where, f"is {width}x{height}, {limits} are decoded")
    if short < MIN_SIDE:
        raise _bad(where, f"is {width}x{height}, both sides need at least {MIN_SIDE} pixels")
    if long > MAX_ASPECT * short:
        raise _bad(
            where, f"is {width}x{height}, the sides may differ by a factor of {MAX_ASPECT} at most"
        )
    # a multi-picture JPEG is a photo with extras, not a film; Pillow knows the attribute for some
    # formats only
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise _bad(where, "is animated, needs a still picture; save one frame")


def _to_rgb(image: Image.Image, background: tuple[int, int, int], where: str) -> Image.Image:
    upright = _upright(image, background, where)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _upright(image: Image.Image, background: tuple[int, int, int], where: str) -> Image.Image:
    """Check, decode, scale to 8 bits, composite, turn upright."""
    _check(image, where)
    image.load()
    orientation = _orientation(image, where)
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        image = _scale_deep(image, where)
    if image.has_transparency_data:
        back = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(back, image.convert("RGBA"))
    return image if orientation == 1 else image.transpose(_TRANSPOSE[orientation])


def _orientation(image: Image.Image, where: str) -> int:
    try:
        # getexif alone would not do: for a JPEG, Pillow has met the fault on opening and forgot it
        Image.Exif().load(image.info.get("exif", b""))
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except _READER_ERRORS as error:
        why = "has damaged EXIF data, so which side is up is unknown; save it without metadata"
        raise _bad(where, why) from error
    return orientation if orientation in _TRANSPOSE else 1


def _scale_deep(image: Image.Image, where: str) -> Image.Image:
    """Scale deep grey to 8 bits: integers from 0..65535, floats from 0..1; keep transparency."""
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= white):  # written so that NaN is refused, too
        span = f"{values.min():g}..{values.max():g}"
        raise _bad(
            where, f"has grey values {span} in mode {image.mode}, needs 0..{white:g}; save 8 bits"
        )
    grey = Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    if (level := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == level, 0, 255).astype(np.uint8)))
    return grey


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _write_atomically(path: Path, data: bytes) -> None:
    try:
        with atomic_file(path) as stream:
            stream.write(data)
    except OSError as error:
        name, folder = _printable(str(path)), _printable(str(path.parent))
        raise InputError(
            f"{name}: cannot be written ({error.strerror}); needs a writable folder {folder}"
        ) from error


def _printable(text: str) -> str:
    """Escape what would break the one line of a message, e.g. a file name with a line end."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def _bad(where: str, what: str) -> BadImageError:
    return BadImageError(_printable(f"{where}: {what}" if where else f"the picture {what}"))
