"""The world benchmark: edit pairs with exact ground truth, score them, draw some, write it down.

Used by `evaluate` and at the end of `fit`. The pairs are a pure function of (seed, split, size), so
two models are compared on the same pairs with the same noise. Pictures of other editors are scored
too; what they edit is written by `emu_edit.evaluation.world_inputs`.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.evaluation_sets.items import as_unicode, some
from datamodules.evaluation_sets.world import world_items
from datamodules.world.pair import WorldPair, make_pair
from datamodules.world.photographs import Photos
from datamodules.world.phrasings import OF_PHOTOGRAPHS
from emu_edit.editing.editor import Editor
from emu_edit.editing.sheets import GridRow, picture_grid
from emu_edit.errors import InputError
from emu_edit.evaluation.candidate import Candidate, Outcome
from emu_edit.evaluation.outputs import output_picture, pictures_sha256, read_pictures
from emu_edit.evaluation.page import write_page
from emu_edit.evaluation.reading import readings
from emu_edit.evaluation.results import failed_note, versions
from emu_edit.files import write_json, write_text
from emu_edit.metrics.table import Report, format_table, report
from emu_edit.metrics.world import Truth
from emu_edit.randomness import check_seed
from emu_edit.tasks import SIXTEEN
from emu_edit.terminal import plural, step_bar

EDITS_AT_ONCE = 32
ROWS_PER_TASK = 2  # pairs of a task in the grid
SIZE = 64  # px, of pairs that are made for no model
SPLITS = ("heldout", "train", "sentences", "pairs")
RESULTS, TABLE, GRID = "results.json", "table.md", "grid.png"


@dataclass(frozen=True)
class Scenes:
    """Which scenes of the world a benchmark is made of.

    Attributes:
        split: "heldout" has phrasings and colour/shape pairs that training never saw.
        seed: of the scenes and of the noise.
        size: side of the pictures in pixels; None means the model's training size.
        photos: photographs for the backgrounds.
    """

    split: str = "heldout"
    seed: int = 1  # 0 is the training world's
    size: int | None = None
    photos: Photos | None = None

    def __post_init__(self) -> None:
        """Refuse a split that the world does not have, and an impossible seed."""
        check_seed(self.seed, "the world's seed")
        if self.split not in SPLITS:
            raise InputError(f"--split {self.split}: world has {', '.join(SPLITS)}")

    def side(self, usual: int) -> int:
        """Choose the side of the pictures: the one asked for, or else the usual one."""
        return usual if self.size is None else self.size

    def to_dict(self) -> dict[str, object]:
        """Describe the scenes as JSON values."""
        photos = None if self.photos is None else self.photos.places
        return {"split": self.split, "seed": self.seed, "size": self.size, "photos": photos}


@dataclass(frozen=True)
class WorldBenchmark:
    """Which pairs are scored: so many of each task, of some scenes."""

    pairs_per_task: int = 25
    scenes: Scenes = field(default_factory=Scenes)

    def to_dict(self) -> dict[str, object]:
        """Describe what the numbers depend on, besides the model, as JSON values."""
        count = {"pairs_per_task": self.pairs_per_task}
        return {"benchmark": "world", **count, **self.scenes.to_dict()}


@dataclass(frozen=True)
class WorldOptions:
    """What `evaluate --benchmark world` scores, and on which pairs."""

    candidate: Candidate
    benchmark: WorldBenchmark = field(default_factory=WorldBenchmark)

    def __post_init__(self) -> None:
        """Refuse a device for pictures, and results among pictures.

        The next run would take grid.png for one of them.
        """
        candidate, output = self.candidate, self.candidate.output
        candidate.refuse_for_pictures({"--device": candidate.device})
        if not candidate.are_pictures or output is None:
            return
        if output.resolve().is_relative_to(candidate.path.resolve()):
            raise InputError(
                f"-o {output} is among the pictures of {candidate.path}; give another -o"
            )


@dataclass(frozen=True)
class WorldResult:
    """Scores of a model, and some of its edits to look at.

    Attributes:
        report: the scores.
        kinds: of photographs, the scores of each kind of edit that only they have.
        rows: some edits.
        size: side of the pairs in pixels.
        pairs_sha256: hash of the pairs, targets included.
    """

    report: Report
    rows: list[GridRow]
    size: int
    pairs_sha256: str
    kinds: Report | None = None


def run_world(options: WorldOptions) -> Outcome:
    """Score single edits of every task, and write numbers, table, grid and page.

    Raises:
        InputError: if the model or a picture cannot be used.
    """
    return (_run_pictures if options.candidate.are_pictures else _run_model)(options)


def _run_model(options: WorldOptions) -> Outcome:
    candidate, benchmark = options.candidate, options.benchmark
    editor = candidate.load()
    start = time.monotonic()
    with step_bar("evaluating", "pairs") as on_step:
        result = evaluate_world(editor, benchmark, on_step)
    name = as_unicode(str(candidate.path))
    about = {
        "model": name,
        **benchmark.to_dict(),
        "editor": editor.settings.to_dict(),
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions(),
        "device": editor.device.type,
    }
    return _write(options, result, name, about, [])


def _run_pictures(options: WorldOptions) -> Outcome:
    """Score somebody's pictures, KEY.png for each pair."""
    start = time.monotonic()
    candidate, benchmark = options.candidate, options.benchmark
    side = benchmark.scenes.side(SIZE)
    pairs = world_pairs(benchmark, SIXTEEN.names, side)
    items = world_items(pairs, benchmark.scenes.split)
    hashes = {item.key: item.source.sha256() for item in items.items}
    allow_missing = candidate.allow_missing
    outputs = read_pictures(candidate.path, items, hashes, allow_missing=allow_missing)
    by_key = {item.key: item for item in items.items}
    pictures = {key: output_picture(by_key, outputs, key) for key in by_key}
    wrong = [
        f"{key} {picture.shape[-1]}x{picture.shape[-2]}"
        for key, picture in pictures.items()
        if tuple(picture.shape[-2:]) != (side, side)
    ]
    if wrong:
        raise InputError(
            f"{candidate.path} has {len(wrong)} pictures of another size than {side}x{side} "
            f"({some(wrong)}); keep the size of the inputs, or give the --size they were written "
            "with"
        )
    result = score_pairs(pairs, list(pictures.values()), benchmark)
    failed = [output.failure for output in outputs.values() if output.reason is not None]
    name = candidate.name
    about = {
        "model": {"name": name, "kind": "pictures", "sha256": pictures_sha256(outputs)},
        **benchmark.to_dict(),
        "failed": failed,
        "versions": versions(),
        "seconds": round(time.monotonic() - start, 1),
    }
    return _write(options, result, name, about, failed)


