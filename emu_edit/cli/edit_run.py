"""Run what `edit` was asked for: one picture, many pictures, or a manifest again.

The command line has been checked as far as names go (`edit.py`, `edit_places.py`) before this
module, and with it torch, is imported.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from emu_edit.cli.edit_files import Report, save_session
from emu_edit.cli.edit_places import Place, Source, check_session_folder
from emu_edit.diffusion.samplers import OnStep
from emu_edit.editing.doubts import doubt_about
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import model_name, shown_path
from emu_edit.editing.large import Large, parse_large, way_for
from emu_edit.editing.manifest import Manifest, parse_manifest
from emu_edit.editing.predictor import TaskPrediction
from emu_edit.editing.session import EditSession, TurnSettings, replay
from emu_edit.editing.task_mix import TaskChoice, TaskMix, parse_task, task_names
from emu_edit.errors import InputError
from emu_edit.files import read_regular
from emu_edit.images import (
    decode_rgb,
    read_image,
    resize,
    with_shorter_side,
)
from emu_edit.pictures import MAX_BYTES, MAX_SIDE
from emu_edit.runs.learned_tasks import add_task_files, files_of, read_task_files
from emu_edit.terminal import step_bar

SOME_FAILED = 1  # exit status when pictures among many could not be edited
MAX_MANIFEST = 16 * 2**20  # bytes; a thousand turns of the longest text take 9 MB


@dataclass(frozen=True)
class EditRequest:
    """What the command line asks for, the same for every picture.

    Attributes:
        model: the model's directory.
        device: where to compute; None chooses.
        instructions: what to change, turn by turn; none for a replay.
        tasks: the `--task` of each turn, None where the predictor decides; for a replay the files
            of learned tasks.
        settings: what all turns have in common.
        seed: of the session.
        chain_latents: as `EditSession.start` takes it.
        size: what a picture's shorter side becomes first, in pixels; None leaves it alone.
        large: how a picture larger than the model's is edited; None chooses.
        allow_mismatch: take a task's file that was learnt with another model.
        is_json: report in JSON instead of words.
    """

    model: Path
    device: str | None
    instructions: tuple[str, ...]
    tasks: tuple[str | None, ...]
    settings: TurnSettings
    seed: int
    chain_latents: bool
    size: int | None
    large: Large | None
    allow_mismatch: bool
    is_json: bool


@dataclass(frozen=True)
class Job:
    """A request with its model loaded and its tasks decided."""

    request: EditRequest
    editor: Editor
    tasks: Sequence[TaskChoice]
    report: Report

    def edit(
        self,
        image: UInt8[Tensor, "3 h w"],
        source: Source,
        place: Place,
        *,
        start: float,
        on_step: OnStep,
    ) -> None:
        """Edit a picture in all turns, write the results and report them.

        Args:
            image: the picture.
            source: where it is from.
            place: where the results go.
            start: time at which the work on it began, by `time.monotonic`.
            on_step: counts the steps of all turns.
        """
        request = self.request
        session = EditSession.start(
            self.editor,
            image,
            seed=request.seed,
            chain_latents=request.chain_latents,
            large=request.large,
        )
        for turn, (text, task) in enumerate(zip(request.instructions, self.tasks, strict=True)):
            settings = replace(request.settings, task=task)
            session = session.edit(text, settings, part_of(on_step, turn, len(self.tasks)))
        self.report.sized(source, session)
        self.report.doubted(source, doubt_about(self.editor, image, tasks=self.tasks))
        save_session(session, place, model_name(request.model))
        self.report.edited(source, place, session, time.monotonic() - start)


def edit_one(request: EditRequest, source: Source, place: Place) -> int:
    """Edit one picture; return the exit status.

    Raises:
        InputError: if picture, task, model or output cannot be used.
    """
    start = time.monotonic()
    image = read_source(source)
    job = load_job(request)
    image = fit_size(image, request, job.editor, source)
    job.report.predicted()
    with step_bar("editing") as on_step:
        job.edit(image, source, place, start=start, on_step=on_step)
    return 0


def edit_many(request: EditRequest, sources: Sequence[Source], places: Sequence[Place]) -> int:
    """Edit each picture; one that cannot be read is named, counted and left out.

    Raises:
        InputError: if task, model or output cannot be used: what would hold for all.
    """
    job = load_job(request)
    job.report.predicted()
    refused = 0
    with step_bar("editing") as on_step:
        for number, (source, place) in enumerate(zip(sources, places, strict=True)):
            start = time.monotonic()
            try:
                image = fit_size(read_source(source), request, job.editor, source)
            except InputError as error:
                refused += 1
                job.report.refused(source, str(error))
                continue
            steps = part_of(on_step, number, len(sources))
            job.edit(image, source, place, start=start, on_step=steps)
    sys.stderr.write(f"edited {len(sources) - refused} of {len(sources)} pictures\n")
    return SOME_FAILED if refused else 0


def replay_one(request: EditRequest, manifest: Path, source: Source, place: Place) -> int:
    """Make a session again from its manifest; return the exit status.

    Raises:
        InputError: if the manifest is malformed, or of another version, model or picture.
    """
    start = time.monotonic()
    wanted = read_manifest(manifest)
    if place.folder is not None:
        check_session_folder(place.folder, len(wanted.turns))
    image = read_source(source)
    editor, _ = load_editor(request)
    request = replace(request, large=parse_large(wanted.turns[0].large))
    image = fit_size(image, request, editor, source)
    with step_bar("replaying", "turns") as on_turn:
        session = replay(editor, image, wanted.to_dict(), on_turn)
    save_session(session, place, model_name(request.model))
    report = Report(shown_path(request.model), is_json=request.is_json)
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
        wanted = parse_manifest(read_regular(path, MAX_MANIFEST))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not wanted.turns:
        raise InputError(f"{path}: the manifest has no turns, there is nothing to replay")
    return wanted


def load_job(request: EditRequest) -> Job:
    """Load the model and let its predictor choose where no task is named.

    Raises:
        InputError: if the model cannot be loaded or does not know a task.
    """
    for task in request.tasks:  # a slip is answered before the model is loaded
        asked_task(task, {})
    editor, names = load_editor(request)
    tasks: list[TaskChoice] = []
    predictions: list[TaskPrediction | None] = []
    for instruction, text in zip(request.instructions, request.tasks, strict=True):
        task, prediction = asked_task(text, names), None
        if task is None:
            prediction = editor.predict_tasks([instruction])[0]
            task = prediction.task
        for name in task_names(task):
            editor.networks.tasks.index(name)  # refuses an unknown one with the nearest
        tasks.append(task)
        predictions.append(prediction)
    report = Report(shown_path(request.model), predictions, is_json=request.is_json)
    return Job(request, editor, tasks, report)


def asked_task(task: str | None, names: dict[str, str]) -> TaskChoice | None:
    """Read a `--task`; names of learned tasks take the place of their files.

    Args:
        task: a name, a mix, or a file; None where the predictor decides.
        names: of the learned tasks, by file.
    """
    if task is None:
        return None
    if files_of(task) == [task]:
        return names.get(task, task)
    choice = parse_task(task)
    if isinstance(choice, str):
        return choice
    first, second = (names.get(name, name) for name in task_names(choice))
    return TaskMix(first, second, choice.share)


def load_editor(request: EditRequest) -> tuple[Editor, dict[str, str]]:
    """Load the model, with the learned tasks given as files; return it and their names by file.

    Raises:
        InputError: if the model or a file cannot be loaded, or a task was learnt with another one.
    """
    files = read_task_files(request.tasks)
    editor = Editor.from_pretrained(request.model, device=request.device)
    add_task_files(editor, files, allow_mismatch=request.allow_mismatch)
    return editor, {file: task.name for file, task in files.items()}


def part_of(on_step: OnStep, part: int, parts: int) -> OnStep:
    """Count the progress of one of `parts` equal parts as progress of the whole."""

    def count(done: int, total: int) -> None:
        on_step(part * total + done, parts * total)

    return count


def read_source(source: Source) -> UInt8[Tensor, "3 h w"]:
    """Read and decode a picture file or standard input.

    Raises:
        BadImageError: if it is missing, no picture, or of a refused kind or size.
        InputError: if standard input is a terminal or closed.
    """
    if source.path is not None:
        return read_image(source.path, on_note=lambda note: _say(source, note))
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("standard input has no picture; pipe one in: emu-edit edit - < a.png")
    # one byte more than allowed tells an endless stream from the largest picture
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{source} gave more than the {MAX_BYTES} bytes a picture may have")
    return decode_rgb(data, where=str(source))


def _say(source: Source, note: str) -> None:
    sys.stderr.write(f"{source}: {note}\n")


def fit_size(
    image: UInt8[Tensor, "3 h w"], request: EditRequest, editor: Editor, source: Source
) -> UInt8[Tensor, "3 H W"]:
    """Resize the shorter side to the size asked for, and refuse what is too large to be edited.

    Raises:
        InputError: if the picture, or what it would become, is too large.
    """
    height, width = image.shape[-2:]
    if (size := request.size) is not None:
        new = with_shorter_side(size, height=height, width=width)
        if max(new) > MAX_SIDE:
            raise InputError(
                f"--size {size} makes {source} {new[1]}x{new[0]}, at most {MAX_SIDE} a side work"
            )
        image = resize(image, new)
    try:
        way = way_for(request.large, image.shape[-2:], editor.settings.image_size)
        editor.forecast(image.shape[-2:], editor.settings, way)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return image
