"""Run what `edit` was asked for: one picture, many pictures, or a manifest again.

The command line has been checked as far as names go (`edit.py`, `edit_places.py`) before this
module, and with it torch, is imported.

From what `edit` was pointed at to pixels of a size the model can work on.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from emu_edit.cli.arguments import sampling_of
from emu_edit.cli.edit_files import Report, save_session
from emu_edit.cli.edit_places import Place, Source, check_session_folder
from emu_edit.editing.devices import choose_device
from emu_edit.editing.editor import Editor, OnStep
from emu_edit.editing.find import model_name, shown_path
from emu_edit.editing.manifest import Manifest, parse_manifest
from emu_edit.editing.predictor import TaskPrediction
from emu_edit.editing.session import EditSession, replay
from emu_edit.editing.task_mix import TaskChoice, TaskMix, parse_task, task_names
from emu_edit.editing.threshold import Threshold, check_alpha
from emu_edit.errors import InputError
from emu_edit.images import (
    MAX_BYTES,
    MAX_SIDE,
    MOST_TIMES_LARGER,
    decode_rgb,
    is_far_larger,
    read_image,
    resize,
    with_shorter_side,
)
from emu_edit.runs.learned_tasks import add_task_files, files_of, read_task_files
from emu_edit.terminal import step_bar

SOME_FAILED = 1  # exit status when pictures among many could not be edited
MAX_MANIFEST = 16 * 2**20  # bytes; a thousand turns of the longest text take 9 MB


@dataclass(frozen=True)
class Job:
    """What is done to every picture, with the model loaded.

    Attributes:
        editor: the model.
        name: its name, for people and files.
        instructions: what to change, turn by turn.
        tasks: what the model is told at each turn.
        options: the command line.
        report: where results are told.
    """

    editor: Editor
    name: str
    instructions: Sequence[str]
    tasks: Sequence[TaskChoice]
    options: argparse.Namespace
    report: Report

    def edit(self, image: UInt8[Tensor, "3 h w"], on_step: OnStep) -> EditSession:
        """Edit a picture in all turns; `on_step` counts the steps of all of them."""
        options = self.options
        session = EditSession.start(
            self.editor, image, seed=options.seed, chain_latents=options.chain_latents
        )
        sampling, count = sampling_of(options), len(self.tasks)
        guidance = sampling.guidance(self.editor.settings.guidance)
        for turn, (instruction, task) in enumerate(zip(self.instructions, self.tasks, strict=True)):
            session = session.edit(
                instruction,
                task=task,
                negative=options.negative,
                guidance=guidance,
                num_steps=sampling.num_steps,
                sampler=sampling.sampler,
                threshold=asked_threshold(options),
                on_step=_shifted(on_step, turn, count),
            )
        return session


def edit_one(
    options: argparse.Namespace,
    turns: Sequence[tuple[str, str | None]],
    source: Source,
    place: Place,
) -> int:
    """Edit one picture; return the exit status.

    Raises:
        InputError: if picture, task, model, a number or the output cannot be used.
    """
    start = time.monotonic()
    check_numbers(options)
    image = read_source(source)
    job = load_job(options, turns)
    image = fit_size(image, options.size, job.editor, source)
    job.report.predicted()
    with step_bar("editing") as on_step:
        session = job.edit(image, on_step)
    save_session(session, place, job.name)
    job.report.edited(source, place, session, time.monotonic() - start)
    return 0


def edit_many(
    options: argparse.Namespace,
    turns: Sequence[tuple[str, str | None]],
    sources: Sequence[Source],
    places: Sequence[Place],
) -> int:
    """Edit each picture; one that cannot be read is named, counted and left out.

    Raises:
        InputError: if task, model, a number or the output cannot be used: what would hold for all.
    """
    check_numbers(options)
    job = load_job(options, turns)
    job.report.predicted()
    refused = 0
    with step_bar("editing") as on_step:
        for number, (source, place) in enumerate(zip(sources, places, strict=True)):
            start = time.monotonic()
            try:
                image = fit_size(read_source(source), options.size, job.editor, source)
            except InputError as error:
                refused += 1
                job.report.refused(source, str(error))
                continue
            session = job.edit(image, _shifted(on_step, number, len(sources)))
            save_session(session, place, job.name)
            job.report.edited(source, place, session, time.monotonic() - start)
    sys.stderr.write(f"edited {len(sources) - refused} of {len(sources)} pictures\n")
    return SOME_FAILED if refused else 0


def replay_one(options: argparse.Namespace, source: Source, place: Place) -> int:
    """Make a session again from its manifest; return the exit status.

    Raises:
        InputError: if the manifest is malformed, or of another version, model or picture.
    """
    start = time.monotonic()
    wanted = read_manifest(options.replay)
    if place.folder is not None:
        check_session_folder(place.folder, len(wanted.turns))
    image = read_source(source)
    editor, _ = load_editor(options)
    image = fit_size(image, options.size, editor, source)
    with step_bar("replaying", "turns") as on_turn:
        session = replay(editor, image, wanted.to_dict(), on_turn)
    save_session(session, place, model_name(options.model))
    report = Report(shown_path(options.model), options.json, is_quiet=place.is_stream)
    report.edited(source, place, session, time.monotonic() - start)
    made = Manifest.from_dict(session.manifest()).results
    for number, (is_hash, was_hash) in enumerate(zip(made, wanted.results, strict=True), start=1):
        if is_hash != was_hash:
            sys.stderr.write(
                f"turn {number} does not have the pixels of the manifest: another device or "
                "version of torch rounds differently\n"
            )
            break
    return 0


def read_manifest(path: Path) -> Manifest:
    """Read a manifest file; messages name it.

    Raises:
        InputError: if it is missing, too large, no manifest or of another version.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the manifest.json of a session")
    if path.stat().st_size > MAX_MANIFEST:
        raise InputError(f"{path}: a manifest has at most {MAX_MANIFEST} bytes")
    try:
        wanted = parse_manifest(path.read_bytes())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not wanted.turns:
        raise InputError(f"{path}: the manifest has no turns, there is nothing to replay")
    return wanted