def _write(
    options: WorldOptions,
    result: WorldResult,
    name: str,
    about: dict[str, object],
    failed: Sequence[dict[str, str | None]],
) -> Outcome:
    benchmark = options.benchmark
    split = benchmark.scenes.split
    folder = options.candidate.results_folder(f"world-{split}")
    tables = [format_table(result.report)]
    if result.kinds is not None:
        tables += ["\nthe edits of photographs alone, by kind\n", format_table(result.kinds)]
    table = "\n".join([*tables, *failed_note(failed)])
    title = f"{name}, {split} world, {plural(benchmark.pairs_per_task, 'pair')} per task"
    write_results(folder, result, title=title, about=about, table=table)
    write_page(folder)
    return Outcome(table, folder, len(failed))


def evaluate_world(
    editor: Editor,
    benchmark: WorldBenchmark,
    on_step: Callable[[int, int], None] | None = None,
) -> WorldResult:
    """Edit the benchmark's pairs of every task the model knows, and score them.

    Raises:
        InputError: if the model knows none of the world's tasks.
    """
    tasks = [name for name in SIXTEEN.names if name in editor.networks.tasks.names]
    if not tasks:
        raise InputError(
            f"the model knows only {', '.join(editor.networks.tasks.names)}; the world benchmark "
            f"needs some of {', '.join(SIXTEEN.names)}"
        )
    seed = benchmark.scenes.seed
    pairs = world_pairs(benchmark, tasks, benchmark.scenes.side(editor.settings.image_size))
    pictures: list[UInt8[Tensor, "3 h w"]] = []
    for start in range(0, len(pairs), EDITS_AT_ONCE):
        part = pairs[start : start + EDITS_AT_ONCE]
        pictures += editor.edit_batch(
            torch.stack([truth_of(pair).source for pair in part]),
            [pair.instruction for pair in part],
            [pair.task for pair in part],
            list(range(seed + start, seed + start + len(part))),
        )
        if on_step is not None:
            on_step(len(pictures), len(pairs))
    return score_pairs(pairs, pictures, benchmark)


