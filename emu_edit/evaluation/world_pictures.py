"""`evaluate --benchmark world` for editors that are not ours: inputs to edit, results to score.

    emu-edit evaluate --benchmark world --write-inputs DIR      DIR/KEY.png is what is to be edited
    emu-edit evaluate PICTURES --benchmark world --data DIR     PICTURES/KEY.png is what was made

DIR/inputs.jsonl says how each is to be edited, DIR/benchmark.json which pairs these are: their
numbers, and a hash of everything they are made of, so that pictures are never scored against the
truth of other pairs (another version of the world, other photographs).
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from datamodules.evaluation_sets.items import Benchmark, as_unicode, some
from datamodules.evaluation_sets.world import world_items
from datamodules.world.backgrounds import Photos
from datamodules.world.pair import VERSION, WorldPair
from emu_edit.errors import InputError
from emu_edit.evaluation.options import OF_EDITING, refuse_idle
from emu_edit.evaluation.outputs import Output, output_picture, pictures_sha256, read_made
from emu_edit.evaluation.page import write_page
from emu_edit.evaluation.results import SOME_FAILED, failed_note, versions
from emu_edit.evaluation.world import (
    WorldBenchmark,
    pairs_sha256,
    score_pairs,
    world_pairs,
    write_results,
)
from emu_edit.files import write_json, write_text
from emu_edit.metrics.table import format_table
from emu_edit.tasks import SIXTEEN

FORMAT = 1
INPUTS, BENCHMARK = "inputs.jsonl", "benchmark.json"
SIZE = 64  # px, of pairs that are made for no model
FROM_DATA = ("pairs", "seed", "split", "size")  # what benchmark.json says


def asked_world(options: argparse.Namespace) -> WorldBenchmark:
    """Return which pairs the command line means.

    Raises:
        InputError: if photographs or --data cannot be used, or --data was written from other pairs.
    """
    photos = None if options.photos is None else Photos(options.photos)
    if options.data is not None:
        return _written(options, photos)
    usual = WorldBenchmark()
    return WorldBenchmark(
        pairs_per_task=usual.pairs_per_task if options.pairs is None else options.pairs,
        split=usual.split if options.split is None else options.split,
        seed=usual.seed if options.seed is None else options.seed,
        size=options.size,
        photos=photos,
    )


def write_inputs(options: argparse.Namespace) -> str:
    """Write what is to be edited into a folder; return what to tell.

    Raises:
        InputError: if the folder is not empty, or the pairs cannot be made.
    """
    folder: Path = options.write_inputs
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--write-inputs {folder}: is not empty, needs a new folder; give another")
    benchmark = _sized(asked_world(options))
    pairs = _pairs(benchmark)
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for item in world_items(pairs, benchmark.split).items:
        name = f"{item.key}.png"
        (folder / name).write_bytes(item.source.fetch())
        line = {
            "key": item.key,
            "file_name": name,
            "task": item.task,
            "instruction": item.instruction,
            "source_caption": item.source_caption,
            "target_caption": item.target_caption,
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(folder / INPUTS, "".join(lines))
    write_json(folder / BENCHMARK, _about(benchmark, pairs))
    return (
        f"wrote {len(pairs)} pictures and {INPUTS} to {folder}\n"
        "edit each as its line says, keep names and sizes, then\n"
        f"  emu-edit evaluate PICTURES --benchmark world --data {folder}\n"
    )


def run_pictures(options: argparse.Namespace) -> tuple[str, Path, int]:
    """Score a folder of pictures; return the table, the folder written and the exit status.

    Raises:
        InputError: if pictures and pairs do not fit together.
    """
    start = time.monotonic()
    refuse_idle(options, (*OF_EDITING, "device"))
    pictures_folder: Path = options.model
    benchmark = _sized(asked_world(options))
    folder = _output_folder(options, benchmark.split)
    pairs = _pairs(benchmark)
    items = world_items(pairs, benchmark.split)
    outputs = read_made(
        pictures_folder,
        items,
        {item.key: item.source.sha256() for item in items.items},
        allow_missing=options.allow_missing is not None,
    )
    pictures = _pictures(pictures_folder, items, outputs, benchmark)
    result = score_pairs(pairs, pictures, benchmark)
    name = as_unicode(pictures_folder.resolve().name)
    failed = [{"key": o.key, "reason": o.reason} for o in outputs.values() if o.reason is not None]
    table = "\n".join([format_table(result.report), *failed_note(failed)])
    about = {
        "model": {"name": name, "kind": "pictures", "sha256": pictures_sha256(outputs)},
        **benchmark.describe(),
        "failed": failed,
        "versions": versions(),
        "seconds": round(time.monotonic() - start, 1),
    }
    title = f"{name}, {benchmark.split} world, {benchmark.pairs_per_task} pairs per task"
    write_results(folder, result, title=title, about=about, table=table)
    write_page(folder)
    return table, folder, SOME_FAILED if failed else 0


def _output_folder(options: argparse.Namespace, split: str) -> Path:
    """Return where to write, not among the pictures: the next run would take grid.png for one.

    Raises:
        InputError: if that is where --output is.
    """
    pictures: Path = options.model.absolute()
    folder = options.output or pictures.with_name(f"{pictures.name}-world-{split}")
    if folder.resolve().is_relative_to(pictures.resolve()):
        raise InputError(f"-o {folder} is among the pictures of {options.model}; give another -o")
    return folder


def _pictures(
    folder: Path, items: Benchmark, outputs: Mapping[str, Output], benchmark: WorldBenchmark
) -> list[UInt8[Tensor, "3 h w"]]:
    """Return what is scored for each pair.

    Raises:
        InputError: if a picture has another size than its pair.
    """
    by_key = {item.key: item for item in items.items}
    pictures = [output_picture(by_key, outputs, item.key) for item in items.items]
    side = benchmark.size
    wrong = [
        f"{item.key} {picture.shape[-1]}x{picture.shape[-2]}"
        for item, picture in zip(items.items, pictures, strict=True)
        if tuple(picture.shape[-2:]) != (side, side)
    ]
    if wrong:
        raise InputError(
            f"{folder} has {len(wrong)} pictures of another size than {side}x{side} "
            f"({some(wrong)}); keep the size of the inputs, or give the --size they were written "
            "with"
        )
    return pictures


def _sized(benchmark: WorldBenchmark) -> WorldBenchmark:
    return benchmark if benchmark.size is not None else replace(benchmark, size=SIZE)


def _pairs(benchmark: WorldBenchmark) -> list[WorldPair]:
    assert benchmark.size is not None  # see _sized
    return world_pairs(benchmark, SIXTEEN.names, benchmark.size)


def _about(benchmark: WorldBenchmark, pairs: Sequence[WorldPair]) -> dict[str, object]:
    """Return benchmark.json."""
    photos = None if benchmark.photos is None else benchmark.photos.description
    return {
        "format": FORMAT,
        **benchmark.describe(),
        "photos": photos,
        "world_version": VERSION,
        "pairs_sha256": pairs_sha256(pairs),
    }


def _written(options: argparse.Namespace, photos: Photos | None) -> WorldBenchmark:
    """Return the pairs that a folder of inputs was written from.

    Raises:
        InputError: if they are not known, or cannot be made again.
    """
    for name in FROM_DATA:
        if getattr(options, name) is not None:
            raise InputError(f"--{name} is what {options.data} was written with; leave it out")
    told = _read_about(options.data)
    benchmark = WorldBenchmark(
        pairs_per_task=told["pairs_per_task"],
        split=told["split"],
        seed=told["seed"],
        size=told["size"],
        photos=photos,
    )
    if pairs_sha256(_pairs(benchmark)) != told["pairs_sha256"]:
        with_photos = "with --photos" if told["photos"] is not None else "without --photos"
        raise InputError(
            f"{options.data} was written {with_photos} by version {told['world_version']} of the "
            f"world (this is {VERSION}), and the pairs made now are not the same; give what it "
            "was written with, or write the inputs again"
        )
    return benchmark


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / BENCHMARK
    if not path.is_file():
        raise InputError(
            f"{folder} has no {BENCHMARK}; give --data the folder that --write-inputs wrote"
        )
    try:
        told = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); write the inputs again") from error
    whole = ("pairs_per_task", "seed", "size")
    texts = ("split", "pairs_sha256")
    is_known = (
        isinstance(told, dict)
        and told.get("format") == FORMAT
        and all(type(told.get(name)) is int for name in whole)
        and all(isinstance(told.get(name), str) for name in texts)
        and {"photos", "world_version"} <= told.keys()
    )
    if not is_known:
        raise InputError(f"{path} is not what --write-inputs writes; write the inputs again")
    return told
