"""`emu-edit evaluate MODEL`: score a model, or pictures someone else made, by a benchmark.

`--benchmark world` (the default) scores single edits of every task against exact ground truth;
`--drift` scores sessions of several turns with and without thresholding; `emu-edit` and
`magicbrush` score edits of photographs by a pinned protocol.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import ArgumentParser, add_sampling, positive_int, sampling_of, seed_int
from emu_edit.errors import InputError
from emu_edit.evaluation.options import HELDOUT, SPLITS, WORLD, check_options, load_editor

if TYPE_CHECKING:
    from emu_edit.editing.editor import Editor


PAIRS, SESSIONS, TURNS, SEED = 25, 20, 10, 1

EPILOG = """\
benchmarks of photographs, read from where you downloaded them (--data):
  emu-edit     the Emu Edit test set: parquet files of the hub (needs pyarrow), or metadata.jsonl
               or .csv with pictures
  magicbrush   the MagicBrush test set: test/edit_sessions.json, test/images, captions
protocols: emu-b32, emu-l14, emu-l14-filtered (CLIPdir, CLIPim, CLIPout, L1, DINO; both benchmarks;
default emu-l14) and magicbrush (L1, L2, CLIP-I, DINO, CLIP-T; default of magicbrush). CLIP and DINO
come from --backbones, a folder with openai--clip-vit-large-patch14 and the like, or from the hub.

A folder instead of a model holds someone's pictures, KEY.png each: test-add-12.png (emu-edit:
split, task, idx), SESSION_1.png, SESSION_inde_2.png, SESSION_iter_2.png (magicbrush, also in
folders), or (emu-edit) a download of emu_edit_test_set_generations, whose rows belong to edits by
their hash. For the world, --write-inputs DIR writes what is to be edited: DIR/KEY.png, and
DIR/inputs.jsonl with key, task, instruction and captions; --data DIR scores on just these pairs.
Of photographs, a model writes its pictures to DIR/images, and the same command again goes on where
it stopped; results.json, items.jsonl, table.md and index.html, a page to look at, are written.

exit status: 0 done; 1 some edits failed and count as not edited; 2 nothing could be scored.

examples:
  emu-edit evaluate --benchmark world --write-inputs inputs --pairs 25
  emu-edit evaluate results --benchmark world --data inputs
  emu-edit evaluate runs/mine --benchmark emu-edit --data emu_edit_test_set --compare published
  emu-edit evaluate results --benchmark magicbrush --data MagicBrush --backbones ../backbones
