"""How well a new task is learnt from a few pairs, and what is forgotten: the few-shot study.

    python -m benchmarks.inversion --model MODEL -o DIR
    python -m benchmarks.inversion --model MODEL --tasks contour --pairs 10 --seeds 0 -o DIR
    python -m benchmarks.inversion --model MODEL --cost

For each of the five new tasks of the world, number of pairs and seed: one vector by task inversion,
all weights, LoRA, and an expert trained on a hundred times the data. Each cell is one JSON file in
DIR; those that are there are not made again, so the study can be stopped, gone on with, and done in
parts: by the tasks, methods, pairs and seeds that are asked for, and by several processes at once.
The same command once more, with the same DIR, helps the first (OMP_NUM_THREADS=1 for each is best).
At the end curves.json, curves.png and table.md are written from all cells in DIR. LoRA needs peft.
With --cost, the time and memory of inversion are measured instead (`cost.py`).
"""

import argparse
import sys
from itertools import product
from pathlib import Path

from benchmarks.inversion.cells import BASE, Cell, Study, read_cell
from benchmarks.inversion.cost import measure_cost
from benchmarks.inversion.curves import write_curves
from benchmarks.inversion.methods import EXPERT, METHODS, check_methods
from benchmarks.inversion.shared import make_cells
from datamodules.world.new_tasks import NEW_TASKS
from datamodules.world.photographs import Photos
from emu_edit.editing.find import choose_device, find_model
from emu_edit.errors import InputError


def cells_of(options: argparse.Namespace, *, has_predictor: bool) -> list[Cell]:
    """List the cells asked for, quick ones first; the base needs someone to name a known task."""
    few = [method for method in options.methods if method != EXPERT]
    lessons = list(product(options.seeds, options.tasks))
    cells = [Cell(task, BASE, 0, 0) for task in options.tasks if has_predictor]
    cells += [
        Cell(task, method, pairs, seed)
        for (seed, task), pairs, method in product(lessons, options.pairs, few)
    ]
    if EXPERT in options.methods:
        cells += [Cell(task, EXPERT, options.expert_pairs, seed) for seed, task in lessons]
    return cells


def parser() -> argparse.ArgumentParser:
    """Build the parser."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.inversion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", type=Path, help="default: the newest in ./runs")
    made.add_argument("-o", "--output", type=Path, default=Path("inversion-study"), metavar="DIR")
    made.add_argument("--tasks", nargs="+", choices=list(NEW_TASKS), default=list(NEW_TASKS))
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    made.add_argument("--pairs", nargs="+", type=int, default=[1, 3, 10, 30, 100], metavar="N")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S")
    made.add_argument("--steps", type=int, default=300, help="at most, of all but the expert")
    made.add_argument("--batch", type=int, default=8, help="samples per step")
    made.add_argument("--expert-pairs", type=int, default=10_000)
    made.add_argument("--expert-steps", type=int, default=1250, help="10,000 pairs once: 1250")
    made.add_argument("--test-pairs", type=int, default=48, help="of the new task, to score on")
    made.add_argument("--old-pairs", type=int, default=4, help="of each old task, for forgetting")
    made.add_argument("--photos", type=Path, metavar="DIR", help="new tasks on photographs")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    made.add_argument("--cost", action="store_true", help="measure time and memory instead")
    made.add_argument("--repeats", type=int, default=30, help="of --cost: steps of each kind")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Make the cells that are missing, then the curves; exit status 2 for a user's mistake."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def run(options: argparse.Namespace) -> int:
    """Run the study or the measurement.

    Raises:
        InputError: if model, device, photographs, a method or the folder's cells cannot be used.
    """
    model, device = find_model(options.model), choose_device(options.device)
    if options.cost:
        sys.stdout.write(
            measure_cost(model, device, batch_size=options.batch, repeats=options.repeats)
        )
        return 0
    check_methods(options.methods)
    study = Study(
        model,
        device,
        steps=options.steps,
        expert_steps=options.expert_steps,
        batch_size=options.batch,
        test_pairs=options.test_pairs,
        old_pairs=options.old_pairs,
        photos=None if options.photos is None else Photos(options.photos),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    cells = cells_of(options, has_predictor=study.editor().predictor is not None)
    if left := make_cells(cells, study, options.output):
        sys.stderr.write(
            f"{left} cells are being made by other processes; the last one writes all curves\n"
        )
    found = [read_cell(path, study) for path in sorted(options.output.glob("*-*-*-*.json"))]
    done = [cell for cell in found if cell is not None]
    if done:
        sys.stdout.write(write_curves(options.output, done, study.describe()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
