"""A sheet of clips to look at: frames in a row, source over target over optical flow.

Flow is coloured by its direction, the stronger the more: red to the right, yellow-green down, cyan
to the left, violet up; white stands still, black is not seen in the next frame.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from datamodules.world.clips.clip import ClipPair

MOST_SHOWN = 8  # frames of a clip, evenly spaced
TEXT, GAP = 40, 8  # pixels
LETTER = 5.6  # width of a letter, about
FULL = 0.05  # of the side in a frame: a flow that has its full colour


def flow_picture(
    flow: Float32[np.ndarray, "2 h w"], occluded: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return optical flow as colours of a wheel."""
    angle = np.arctan2(flow[1], flow[0]) % (2 * np.pi)
    strength = np.clip(np.hypot(*flow) / (FULL * flow.shape[-1]), 0, 1)
    hsv = np.stack([angle / (2 * np.pi), strength, ~occluded], axis=2)
    picture = Image.fromarray(np.rint(hsv * 255).astype(np.uint8), "HSV")
    return np.asarray(picture.convert("RGB"))


def clip_sheet(clips: Sequence[ClipPair], zoom: int = 1) -> Image.Image:
    """Return a sheet of clips; frames are enlarged `zoom` times, without smoothing."""
    strips = [_strip(clip, zoom) for clip in clips]
    width = max(strip.width for strip in strips) + 2 * GAP
    height = sum(strip.height + TEXT + GAP for strip in strips) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(sheet), GAP
    font = ImageFont.load_default(size=11)
    for clip, strip in zip(clips, strips, strict=True):
        lines = textwrap.wrap(f"{clip.instruction} | {clip.caption}", int(width / LETTER))[:3]
        draw.multiline_text((GAP, top), "\n".join(lines), fill="black", font=font, spacing=1)
        sheet.paste(strip, (GAP, top + TEXT))
        top += strip.height + TEXT + GAP
    return sheet


def _strip(clip: ClipPair, zoom: int) -> Image.Image:
    """Return some frames of a clip in a row, source over target over flow."""
    count = len(clip.source)
    shown = np.unique(np.linspace(0, count - 1, min(count, MOST_SHOWN)).round().astype(int))
    columns = []
    for t in shown.tolist():
        pictures = [frames[t].transpose(1, 2, 0) for frames in (clip.source, clip.target)]
        is_last = t == count - 1  # from which nothing goes on
        white = np.full_like(pictures[0], 255)
        flow = white if is_last else flow_picture(clip.flow[t], clip.occluded[t])
        column = np.concatenate([*pictures, flow])
        columns.append(np.pad(column, ((0, 0), (0, 2), (0, 0)), constant_values=255))
    strip = Image.fromarray(np.concatenate(columns, axis=1))
    size = (strip.width * zoom, strip.height * zoom)
    return strip.resize(size, Image.Resampling.NEAREST)
