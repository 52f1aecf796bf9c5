"""How much of a scene of the world the reader reads back, from true renders and worse copies.

    python benchmarks/scene_reader.py [--pictures 400] [--size 64] [--seed 0] [--only ROW] [--tell]

The still pictures are what the edits of the held-out split draw, before and after, all tasks in
turn; the moving ones are the first, a middle and the last frame of edited clips of the tasks of
regions: figures are turned, come nearer, and a camera pans and zooms. A
figure is right when a figure of its shape, colour and texture was read and the two boxes
have at least half of their union in common; spurious is a read figure that belongs to none.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from itertools import count, islice

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from datamodules.world.clips.clip import make_clip
from datamodules.world.find import box_of, overlap
from datamodules.world.pair import EDITS
from datamodules.world.read import ReadFigure, Reading, read_scene
from datamodules.world.render import quantise, render
from datamodules.world.scene import Figure, Scene, Thing
from datamodules.world.studio import Studio
from emu_edit.randomness import keyed_generator
from emu_edit.tasks import SIXTEEN, TASKS, Family
from emu_edit.terminal import step_bar

Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Recorder(Studio):
    """A studio that keeps the scenes whose pictures it is asked for."""

    scenes: list[Scene] = field(default_factory=list, kw_only=True)

    def render(self, scene: Scene) -> UInt8[np.ndarray, "size size 3"]:
        """Return the picture of a scene, and keep the scene."""
        self.scenes.append(scene)
        return super().render(scene)


def scenes(seed: int) -> Iterator[Scene]:
    """Yield the scenes that the edits of the held-out split draw, without end."""
    for index in count():
        task = SIXTEEN.names[index % len(SIXTEEN)]
        plain = Studio.of(task, task, seed, index, size=16, split="heldout", photos=None)
        studio = Recorder(**{f.name: getattr(plain, f.name) for f in fields(plain)})
        EDITS[task](studio)
        yield from studio.scenes


def moving(seed: int) -> Iterator[Scene]:
    """Yield the scenes of three frames of each edited held-out clip, without end."""
    region = [task.name for task in TASKS if task.family is Family.region]
    for index in count():
        task = region[index % len(region)]
        clip = make_clip(seed, "heldout", index, task=task, size=16)
        yield from (clip.output_scenes[number] for number in (0, 8, 15))


def jpeg(picture: Pixels, _: int) -> Pixels:
    """Save at quality 75 and read again."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer).convert("RGB"))


def blur(picture: Pixels, _: int) -> Pixels:
    """Blur with a Gaussian of one pixel."""
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1)))


def noise(picture: Pixels, number: int) -> Pixels:
    """Add noise of a standard deviation of three grey levels."""
    drawn = keyed_generator(0, "scene reader noise", number).standard_normal(picture.shape)
    return quantise((picture + 3 * drawn).astype(np.float32))


DAMAGES: dict[str, Callable[[Pixels, int], Pixels]] = {
    "true": lambda picture, _: picture,
    "JPEG 75": jpeg,
    "blur 1 px": blur,
    "noise 3": noise,
    "all three": lambda picture, number: jpeg(noise(blur(picture, number), number), number),
}

Scenes = Callable[[int], Iterator[Scene]]
ROWS: dict[str, tuple[Scenes, Callable[[Pixels, int], Pixels]]] = {
    **{name: (scenes, damage) for name, damage in DAMAGES.items()},
    **{f"moving, {name}": (moving, DAMAGES[name]) for name in ("true", "all three")},
}