def world_pairs(benchmark: WorldBenchmark, tasks: Sequence[str], size: int) -> list[WorldPair]:
    """Make the benchmark's pairs of some tasks, task by task.

    Raises:
        InputError: if the size is too small for the world.
    """
    scenes = benchmark.scenes
    return [
        make_pair(
            scenes.seed, index, task=task, size=size, split=scenes.split, photos=scenes.photos
        )
        for task in tasks
        for index in range(benchmark.pairs_per_task)
    ]


def pairs_sha256(pairs: Sequence[WorldPair]) -> str:
    """Hash everything that edits of these pairs are made from and scored by."""
    digest = hashlib.sha256()
    for pair in pairs:
        texts = [pair.task, pair.instruction, pair.source_caption, pair.target_caption]
        head = [pair.key, list(pair.source.shape), *texts, pair.extra]
        digest.update(json.dumps(head, sort_keys=True).encode() + b"\n")
        for pixels in (pair.source, pair.target, pair.mask):
            digest.update(pixels.tobytes())
    return digest.hexdigest()


def score_pairs(
    pairs: Sequence[WorldPair],
    pictures: Sequence[UInt8[Tensor, "3 h w"]],
    benchmark: WorldBenchmark,
) -> WorldResult:
    """Score an edited picture of each pair, in the order of `world_pairs`."""
    truths = [truth_of(pair) for pair in pairs]
    rows = [
        GridRow(truth.source, picture, truth.target, pair.instruction, pair.task)
        for i, (pair, picture, truth) in enumerate(zip(pairs, pictures, truths, strict=True))
        if i % benchmark.pairs_per_task < ROWS_PER_TASK
    ]
    with step_bar("reading", "pictures") as on_step:
        targets = [truth.target for truth in truths]
        both = readings([*pairs] * 2, truths * 2, [*pictures, *targets], on_step)
    shown = zip(both[: len(pairs)], both[len(pairs) :], strict=True)
    return WorldResult(
        report(zip(pictures, truths, strict=True), shown),
        rows,
        size=truths[0].source.shape[-1],
        pairs_sha256=pairs_sha256(pairs),
        kinds=_by_kind(pairs, pictures, truths),
    )


def _by_kind(
    pairs: Sequence[WorldPair], pictures: Sequence[UInt8[Tensor, "3 h w"]], truths: list[Truth]
) -> Report | None:
    """Score the edits that only photographs have, by kind in place of task; None without any."""
    edits = [
        (picture, replace(truth, task=str(pair.extra["kind"])))
        for pair, picture, truth in zip(pairs, pictures, truths, strict=True)
        if str(pair.extra["kind"]).startswith(OF_PHOTOGRAPHS)
    ]
    return report(edits) if edits else None


def truth_of(pair: WorldPair) -> Truth:
    """Turn a pair of the world into what the metrics take."""
    return Truth.from_arrays(
        pair.key,
        pair.task,
        source=pair.source,
        target=pair.target,
        mask=pair.mask,
        extra=pair.extra,
    )


def write_results(
    folder: Path,
    result: WorldResult,
    *,
    title: str,
    about: dict[str, object],
    table: str | None = None,
) -> None:
    """Write results.json, table.md and grid.png.

    Args:
        folder: made when missing.
        result: what to write.
        title: heading of table and grid.
        about: what else goes into results.json: model, benchmark, time.
        table: what to write below the title; None means the report's table alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"size": result.size, "pairs_sha256": result.pairs_sha256}
    kinds = {} if result.kinds is None else {"kinds": result.kinds.to_dict()}
    write_json(folder / RESULTS, {**about, **facts, "report": result.report.to_dict(), **kinds})
    text = format_table(result.report) if table is None else table
    write_text(folder / TABLE, f"# {title}\n\n{text}")
    picture_grid(result.rows, title).save(folder / GRID)
