"""How well the leak guard recognises a picture, how often it is wrong, and how fast it is.

    python benchmarks/leaks_recall.py [--pictures 2000] [--size 64] [--photos DIR]

Recall: each picture is changed as copies on the web are, and looked up among itself alone. False
alarms: pictures of one seed of the world are looked up among as many of another seed; no two are
the same, so each find is false (with --photos, the pictures of DIR among each other). The world is
the hardest case there is: many of its pictures share a background and differ in a small thing.
Rate: look-ups in a second of one core among --known evaluation pictures, hashing included.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from datamodules.checks.leaks import LeakGuard, evaluation_pictures
from datamodules.world.pair import make_pair
from emu_edit.terminal import step_bar

TRAINING, EVALUATION = 1, 2  # seeds
Pixels = UInt8[np.ndarray, "h w 3"]


def jpeg(image: Image.Image) -> Image.Image:
    """Save at quality 50 and read again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


def half(image: Image.Image) -> Image.Image:
    """Halve both sides."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def crop(image: Image.Image) -> Image.Image:
    """Take 1 % off each side, at least a pixel: 2 % of width and height."""
    x, y = max(1, round(image.width / 100)), max(1, round(image.height / 100))
    return image.crop((x, y, image.width - x, image.height - y))


def colours(image: Image.Image) -> Image.Image:
    """Brighten by 8 % and take away a tenth of the colour."""
    return ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.08)).enhance(0.9)


def mirror(image: Image.Image) -> Image.Image:
    """Swap left and right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 50": jpeg,
    "half the size": half,
    "crop of 2 %": crop,
    "brighter, paler": colours,
    "mirrored": mirror,
    "half, mirrored, JPEG": lambda image: jpeg(mirror(half(image))),
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=2000, help="of each seed (default 2000)")
    parser.add_argument("--size", type=int, default=64, help="side in pixels (default 64)")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="pictures in place of the world")
    parser.add_argument("--known", type=int, default=10_000, help="for the rate (default 10000)")
    options = parser.parse_args()
    if options.photos is None:
        pictures = world(TRAINING, options.pictures, options.size)
        others = world(EVALUATION, options.pictures, options.size)
        guard = LeakGuard(others)
        wrong = sum(guard.find(pixels) is not None for _, pixels in pictures)
    else:
        pictures = list(evaluation_pictures([options.photos]))
        wrong = sum(
            LeakGuard(pictures[:i]).find(pixels) is not None
            for i, (_, pixels) in enumerate(pictures)
        )
    lines = [f"{len(pictures)} pictures, recognised after:"]
    for name, change in CHANGES.items():
        found = sum(is_found(picture, change) for picture in pictures)
        lines.append(f"  {name:<22}{found:>6}  {found / len(pictures):7.2%}")
    lines.append(f"false finds: {wrong} of {len(pictures)} ({wrong / len(pictures):.2%})")
    rate = look_ups_a_second(pictures[0][1], options.known)
    lines.append(
        f"{rate:.0f} look-ups in a second of one core, among {options.known} evaluation pictures"
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def world(seed: int, count: int, size: int) -> list[tuple[str, Pixels]]:
    """Return the source pictures of pairs of the world, all tasks in turn."""
    pictures = []
    with step_bar("drawing", "pictures") as on_step:
        for index in range(count):
            pair = make_pair(seed, index, size=size)
            pictures.append((pair.key, pair.source))
            on_step(index + 1, count)
    return pictures


def is_found(picture: tuple[str, Pixels], change: Callable[[Image.Image], Image.Image]) -> bool:
    """Say whether the changed picture is recognised by a guard that knows the picture alone."""
    changed = np.asarray(change(Image.fromarray(picture[1])))
    return LeakGuard([picture]).find(changed) is not None


def look_ups_a_second(picture: Pixels, known: int) -> float:
    """Return the rate of `find`, in CPU time, among so many pictures of noise."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (known, 32, 32, 3), dtype=np.uint8)
    guard = LeakGuard((str(i), pixels) for i, pixels in enumerate(noise))
    start, count = time.process_time(), 0
    while time.process_time() - start < 2:
        guard.find(picture)
        count += 1
    return count / (time.process_time() - start)


if __name__ == "__main__":
    sys.exit(main())
