"""Train the network whose features world clips are compared by, and measure what they notice.

    python -m benchmarks.world_video_network train [--steps N] [--clips N] [--seed N] [-o DIR]
    python -m benchmarks.world_video_network damages [--clips 200]

`train` draws flat clips of the world (8 frames of 32 px), trains `WorldVideoNet` to answer what
figure of each shape is in them (none, or its colour), which way it moves, and what the background
is, and writes world_video.safetensors and world_video.json into DIR (default: the package's). Half
of the clips it sees are mirrored, half run backwards, with the answers that belong to that. It
takes about five minutes of one core.

`damages` prints, for the network that is there, the distance of held-out clips from damaged other
ones, beside the distance that undamaged ones have.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import ImageFilter
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from datamodules.world.clips.clip import VERSION as CLIPS_VERSION
from datamodules.world.clips.clip import make_flat_clip
from datamodules.world.pair import VERSION as WORLD_VERSION
from datamodules.world.palette import COLOURS, PLAIN_BACKGROUNDS, SHAPES
from datamodules.world.scene import Scene, Thing
from emu_edit.files import sha256_of, write_text
from emu_edit.images import from_pil, to_float, to_pil
from emu_edit.metrics.frechet import Moments, frechet_distance, kernel_distance
from emu_edit.metrics.world_video import (
    FRAMES,
    RECORD,
    SIDE,
    WEIGHTS,
    WorldVideoNet,
    world_features,
)
from emu_edit.randomness import keyed_generator
from emu_edit.terminal import step_bar

Clip = UInt8[Tensor, "f 3 h w"]
Damage = Callable[[Clip, float, torch.Generator], Clip]  # of a strength up to 1
WAYS = ("none", "still", "left", "right", "up", "down")
LEFT_RIGHT = {"left": "right", "right": "left"}
ALL_WAYS = {**LEFT_RIGHT, "up": "down", "down": "up"}
ANSWERS = {
    "background": tuple(PLAIN_BACKGROUNDS),
    **{f"{shape} colour": ("none", *COLOURS) for shape in SHAPES},
    **{f"{shape} way": WAYS for shape in SHAPES},
    **{f"any {way}": ("no", "yes") for way in WAYS[1:]},  # easier, so that it is learnt first
}
BATCH, LEARNING_RATE, WEIGHT_DECAY = 64, 4e-3, 1e-2
NOISE = 0.06  # the most that is added to values in [-1, 1], so that little of it means little
HELDOUT = 500  # clips that the answers are counted on
MOVES = 0.05  # of the picture's side


def labelled_clip(seed: int, index: int) -> tuple[Clip, list[int]]:
    """Draw a flat clip and return it with the right answer to each of `ANSWERS`.

    Every other clip has a pair of colour and shape that training pictures have not.
    """
    split = "heldout" if index % 2 else "train"
    clip = make_flat_clip(seed, split, index, size=SIDE, frames=FRAMES)
    return torch.from_numpy(clip.source), answers_of(clip.scenes)


def answers_of(scenes: Sequence[Scene]) -> list[int]:
    """Return the number of the right answer to each of `ANSWERS`, of the scenes of all frames."""
    first, last = (
        {figure.shape: figure for figure in scene.figures if isinstance(figure, Thing)}
        for scene in (scenes[0], scenes[-1])
    )
    right = {"background": scenes[0].background.name}
    for shape in SHAPES:
        right[f"{shape} colour"] = first[shape].colour if shape in first else "none"
        right[f"{shape} way"] = "none"
        if shape in first:
            dx, dy = last[shape].x - first[shape].x, last[shape].y - first[shape].y
            right[f"{shape} way"] = _way(dx, dy)
    ways = {right[f"{shape} way"] for shape in SHAPES}
    right |= {f"any {way}": "yes" if way in ways else "no" for way in WAYS[1:]}
    return [names.index(right[head]) for head, names in ANSWERS.items()]


def _way(dx: float, dy: float) -> str:
    if max(abs(dx), abs(dy)) < MOVES:
        return "still"
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


@dataclass(frozen=True)
class Labelled:
    """Clips and their right answers, "n heads"."""

    clips: UInt8[Tensor, "n f 3 h w"]
    answers: Int64[Tensor, "n k"]

    @staticmethod
    def drawn(seed: int, first: int, count: int) -> "Labelled":
        """Draw the clips first … first + count - 1 of a seed."""
        clips, answers = [], []
        with step_bar("drawing", "clips") as on_step:
            for index in range(first, first + count):
                clip, right = labelled_clip(seed, index)
                clips.append(clip)
                answers.append(right)
                on_step(len(clips), count)
        return Labelled(torch.stack(clips), torch.tensor(answers))

    def batch(
        self, seed: int, step: int
    ) -> tuple[Float32[Tensor, "b f 3 h w"], Int64[Tensor, "b k"]]:
        """Return the batch of a step: half of it mirrored, half of it backwards."""
        generator = keyed_generator(seed, "world-video-batch", step)
        chosen = torch.from_numpy(generator.integers(len(self.clips), size=BATCH))
        clips, answers = self.clips[chosen], self.answers[chosen].clone()
        mirrored, backwards = (torch.from_numpy(generator.random(BATCH) < 0.5) for _ in range(2))
        clips = torch.where(mirrored.view(-1, 1, 1, 1, 1), clips.flip(-1), clips)
        clips = torch.where(backwards.view(-1, 1, 1, 1, 1), clips.flip(1), clips)
        answers = torch.where(mirrored[:, None], _turned(answers, LEFT_RIGHT), answers)
        answers = torch.where(backwards[:, None], _turned(answers, ALL_WAYS), answers)
        noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(step))
        levels = torch.from_numpy(generator.uniform(0, NOISE, BATCH).astype("float32"))
        return to_float(clips) + noise * levels.view(-1, 1, 1, 1, 1), answers


def _turned(answers: Int64[Tensor, "b k"], other: Mapping[str, str]) -> Int64[Tensor, "b k"]:
    """Return the answers of clips whose ways have become others."""
    heads, turned = list(ANSWERS), answers.clone()
    numbers = torch.tensor([WAYS.index(other.get(way, way)) for way in WAYS])
    for number, head in enumerate(heads):
        if head.endswith(" way"):
            turned[:, number] = numbers[answers[:, number]]
        elif head.removeprefix("any ") in other:
            turned[:, number] = answers[:, heads.index(f"any {other[head.removeprefix('any ')]}")]
    return turned


def loss_of(
    network: WorldVideoNet, clips: Float32[Tensor, "b f 3 h w"], answers: Int64[Tensor, "b k"]
) -> Float32[Tensor, ""]:
    """Sum the cross-entropies of all heads."""
    with torch.autocast("cpu", torch.bfloat16):  # half the time where the processor has it
        found = network.answers(clips)
    losses = [
        F.cross_entropy(scores.float(), answers[:, number])
        for number, scores in enumerate(found.values())
    ]
    return torch.stack(losses).sum()


def trained(data: Labelled, steps: int, seed: int) -> WorldVideoNet:
    """Train a network for some steps: AdamW, one cycle of the learning rate."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = WorldVideoNet({head: len(names) for head, names in ANSWERS.items()})
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    with step_bar("training", "steps") as on_step:
        for step in range(steps):
            loss = loss_of(network.train(), *data.batch(seed, step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            on_step(step + 1, steps)
    return standardised(network.eval(), data)


@torch.no_grad()
def standardised(network: WorldVideoNet, data: Labelled) -> WorldVideoNet:
    """Bring the features of true clips to mean 0 and variance 1."""
    pooled = torch.cat([network.pooled(to_float(some)) for some in data.clips.split(BATCH)])
    network.centre, network.spread = pooled.mean(0), pooled.std(0).clamp(min=1e-3)
    return network


@torch.no_grad()
def shares_right(network: WorldVideoNet, data: Labelled) -> dict[str, float]:
    """Return the share of right answers: of figures that are there, and of backgrounds."""
    found = network.answers(to_float(data.clips))
    right: dict[str, list[Tensor]] = {"background": [], "colour": [], "way": []}
    for number, (name, scores) in enumerate(found.items()):
        wanted = data.answers[:, number]
        if name.startswith("any "):
            continue
        is_there = wanted > 0 if name != "background" else torch.ones_like(wanted, dtype=torch.bool)
        right[name.rpartition(" ")[2]].append((scores.argmax(1) == wanted)[is_there])
    return {name: torch.cat(rows).float().mean().item() for name, rows in right.items()}


def train(options: argparse.Namespace) -> str:
    """Train, count right answers on clips of another seed, write; return what was written."""
    start = time.monotonic()
    network = trained(Labelled.drawn(options.seed, 0, options.clips), options.steps, options.seed)
    right = shares_right(network, Labelled.drawn(options.seed + 1, 0, HELDOUT))
    record = {
        "made_by": f"python -m benchmarks.world_video_network train --clips {options.clips} "
        f"--steps {options.steps} --seed {options.seed}",
        "clips": f"flat, {FRAMES} frames of {SIDE} px, of seed {options.seed}",
        "steps": options.steps,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "right": {name: round(share, 3) for name, share in right.items()},
        "right_of": f"{HELDOUT} clips of seed {options.seed + 1}",
        "versions": {
            "torch": torch.__version__,
            "world": WORLD_VERSION,
            "clips": CLIPS_VERSION,
        },
        "answers": {head: list(names) for head, names in ANSWERS.items()},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    weights = options.output / WEIGHTS.name
    save_file(
        {
            name: value.half() if value.is_floating_point() else value
            for name, value in network.state_dict().items()
        },
        weights,
    )
    record["sha256"] = sha256_of(weights)
    write_text(options.output / RECORD.name, json.dumps(record, indent=1) + "\n")
    return f"wrote {weights}, right: {record['right']}, in {record['minutes']} minutes\n"


def blurred(clip: Clip, strength: float, generator: torch.Generator) -> Clip:
    """Blur every frame by a Gaussian of up to 1.5 pixels."""
    del generator
    blur = ImageFilter.GaussianBlur(1.5 * strength)
    return torch.stack([from_pil(to_pil(frame).filter(blur)) for frame in clip])


def noised(clip: Clip, strength: float, generator: torch.Generator) -> Clip:
    """Add normal noise of up to 30 grey levels."""
    noise = torch.randn(clip.shape, generator=generator)
    return (clip + 30 * strength * noise).round().clamp(0, 255).byte()


def recoloured(clip: Clip, strength: float, generator: torch.Generator) -> Clip:
    """Mix red, green and blue with green, blue and red."""
    del generator
    return torch.lerp(clip.float(), clip.roll(1, 1).float(), strength).round().byte()


def shuffled(clip: Clip, strength: float, generator: torch.Generator) -> Clip:
    """Put a share of the frames in random order: the same pictures, another motion."""
    moved = torch.randperm(len(clip), generator=generator)[: round(strength * len(clip))]
    order = torch.arange(len(clip))
    order[moved] = moved[torch.randperm(len(moved), generator=generator)]
    return clip[order]


def held(clip: Clip, strength: float, generator: torch.Generator) -> Clip:
    """Show the first frame for a share of the clip, then go on from there."""
    del generator
    return clip[(torch.arange(len(clip)) - round(strength * (len(clip) - 1))).clamp(min=0)]


DAMAGES: dict[str, Damage] = {
    "blur": blurred,
    "noise": noised,
    "wrong colours": recoloured,
    "frames in random order": shuffled,
    "still": held,
}
STRENGTHS = (0.33, 0.67, 1.0)


def damaged(clips: Sequence[Clip], damage: Damage, strength: float) -> list[Clip]:
    """Damage every clip, the same way whenever it is asked."""
    generator = torch.Generator().manual_seed(0)
    return [damage(clip, strength, generator) for clip in clips]


def pictures_of(clips: Sequence[Clip]) -> list[Clip]:
    """Return every frame as a still clip: what a metric of pictures would see."""
    return [frame[None] for clip in clips for frame in clip]


def damages(count: int) -> str:
    """Return a table of the distances of damaged clips from other, true ones."""
    true, other = ([labelled_clip(1, first + i)[0] for i in range(count)] for first in (0, count))
    reference, pictures = Moments.of(world_features(true)), world_features(pictures_of(true))
    features = world_features(true)
    head = ("damage", *(f"{strength:.0%}" for strength in STRENGTHS), "by kernel", "by pictures")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]

    def row(name: str, versions: Sequence[Sequence[Clip]]) -> str:
        seen = [world_features(clips) for clips in versions]
        found = [f"{frechet_distance(reference, Moments.of(one)):.3f}" for one in seen]
        kernel = kernel_distance(features, seen[-1])
        still = Moments.of(world_features(pictures_of(versions[-1])))
        by_pictures = frechet_distance(Moments.of(pictures), still)
        return f"| {' | '.join((name, *found, f'{kernel:.4f}', f'{by_pictures:.3f}'))} |"

    lines.append(row("none", [other] * len(STRENGTHS)))
    lines += [
        row(name, [damaged(other, damage, strength) for strength in STRENGTHS])
        for name, damage in DAMAGES.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Train, or measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("train", help="train the network and write it")
    verb.add_argument("--steps", type=int, default=3000, help="of training (default 3000)")
    verb.add_argument("--clips", type=int, default=10000, help="to train on (default 10000)")
    verb.add_argument("--seed", type=int, default=100, help="of clips and weights (default 100)")
    verb.add_argument(
        "-o", "--output", type=Path, default=WEIGHTS.parent, help="default: the package's"
    )
    verb = verbs.add_parser("damages", help="measure what its distances notice")
    verb.add_argument("--clips", type=int, default=200, help="of each set (default 200)")
    options = parser.parse_args()
    sys.stdout.write(train(options) if options.verb == "train" else damages(options.clips))
    return 0


if __name__ == "__main__":
    sys.exit(main())
