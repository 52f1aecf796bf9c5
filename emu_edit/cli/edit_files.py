"""What `edit` writes: pictures with their history inside, sheet and manifest, all or nothing.

The files of one result appear together: each is written under a temporary name in its folder,
flushed to the disk, and only when all are there are they renamed. A full disk or Ctrl-C leaves
nothing behind.

What `edit` says: one line for people or one JSON object for machines per picture.

Results go to standard output, unless a picture goes there; everything else goes to standard error.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from emu_edit.cli.edit_places import Place, Source
from emu_edit.editing.manifest import Turn
from emu_edit.editing.predictor import TaskPrediction
from emu_edit.editing.session import EditSession
from emu_edit.editing.sheets import draw_sheet
from emu_edit.errors import InputError, installed_version
from emu_edit.images import encode_image, format_of, to_pil

METADATA = "emu-edit"  # keyword of the chunk that holds turns, model and seed as JSON


def program() -> str:
    """Return the program's name and version."""
    return f"emu-edit {installed_version()}"


def save_session(session: EditSession, place: Place, model: str) -> None:
    """Write what `place` asks for, all of it or nothing.

    Args:
        session: what was done.
        place: where it goes.
        model: the model's name, no path.

    Raises:
        InputError: if the disk is full, a name is no picture's, or writing is not allowed.
    """
    turns, count = session.turns, len(session.turns)
    history = [metadata(turns[:number], session.seed, model) for number in range(count + 1)]
    if place.is_stream:
        write_stdout(encode(to_pil(session.image), history[-1]))
        return
    files: dict[Path, bytes] = {}
    for number in range(1, count + 1):
        path = place.turn(number, count)
        if path is not None:
            files[path] = encode_as(path, session.images[number], history[number])
    if place.original is not None:
        files[place.original] = encode(to_pil(session.original), history[0])
    if place.sheet is not None:
        files[place.sheet] = encode(session_sheet(session), history[-1])
    if place.manifest is not None:
        files[place.manifest] = manifest_bytes(session, model)
    write_files(files)


def metadata(turns: Sequence[Turn], seed: int, model: str) -> dict[str, str]:
    """Return what a PNG says of itself; none of it tells where or by whom it was made."""
    about = {"model": model, "seed": seed, "turns": [turn.to_dict() for turn in turns]}
    return {
        "Software": program(),  # both keywords are registered in the PNG specification
        "Description": "\n".join(turn.instruction for turn in turns),
        METADATA: json.dumps(about, ensure_ascii=False),
    }


def encode(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    """Return the picture as a PNG with `texts` as iTXt chunks (UTF-8, any language)."""
    info = PngInfo()
    for keyword, text in texts.items():
        info.add_itxt(keyword, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def encode_as(path: Path, image: UInt8[Tensor, "3 h w"], texts: Mapping[str, str]) -> bytes:
    """Return the picture in the format of a file's name; only a PNG gets `texts`.

    Raises:
        InputError: if the name is no picture's.
    """
    kind = format_of(path)
    return encode(to_pil(image), texts) if kind == "PNG" else encode_image(image, kind)


def session_sheet(session: EditSession) -> Image.Image:
    """Draw the original and each turn's result with its task and instruction."""
    captions = [("original", "")]
    captions += [
        (f"{number}. {turn.task}", turn.instruction)
        for number, turn in enumerate(session.turns, start=1)
    ]
    return draw_sheet(session.images, captions)


def manifest_bytes(session: EditSession, model: str) -> bytes:
    """Return the session's manifest, and which program and model it is from, as a JSON file."""
    values = session.manifest()
    values["program"], values["model_name"] = program(), model
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files or none; existing ones are replaced, missing folders made.

    Raises:
        InputError: if the disk is full or writing is not allowed.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in files}
    with _folders_of(files):
        try:
            for path, data in files.items():
                with _refusing(path):
                    _write_part(parts[path], data)
            for path, part in parts.items():
                with _refusing(path):
                    part.replace(path)
        finally:
            for part in parts.values():
                with suppress(OSError):
                    part.unlink(missing_ok=True)


def write_stdout(data: bytes) -> None:
    """Write bytes to standard output.

    Raises:
        InputError: if whatever is behind it is full.
    """
    sys.stdout.flush()
    # unbuffered: what a failed write left in a buffer would fail once more, without a word, when
    # python ends
    with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as stream, _refusing(None):
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]


