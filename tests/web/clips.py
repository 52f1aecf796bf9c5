"""Small videos for the tests of the page, made with our own writer."""

from pathlib import Path

import numpy as np
from PIL import Image

from emu_edit.video.coding import Coding
from emu_edit.video.io import open_video
from emu_edit.video.job import Job, run
from emu_edit.video.preview import Unedited


def clip(
    path: Path, *, width: int = 40, height: int = 30, frames: int = 12, coding: Coding | None = None
) -> Path:
    """Write a noise that moves to the right, 25 frames a second."""
    pictures = path.with_suffix(".pictures")
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for number in range(frames):
        shifted = np.roll(noise, number, axis=1)
        Image.fromarray(shifted).save(pictures / f"{number:03d}.png")
    run(Job(open_video(pictures), path, coding=coding or Coding()), Unedited())
    return path
