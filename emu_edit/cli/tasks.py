"""`emu-edit tasks list | info | add | remove | rename | teach`: the tasks that a model knows."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import ArgumentParser, Command, run_command, seed_int
from emu_edit.editing.find import INDEX, find_model
from emu_edit.errors import InputError
from emu_edit.runs.learned_tasks import TaskRow, is_task_file, model_to_change, task_rows
from emu_edit.terminal import aligned, plural, terminal_width

if TYPE_CHECKING:
    from emu_edit.models.learned_task import LearnedTask


def run(arguments: list[str]) -> int:
    """Run one of the commands.

    Raises:
        InputError: for an unknown command, or what the command cannot use.
    """
    commands = {
        "list": Command(run_list, "name the tasks of a model: trained and learned ones"),
        "info": Command(run_info, "tell all about a learned task, of a model or in a file"),
        "add": Command(run_add, "put a learned task into a model"),
        "remove": Command(run_remove, "take a learned task out of a model"),
        "rename": Command(run_rename, "give a learned task of a model another name"),
        "teach": Command(run_teach, "let the model's predictor know how people ask for the task"),
    }
    about = (
        "A model knows the tasks it was trained with, and learned ones: vectors that 'emu-edit "
        "invert' found,\na file of a few kB for each. Only learned ones can be changed."
    )
    return run_command("tasks", commands, arguments, about=about)


def _parser(command: str, description: str, epilog: str = "") -> ArgumentParser:
    """Begin the parser of a command whose first argument is a model."""
    made = ArgumentParser(f"emu-edit tasks {command}", description, epilog)
    made.add_argument("model", type=Path, metavar="MODEL", help="model directory or run folder")
    return made


def list_parser() -> ArgumentParser:
    """Build the parser of `tasks list`."""
    made = _parser("list", "Name the tasks of a model, in the order of its table.")
    made.add_argument("--json", action="store_true", help="print a JSON list instead")
    return made


def run_list(arguments: list[str]) -> int:
    """Print the table."""
    options = list_parser().parse(arguments)
    rows = task_rows(find_model(options.model))
    as_json = json.dumps([row._asdict() for row in rows], indent=2)
    sys.stdout.write(f"{as_json if options.json else _table(rows)}\n")
    return 0


def info_parser() -> ArgumentParser:
    """Build the parser of `tasks info`."""
    made = ArgumentParser(
        "emu-edit tasks info",
        "Tell all that is known of a learned task.",
        "examples:\n  emu-edit tasks info MODEL contour\n  emu-edit tasks info contour.safetensors",
    )
    made.add_argument("place", metavar="MODEL|FILE", help="a model, or the file of a task")
    made.add_argument("name", metavar="NAME", nargs="?", help="of the model's task")
    made.add_argument("--json", action="store_true", help="print a JSON object instead")
    return made


def run_info(arguments: list[str]) -> int:
    """Print what is known of a task."""
    options = info_parser().parse(arguments)
    from emu_edit.models.learned_task import LearnedTask
    from emu_edit.models.task_files import read_learned_task

    if options.name is not None:
        task = read_learned_task(find_model(Path(options.place)), options.name)
    elif is_task_file(options.place):
        task = LearnedTask.load(options.place)
    else:
        raise InputError(
            "say which task: emu-edit tasks info MODEL NAME, or emu-edit tasks info FILE"
        )
    text = json.dumps(task.to_dict(), indent=2) if options.json else _description(task)
    sys.stdout.write(f"{text}\n")
    return 0


def add_parser() -> ArgumentParser:
    """Build the parser of `tasks add`."""
    made = _parser(
        "add",
        "Put a learned task into a model directory, where `edit --task NAME` finds it. A task "
        "that was learnt with another model is refused: its vector means nothing there.",
        "examples:\n  emu-edit tasks add MODEL contour.safetensors\n"
        "  emu-edit tasks add released contour.safetensors -o my-model",
    )
    made.add_argument("file", type=Path, metavar="FILE", help="that 'emu-edit invert' wrote")
    made.add_argument("--name", metavar="NEW", help="another name for it in this model")
    made.add_argument(
        "--allow-mismatch", action="store_true", help="even if it was learnt with another model"
    )
    made.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="copy the model to DIR, add it there"
    )
    return made


def run_add(arguments: list[str]) -> int:
    """Put a task into a model or into a copy of it."""
    options = add_parser().parse(arguments)
    output: Path | None = options.output
    model = model_to_change(options.model) if output is None else find_model(options.model)
    from emu_edit.models.directory import new_directory
    from emu_edit.models.fingerprints import model_hash
    from emu_edit.models.learned_task import LearnedTask
    from emu_edit.models.task_files import check_free, install_task
    from emu_edit.models.weights import load_networks

    if output is not None and output.exists():
        raise InputError(f"{output} exists; give a directory that is not there yet")
    task = LearnedTask.load(options.file)
    task = task if options.name is None else replace(task, name=options.name)
    check_free(model, task.name)
    base, allowed = model_hash(load_networks(model)[0]), options.allow_mismatch
    if output is None:
        task = install_task(model, task, base=base, allow_mismatch=allowed)
    else:
        with new_directory(output, INDEX, what="model directory") as part:
            shutil.copytree(model, part, dirs_exist_ok=True)
            task = install_task(part, task, base=base, allow_mismatch=allowed)
    place = model if output is None else output
    if task.allowed_on:
        sys.stderr.write(
            f"emu-edit: warning: task {task.name} was learnt with another model; its edits may be "
            "poor\n"
        )
    instruction = task.instruction or "INSTRUCTION"
    sys.stdout.write(
        f"added {task.name} to {place}\n"
        f'edit with it: emu-edit edit IMAGE "{instruction}" --task {task.name} --model {place} '
        "-o OUT.png\n"
    )
    return 0


def remove_parser() -> ArgumentParser:
    """Build the parser of `tasks remove`."""
    made = _parser("remove", "Take a learned task out of a model directory.")
    made.add_argument("name", metavar="NAME", help="of the learned task")
    return made


def run_remove(arguments: list[str]) -> int:
    """Remove a task."""
    options = remove_parser().parse(arguments)
    model = model_to_change(options.model)
    from emu_edit.models.task_files import remove_task

    remove_task(model, options.name)
    sys.stdout.write(f"removed {options.name} from {model}\n")
    return 0


def rename_parser() -> ArgumentParser:
    """Build the parser of `tasks rename`."""
    made = _parser("rename", "Give a learned task of a model directory another name.")
    made.add_argument("old", metavar="OLD", help="name of the learned task")
    made.add_argument("new", metavar="NEW", help="its new name")
    return made


def run_rename(arguments: list[str]) -> int:
    """Rename a task."""
    options = rename_parser().parse(arguments)
    model = model_to_change(options.model)
    from emu_edit.models.task_files import rename_task

    rename_task(model, options.old, options.new)
    sys.stdout.write(f"{options.old} of {model} is now {options.new}\n")
    return 0


def teach_parser() -> ArgumentParser:
    """Build the parser of `tasks teach`."""
    made = _parser(
        "teach",
        "Let the model's task predictor know how people ask for a learned task, so that it need "
        "not be named. What it predicts for the other tasks' texts stays. Do it again after "
        "'predictor fit'.",
        'example:\n  emu-edit tasks teach MODEL contour "draw the outlines" "trace the contours"',
    )
    made.add_argument("name", metavar="NAME", help="of the learned task")
    made.add_argument(
        "texts", nargs="+", metavar="TEXT", help="an instruction that asks for it; 3 to 10 are good"
    )
    made.add_argument("--seed", type=seed_int, default=0, help="same seed, same predictor")
    return made


def run_teach(arguments: list[str]) -> int:
    """Teach the predictor a task."""
    options = teach_parser().parse(arguments)
    model = model_to_change(options.model)
    from emu_edit.runs.learned_tasks import teach_task

    teach_task(model, options.name, options.texts, seed=options.seed)
    sys.stdout.write(f"the predictor of {model} knows {options.name} now\n")
    return 0


def _table(rows: "list[TaskRow]") -> str:
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return "\n".join(aligned([list(TaskRow._fields), *cells], width=terminal_width()))


def _description(task: "LearnedTask") -> str:
    knows = f"knows it, if it is {task.predictor}" if task.predictor else "does not know it"
    pairs, steps = plural(task.pairs, "pair"), plural(task.steps, "step")
    lines = [
        ("name", task.name),
        ("description", task.description or "(none)"),
        ("instruction", task.instruction or "(its pairs have their own)"),
        ("learnt", f"{task.created}, from {pairs}, {steps}, seed {task.seed}"),
        ("base model", task.base),
        ("vector", f"{len(task.vector)} numbers, norm {float(task.vector.norm()):.3g}"),
        ("predictor", knows),
    ]
    if task.allowed_on:
        lines.append(("allowed on", f"{task.allowed_on}, another model"))
    return "\n".join(aligned(lines, width=terminal_width()))
