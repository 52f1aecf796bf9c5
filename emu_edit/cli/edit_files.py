"""What `edit` writes: pictures with their history inside, sheet, manifest, and a line about them.

The files of one result appear together, or none of them: a full disk or Ctrl-C leaves nothing
behind.
"""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from emu_edit.cli.edit_places import Place, Source
from emu_edit.editing.large import parse_large
from emu_edit.editing.manifest import Turn
from emu_edit.editing.predictor import TaskPrediction
from emu_edit.editing.session import EditSession
from emu_edit.editing.sheets import draw_sheet
from emu_edit.errors import InputError, installed_version
from emu_edit.files import write_together
from emu_edit.images import encode_image, format_of, to_pil

METADATA = "emu-edit"  # keyword of the chunk that holds turns, model and seed as JSON


def program() -> str:
    """Name the program and its version."""
    return f"emu-edit {installed_version()}"


def save_session(session: EditSession, place: Place, model: str) -> None:
    """Write what `place` asks for, all of it or nothing; `model` is a name, no path.

    Raises:
        InputError: if the disk is full, a name is no picture's, or writing is not allowed.
    """
    try:
        if place.is_stream:
            history = metadata(session.turns, session.seed, model)
            write_stdout(encode(to_pil(session.image), history))
        else:
            write_files(contents(session, place, model))
    except BrokenPipeError:
        raise  # a reader that has gone is the program's business, not ours
    except OSError as error:
        raise InputError(
            f"{place} cannot be written ({error.strerror}); free some space or write elsewhere"
        ) from error


def contents(session: EditSession, place: Place, model: str) -> dict[Path, bytes]:
    """Make the content of each file that `place` asks for."""
    turns, count = session.turns, len(session.turns)
    history = [metadata(turns[:number], session.seed, model) for number in range(count + 1)]
    files: dict[Path, bytes] = {}
    for number in range(1, count + 1):
        path = place.turn(number, count)
        if path is None:
            continue
        image, kind = session.images[number], format_of(path)
        is_png = kind == "PNG"  # the only format that carries its history
        files[path] = (
            encode(to_pil(image), history[number]) if is_png else encode_image(image, kind)
        )
    if place.original is not None:
        files[place.original] = encode(to_pil(session.original), history[0])
    if place.sheet is not None:
        files[place.sheet] = encode(session_sheet(session), history[-1])
    if place.manifest is not None:
        about = {**session.manifest(), "program": program(), "model_name": model}
        text = json.dumps(about, indent=2, ensure_ascii=False)
        files[place.manifest] = f"{text}\n".encode()
    return files


def metadata(turns: Sequence[Turn], seed: int, model: str) -> dict[str, str]:
    """Write down what a PNG says of itself; none of it tells where or by whom it was made."""
    about = {"model": model, "seed": seed, "turns": [turn.to_dict() for turn in turns]}
    return {
        "Software": program(),  # both keywords are registered in the PNG specification
        "Description": "\n".join(turn.instruction for turn in turns),
        METADATA: json.dumps(about, ensure_ascii=False),
    }


