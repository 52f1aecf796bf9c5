"""Picture files of strangers, read under fixed rules; without torch, so that it takes no time.

A format is known by its content, never by a name. Size limits are checked on the header and the
work on the file's structure, before a single pixel is decoded. What comes out is upright RGB in
sRGB: transparency is composited, deep grey scaled, CMYK converted, the colour profile applied, EXIF
orientation followed. Metadata that does not matter, or is damaged, never decides whether pixels are
read. What was done besides decoding is said to who asks (`on_note`).
"""

import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, features

from emu_edit.errors import BadImageError
from emu_edit.files import read_regular

OnNote = Callable[[str], None]

# AVIF: Pillow's wheels have it since 11.3
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"] + ["AVIF"] * bool(features.check("avif"))
NEEDED = "needs a JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF picture"
MAX_PIXELS = 64 * 2**20  # 192 MiB as uint8 RGB, above any camera photo in the public edit sets
MAX_SIDE = 16384  # WebP's own limit is 16383
MAX_ASPECT = 20  # a strip thinner than 1:20 survives no crop or resize
MIN_SIDE = 8  # one latent pixel of an 8x codec
MAX_BYTES = 256 * 2**20  # a 64-megapixel picture stored without any compression still fits
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif")
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)
# A progressive JPEG is decoded once a scan; cameras and encoders write about ten.
MOST_SCANS = 100
MOST_SCANNED = 16 * MAX_PIXELS  # pixels, over all scans
MOST_PROFILE = 4 * 2**20  # bytes of a colour profile; those of printers have 2 MiB

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
    (b"GIF8", 0, "a damaged GIF"),
    (b"II*\0", 0, "a damaged TIFF"),
    (b"MM\0*", 0, "a damaged TIFF"),
    (b"BM", 0, "a damaged BMP"),
    (b"%!PS", 0, "PostScript"),
    (b"%PDF", 0, "a PDF"),
    (b"ftyp", 4, "HEIC, AVIF or a video"),
    (b"version https://git-lfs", 0, "a Git LFS pointer; run `git lfs pull`"),
    (b"<svg", 0, "SVG"),
    (b"<", 0, "a web page or XML"),
)


def open_rgb(
    data: bytes,
    *,
    background: tuple[int, int, int] = WHITE,
    where: str = "",
    most_pixels: int = MAX_PIXELS,
    on_note: OnNote | None = None,
    is_strip: bool = False,
) -> Image.Image:
    """Decode one picture of unknown origin to upright RGB in sRGB.

    A multi-picture JPEG (MPO, as phones write for depth or HDR), a GIF and a TIFF of several pages
    give their first picture; an animated PNG, WebP or AVIF is refused. A mode or profile that says
    nothing certain about the colours is taken as sRGB.

    Args:
        data: the file's bytes.
        background: what shows through transparent pixels.
        where: the file's name, for messages.
        most_pixels: a limit below `MAX_PIXELS`.
        on_note: told, in a few words each, what was done besides decoding.
        is_strip: frames of a clip below each other; it may be as thin as it likes.

    Raises:
        BadImageError: one line starting with `where`.
    """
    with reading(where):
        image = _open(data, where)
        width, height = image.size
        if most_pixels < width * height <= MAX_PIXELS:
            most = f"at most {most_pixels / 1e6:.1f} megapixels are decoded; make it smaller"
            raise bad_image(where, f"is {width}x{height}, {most}")
        return to_rgb(image, background, where, on_note, is_strip=is_strip)


def open_mask(data: bytes, where: str = "", *, is_strip: bool = False) -> Image.Image:
    """Decode an edit mask to grey: white (128 and above) means "may change".

    Raises:
        BadImageError: as `open_rgb`; and if the mask has transparent pixels, because data sets
            disagree on whether those mean "edit here" or "keep".
    """
    with reading(where):
        image = _open(data, where)
        image.info.pop("icc_profile", None)  # a mask is data, not colour
        on_white = _upright(image, WHITE, where, is_strip=is_strip)
        if image.has_transparency_data:
            on_black = _upright(image, BLACK, where, is_strip=is_strip)
            if on_white.tobytes() != on_black.tobytes():
                raise bad_image(
                    where,
                    "the mask has transparent pixels; write white (may change) on opaque black",
                )
        is_grey = on_white.mode in {"1", "L"}  # most masks: RGB and back would cost a third more
        return (on_white if is_grey else on_white.convert("RGB")).convert("L")


