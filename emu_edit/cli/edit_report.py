"""What `edit` says: one line for people or one JSON object for machines per picture.

Results go to standard output, unless a picture goes there; everything else goes to standard error.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from emu_edit.cli.edit_places import Place, Source
from emu_edit.editing.predictor import TaskPrediction
from emu_edit.editing.session import EditSession


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
