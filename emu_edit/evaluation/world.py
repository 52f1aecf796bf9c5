"""The world benchmark: edit pairs with exact ground truth, score them, draw some, write it down.

Used by `evaluate` and at the end of `fit`. The pairs are a pure function of (seed, split, size), so
two models are compared on the same pairs with the same noise.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.world.backgrounds import Photos
from datamodules.world.pair import WorldPair, make_pair
from emu_edit.editing.editor import Editor
from emu_edit.editing.sheets import GridRow, picture_grid
from emu_edit.errors import InputError
from emu_edit.metrics.table import Report, format_table, report
from emu_edit.metrics.world import Truth
from emu_edit.tasks import SIXTEEN

EDITS_AT_ONCE = 32
ROWS_PER_TASK = 2  # pairs of a task in the grid
RESULTS, TABLE, GRID = "results.json", "table.md", "grid.png"


@dataclass(frozen=True)
class WorldBenchmark:
    """Which pairs a model is scored on.

    Attributes:
        pairs_per_task: how many of each task.
        split: "heldout" has phrasings and colour/shape pairs that training never saw.
        seed: of the pairs and of the noise.
        size: side of the pictures in pixels; None means the model's training size.
        photos: photographs for the backgrounds.
    """

    pairs_per_task: int = 25
    split: str = "heldout"
    seed: int = 1  # 0 is the training world's
    size: int | None = None
    photos: Photos | None = None

    def describe(self) -> dict[str, object]:
        """Return what the numbers depend on, besides the model, as JSON-able values."""
        return {
            "benchmark": "world",
            "pairs_per_task": self.pairs_per_task,
            "split": self.split,
            "seed": self.seed,
            "size": self.size,
            "photos": None if self.photos is None else str(self.photos.folder),
        }


@dataclass(frozen=True)
class WorldResult:
    """Scores of a model, and some of its edits to look at.

    Attributes:
        report: the scores.
        rows: some edits.
        size: side of the pairs in pixels.
        pairs_sha256: hash of the pairs, targets included.
    """

    report: Report
    rows: list[GridRow]
    size: int
    pairs_sha256: str


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
    size = editor.settings.image_size if benchmark.size is None else benchmark.size
    pairs = world_pairs(benchmark, tasks, size)
    pictures: list[UInt8[Tensor, "3 h w"]] = []
    for start in range(0, len(pairs), EDITS_AT_ONCE):
        part = pairs[start : start + EDITS_AT_ONCE]
        seeds = range(benchmark.seed + start, benchmark.seed + start + len(part))
        pictures += editor.edit_batch(
            torch.stack([truth_of(pair).source for pair in part]),
            [pair.instruction for pair in part],
            [pair.task for pair in part],
            list(seeds),
        )
        if on_step is not None:
            on_step(len(pictures), len(pairs))
    return score_pairs(pairs, pictures, benchmark)


def world_pairs(benchmark: WorldBenchmark, tasks: Sequence[str], size: int) -> list[WorldPair]:
    """Make the benchmark's pairs of some tasks, task by task.

    Raises:
        InputError: if split or size are none of the world's.
    """
    return [
        make_pair(
            benchmark.seed,
            index,
            task=task,
            size=size,
            split=benchmark.split,
            photos=benchmark.photos,
        )
        for task in tasks
        for index in range(benchmark.pairs_per_task)
    ]


def pairs_sha256(pairs: Sequence[WorldPair]) -> str:
    """Return the hash of everything that edits of these pairs are made from and judged by."""
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
    """Score what was made of each pair, in the order of `world_pairs`."""
    truths = [truth_of(pair) for pair in pairs]
    shown = [i for i in range(len(pairs)) if i % benchmark.pairs_per_task < ROWS_PER_TASK]
    rows = [
        GridRow(
            truths[i].source, pictures[i], truths[i].target, pairs[i].instruction, pairs[i].task
        )
        for i in shown
    ]
    return WorldResult(
        report(zip(pictures, truths, strict=True)),
        rows,
        size=truths[0].source.shape[-1],
        pairs_sha256=pairs_sha256(pairs),
    )


def truth_of(pair: WorldPair) -> Truth:
    """Return a pair of the world as the metrics take it."""
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
    numbers = {**about, **facts, "report": result.report.to_dict()}
    (folder / RESULTS).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    text = format_table(result.report) if table is None else table
    (folder / TABLE).write_text(f"# {title}\n\n{text}\n", encoding="utf-8")
    picture_grid(result.rows, title).save(folder / GRID)