def read_image_bytes(path: Path | str) -> bytes:
    """Return the bytes of a regular file of at most `MAX_BYTES`.

    Raises:
        BadImageError: if the file is missing, a folder or a device, empty, too large, or may not be
            read.
    """
    where, path = str(path), Path(path)
    if "\0" in where:
        raise bad_image(where, "a file name cannot hold a NUL character")
    try:
        if path.is_dir():
            raise bad_image(where, "is a folder, needs a picture file")
        if not path.exists():
            raise bad_image(where, "no such file")
        if not path.is_file():  # a pipe or a device would block or never end
            raise bad_image(where, "is not a regular file, needs a picture file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise bad_image(where, f"is {size} bytes, a picture may have at most {MAX_BYTES}")
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        raise bad_image(where, f"cannot be read ({error.strerror})") from error


def to_rgb(
    image: Image.Image,
    background: tuple[int, int, int],
    where: str,
    on_note: OnNote | None = None,
    *,
    is_strip: bool = False,
) -> Image.Image:
    """Bring an opened image to RGB by the rules of `open_rgb`; call it inside `reading`."""
    upright = _upright(image, background, where, on_note, is_strip=is_strip)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn whatever a decoder raises into BadImageError; keep Pillow's warnings in here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadImageError:
        raise
    except _READER_ERRORS as error:
        raise bad_image(where, f"cannot be decoded ({error or type(error).__name__})") from error


def _open(data: bytes, where: str) -> Image.Image:
    if not data:
        raise bad_image(where, f"is empty (0 bytes), {NEEDED}")
    if data.startswith(b"\xff\xd8"):
        _refuse_many_scans(data, where)
    try:
        return Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own limit, above ours
        raise bad_image(where, f"has more than {MAX_PIXELS} pixels, it is not decoded") from error
    except Image.UnidentifiedImageError as error:
        came = next(
            (name for mark, at, name in _SIGNATURES if data[at:].startswith(mark)), "no picture"
        )
        raise bad_image(where, f"is {came}, {NEEDED}") from error


def _check(image: Image.Image, where: str, *, is_strip: bool) -> None:
    """Refuse sizes and kinds; reads the header only."""
    width, height = image.size
    long, short = max(width, height), min(width, height)
    if width * height > MAX_PIXELS or long > MAX_SIDE:
        limits = f"at most {MAX_PIXELS} pixels and {MAX_SIDE} a side"
        raise bad_image(where, f"is {width}x{height}, {limits} are decoded")
    if short < MIN_SIDE:
        raise bad_image(where, f"is {width}x{height}, both sides need at least {MIN_SIDE} pixels")
    if long > MAX_ASPECT * short and not is_strip:
        raise bad_image(
            where, f"is {width}x{height}, the sides may differ by a factor of {MAX_ASPECT} at most"
        )
    # a multi-picture JPEG is a photo with extras, not a film; counting the frames of others takes
    # a pass over the file
    if image.format in {"PNG", "WEBP", "AVIF"} and getattr(image, "n_frames", 1) > 1:
        raise bad_image(where, "is animated, needs a still picture; save one frame")


def _refuse_many_scans(data: bytes, where: str) -> None:
    """Refuse a JPEG that is decoded many times over; reads the first picture's markers only.

    Source: ITU-T T.81 (1992), B.1.1: markers, segments with a length, entropy-coded data in which
    0xFF is followed by 0 or a restart marker.
    """
    at, scans, pixels = 2, 0, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xD9:
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9].ljust(4, b"\0"))
            pixels = height * width
        at += 2 + length
        if marker == 0xDA:
            scans += 1
            if scans > MOST_SCANS or scans * pixels > MOST_SCANNED:
                most = min(MOST_SCANS, MOST_SCANNED // max(pixels, 1))
                raise bad_image(
                    where, f"is a JPEG of over {most} scans, which takes minutes; save it again"
                )
            found = _MARKER.search(data, at)
            at = len(data) if found is None else found.start()


_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def _without_texts(data: bytes) -> bytes:
    """Drop the text chunks of a PNG: Pillow refuses the pixels where a text is long.

    Source: PNG (W3C, third edition), 5.3: length, type, data, CRC.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    kept, at = [data[:8]], 8
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in {b"tEXt", b"zTXt", b"iTXt"}:
            kept.append(data[at:end])
        at = end
    return data if len(kept) == 1 else b"".join(kept)


def _upright(
    image: Image.Image,
    background: tuple[int, int, int],
    where: str,
    on_note: OnNote | None = None,
    *,
    is_strip: bool = False,
) -> Image.Image:
    """Check, decode, scale to 8 bits, bring to sRGB, composite, turn upright."""
    note = on_note or (lambda _: None)
    _check(image, where, is_strip=is_strip)
    kind = image.format
    image.load()
    orientation = _orientation(image, note)
    profile = image.info.get("icc_profile")
    if kind == "GIF" and image.info.get("duration") is not None:
        note("the first frame of a GIF was taken")
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        image = _scale_deep(image, where)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if profile:
        image = _to_srgb(image, profile, note)
    if alpha is not None:
        if alpha.histogram()[255] < alpha.width * alpha.height:
            note(f"transparency was put on {'white' if background == WHITE else 'black'}")
        back = Image.new("RGBA", image.size, (*background, 255))
        image = image.convert("RGBA")
        image.putalpha(alpha)
        image = Image.alpha_composite(back, image)
    return image if orientation == 1 else image.transpose(_TRANSPOSE[orientation])


def _to_srgb(image: Image.Image, profile: bytes, note: OnNote) -> Image.Image:
    """Convert colours through a profile, relative to the white points; ignore a damaged one.

    Source: ICC.1:2022, relative colorimetric intent; the conversion is Little CMS's.
    """
    if len(profile) > MOST_PROFILE:
        note("a colour profile of absurd size was ignored")
        return image
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = " ".join(ImageCms.getProfileDescription(given).split()) or "a nameless profile"
        mode = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}.get(profile[16:20])  # ICC.1, 7.2
        if "sRGB" in name or mode is None or (mode == "CMYK") != (image.mode == "CMYK"):
            return image
        converted = ImageCms.profileToProfile(
            image.convert(mode),
            given,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, *_READER_ERRORS):
        note("a damaged colour profile was ignored")
        return image
    assert converted is not None  # None is for a conversion in place
    note(f"colours were converted from {name[:60]} to sRGB")
    return converted


def _orientation(image: Image.Image, note: OnNote) -> int:
    try:
        # getexif alone would not do: for a JPEG, Pillow has met the fault on opening and forgot it
        Image.Exif().load(image.info.get("exif", b""))
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except _READER_ERRORS:
        note("damaged EXIF data were ignored; the picture may lie on its side")
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _scale_deep(image: Image.Image, where: str) -> Image.Image:
    """Scale deep grey to 8 bits: integers from 0..65535, floats from 0..1; keep transparency."""
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= white):  # written so that NaN is refused, too
        span = f"{values.min():g}..{values.max():g}"
        raise bad_image(
            where, f"has grey values {span} in mode {image.mode}, needs 0..{white:g}; save 8 bits"
        )
    grey = Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    if (level := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == level, 0, 255).astype(np.uint8)))
    return grey


def printable(text: str) -> str:
    """Escape what would break the one line of a message, e.g. a file name with a line end."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def bad_image(where: str, what: str) -> BadImageError:
    """Word why a picture is refused, in one line."""
    return BadImageError(printable(f"{where}: {what}" if where else f"the picture {what}"))