def _write_part(part: Path, data: bytes) -> None:
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _refusing(path: Path | None) -> Iterator[None]:
    """Word an error of the disk; a reader that has gone is the program's business, not ours."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        where = "standard output" if path is None else str(path)
        raise InputError(
            f"{where} cannot be written ({error.strerror}); free some space or write elsewhere"
        ) from error


@contextmanager
def _folders_of(files: Mapping[Path, bytes]) -> Iterator[None]:
    """Make the files' missing folders, and take them away again when they stay empty."""
    made: list[Path] = []
    try:
        for folder in sorted({path.parent for path in files}):
            missing = [f for f in (folder, *folder.parents) if not f.exists()]
            for one in reversed(missing):
                with _refusing(one):
                    one.mkdir()
                made.append(one)
        yield
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()  # refuses, and is right to, when there is something in it


def _teller() -> Callable[[str], None]:
    # standard output as it is before a progress bar starts: rich sends what is written to
    # sys.stdout while a bar is shown to the bar's own stream, standard error
    stream = sys.stdout

    def tell(line: str) -> None:
        stream.write(f"{line}\n")
        stream.flush()  # a machine that reads along wants each picture when it is done

    return tell


@dataclass(frozen=True)
class Report:
    """Where and how results are told.

    Attributes:
        model: the model's name, as people know it.
        is_json: JSON instead of words.
        is_quiet: standard output carries a picture, so words go to standard error.
        predictions: for each turn what the predictor said; None where the task was named.
        tell: writes a line to standard output.
    """

    model: str
    is_json: bool
    is_quiet: bool
    predictions: Sequence[TaskPrediction | None] = ()
    tell: Callable[[str], None] = field(default_factory=_teller)

    def edited(self, source: Source, place: Place, session: EditSession, seconds: float) -> None:
        """Tell that a picture was edited."""
        if self.is_json:
            self._write(json.dumps(self._object(source, place, session, seconds)))
        else:
            self._write(self._words(place, session, seconds))

    def refused(self, source: Source, reason: str) -> None:
        """Tell that a picture among many was not edited, and why."""
        reason = " ".join(reason.split())
        if self.is_json:
            self._write(json.dumps({"picture": str(source), "error": reason}))
        sys.stderr.write(f"emu-edit: not edited: {reason}\n")

    def predicted(self) -> None:
        """Tell which tasks the predictor chose, and what else it thought of when it was unsure."""
        for number, prediction in enumerate(self.predictions, start=1):
            if prediction is None:
                continue
            note = "" if prediction.is_sure else " - unsure; if it is another one, name it: --task"
            sys.stderr.write(f"turn {number}: task {prediction.describe()}{note}\n")

    def _write(self, line: str) -> None:
        if self.is_quiet:
            sys.stderr.write(f"{line}\n")
        else:
            self.tell(line)

    def _words(self, place: Place, session: EditSession, seconds: float) -> str:
        height, width = session.image.shape[-2:]
        tasks = ", ".join(turn.task for turn in session.turns)
        plural = "s" if len(session.turns) > 1 else ""
        return (
            f"wrote {place} ({width}x{height}, task{plural} {tasks}, seed {session.seed}, "
            f"model {self.model}, {seconds:.1f} s)"
        )

    def _object(
        self, source: Source, place: Place, session: EditSession, seconds: float
    ) -> dict[str, object]:
        count = len(session.turns)
        said = [*self.predictions, *[None] * (count - len(self.predictions))]
        turns = [
            {
                **turn.to_dict(),
                "confidence": None if guess is None else round(guess.confidence, 4),
                "ranking": None if guess is None else [list(pair) for pair in guess.ranking[:3]],
                "output": _name(place.turn(number, count)),
            }
            for number, (turn, guess) in enumerate(zip(session.turns, said, strict=True), start=1)
        ]
        height, width = session.image.shape[-2:]
        return {
            "picture": str(source),
            "output": str(place),
            "width": width,
            "height": height,
            "seed": session.seed,
            "model": self.model,
            "turns": turns,
            "sheet": _name(place.sheet),
            "manifest": _name(place.manifest),
            "seconds": round(seconds, 2),
        }


def _name(path: object) -> str | None:
    return None if path is None else str(path)
