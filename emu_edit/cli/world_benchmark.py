"""The world benchmark: edit pairs with exact ground truth, score them, draw some, write it down.

Used by `evaluate` and at the end of `fit`. The pairs are a pure function of (seed, split, size), so
two models are compared on the same pairs with the same noise.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from callbacks.picture_grid import GridRow, picture_grid
from datamodules.world.pair import WorldPair, make_pair
from datamodules.world.photos import Photos
from emu_edit.editing.editor import Editor
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
    """Scores of a model, and some of its edits to look at."""

    report: Report
    rows: list[GridRow]


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
    pairs = [
        make_pair(
            benchmark.seed,
            index,
            task=task,
            size=size,
            split=benchmark.split,  # type: ignore[arg-type]  # checked by make_pair
            photos=benchmark.photos,
        )
        for task in tasks
        for index in range(benchmark.pairs_per_task)
    ]
    truths = [truth_of(pair) for pair in pairs]
    pictures: list[UInt8[Tensor, "3 h w"]] = []
    for start in range(0, len(pairs), EDITS_AT_ONCE):
        part = slice(start, start + EDITS_AT_ONCE)
        seeds = range(benchmark.seed + start, benchmark.seed + start + len(pairs[part]))
        pictures += editor.edit_batch(
            torch.stack([truth.source for truth in truths[part]]),
            [pair.instruction for pair in pairs[part]],
            [pair.task for pair in pairs[part]],
            list(seeds),
        )
        if on_step is not None:
            on_step(len(pictures), len(pairs))
    shown = [i for i in range(len(pairs)) if i % benchmark.pairs_per_task < ROWS_PER_TASK]
    rows = [
        GridRow(
            truths[i].source, pictures[i], truths[i].target, pairs[i].instruction, pairs[i].task
        )
        for i in shown
    ]
    return WorldResult(report(zip(pictures, truths, strict=True)), rows)


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
    folder: Path, result: WorldResult, *, title: str, about: dict[str, object]
) -> None:
    """Write results.json, table.md and grid.png.

    Args:
        folder: made when missing.
        result: what to write.
        title: heading of table and grid.
        about: what else goes into results.json: model, benchmark, time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {**about, "report": result.report.to_dict()}
    (folder / RESULTS).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    table = f"# {title}\n\n{format_table(result.report)}\n"
    (folder / TABLE).write_text(table, encoding="utf-8")
    picture_grid(result.rows, title).save(folder / GRID)