def load_job(options: argparse.Namespace, turns: Sequence[tuple[str, str | None]]) -> Job:
    """Load the model, ask its predictor where no task is named, and check the tasks' names.

    Raises:
        InputError: if the model cannot be loaded, has no predictor but needs one, or does not know
            a task.
    """
    for _, task in turns:  # a slip is answered before the model is loaded
        asked_task(task, {})
    editor, names = load_editor(options)
    named = [asked_task(task, names) for _, task in turns]
    tasks: list[TaskChoice] = []
    predictions: list[TaskPrediction | None] = []
    instructions = [instruction for instruction, _ in turns]
    for instruction, task in zip(instructions, named, strict=True):
        if task is None:
            prediction = editor.predict_tasks([instruction])[0]
            predictions.append(prediction)
            tasks.append(prediction.task)
        else:
            check_task(task, editor)
            predictions.append(None)
            tasks.append(task)
    report = Report(shown_path(options.model), options.json, options.output == "-", predictions)
    return Job(editor, model_name(options.model), instructions, tasks, options, report)


def asked_task(task: str | None, names: dict[str, str]) -> TaskChoice | None:
    """Return what a `--task` means, with the names of tasks in place of their files.

    Args:
        task: a name, a mix, or a file; None where the predictor decides.
        names: of the learned tasks, by file.

    Raises:
        InputError: if the share of a mix is no number.
    """
    if task is None or files_of(task) == [task]:
        return None if task is None else names.get(task, task)
    choice = parse_task(task)
    if isinstance(choice, str):
        return choice
    first, second = (names.get(name, name) for name in task_names(choice))
    return TaskMix(first, second, choice.share)


def load_editor(options: argparse.Namespace) -> tuple[Editor, dict[str, str]]:
    """Load the model, with the learned tasks given as files; return it and their names by file.

    Raises:
        InputError: if the model or a file cannot be loaded, or a task was learnt with another one.
    """
    files = read_task_files(options.task)
    editor = Editor.from_pretrained(options.model, device=choose_device(options.device))
    add_task_files(editor, files, allow_mismatch=options.allow_mismatch)
    return editor, {file: task.name for file, task in files.items()}


def check_task(task: TaskChoice, editor: Editor) -> None:
    """Refuse a task that the model does not know.

    Raises:
        InputError: with the known tasks and the nearest of them.
    """
    for name in task_names(task):
        editor.networks.tasks.index(name)


def check_numbers(options: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, numbers and names that no model takes.

    Raises:
        InputError: for an unknown sampler, or a scale or threshold that is out of range.
    """
    sampling_of(options)
    if options.threshold is not None:
        check_alpha(options.threshold)


def asked_threshold(options: argparse.Namespace) -> float | Threshold | None:
    """Return the threshold of every turn: a number, none at all, or what the session decides."""
    if options.no_threshold:
        return None
    return Threshold.default if options.threshold is None else options.threshold


def _shifted(on_step: OnStep, part: int, parts: int) -> Callable[[int, int], None]:
    """Return the progress of one part of `parts` equal ones, told as progress of the whole."""

    def told(done: int, total: int) -> None:
        on_step(part * total + done, parts * total)

    return told


def read_source(source: Source) -> UInt8[Tensor, "3 h w"]:
    """Read and decode a picture file or standard input.

    Raises:
        BadImageError: if it is missing, no picture, or of a refused kind or size.
        InputError: if standard input is a terminal or closed.
    """
    if source.path is not None:
        return read_image(source.path)
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("standard input has no picture; pipe one in: emu-edit edit - < a.png")
    # one byte more than allowed tells an endless stream from the largest picture
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{source} gave more than the {MAX_BYTES} bytes a picture may have")
    return decode_rgb(data, where=str(source))


def fit_size(
    image: UInt8[Tensor, "3 h w"], size: int | None, editor: Editor, source: Source
) -> UInt8[Tensor, "3 H W"]:
    """Resize as asked, or refuse pictures far larger than the model ever saw.

    Args:
        image: the picture.
        size: what its shorter side becomes, in pixels; None leaves it alone.
        editor: knows the size of the training pictures.
        source: where the picture is from, for messages.

    Raises:
        InputError: if no size was asked for and the picture is far larger than training pictures,
            or the size that was asked for is larger than any picture that could be read again.
    """
    height, width = image.shape[-2:]
    if size is not None:
        new = with_shorter_side(size, height=height, width=width)
        if max(new) > MAX_SIDE:
            raise InputError(
                f"--size {size} makes {source} {new[1]}x{new[0]}, at most {MAX_SIDE} a side work"
            )
        return resize(image, new)
    trained = editor.settings.image_size
    if is_far_larger(trained, height=height, width=width):
        raise InputError(
            f"{source} is {width}x{height}, more than {MOST_TIMES_LARGER} times the {trained} px "
            f"this model was trained at; edit a smaller copy with --size {trained}"
        )
    return image
