"""Which scenes, clips and pairs of the world the command line of `evaluate` means."""

import argparse
from typing import TYPE_CHECKING, TypeVar

from emu_edit.cli.evaluate_kinds import refuse

if TYPE_CHECKING:
    from emu_edit.evaluation.generated import MovingScenes
    from emu_edit.evaluation.videos import Clips
    from emu_edit.evaluation.world import Scenes, WorldBenchmark

Value = TypeVar("Value")

# as the records of emu_edit.evaluation have it
PAIRS, SEED, CLIPS, FRAMES, CAPTIONS_DRAWN = 25, 1, 2, 12, 100


def scenes_of(options: argparse.Namespace) -> "Scenes":
    """Read from the command line which scenes of the world are meant."""
    from datamodules.world.photographs import Photos
    from emu_edit.evaluation.world import Scenes

    split = given_or(options.split, "heldout")
    return Scenes(
        split=split,
        seed=given_or(options.seed, SEED),
        size=options.size,
        photos=None if options.photos is None else Photos(options.photos).of_split(split),
    )


def given_or(value: Value | None, usual: Value) -> Value:
    """Choose the usual value where none was given."""
    return usual if value is None else value


def benchmark_of(options: argparse.Namespace) -> "WorldBenchmark":
    """Read from the command line which pairs of the world are meant, or from --data."""
    from emu_edit.evaluation.world import WorldBenchmark
    from emu_edit.evaluation.world_inputs import read_benchmark

    if options.data is not None:
        why = f"is what {options.data} was written with; leave it out"
        refuse(options, dict.fromkeys(("pairs", "seed", "split", "size"), why))
        return read_benchmark(options.data, scenes_of(options).photos)
    return WorldBenchmark(given_or(options.pairs, PAIRS), scenes_of(options))


def clips_of(options: argparse.Namespace) -> "Clips":
    """Read from the command line which clips of the moving world are meant."""
    from emu_edit.evaluation.videos import Clips

    return Clips(
        scenes_of(options), given_or(options.pairs, CLIPS), given_or(options.frames, FRAMES)
    )


def moving_of(options: argparse.Namespace) -> "MovingScenes":
    """Read from the command line which clips a model is to draw."""
    from emu_edit.evaluation.generated import MovingScenes

    return MovingScenes(
        scenes_of(options),
        given_or(options.pairs, CAPTIONS_DRAWN),
        options.frames,
        flat=options.full is None,
    )