def encode(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    """Encode a picture as PNG with `texts` as iTXt chunks (UTF-8, any language)."""
    info = PngInfo()
    for keyword, text in texts.items():
        info.add_itxt(keyword, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def session_sheet(session: EditSession) -> Image.Image:
    """Draw the original and each turn's result with its task and instruction."""
    captions = [("original", "")]
    captions += [
        (f"{number}. {turn.task}", turn.instruction)
        for number, turn in enumerate(session.turns, start=1)
    ]
    return draw_sheet(session.images, captions)


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files, which lie in one folder, or none; a folder that is missing is made."""
    folder = next(iter(files)).parent
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_together(files)
    finally:
        for one in missing:
            with suppress(OSError):
                one.rmdir()  # refuses, and is right to, when there is something in it


def write_stdout(data: bytes) -> None:
    """Write bytes to standard output."""
    sys.stdout.flush()
    # unbuffered: what a failed write left in a buffer would fail once more, without a word, when
    # python ends
    with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as stream:
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]


@dataclass(frozen=True)
class Report:
    """Says what was done: a line for people or a JSON object for machines, for each picture.

    They go to standard output, unless a picture goes there; everything else to standard error.

    Attributes:
        model: the model's name, as people know it.
        predictions: for each turn what the predictor said; None where the task was named.
        is_json: JSON instead of words.
        stream: standard output as it is before a progress bar starts: rich sends what is written to
            sys.stdout while a bar is shown to the bar's own stream, standard error.
    """

    model: str
    predictions: Sequence[TaskPrediction | None] = ()
    is_json: bool = False
    stream: TextIO = field(default_factory=lambda: sys.stdout)

    def edited(self, source: Source, place: Place, session: EditSession, seconds: float) -> None:
        """Say that a picture was edited."""
        describe = self._object if self.is_json else self._words
        line = describe(source, place, session, seconds)
        if place.is_stream:
            sys.stderr.write(f"{line}\n")
        else:
            self._write(line)

    def refused(self, source: Source, reason: str) -> None:
        """Say that a picture among many was not edited, and why."""
        reason = " ".join(reason.split())
        if self.is_json:
            self._write(json.dumps({"picture": str(source), "error": reason}))
        sys.stderr.write(f"emu-edit: not edited: {reason}\n")

    def doubted(self, source: Source, doubt: str) -> None:
        """Say why the model may not do with a picture what is asked; nothing where there is none.

        Unsure predictions are the same for every picture: `predicted` names them once.
        """
        if doubt:
            sys.stderr.write(f"{source}: {doubt}\n")

    def sized(self, source: Source, session: EditSession) -> None:
        """Say how a picture larger than the model's was edited; nothing where it is not larger."""
        ways = dict.fromkeys(parse_large(turn.large) for turn in session.turns)
        for line in filter(None, (way.describe(session.image.shape[-2:]) for way in ways)):
            sys.stderr.write(f"{source}: {line} (--large chooses)\n")

    def predicted(self) -> None:
        """Say which tasks the predictor chose, and what else it thought of when it was unsure."""
        for number, prediction in enumerate(self.predictions, start=1):
            if prediction is None:
                continue
            note = "" if prediction.is_sure else " - unsure; if it is another one, name it: --task"
            sys.stderr.write(f"turn {number}: task {prediction.describe()}{note}\n")

    def _write(self, line: str) -> None:
        self.stream.write(f"{line}\n")
        self.stream.flush()  # a machine that reads along wants each picture when it is done

    def _words(self, _: Source, place: Place, session: EditSession, seconds: float) -> str:
        height, width = session.image.shape[-2:]
        tasks = ", ".join(turn.task for turn in session.turns)
        plural = "s" if len(session.turns) > 1 else ""
        return (
            f"wrote {place} ({width}x{height}, task{plural} {tasks}, seed {session.seed}, "
            f"model {self.model}, {seconds:.1f} s)"
        )

    def _object(self, source: Source, place: Place, session: EditSession, seconds: float) -> str:
        count = len(session.turns)
        guesses = self.predictions or [None] * count  # a replay has none
        turns = [
            {
                **turn.to_dict(),
                "confidence": None if guess is None else round(guess.confidence, 4),
                "ranking": None if guess is None else [list(pair) for pair in guess.ranking[:3]],
                "output": place.turn(number, count),
            }
            for number, (turn, guess) in enumerate(
                zip(session.turns, guesses, strict=True), start=1
            )
        ]
        height, width = session.image.shape[-2:]
        entries = {
            "picture": source,
            "output": place,
            "width": width,
            "height": height,
            "seed": session.seed,
            "model": self.model,
            "turns": turns,
            "sheet": place.sheet,
            "manifest": place.manifest,
            "doubt": next(filter(None, session.doubts), None),
            "seconds": round(seconds, 2),
        }
        return json.dumps(entries, default=str)
