"""What is scored, a model or a folder of pictures that someone made, and where its results go."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.evaluation_sets.items import as_unicode
from datamodules.evaluation_sets.ucf101 import UCF101
from datamodules.evaluation_sets.videos import TGVE, WORLD_CLIPS, WORLD_VIDEO
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import CONFIG, INDEX, MODEL, model_name
from emu_edit.editing.settings import Sampling
from emu_edit.errors import InputError
from emu_edit.evaluation.outputs import has_pictures, is_generations
from emu_edit.training.export import model_directory
from emu_edit.video.stacked import VideoModel, editor_of, load_video_model


@dataclass(frozen=True)
class Candidate:
    """A model or a folder of pictures, with what a call says about it.

    Attributes:
        path: model directory, run, checkpoint, or the folder of pictures.
        are_pictures: whether it is pictures.
        sampling: how a model is sampled, where that is not as its own settings say.
        device: None means an accelerator if there is one.
        allow_missing: whether pictures that are missing count as not edited.
        output: folder of results; None means beside `path`.
    """

    path: Path
    are_pictures: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    device: str | None = None
    allow_missing: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        """Refuse options about sampling for pictures, and about missing pictures for a model."""
        if self.are_pictures:
            self.refuse_for_pictures({
                "--steps": self.sampling.num_steps,
                "--guidance-text": self.sampling.guidance_text,
                "--guidance-image": self.sampling.guidance_image,
                "--sampler": self.sampling.sampler,
            })
        elif self.allow_missing:
            raise InputError(
                f"--allow-missing belongs to a folder of pictures, and {self.path} has none; leave "
                "it out"
            )

    @property
    def name(self) -> str:
        """What to call it in files: the name of its folder, without the way to it."""
        path = self.path
        return as_unicode(path.resolve().name if self.are_pictures else model_name(path))

    def refuse_for_pictures(self, given: Mapping[str, object]) -> None:
        """Refuse options that pictures have no use for.

        Raises:
            InputError: if this is pictures and an option is not None; naming the first.
        """
        name = next((name for name, value in given.items() if value is not None), None)
        if self.are_pictures and name is not None:
            raise InputError(
                f"{self.path} is a folder of pictures, which are scored as they are; leave {name} "
                "out"
            )

    def results_folder(self, suffix: str) -> Path:
        """Choose where results go: as asked, else beside the path, named after it."""
        path = self.path.absolute()
        return self.output or path.with_name(f"{path.name}-{suffix}")

    @contextmanager
    def drawing_directory(self) -> Iterator[Path]:
        """Yield the directory of a model that draws: a base as it lies there, or else one of ours.

        Raises:
            InputError: if there is none.
        """
        if (self.path / "unet").is_dir():
            yield self.path
        else:
            with model_directory(self.path) as directory:
                yield directory

    def load(self) -> Editor:
        """Load the model.

        Raises:
            InputError: if there is none, or a number is out of range.
        """
        with model_directory(self.path) as directory:
            editor = Editor.from_pretrained(directory, device=self.device)
        editor.settings = self.sampling.applied(editor.settings)
        return editor

    def load_for_videos(self) -> VideoModel:
        """Load the model with all that it has for videos.

        Raises:
            InputError: if there is none, or a number is out of range.
        """
        with model_directory(self.path) as directory:
            model = load_video_model(directory, self.device)
        editor = editor_of(model)
        editor.settings = self.sampling.applied(editor.settings)
        return model


@dataclass(frozen=True)
class Outcome:
    """How an evaluation ended.

    Attributes:
        table: its numbers, for the terminal.
        folder: where results were written.
        failed: how many edits failed and count as not edited.
    """

    table: str
    folder: Path
    failed: int = 0


def holds_pictures(path: Path, benchmark: str) -> bool:
    """Say whether a path holds somebody's pictures or videos rather than a model.

    Raises:
        InputError: if a table in the folder cannot be read.
    """
    is_model = any((place / INDEX).is_file() for place in (path, path / MODEL))
    is_model |= (path / CONFIG).is_file()  # a run without a model yet: its pictures are grids
    if benchmark in {WORLD_VIDEO, WORLD_CLIPS, TGVE, UCF101}:
        return not is_model and path.is_dir() and any(path.iterdir())
    return not is_model and (is_generations(path, benchmark) or has_pictures(path))
