"""How temporal layers were trained and are sampled: `temporal/video.json` of a model directory."""

from dataclasses import dataclass
from pathlib import Path

from emu_edit.diffusion.prediction import Prediction
from emu_edit.editing.settings import EditorSettings, choice, number
from emu_edit.errors import InputError
from emu_edit.files import write_json
from emu_edit.models.directory import read_json
from emu_edit.models.given import GivenFrames

RECORD = "video.json"
VERSION = 2  # of it; 1 had no version and no given frames
MOST_FRAMES, MOST_RATE = 4096, 1000  # a file that says more is damaged


@dataclass(frozen=True)
class Layers:
    """What is said of temporal layers beside their weights.

    Attributes:
        prediction: what the video model outputs.
        zero_terminal_snr: whether its last step is pure noise.
        frames: of a clip in training.
        rate: frames a second.
        given: which of a clip's frames it is told.
        settings: how videos are sampled.
        where: the file, in messages.
    """

    prediction: Prediction
    zero_terminal_snr: bool
    frames: int
    rate: int
    given: GivenFrames
    settings: EditorSettings
    where: str = ""

    def write(self, folder: Path) -> None:
        """Write them into the folder of the layers."""
        record = {
            "version": VERSION,
            "prediction": self.prediction.name,
            "zero_terminal_snr": self.zero_terminal_snr,
            "frames": self.frames,
            "rate": self.rate,
            "given": self.given.to_dict(),
            **self.settings.to_dict(),
        }
        write_json(folder / RECORD, record)

    def check(self, num_steps: int) -> None:
        """Refuse (InputError) given frames that no clip has, on a schedule of so many steps."""
        try:
            self.given.check(self.frames, num_steps)
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from error


def read_layers(folder: Path) -> Layers:
    """Read what is said of the temporal layers in a folder.

    Raises:
        InputError: if the file is missing, of another version, or damaged.
    """
    file = folder / RECORD
    values = read_json(file)
    if values.get("version") != VERSION:
        raise InputError(
            f"{file} has version {str(values.get('version'))[:20]!r}, this program reads "
            f"{VERSION}; export the model again"
        )
    ends = values.get("zero_terminal_snr")
    if not isinstance(ends, bool):
        raise InputError(f"{file}: zero_terminal_snr is {ends!r}, needs true or false")
    known = [p.name for p in Prediction if p is not Prediction.flow]  # videos walk a table
    return Layers(
        Prediction[choice(values, "prediction", known, str(file))],
        ends,
        frames=_count(values, "frames", MOST_FRAMES, file),
        rate=_count(values, "rate", MOST_RATE, file),
        given=GivenFrames.from_dict(values.get("given"), where=str(file)),
        settings=EditorSettings.from_dict(values, where=str(file)),
        where=str(file),
    )


def _count(values: dict[str, object], name: str, most: int, file: Path) -> int:
    value = number(values, name, str(file))
    if not (1 <= value <= most and value == int(value)):
        raise InputError(f"{file}: {name} is {value:g}, needs a whole number of 1 to {most}")
    return int(value)
