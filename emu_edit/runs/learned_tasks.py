"""Learned tasks on the command line: files given to `--task`, and models that may be changed."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.editing.find import RELEASED, find_model
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
    """Return the files that a `--task` means: itself, or those of the two of a mix."""
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


def taught(
    task: "LearnedTask", predictor: "TaskPredictor", texts: Sequence[str], *, seed: int = 0
) -> "LearnedTask":
    """Return the task with a row for the predictor, learnt from instructions that ask for it.

    Raises:
        InputError: if an instruction cannot be used, or most cannot be told from other tasks'.
    """
    from emu_edit.runs.predictor import gather
    from emu_edit.training.predictor_row import learn_predictor_row

    others = gather(None, predictor.trained_tasks, seed=seed)
    row = learn_predictor_row(predictor, texts, others, seed=seed)
    return replace(task, predictor_row=row, predictor=predictor.hash())


def teach_again(model: Path) -> str:
    """Return what to do about learned tasks that the predictor before knew, if there are any."""
    from emu_edit.models.task_files import read_learned_tasks

    names = [task.name for task in read_learned_tasks(model) if task.predictor_row is not None]
    if not names:
        return ""
    return (
        f"the new predictor does not know the learned tasks {', '.join(names)}; teach it each: "
        f"emu-edit tasks teach {model} {names[0]} TEXT [TEXT ...]\n"
    )
