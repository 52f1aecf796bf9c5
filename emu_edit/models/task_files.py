"""The tasks of a model directory: those it was trained with, and learned ones, a file for each.

`tasks/tasks.json` names the base tasks and never changes; `tasks/learned/NAME.safetensors` is a
learned one. No list is kept beside the files, and a task is called what its file is: a task more,
less or renamed is one file written, removed or renamed, so that no change can be half done. They
follow the base tasks in the table, oldest first.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from emu_edit.errors import InputError, closest
from emu_edit.models.directory import TEMPORAL, read_index, read_json
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.learned_task import SHOWN, SUFFIX, LearnedTask, check_new_name
from emu_edit.models.networks import EditNetworks
from emu_edit.tasks import TaskTable

logger = logging.getLogger(__name__)

TASKS_JSON = Path("tasks", "tasks.json")
LEARNED = Path("tasks", "learned")  # the folder in a model directory


def read_base_tasks(path: str | Path) -> TaskTable:
    """Return the names of the tasks a model directory was trained with.

    Raises:
        InputError: if it is no model directory, or its list of names cannot be read.
    """
    folder = Path(path).expanduser()
    read_index(folder)
    names = read_json(folder / TASKS_JSON).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{folder / TASKS_JSON} has no list of task names; export the model again")
    try:
        return TaskTable(tuple(names))
    except InputError as error:
        raise InputError(f"{folder / TASKS_JSON}: {error}") from error


def read_learned_tasks(path: str | Path) -> tuple[LearnedTask, ...]:
    """Return the learned tasks of a model directory, oldest first.

    Raises:
        InputError: if it is no model directory, a file is malformed, or its name is odd or a base
            task's.
    """
    folder = Path(path).expanduser()
    base = read_base_tasks(folder)
    tasks = []
    for file in sorted((folder / LEARNED).glob(f"*{SUFFIX}")):
        task = _read(file)
        if task.name in base.names:
            raise InputError(f"{file} bears the name of a task of the base; remove the file")
        tasks.append(task)
    return tuple(sorted(tasks, key=lambda task: (task.created, task.name)))


def read_learned_task(path: str | Path, name: str) -> LearnedTask:
    """Return a learned task of a model directory.

    Raises:
        InputError: if there is none of that name, or its file is malformed.
    """
    return _read(learned_file(Path(path).expanduser(), name))


def read_task_table(path: str | Path) -> TaskTable:
    """Return all task names of a model directory, without loading its networks.

    Raises:
        InputError: if it is no model directory, or its tasks cannot be read.
    """
    learned = (task.name for task in read_learned_tasks(path))
    return TaskTable((*read_base_tasks(path).names, *learned))


def append_learned(networks: EditNetworks, folder: Path) -> None:
    """Give networks, just loaded from a model directory, its learned tasks.

    One that was allowed in spite of another base is told as a warning.

    Raises:
        InputError: if one was learnt with another model.
    """
    if not (tasks := read_learned_tasks(folder)):
        return
    base = model_hash(networks)
    for task in tasks:
        if base not in {task.base, task.allowed_on}:
            raise InputError(
                f"{folder}: {_mismatch(task, base)}; remove it with 'emu-edit tasks remove "
                f"{folder} {task.name}' and learn it again"
            )
        if task.base != base:
            logger.warning("%s: %s; it was allowed all the same", folder, _mismatch(task, base))
        networks.add_task(task)


def write_learned(networks: EditNetworks, folder: Path) -> None:
    """Write the learned tasks of networks into their new model directory."""
    if not networks.learned:
        return
    (folder / LEARNED).mkdir(parents=True)
    base = model_hash(networks)
    for task in networks.learned:
        check_base(task, base, allow_mismatch=True).save(_file(folder, task.name))


def refuse_to_lose(
    folder: Path, learned: Sequence[LearnedTask] = (), *, writes_layers: bool = False
) -> None:
    """Refuse to replace a model directory with what was learnt for it: tasks, temporal layers.

    Tasks among `learned` will be written again, and temporal layers with `writes_layers`; call it
    without tasks before a training that will export there.
    """
    has = {task.name for task in learned}
    names = sorted(file.stem for file in (folder / LEARNED).glob(f"*{SUFFIX}"))
    tasks = ", ".join(name for name in names if name not in has)
    layers = (folder / TEMPORAL).is_dir() and not writes_layers
    if lost := [f"learned tasks {tasks}"] * bool(tasks) + ["temporal layers"] * layers:
        raise InputError(
            f"{folder} has the {' and '.join(lost)}, which would be lost with its weights; move it "
            f"away as a whole (mv {folder} {folder}-kept) and give the same command again, or give "
            "another directory"
        )


def check_base(task: LearnedTask, base: str, *, allow_mismatch: bool) -> LearnedTask:
    """Return the task as it may be used on the model whose `model_hash` is `base`.

    Allowed on another model than its own, the task returned says so.

    Raises:
        InputError: if it was learnt with another model and that is not allowed.
    """
    if task.base == base:
        return replace(task, allowed_on="")
    if not allow_mismatch:
        raise InputError(
            f"{_mismatch(task, base)}; learn it again with 'emu-edit invert', or try it all the "
            "same with --allow-mismatch"
        )
    return replace(task, allowed_on=base)


def check_free(folder: Path, name: str) -> None:
    """Refuse a name for a new task; call it before long work.

    Raises:
        InputError: if it has odd characters, is a word of `invert --init`, or the model directory
            has a task of that name.
    """
    check_new_name(name)
    if name in read_task_table(folder).names:
        raise InputError(
            f"{folder} has a task {name!r} already; give another name, or remove that one with "
            f"'emu-edit tasks remove'"
        )


def install_task(
    folder: Path, task: LearnedTask, *, base: str, allow_mismatch: bool = False
) -> LearnedTask:
    """Put a learned task into a model directory, under its name; return it as it was written.

    `base` is the `model_hash` of the model. That a task of another one was allowed is written down.

    Raises:
        InputError: if its name is taken, its vector too wide or narrow, or it was learnt with
            another model.
    """
    check_free(folder, task.name)
    task = check_base(task, base, allow_mismatch=allow_mismatch)
    if (width := read_json(folder / TASKS_JSON).get("dim")) != len(task.vector):
        raise InputError(
            f"task {task.name} is a vector of {len(task.vector)} numbers, the model {folder} takes "
            f"{width}; learn it again with this model"
        )
    (folder / LEARNED).mkdir(exist_ok=True)
    task.save(_file(folder, task.name))
    return task


def remove_task(folder: Path, name: str) -> None:
    """Remove a learned task from a model directory."""
    # a damaged file, or one learnt with another model, can be removed as well
    learned_file(folder, name).unlink()


def rename_task(folder: Path, old: str, new: str) -> LearnedTask:
    """Give a learned task of a model directory another name; return it.

    The file's new name is the task's: at any moment the model knows it by one of the two. The name
    inside the file follows, for those who copy it.

    Raises:
        InputError: if there is no learned task `old`, or `new` is taken or has odd characters.
    """
    file = learned_file(folder, old)
    check_free(folder, new)
    task = replace(_read(file), name=new)
    task.save(file.rename(_file(folder, new)))
    return task


def learned_file(folder: Path, name: str) -> Path:
    """Return the file of a learned task of a model directory.

    Raises:
        InputError: if there is none of that name, or it is a base task, which stays.
    """
    base = read_base_tasks(folder).names
    if name in base:
        raise InputError(
            f"{name!r} is a task the model was trained with; only learned ones can be changed"
        )
    names = sorted(file.stem for file in (folder / LEARNED).glob(f"*{SUFFIX}"))
    if name not in names:
        known = f"it has {', '.join(names)}" if names else "it has none"
        raise InputError(f"{folder} has no learned task {name!r}; {known}.{closest(name, names)}")
    return _file(folder, name)


def _read(file: Path) -> LearnedTask:
    """Return the task of a file of a model directory, called what the file is."""
    task = LearnedTask.load(file)
    try:
        return replace(task, name=file.stem)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _file(folder: Path, name: str) -> Path:
    return folder / LEARNED / f"{name}{SUFFIX}"


def _mismatch(task: LearnedTask, base: str) -> str:
    return (
        f"task {task.name} was learnt with the model {task.base[:SHOWN]}, this one is "
        f"{base[:SHOWN]}"
    )
