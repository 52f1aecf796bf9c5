"""How fast a training step is: ours, from pictures and from a cache, and diffusers' way beside it.

The reference does what diffusers' InstructPix2Pix training script is documented to do, in our
words: each step encodes target and source by two calls of the autoencoder, the instructions and ""
by two of the text encoder, drops conditions, noises, takes the plain mean of squares, clips the
norm, makes a step of torch's AdamW and of diffusers' `EMAModel`, and reads the loss. It has the
same networks, weights and batches, stored as they come. Ours is an `EditModule` under a Lightning
trainer with the callbacks that keep a run safe (`Finite`) and its average (`Ema`).

All take turns, so that whatever else the machine does hits all; ratios are of the same turn, by the
clock and by processor time. The split is of the same
steps' processor time: data is reading, collating, drawing
and moving; the rest is everything that no other part covers. Peak memory is of a process of
its own, beyond what it held with the networks built: weights once more, gradients, moments, average
and activations.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --networks tiny --batch 16 --precision bf16-mixed
"""

import argparse
import json
import logging
import multiprocessing
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.cached_training import make_module
from benchmarks.train_step_paths import PARTS, Ours, Reference
from datamodules.encoded.writer import EncodingSettings, write_cache
from datamodules.remote.folder import open_folder
from datamodules.world.write import write_world
from emu_edit.models.tiny import TinyText
from emu_edit.runs.trainer_cli import untrained_module
from emu_edit.training.module import EditModule


def build(options: argparse.Namespace, folder: Path) -> EditModule:
    """Build the networks with random weights, the same ones each time."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        if options.networks == "tiny":
            return untrained_module("tiny")
        module = make_module(options.width, folder / "vae")
    text = module.networks.text_encoder
    assert isinstance(text, TinyText)
    text.attend_padding, text.max_tokens = True, 77  # as CLIP pads
    return module


def paths_of(
    options: argparse.Namespace, folder: Path
) -> dict[str, Callable[[], Ours | Reference]]:
    """Write pictures and cache once; return what makes each path."""
    pictures, cache = folder / "pictures", folder / "cache"
    module = build(options, folder)
    if not pictures.exists():
        write_world(pictures, options.pairs, seed=0, size=options.size)
        settings = EncodingSettings(options.size, batch_size=options.batch)
        write_cache(open_folder(pictures), cache, module.networks, settings)
    return {
        "reference": lambda: Reference(module, pictures, options),
        "pictures": lambda: Ours(module, pictures, options),
        "cache": lambda: Ours(module, cache, options),
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Let all paths take turns; return rates, ratios with their spread, and splits."""
    paths = {name: make() for name, make in paths_of(options, folder).items()}
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
    splits: dict[str, dict[str, float]] = {name: defaultdict(float) for name in paths}
    for turn in range(options.turns):
        # in turn from the front and from the back, so that none is always the first
        for name in list(paths)[:: -1 if turn % 2 else 1]:
            turns[name].append(paths[name].run(options.steps))
            for part in PARTS:
                splits[name][part] += paths[name].split.seconds[part]
    samples = options.steps * options.batch
    report: dict[str, Any] = {"options": {n: str(v) for n, v in vars(options).items()}}
    for name, seconds in turns.items():
        total = sum(splits[name].values())
        report[name] = {
            "samples_per_s": samples / median(wall for wall, _ in seconds),
            "samples_per_cpu_s": samples / median(cpu for _, cpu in seconds),
            "ratio": spread(turns["reference"], seconds, 0),
            "ratio_cpu": spread(turns["reference"], seconds, 1),
            "ms": {
                part: splits[name][part] / options.turns / options.steps * 1000 for part in PARTS
            },
            "share": {part: splits[name][part] / total for part in PARTS},
        }
    return report


def spread(
    slower: list[tuple[float, float]], faster: list[tuple[float, float]], kind: int
) -> tuple[float, float, float]:
    """Return median, least and most of the ratios of the same turns."""
    ratios = [one[kind] / other[kind] for one, other in zip(slower, faster, strict=True)]
    return median(ratios), min(ratios), max(ratios)


def added_memory(name: str, options: argparse.Namespace, folder: Path) -> float:
    """Return the MiB by which one path raises its process's peak; in a process of its own."""
    quiet(options)
    path = paths_of(options, folder)[name]
    before = status_mib("VmRSS")
    path().run(1)
    return status_mib("VmHWM") - before


def quiet(options: argparse.Namespace) -> None:
    """Take so many threads, and let Lightning say less: it cannot know what this is."""
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


def status_mib(name: str) -> float:
    """Return a number of Linux's of this process; the peak of `getrusage` is also its parent's."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {name}; measure memory on Linux")


def main() -> int:
    """Measure, and print a table and a JSON object."""
    options = parse()
    quiet(options)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        report = measure(options, folder)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for name in ("reference", "pictures", "cache"):
                report[name]["added_mib"] = pool.apply(added_memory, (name, options, folder))
    for name in ("reference", "pictures", "cache"):
        row = report[name]
        ratio, cpu = ("{:.2f} ({:.2f} to {:.2f})".format(*row[k]) for k in ("ratio", "ratio_cpu"))
        parts = ", ".join(f"{part} {row['ms'][part]:.0f}" for part in PARTS)
        sys.stdout.write(
            f"{name}: {row['samples_per_s']:.1f} samples/s, {row['samples_per_cpu_s']:.1f} of "
            f"processor time, ratio {ratio}, of processor time {cpu}, "
            f"{row['added_mib']:.0f} MiB\n  ms of processor time a step: {parts}\n"
        )
    sys.stdout.write(f"{json.dumps(report)}\n")
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument(
        "--networks",
        choices=("sd", "tiny"),
        default="sd",
        help="random ones of Stable Diffusion's format, or the tiny recipe's (default sd)",
    )
    parser.add_argument("--width", type=float, default=1 / 8, help="of sd's (default 1/8)")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures (default 64)")
    parser.add_argument("--pairs", type=int, default=64, help="pairs of the world (default 64)")
    parser.add_argument("--batch", type=int, default=4, help="pairs a step (default 4)")
    parser.add_argument("--steps", type=int, default=6, help="of each turn, after warm-up")
    parser.add_argument("--turns", type=int, default=6, help="turns of each path (default 6)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument(
        "--precision",
        choices=("32-true", "bf16-mixed"),
        default="32-true",
        help="of all paths (default 32-true)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
