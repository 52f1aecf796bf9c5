"""`emu-edit evaluate MODEL --benchmark world`: score a model against exact ground truth."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from emu_edit.cli.arguments import ArgumentParser, positive_int, seed_int
from emu_edit.cli.find_model import find_model


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit evaluate",
        description="Score a model per task, beside copy-input (nothing edited) and the oracle "
        "(the target itself); writes results.json, table.md and grid.png.",
    )
    made.add_argument("model", type=Path, help="model directory, run folder or .ckpt file")
    made.add_argument("--benchmark", choices=("world",), default="world", help="what to score on")
    made.add_argument("--pairs", type=positive_int, default=25, help="pairs per task (default 25)")
    made.add_argument(
        "--split",
        choices=("heldout", "train"),
        default="heldout",
        help="heldout: phrasings and colour/shape pairs that training never saw (default)",
    )
    made.add_argument("--seed", type=seed_int, default=1, help="of pairs and noise (default 1)")
    made.add_argument("--size", type=positive_int, help="side in pixels (default: as trained)")
    made.add_argument("--photos", type=Path, metavar="DIR", help="photographs for backgrounds")
    made.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: MODEL-world-SPLIT")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    return made


def run(arguments: list[str]) -> int:
    """Score the model, print the table, write it down.

    Raises:
        InputError: if model, size or photographs cannot be used.
    """
    options = parser().parse(arguments)
    from datamodules.world.photos import Photos
    from emu_edit.cli.devices import choose_device
    from emu_edit.cli.progress import step_bar
    from emu_edit.cli.world_benchmark import WorldBenchmark, evaluate_world, write_results
    from emu_edit.editing.editor import Editor
    from emu_edit.metrics.table import format_table

    benchmark = WorldBenchmark(
        pairs_per_task=options.pairs,
        split=options.split,
        seed=options.seed,
        size=options.size,
        photos=None if options.photos is None else Photos(options.photos),
    )
    with model_directory(options.model) as directory:
        editor = Editor.from_pretrained(directory, device=choose_device(options.device))
    start = time.monotonic()
    with step_bar("evaluating", "pairs") as on_step:
        result = evaluate_world(editor, benchmark, on_step)
    seconds = time.monotonic() - start
    path = options.model.absolute()
    folder = options.output or path.with_name(f"{path.name}-world-{options.split}")
    about = {
        "model": str(options.model),
        **benchmark.describe(),
        "editor": editor.settings.to_dict(),
        "seconds": round(seconds, 1),
    }
    title = f"{options.model}, {options.split} world, {options.pairs} pairs per task"
    write_results(folder, result, title=title, about=about)
    sys.stdout.write(f"{format_table(result.report)}\n\nwrote {folder} in {seconds:.0f} s\n")
    return 0


@contextmanager
def model_directory(path: Path) -> Iterator[Path]:
    """Yield the model directory meant by `path`; a checkpoint is exported to a temporary one.

    Raises:
        InputError: if there is no model at `path`.
    """
    if not path.is_file():
        yield find_model(path)
        return
    from emu_edit.training.export import export_checkpoint, load_ema

    with TemporaryDirectory() as folder:
        made = Path(folder, "model")
        export_checkpoint(path, made, ema=load_ema(path) is not None)
        yield made