@dataclass
class Tally:
    """Counts over pictures."""

    pictures: int = 0
    figures: int = 0
    right: int = 0
    shape: int = 0
    colour: int = 0
    texture: int = 0
    background: int = 0
    word: int = 0
    spurious: int = 0
    turned: int = 0
    turned_right: int = 0
    seconds: float = 0.0
    doubts_right: list[float] = field(default_factory=list)
    doubts_wrong: list[float] = field(default_factory=list)

    def add(self, scene: Scene, reading: Reading) -> bool:
        """Count one picture; tell whether all of it is right."""
        self.pictures += 1
        self.background += reading.background == scene.background.name
        self.word += reading.word == scene.word
        left = list(reading.figures)
        right = 0
        for figure in scene.figures:
            is_turned = isinstance(figure, Thing) and figure.angle != 0
            self.turned += is_turned
            found = _found(figure, left)
            if found is None:
                continue
            left.remove(found)
            read = found.figure
            self.shape += read.shape == figure.shape
            self.colour += read.colour == figure.colour
            self.texture += read.texture == figure.texture
            is_right = read.full_name == figure.full_name
            right += is_right
            self.turned_right += is_right and is_turned
            (self.doubts_right if is_right else self.doubts_wrong).append(found.doubt)
        self.figures += len(scene.figures)
        self.right += right
        self.spurious += len(left)
        self.doubts_wrong += [read.doubt for read in left]
        whole = right == len(scene.figures) and not left and reading.word == scene.word
        return whole and reading.background == scene.background.name

    def row(self, name: str) -> str:
        """Return a line of the table."""
        shares = [
            f"{n / max(self.figures, 1):.2%}"
            for n in (self.right, self.shape, self.colour, self.texture)
        ]
        shares += [f"{n / self.pictures:.2%}" for n in (self.background, self.word)]
        cells = [name, *shares, str(self.spurious), f"{self.seconds / self.pictures:.2f}"]
        return f"| {' | '.join(cells)} |"


def _found(figure: Figure, left: list[ReadFigure]) -> ReadFigure | None:
    """Return the read figure at a figure's place: of its name if there is one, else the nearest."""
    box = box_of(figure)
    near = [read for read in left if overlap(read.box, box) >= 0.5]
    near.sort(key=lambda r: (r.figure.full_name != figure.full_name, -overlap(r.box, box)))
    return near[0] if near else None


def measure(
    row: str,
    seed: int,
    pictures: int,
    size: int,
    *,
    tell: bool = False,
) -> Tally:
    """Return the counts of a row over the first pictures of a seed."""
    draw, damage = ROWS[row]
    tally = Tally()
    with step_bar("reading", "pictures") as on_step:
        for number, scene in enumerate(islice(draw(seed), pictures)):
            picture = damage(quantise(render(scene, size)), number)
            start = time.process_time()
            reading = read_scene(np.ascontiguousarray(picture.transpose(2, 0, 1)))
            tally.seconds += time.process_time() - start
            if not tally.add(scene, reading) and tell:
                sys.stdout.write(f"{number}: {scene.caption}\n  read: {_words(reading)}\n")
            on_step(number + 1, pictures)
    return tally


def _words(reading: Reading) -> str:
    names = [f"{r.figure.full_name} ({r.doubt:.2f})" for r in reading.figures]
    return f"{', '.join(names)} on {reading.background}, word {reading.word}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=400, help="of each row (default 400)")
    parser.add_argument("--size", type=int, default=64, help="side in pixels (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of the world (default 0)")
    parser.add_argument("--only", choices=tuple(ROWS), help="one row alone")
    parser.add_argument("--tell", action="store_true", help="name what is read wrong")
    options = parser.parse_args()
    head = "pictures|figures right|shape|colour|texture|background|word|spurious|s a picture"
    lines = [f"| {head.replace('|', ' | ')} |", "|---" * 9 + "|"]
    for name in ROWS:
        if options.only in (None, name):
            tally = measure(name, options.seed, options.pictures, options.size, tell=options.tell)
            lines.append(tally.row(name))
            if tally.turned:
                sys.stdout.write(f"{name}: {tally.turned_right} of {tally.turned} turned right\n")
            for what, doubts in (("right", tally.doubts_right), ("wrong", tally.doubts_wrong)):
                if doubts:
                    parts = np.percentile(doubts, (1, 5, 50, 95, 99)).round(2).tolist()
                    sys.stdout.write(f"{name}: doubts of {len(doubts)} {what}: {parts}\n")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
