"""The border of pixels: where uint8 becomes float, where a file becomes a tensor and back.

Outside networks a picture is uint8 "3 h w" RGB, inside it is float in [-1, 1]. Files are read under
the rules of `emu_edit.pictures`. Metadata never leaves: what is written holds pixels only.
"""

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.files import atomic_file
from emu_edit.pictures import (
    MAX_PIXELS,
    WHITE,
    OnNote,
    open_mask,
    open_rgb,
    printable,
    read_image_bytes,
    reading,
    to_rgb,
)

# a side this many times the training pictures' shows the network nothing it knows, and takes
# minutes: time grows with the fourth power
MOST_TIMES_LARGER = 16
JPEG_QUALITY = 95
# Ours. At 64 px, 31 % and more of the neighbours in 600 pictures of the world are equal, 0 to 24 %
# in 44 of 45 photographs (one is black and white, of ripples on a lake: 44 %).
LEAST_FLAT = 0.28
WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


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
    """Bring any PIL image to RGB by the rules of `open_rgb`; the argument is not changed.

    Raises:
        BadImageError: if size, mode or pixel data are refused.
    """
    with reading(where):
        return _to_tensor(to_rgb(image, background, where))


def from_any(image: object) -> list[UInt8[Tensor, "3 h w"]]:
    """Read a picture, or a stack of them, of a kind that diffusers' pipelines take.

    PIL of any mode; arrays "h w 3" or tensors "3 h w", of uint8 or floats in [0, 1].

    Raises:
        InputError: if it is of another kind, shape or range.
    """
    match image:
        case Image.Image():
            return [from_pil(image)]
        case np.ndarray() if image.ndim in {3, 4} and image.shape[-1] == 3:
            values = torch.tensor(image).movedim(-1, -3)  # a copy: arrays may be read-only
        case Tensor() if image.ndim in {3, 4} and image.shape[-3] == 3:
            values = image
        case np.ndarray() | Tensor():
            raise InputError(
                f"image has the shape {tuple(image.shape)}, needs 'h w 3' (array) or '3 h w' "
                "(tensor), or a stack of such"
            )
        case _:
            raise InputError(
                f"image is of type {type(image).__name__}; give PIL pictures, arrays or tensors"
            )
    return list(_shares_to_uint8(values if values.ndim == 4 else values[None]))


def _shares_to_uint8(values: Tensor) -> UInt8[Tensor, "b 3 h w"]:
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise InputError(f"image has {values.dtype} values, needs uint8 or floats in [0, 1]")
    # written so that NaN is refused, too
    if not bool(((values >= 0) & (values <= 1)).all()):
        span = f"{values.min().item():g} to {values.max().item():g}"
        raise InputError(f"image has values from {span}, floats must be in [0, 1]; give x / 255")
    return to_uint8(values.float() * 2 - 1)


def decode_rgb(
    data: bytes,
    *,
    background: tuple[int, int, int] = WHITE,
    where: str = "",
    most_pixels: int = MAX_PIXELS,
    is_strip: bool = False,
) -> UInt8[Tensor, "3 h w"]:
    """Decode one picture of unknown origin by the rules of `open_rgb`.

    Raises:
        BadImageError: one line starting with `where`.
    """
    image = open_rgb(
        data, background=background, where=where, most_pixels=most_pixels, is_strip=is_strip
    )
    return _to_tensor(image)


def decode_mask(data: bytes, where: str = "", *, is_strip: bool = False) -> Bool[Tensor, "h w"]:
    """Decode an edit mask by the rules of `open_mask`: True means "may change".

    Raises:
        BadImageError: one line starting with `where`.
    """
    return torch.from_numpy(np.asarray(open_mask(data, where, is_strip=is_strip)) >= 128)


def read_image(
    path: Path | str,
    *,
    background: tuple[int, int, int] = WHITE,
    on_note: OnNote | None = None,
) -> UInt8[Tensor, "3 h w"]:
    """Read and decode one picture file by the rules of `open_rgb`.

    Raises:
        BadImageError: if there is no such regular file, or its content is refused.
    """
    data = read_image_bytes(path)
    return _to_tensor(open_rgb(data, background=background, where=str(path), on_note=on_note))


def encode_png(image: UInt8[Tensor, "3 h w"]) -> bytes:
    """Return the picture as a PNG without metadata."""
    return encode_image(image, "PNG")


def encode_image(image: UInt8[Tensor, "3 h w"], kind: str) -> bytes:
    """Return the picture as a file of PNG, JPEG or WEBP, without metadata; JPEG loses detail."""
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
    """Return which format the extension of a file to write stands for.

    Raises:
        InputError: for another extension.
    """
    kind = WRITTEN.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(WRITTEN)
        raise InputError(
            f"{printable(str(path))}: cannot write {path.suffix!r}, needs one of {known}"
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
        raise InputError(f"{printable(str(path))}: cannot write {path.suffix!r}, needs .png")
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


def refuse_far_larger(trained: int, *, height: int, width: int) -> None:
    """Refuse a picture far larger than a model's training pictures, before any work is done.

    Raises:
        InputError: if a side is more than `MOST_TIMES_LARGER` times theirs.
    """
    if is_far_larger(trained, height=height, width=width):
        raise InputError(
            f"the picture is {width}x{height}, more than {MOST_TIMES_LARGER} times the "
            f"{trained} px this model was trained at; edit a smaller copy: --size {trained}"
        )


def reflect_to_multiple(
    images: UInt8[Tensor, "b 3 h w"], multiple: int
) -> UInt8[Tensor, "b 3 H W"]:
    """Mirror pictures beyond their right and lower edge up to the next multiple.

    Unlike torch's reflection it may repeat, so pictures smaller than the padding work too.
    """
    height, width = images.shape[-2:]
    rows = _reflected(height, -(-height // multiple) * multiple)
    columns = _reflected(width, -(-width // multiple) * multiple)
    return images[..., rows, :][..., columns]


def _reflected(length: int, padded: int) -> Int64[Tensor, " n"]:
    """Count 0 … length-1, then back and forth, `padded` indices in all."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(padded) % period
    return torch.where(index < length, index, period - index)


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _write_atomically(path: Path, data: bytes) -> None:
    try:
        with atomic_file(path) as stream:
            stream.write(data)
    except OSError as error:
        name, folder = printable(str(path)), printable(str(path.parent))
        raise InputError(
            f"{name}: cannot be written ({error.strerror}); needs a writable folder {folder}"
        ) from error


def is_photograph(image: UInt8[Tensor, "3 h w"]) -> bool:
    """Guess whether a picture is a photograph: few neighbours in it are equal."""
    height, width = image.shape[-2:]
    size = with_shorter_side(64, height=height, width=width)
    small = resize(image, size).to(torch.int16)
    across = (small[:, :, 1:] == small[:, :, :-1]).all(0).float().mean()
    down = (small[:, 1:] == small[:, :-1]).all(0).float().mean()
    return (across + down).item() / 2 < LEAST_FLAT
