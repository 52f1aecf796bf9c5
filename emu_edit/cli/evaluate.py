"""`emu-edit evaluate MODEL`: score a model against exact ground truth, per task or over turns.

`--benchmark world` (the default) scores single edits of every task; `--drift` scores sessions of
several turns with and without thresholding.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import ArgumentParser, positive_int, seed_int
from emu_edit.cli.find_model import find_model
from emu_edit.errors import InputError

if TYPE_CHECKING:
    from emu_edit.editing.editor import Editor

PAIRS, SESSIONS, TURNS = 25, 20, 10


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit evaluate",
        description="Score a model per task, beside copy-input (nothing edited) and the oracle "
        "(the target itself); writes results.json, table.md and grid.png. With --drift, over the "
        "turns of sessions, without and with thresholding; writes drift.json, drift.md, drift.png "
        "(curves) and sessions.png.",
    )
    made.add_argument("model", type=Path, help="model directory, run folder or .ckpt file")
    made.add_argument("--benchmark", choices=("world",), default="world", help="what to score on")
    made.add_argument("--pairs", type=positive_int, help=f"pairs per task (default {PAIRS})")
    made.add_argument(
        "--drift", action="store_true", help="sessions: odd turns edit, even ones ask for nothing"
    )
    made.add_argument("--turns", type=positive_int, help=f"of a drift session (default {TURNS})")
    made.add_argument("--sessions", type=positive_int, help=f"to drift (default {SESSIONS})")
    made.add_argument(
        "--split",
        choices=("heldout", "train"),
        default="heldout",
        help="heldout: phrasings and colour/shape pairs that training never saw (default)",
    )
    made.add_argument("--seed", type=seed_int, default=1, help="of pairs and noise (default 1)")
    made.add_argument("--size", type=positive_int, help="side in pixels (default: as trained)")
    made.add_argument("--photos", type=Path, metavar="DIR", help="photographs for backgrounds")
    made.add_argument("--steps", type=positive_int, help="sampler steps (default: the model's)")
    made.add_argument("--guidance-text", type=float, help="how strongly to follow the instruction")
    made.add_argument("--guidance-image", type=float, help="how strongly to keep the picture")
    made.add_argument("--sampler", help="ddim, euler_ancestral or dpm_solver_pp_2m")
    made.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="default: MODEL-world-SPLIT or MODEL-drift"
    )
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    return made


def run(arguments: list[str]) -> int:
    """Score the model, print the table, write it down.

    Raises:
        InputError: if model, size, photographs or an option cannot be used.
    """
    options = parser().parse(arguments)
    check_options(options)
    from emu_edit.cli.edit_run import asked_sampler

    asked_sampler(options.sampler)  # an unknown name is answered before a model is loaded
    editor = load_editor(options)
    start = time.monotonic()
    table, folder = (run_drift if options.drift else run_world)(options, editor)
    sys.stdout.write(f"{table}\n\nwrote {folder} in {time.monotonic() - start:.0f} s\n")
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that the chosen benchmark would not use.

    Raises:
        InputError: with the option and what it belongs to.
    """
    if options.drift and options.pairs is not None:
        raise InputError("--pairs counts pairs of single edits; with --drift give --sessions")
    for name in ("turns", "sessions"):
        if not options.drift and getattr(options, name) is not None:
            raise InputError(f"--{name} belongs to --drift; add --drift or leave it out")


def load_editor(options: argparse.Namespace) -> "Editor":
    """Load the model, its settings overridden by what the command line says.

    Raises:
        InputError: if there is no model, or a number is out of range.
    """
    from emu_edit.cli.devices import choose_device
    from emu_edit.cli.edit_run import asked_guidance, asked_sampler
    from emu_edit.editing.editor import Editor

    with model_directory(options.model) as directory:
        editor = Editor.from_pretrained(directory, device=choose_device(options.device))
    sampler, usual = asked_sampler(options.sampler), editor.settings
    editor.settings = replace(
        usual,
        guidance=asked_guidance(options, editor),
        num_steps=usual.num_steps if options.steps is None else options.steps,
        sampler=usual.sampler if sampler is None else sampler,
    )
    return editor


def run_world(options: argparse.Namespace, editor: "Editor") -> tuple[str, Path]:
    """Score single edits of every task; return the table and the folder written."""
    from datamodules.world.photos import Photos
    from emu_edit.cli.world_benchmark import WorldBenchmark, evaluate_world, write_results
    from emu_edit.metrics.table import format_table
    from emu_edit.progress import step_bar

    benchmark = WorldBenchmark(
        pairs_per_task=PAIRS if options.pairs is None else options.pairs,
        split=options.split,
        seed=options.seed,
        size=options.size,
        photos=None if options.photos is None else Photos(options.photos),
    )
    start = time.monotonic()
    with step_bar("evaluating", "pairs") as on_step:
        result = evaluate_world(editor, benchmark, on_step)
    about = describe(options, editor, benchmark.describe(), time.monotonic() - start)
    folder = output_folder(options, f"world-{options.split}")
    title = f"{options.model}, {options.split} world, {benchmark.pairs_per_task} pairs per task"
    write_results(folder, result, title=title, about=about)
    return format_table(result.report), folder


def run_drift(options: argparse.Namespace, editor: "Editor") -> tuple[str, Path]:
    """Score sessions of several turns; return the table and the folder written."""
    from datamodules.world.photos import Photos
    from emu_edit.cli.drift import DriftBenchmark, evaluate_drift, table_of, write_drift
    from emu_edit.progress import step_bar

    benchmark = DriftBenchmark(
        sessions=SESSIONS if options.sessions is None else options.sessions,
        turns=TURNS if options.turns is None else options.turns,
        split=options.split,
        seed=options.seed,
        size=options.size,
        photos=None if options.photos is None else Photos(options.photos),
    )
    start = time.monotonic()
    with step_bar("drifting", "edits") as on_step:
        result = evaluate_drift(editor, benchmark, on_step)
    about = describe(options, editor, benchmark.describe(), time.monotonic() - start)
    folder = output_folder(options, "drift")
    title = f"{options.model}, drift over {benchmark.turns} turns, {benchmark.sessions} sessions"
    write_drift(folder, result, title=title, about=about)
    return table_of(result), folder


def describe(
    options: argparse.Namespace, editor: "Editor", benchmark: dict[str, object], seconds: float
) -> dict[str, object]:
    """Return what stands above the numbers in the JSON file."""
    return {
        "model": str(options.model),
        **benchmark,
        "editor": editor.settings.to_dict(),
        "seconds": round(seconds, 1),
    }


def output_folder(options: argparse.Namespace, suffix: str) -> Path:
    """Return where to write: as asked, else beside the model."""
    path = options.model.absolute()
    return options.output or path.with_name(f"{path.name}-{suffix}")


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
