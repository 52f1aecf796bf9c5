"""From what `edit` was pointed at to pixels of a size the model can work on."""

import sys

from jaxtyping import UInt8
from torch import Tensor

from emu_edit.cli.edit_places import Source
from emu_edit.cli.picture_size import MOST_TIMES_LARGER, is_far_larger, with_shorter_side
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.images import MAX_BYTES, MAX_SIDE, decode_rgb, read_image, resize


def read_source(source: Source) -> UInt8[Tensor, "3 h w"]:
    """Read and decode a picture file or standard input.

    Raises:
        BadImageError: if it is missing, no picture, or of a refused kind or size.
        InputError: if standard input is a terminal or closed.
    """
    if source.path is not None:
        return read_image(source.path)
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("standard input has no picture; pipe one in: emu-edit edit - < a.png")
    # one byte more than allowed tells an endless stream from the largest picture
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{source} gave more than the {MAX_BYTES} bytes a picture may have")
    return decode_rgb(data, where=str(source))


def fit_size(
    image: UInt8[Tensor, "3 h w"], size: int | None, editor: Editor, source: Source
) -> UInt8[Tensor, "3 H W"]:
    """Resize as asked, or refuse pictures far larger than the model ever saw.

    Args:
        image: the picture.
        size: what its shorter side becomes, in pixels; None leaves it alone.
        editor: knows the size of the training pictures.
        source: where the picture is from, for messages.

    Raises:
        InputError: if no size was asked for and the picture is far larger than training pictures,
            or the size that was asked for is larger than any picture that could be read again.
    """
    height, width = image.shape[-2:]
    if size is not None:
        new = with_shorter_side(size, height=height, width=width)
        if max(new) > MAX_SIDE:
            raise InputError(
                f"--size {size} makes {source} {new[1]}x{new[0]}, at most {MAX_SIDE} a side work"
            )
        return resize(image, new)
    trained = editor.settings.image_size
    if is_far_larger(trained, height=height, width=width):
        raise InputError(
            f"{source} is {width}x{height}, more than {MOST_TIMES_LARGER} times the {trained} px "
            f"this model was trained at; edit a smaller copy with --size {trained}"
        )
    return image
