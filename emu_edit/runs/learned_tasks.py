"""Learned tasks as people use them: files given to `--task`, the tasks of a model, its predictor.

No module of the networks is imported before a function needs it: help pages are instant.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from emu_edit.editing.find import PREDICTOR, RELEASED, find_model
from emu_edit.errors import InputError

if TYPE_CHECKING:
    from emu_edit.editing.editor import Editor
    from emu_edit.editing.predictor import TaskPredictor
    from emu_edit.models.learned_task import LearnedTask

TASK_SUFFIX = ".safetensors"


def is_task_file(task: str | None) -> bool:
    """Whether a `--task` means a file; no task's name has a dot."""
    return task is not None and task.endswith(TASK_SUFFIX)


def files_of(task: str | None) -> list[str]:
    """Return the files that a `--task` names: itself, or those in a mix of two tasks."""
    if task is None:
        return []
    if "+" not in task or Path(task).is_file():  # a folder on the way may have a plus
        return [task] if is_task_file(task) else []
    first, _, rest = task.partition("+")
    second, _, _ = rest.partition(":")
    return [part for part in (first, second) if is_task_file(part)]


def check_task_files(tasks: Iterable[str | None], *, allow_mismatch: bool) -> None:
    """Refuse files that are not there, before anything is loaded.

    Raises:
        InputError: naming the file, or if a mismatch is allowed where no file is given.
    """
    files = [Path(file) for task in tasks for file in files_of(task)]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(f"--task {missing[0]}: no such file; give a learned task, or a name")
    if allow_mismatch and not files:
        raise InputError(
            f"--allow-mismatch is for a learned task given as a file: --task FILE{TASK_SUFFIX}"
        )


def read_task_files(tasks: Sequence[str | None]) -> "dict[str, LearnedTask]":
    """Return the learned tasks of the files in `tasks`, also in mixes, by what was given.

    Raises:
        InputError: if one is no learned task, or two files hold tasks of one name.
    """
    from emu_edit.models.learned_task import LearnedTask

    files = dict.fromkeys(file for task in tasks for file in files_of(task))
    found = {file: LearnedTask.load(file) for file in files}
    by_name: dict[str, str] = {}
    for file, task in found.items():
        if (other := by_name.setdefault(task.name, file)) != file:
            raise InputError(
                f"{other} and {file} both hold a task {task.name!r}; copy one into a model with "
                "'emu-edit tasks add MODEL FILE --name NEW'"
            )
    return found


def add_task_files(
    editor: "Editor", found: "dict[str, LearnedTask]", *, allow_mismatch: bool
) -> None:
    """Let a loaded model edit with learned tasks that came as files.

    Raises:
        InputError: if one was learnt with another model and that is not allowed, or its name is
            that of a task the model was trained with.
    """
    for file, task in found.items():
        try:
            editor.add_task(task, allow_mismatch=allow_mismatch)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error


def model_to_change(path: Path) -> Path:
    """Return the model directory meant by `path`, which will be changed.

    Raises:
        InputError: if there is none, or it is the released one, which belongs to the installation.
    """
    model = find_model(path)
    if model.resolve() == RELEASED.resolve():
        raise InputError(
            "the released model belongs to the installation and is not changed; make a copy that "
            "is yours: emu-edit tasks add released FILE -o DIR"
        )
    return model


class TaskRow(NamedTuple):
    """A task that a model knows.

    Attributes:
        kind: "base", or "learned"; only a learned one has pairs, steps and a date.
        predicted: "yes" if the model's predictor knows it, "no" and perhaps why not.
    """

    name: str
    kind: str
    pairs: int | None
    steps: int | None
    created: str | None
    predicted: str
    description: str


def task_rows(model: Path) -> list[TaskRow]:
    """List the tasks of a model directory, in the order of its table.

    Raises:
        InputError: if the directory, its predictor or a task in it cannot be read.
    """
    from emu_edit.editing.predictor import TaskPredictor
    from emu_edit.models.task_files import read_base_tasks, read_learned_tasks
    from emu_edit.tasks import TASKS

    base = read_base_tasks(model)
    folder = model / PREDICTOR
    predictor = TaskPredictor.from_pretrained(folder, tasks=base) if folder.is_dir() else None
    definitions = {task.name: task.definition for task in TASKS}
    known = "no" if predictor is None else "yes"
    rows = [
        TaskRow(name, "base", None, None, None, known, definitions.get(name, ""))
        for name in base.names
    ]
    for task in read_learned_tasks(model):
        known = "no"
        if predictor is not None and task.predictor_row is not None:
            is_same = task.predictor == predictor.hash()
            known = "yes" if is_same else "no: learnt for another predictor"
        entries = (task.pairs, task.steps, task.created, known, task.description)
        rows.append(TaskRow(task.name, "learned", *entries))
    return rows


def teach_task(model: Path, name: str, texts: Sequence[str], *, seed: int) -> None:
    """Let a model's predictor know a learned task of it by instructions that ask for it.

    Raises:
        InputError: if there is no predictor or learned task, or the instructions cannot be told
            from another task's.
    """
    from emu_edit.editing.predictor import TaskPredictor
    from emu_edit.models.task_files import (
        learned_file,
        read_base_tasks,
        read_learned_task,
        read_learned_tasks,
    )

    file, task = learned_file(model, name), read_learned_task(model, name)
    predictor = TaskPredictor.from_pretrained(
        predictor_directory(model), tasks=read_base_tasks(model)
    )
    for other in read_learned_tasks(model):
        if other.name != name:
            predictor.know(other)
    with_predictor_row(task, predictor, texts, seed=seed).save(file)


def with_predictor_row(
    task: "LearnedTask", predictor: "TaskPredictor", texts: Sequence[str], *, seed: int = 0
) -> "LearnedTask":
    """Learn the row by which a predictor knows a task, from instructions that ask for it.

    Raises:
        InputError: if an instruction cannot be used, or most cannot be told from other tasks'.
    """
    from emu_edit.runs.predictor import gather
    from emu_edit.training.predictor_row import learn_predictor_row

    others = gather(None, predictor.trained_tasks, seed=seed)
    row = learn_predictor_row(predictor, texts, others, seed=seed)
    return replace(task, predictor_row=row, predictor=predictor.hash())


def predictor_directory(path: Path) -> Path:
    """Return the predictor's directory meant by `path`: itself, or the one of a model.

    Raises:
        InputError: if there is none.
    """
    from emu_edit.editing.predictor import INDEX

    if (path / INDEX).is_file():
        return path
    model = find_model(path)
    if not (model / PREDICTOR).is_dir():
        raise InputError(
            f"{model} has no task predictor; train one with 'emu-edit predictor fit {model}'"
        )
    return model / PREDICTOR


def teach_again(model: Path) -> str:
    """Say what to do about learned tasks that the previous predictor knew, if there are any."""
    from emu_edit.models.task_files import read_learned_tasks

    names = [task.name for task in read_learned_tasks(model) if task.predictor_row is not None]
    if not names:
        return ""
    return (
        f"the new predictor does not know the learned tasks {', '.join(names)}; teach it each: "
        f"emu-edit tasks teach {model} {names[0]} TEXT [TEXT ...]\n"
    )
