"""What `tasks list` and `tasks info` print: rows and entries, as JSON or in words."""

from pathlib import Path

from emu_edit.editing.predictor import PREDICTOR, TaskPredictor
from emu_edit.models.learned_task import LearnedTask
from emu_edit.models.task_files import read_base_tasks, read_learned_tasks
from emu_edit.tasks import TASKS

Row = dict[str, object]
COLUMNS = ("name", "kind", "pairs", "steps", "created", "predicted", "description")
STALE = "no: learnt for another predictor"


def task_rows(model: Path) -> list[Row]:
    """Return a row for each task of a model directory, in the order of its table.

    The entries are those of `COLUMNS`: kind is "base" or "learned", predicted says whether the
    model's predictor knows the task; pairs, steps and created are None for a base task.

    Raises:
        InputError: if the directory, its predictor or a task in it cannot be read.
    """
    base, learned = read_base_tasks(model), read_learned_tasks(model)
    folder = model / PREDICTOR
    predictor = TaskPredictor.from_pretrained(folder, tasks=base) if folder.is_dir() else None
    definitions = {task.name: task.definition for task in TASKS}
    rows: list[Row] = []
    for name in base.names:
        known = "no" if predictor is None else "yes"
        entries = (name, "base", None, None, None, known, definitions.get(name, ""))
        rows.append(dict(zip(COLUMNS, entries, strict=True)))
    for task in learned:
        known = _predicted(task, predictor)
        entries = (task.name, "learned", task.pairs, task.steps, task.created, known)
        rows.append(dict(zip(COLUMNS, (*entries, task.description), strict=True)))
    return rows


def _predicted(task: LearnedTask, predictor: TaskPredictor | None) -> str:
    if predictor is None or task.predictor_row is None:
        return "no"
    return "yes" if task.predictor == predictor.hash() else STALE


def format_rows(rows: list[Row]) -> str:
    """Return the rows as a table for people."""
    cells = [["" if row[name] is None else str(row[name]) for name in COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [list(COLUMNS), *cells]
    )


def task_entries(task: LearnedTask) -> Row:
    """Return all that is known of a learned task, JSON-ready; of its vector the length and hash."""
    return {
        "name": task.name,
        "description": task.description,
        "instruction": task.instruction,
        "pairs": task.pairs,
        "steps": task.steps,
        "seed": task.seed,
        "created": task.created,
        "base": task.base,
        "allowed_on": task.allowed_on,
        "vector": {
            "numbers": len(task.vector),
            "norm": float(task.vector.norm()),
            "sha256": task.vector_hash(),
        },
        "predictor": task.predictor,
    }


def format_task(task: LearnedTask) -> str:
    """Return what is known of a learned task in lines for people."""
    lines = {
        "name": task.name,
        "description": task.description or "(none)",
        "instruction": task.instruction or "(its pairs have their own)",
        "learnt": f"{task.created}, from {task.pairs} pairs, {task.steps} steps, seed {task.seed}",
        "base model": task.base,
        "vector": f"{len(task.vector)} numbers, norm {float(task.vector.norm()):.3g}",
        "predictor": (
            f"knows it, if it is {task.predictor}" if task.predictor else "does not know it"
        ),
    }
    if task.allowed_on:
        lines["allowed on"] = f"{task.allowed_on}, another model"
    width = max(map(len, lines))
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in lines.items())
