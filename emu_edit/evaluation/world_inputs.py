"""The world's pairs for editors that are not ours: what is to be edited, as files.

    emu-edit evaluate --benchmark world --write-inputs DIR      DIR/KEY.png is what is to be edited
    emu-edit evaluate PICTURES --benchmark world --data DIR     PICTURES/KEY.png is the result

DIR/inputs.jsonl says how each is to be edited, DIR/benchmark.json which pairs these are: their
numbers, and a hash of everything they are made of, so that pictures are never scored against the
truth of other pairs (another version of the world, other photographs).
"""

import json
from pathlib import Path
from typing import Any

from datamodules.evaluation_sets.items import Item
from datamodules.evaluation_sets.world import world_items
from datamodules.world.pair import VERSION, WorldPair
from datamodules.world.photographs import Photos
from emu_edit.errors import InputError
from emu_edit.evaluation.world import SIZE, Scenes, WorldBenchmark, pairs_sha256, world_pairs
from emu_edit.files import read_regular, write_json, write_text
from emu_edit.tasks import SIXTEEN
from emu_edit.terminal import plural

FORMAT = 1
INPUTS, BENCHMARK = "inputs.jsonl", "benchmark.json"


def write_inputs(folder: Path, benchmark: WorldBenchmark) -> str:
    """Write the pictures to edit, and what to do with each; return what to tell the user.

    Raises:
        InputError: if the folder is not empty, or the pairs cannot be made.
    """
    refuse_full(folder)
    pairs = _pairs(benchmark)
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for item in world_items(pairs, benchmark.scenes.split).items:
        name = f"{item.key}.png"
        (folder / name).write_bytes(item.source.fetch())
        lines.append(json.dumps(input_line(item, name), ensure_ascii=False))
    write_text(folder / INPUTS, "\n".join(lines))
    photos = benchmark.scenes.photos
    about = {
        "format": FORMAT,
        **benchmark.to_dict(),
        "size": benchmark.scenes.side(SIZE),
        "photos": None if photos is None else photos.description,
        "world_version": VERSION,
        "pairs_sha256": pairs_sha256(pairs),
    }
    write_json(folder / BENCHMARK, about)
    return (
        f"wrote {plural(len(pairs), 'picture')} and {INPUTS} to {folder}\n"
        "edit each as its line says, keep names and sizes, then\n"
        f"  emu-edit evaluate PICTURES --benchmark world --data {folder}\n"
    )


def refuse_full(folder: Path) -> None:
    """Refuse a folder for inputs that is not empty.

    Raises:
        InputError: if it is not.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--write-inputs {folder}: is not empty, needs a new folder; give another")


def input_line(item: Item, name: str) -> dict[str, str]:
    """Say how a file or folder of that name is to be edited."""
    return {
        "key": item.key,
        "file_name": name,
        "task": item.task,
        "instruction": item.instruction,
        "source_caption": item.source_caption,
        "target_caption": item.target_caption,
    }


def read_benchmark(folder: Path, photos: Photos | None) -> WorldBenchmark:
    """Read which pairs a folder of inputs was written from, and make sure that these can be made.

    Args:
        folder: what `write_inputs` wrote.
        photos: the photographs that the pairs are made with now.

    Raises:
        InputError: if they are not known, or would be other pairs.
    """
    about = _read_about(folder)
    scenes = Scenes(about["split"], about["seed"], about["size"], photos)
    benchmark = WorldBenchmark(about["pairs_per_task"], scenes)
    if pairs_sha256(_pairs(benchmark)) != about["pairs_sha256"]:
        with_photos = "with --photos" if about["photos"] is not None else "without --photos"
        raise InputError(
            f"{folder} was written {with_photos} by version {about['world_version']} of the "
            f"world (this is {VERSION}), and the pairs made now are not the same; give what it "
            "was written with, or write the inputs again"
        )
    return benchmark


def _pairs(benchmark: WorldBenchmark) -> list[WorldPair]:
    return world_pairs(benchmark, SIXTEEN.names, benchmark.scenes.side(SIZE))


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / BENCHMARK
    if not path.is_file():
        raise InputError(
            f"{folder} has no {BENCHMARK}; give --data the folder that --write-inputs wrote"
        )
    try:
        about = json.loads(read_regular(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); write the inputs again") from error
    whole = ("pairs_per_task", "seed", "size")
    texts = ("split", "pairs_sha256")
    is_known = (
        isinstance(about, dict)
        and about.get("format") == FORMAT
        and all(type(about.get(name)) is int for name in whole)
        and all(isinstance(about.get(name), str) for name in texts)
        and {"photos", "world_version"} <= about.keys()
    )
    if not is_known:
        raise InputError(f"{path} is not what --write-inputs writes; write the inputs again")
    return about
