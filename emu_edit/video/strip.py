"""A strip of pictures: frames of a video in a row, the source's above the result's."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.images import resize, save_png
from emu_edit.video.clip import Video
from emu_edit.video.io import open_video

COLUMNS = 8
HEIGHT = 160  # pixels of a picture in the strip
GAP = 4


def write_strip(path: Path, source: Video, result: Path, *, halves: bool = False) -> None:
    """Write eight frames, evenly spaced, source over result; `halves` drops the left of a result.

    Raises:
        InputError: if the place cannot be written.
    """
    rows = [_row(source, halves=False), _row(open_video(result), halves=halves)]
    width = max(row.shape[2] for row in rows)
    padded = [
        torch.nn.functional.pad(row, (0, width - row.shape[2], 0, GAP), value=255) for row in rows
    ]
    save_png(path, torch.cat(padded, dim=1)[:, :-GAP])


def _row(video: Video, *, halves: bool) -> UInt8[Tensor, "3 h w"]:
    count = video.info.frames
    wanted = {round(i * (count - 1) / max(COLUMNS - 1, 1)) for i in range(COLUMNS)}
    pictures = []
    for number, frame in enumerate(video.frames()):
        if number not in wanted:
            continue
        pixels = frame.pixels[:, :, frame.pixels.shape[2] // 2 :] if halves else frame.pixels
        height, width = pixels.shape[-2:]
        small = resize(pixels.contiguous(), (HEIGHT, max(1, round(width * HEIGHT / height))))
        pictures.append(torch.nn.functional.pad(small, (0, GAP), value=255))
    return torch.cat(pictures, dim=2)[:, :, :-GAP]