"""


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit evaluate",
        description="Score a model per task, beside copy-input (nothing edited) and the oracle "
        "(the target itself); writes results.json, table.md and grid.png. With --drift, over the "
        "turns of sessions, without and with thresholding; writes drift.json, drift.md, drift.png "
        "(curves) and sessions.png. Benchmarks of photographs: see below.",
        epilog=EPILOG,
    )
    made.add_argument(
        "model",
        type=Path,
        nargs="?",
        help="model directory, run folder, .ckpt file; or a folder of pictures",
    )
    made.add_argument(
        "--benchmark", choices=tuple(SPLITS), default=WORLD, help="what to score on (default world)"
    )
    made.add_argument(
        "--split",
        help="world: heldout (phrasings and colour/shape pairs that training never saw; default), "
        "sentences or pairs (only the one or the other) or train; emu-edit: test (default) or "
        "validation",
    )
    made.add_argument(
        "--size",
        type=positive_int,
        help="side in pixels, the shorter one of photographs (default: as trained)",
    )
    add_sampling(made)
    made.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="default: beside MODEL, named after it"
    )
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    made.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the downloaded benchmark; world: the folder that --write-inputs wrote",
    )
    made.add_argument(
        "--allow-missing",
        action="store_true",
        default=None,
        help="of a folder: let pictures that are missing count as not edited",
    )
    _add_world(made)
    _add_others(made)
    return made


def _add_world(made: ArgumentParser) -> None:
    group = made.add_argument_group("world")
    group.add_argument("--pairs", type=positive_int, help=f"pairs per task (default {PAIRS})")
    group.add_argument(
        "--drift", action="store_true", help="sessions: odd turns edit, even ones ask for nothing"
    )
    group.add_argument("--turns", type=positive_int, help=f"of a drift session (default {TURNS})")
    group.add_argument("--sessions", type=positive_int, help=f"to drift (default {SESSIONS})")
    group.add_argument("--seed", type=seed_int, help=f"of pairs and noise (default {SEED})")
    group.add_argument("--photos", type=Path, metavar="DIR", help="photographs for backgrounds")
    group.add_argument(
        "--write-inputs",
        type=Path,
        metavar="DIR",
        help="without MODEL: write the pictures to edit, and what to do with each, for any editor",
    )


def _add_others(made: ArgumentParser) -> None:
    group = made.add_argument_group("emu-edit and magicbrush")
    group.add_argument("--protocol", metavar="NAME", help="what the numbers mean, see below")
    group.add_argument("--backbones", type=Path, metavar="DIR", help="folder of CLIP and DINO")
    group.add_argument(
        "--compare",
        metavar="FILE",
        help="print published rows below; the word 'published' means those that come along",
    )
    group.add_argument(
        "--limit", type=positive_int, metavar="N", help="the first N edits or sessions only"
    )
    group.add_argument(
        "--tasks",
        choices=("predicted", "given"),
        help="who tells a model the task: its predictor (default, if it has one) or the benchmark",
    )


def run(arguments: list[str]) -> int:
    """Score the model or the pictures, print the table, write it down.

    Raises:
        InputError: if model, size, photographs, data or an option cannot be used.
    """
    options = parser().parse(arguments)
    check_options(options)
    from datamodules.evaluation_sets.items import as_unicode

    options.sampling = sampling_of(options)  # answers an unknown name before a model is loaded
    if options.write_inputs is not None:
        from emu_edit.evaluation.world_pictures import write_inputs

        sys.stdout.write(write_inputs(options))
        return 0
    start = time.monotonic()
    if options.benchmark == WORLD:
        table, folder, status = run_on_world(options)
    else:
        from emu_edit.evaluation.photographs import run_benchmark

        table, folder, status = run_benchmark(options)
    seconds = time.monotonic() - start
    sys.stdout.write(as_unicode(f"{table}\n\nwrote {folder} in {seconds:.0f} s\n"))
    return status


def run_on_world(options: argparse.Namespace) -> tuple[str, Path, int]:
    """Score a model or pictures; return the table, the folder written and the exit status."""
    from emu_edit.evaluation.options import are_pictures_meant, refuse_allow_missing

    if are_pictures_meant(options):
        if options.drift:
            raise InputError(f"--drift needs a model, and {options.model} is a folder of pictures")
        from emu_edit.evaluation.world_pictures import run_pictures

        return run_pictures(options)
    refuse_allow_missing(options)
    if options.drift and options.data is not None:
        raise InputError("--data is about single edits; with --drift leave it out")
    editor = load_editor(options)
    return *(run_drift if options.drift else run_world)(options, editor), 0


def run_world(options: argparse.Namespace, editor: "Editor") -> tuple[str, Path]:
    """Score single edits of every task; return the table and the folder written."""
    from emu_edit.evaluation.page import write_page
    from emu_edit.evaluation.results import versions
    from emu_edit.evaluation.world import evaluate_world, write_results
    from emu_edit.evaluation.world_pictures import asked_world
    from emu_edit.metrics.table import format_table
    from emu_edit.terminal import step_bar

    benchmark = asked_world(options)
    start = time.monotonic()
    with step_bar("evaluating", "pairs") as on_step:
        result = evaluate_world(editor, benchmark, on_step)
    about = describe(options, editor, benchmark.describe(), time.monotonic() - start)
    about |= {"versions": versions(), "device": editor.device.type}
    folder = output_folder(options, f"world-{benchmark.split}")
    title = f"{options.model}, {benchmark.split} world, {benchmark.pairs_per_task} pairs per task"
    write_results(folder, result, title=title, about=about)
    write_page(folder)
    return format_table(result.report), folder


def run_drift(options: argparse.Namespace, editor: "Editor") -> tuple[str, Path]:
    """Score sessions of several turns; return the table and the folder written."""
    from datamodules.world.backgrounds import Photos
    from emu_edit.evaluation.drift import DriftBenchmark, evaluate_drift, table_of, write_drift
    from emu_edit.terminal import step_bar

    benchmark = DriftBenchmark(
        sessions=SESSIONS if options.sessions is None else options.sessions,
        turns=TURNS if options.turns is None else options.turns,
        split=HELDOUT if options.split is None else options.split,
        seed=SEED if options.seed is None else options.seed,
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
