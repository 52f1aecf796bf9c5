"""From a picture and a caption to a video: a picture model's temporal layers, the one sampler.

A video is drawn as a picture is edited: what is given is its first frame, and its guidance is that
of edits with w_i for the source's scale and w_p for the text's,

    z~ = z(0) + w_i (z(I) - z(0)) + w_p (z(I, p) - z(I)).

Source: Emu Video, Girdhar et al. 2023, arXiv:2311.10709, section 3.3.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.samplers import OnStep, StepEnd, progress
from emu_edit.editing.editor import Editor
from emu_edit.editing.generate import CAPTION
from emu_edit.editing.settings import EditorSettings, choice, number
from emu_edit.errors import InputError
from emu_edit.files import write_json
from emu_edit.models.directory import TEMPORAL, read_json
from emu_edit.models.networks import EditNetworks
from emu_edit.models.temporal_files import load_temporal, save_temporal
from emu_edit.models.video import (
    VideoDenoiser,
    beginning_with,
    codec_of_frames,
    drawing_base,
)
from emu_edit.randomness import check_seed, normals
from emu_edit.text_rules import clean_instruction

IMAGE_GUIDANCE, TEXT_GUIDANCE = 2.0, 7.5  # w_i and w_p of the paper
RECORD = "video.json"  # in the adapter's folder: how it is sampled
MOST_FRAMES, MOST_RATE = 4096, 1000  # a file that says more is damaged


@dataclass(frozen=True)
class Animator:
    """What draws videos.

    Attributes:
        drawer: the picture model.
        video: the same networks with the temporal layers, in the slot of its denoiser.
        frames: of a clip in training; what is longer is drawn in several windows.
        rate: frames a second.
    """

    drawer: Editor
    video: Editor
    frames: int
    rate: int

    def windows(self, frames: int) -> int:
        """Return in how many windows a video is drawn: those after the first give frames - 1 each.

        Raises:
            InputError: if the model cannot go on from a frame, and more are asked for than it was
                trained on.
        """
        if not 1 <= frames <= MOST_FRAMES:
            raise InputError(f"frames={frames} of a video must be 1 to {MOST_FRAMES}")
        if frames <= self.frames:
            return 1
        denoiser = self.video.networks.denoiser
        assert isinstance(denoiser, VideoDenoiser)
        if self.frames == 1 or not denoiser.adapter.condition_channels:
            raise InputError(
                f"frames={frames}: this model was trained on clips of {self.frames} and takes no "
                f"frame to go on from; give at most {self.frames}"
            )
        return -(-(frames - 1) // (self.frames - 1))

    def save_pretrained(self, path: Path | str) -> None:
        """Write the picture model's directory, and `temporal/` in it."""
        self.drawer.save_pretrained(path, write_layers=self._write_layers)

    def _write_layers(self, folder: Path) -> None:
        denoiser = self.video.networks.denoiser
        assert isinstance(denoiser, VideoDenoiser)
        save_temporal(denoiser.adapter, folder / TEMPORAL)
        record = {
            "prediction": self.video.prediction.name,
            "zero_terminal_snr": self.video.schedule.has_zero_terminal_snr,
            "frames": self.frames,
            "rate": self.rate,
            **self.video.settings.to_dict(),
        }
        write_json(folder / TEMPORAL / RECORD, record)


def load_animator(drawer: Editor, model: Path) -> Animator:
    """Put a model's temporal layers on its picture model.

    Args:
        drawer: the picture model, as `load_generator` gives it; pictures are still drawn with it.
        model: its directory.

    Raises:
        InputError: if it has no temporal layers, or those of another picture model.
    """
    folder = model / TEMPORAL
    if not folder.is_dir():
        raise InputError(
            f"{model} draws pictures and no videos (it has no {TEMPORAL}/); train one with "
            f"'emu-edit fit --config emu_video --model.model {model} --data.train CLIPS'"
        )
    file = folder / RECORD
    values = read_json(file)
    ends = values.get("zero_terminal_snr")
    if not isinstance(ends, bool):
        raise InputError(f"{file}: zero_terminal_snr is {ends!r}, needs true or false")
    prediction = Prediction[choice(values, "prediction", [p.name for p in Prediction], str(file))]
    frames, rate = (
        _count(values, name, most, file)
        for name, most in (("frames", MOST_FRAMES), ("rate", MOST_RATE))
    )
    networks = drawer.networks
    base = drawing_base(networks.denoiser, str(model))
    betas = base.trained_as
    assert betas is not None  # of every one that was loaded
    video = EditNetworks(
        VideoDenoiser(load_temporal(folder, base)),
        networks.text_encoder,
        codec_of_frames(networks.codec),
        task_embedding=networks.task_embedding,
        tasks=networks.tasks,
    )
    editor = Editor(
        video.eval(),
        schedule=betas.schedule(zero_terminal_snr=ends),
        prediction=prediction,
        settings=EditorSettings.from_dict(values, where=str(file)),
    )
    return Animator(drawer, editor, frames, rate)


def _count(values: dict[str, object], name: str, most: int, file: Path) -> int:
    value = number(values, name, str(file))
    if not (1 <= value <= most and value == int(value)):
        raise InputError(f"{file}: {name} is {value:g}, needs a whole number of 1 to {most}")
    return int(value)


@torch.no_grad()
def animate(
    animator: Animator,
    picture: UInt8[Tensor, "3 h w"],
    caption: str,
    *,
    seed: int = 0,
    frames: int | None = None,
    negative: str = "",
    settings: EditorSettings | None = None,
    on_step: OnStep | None = None,
) -> UInt8[Tensor, "f 3 h w"]:
    """Draw a video that begins with a picture; the result is on the CPU, of the picture's size.

    Of a video longer than in training, each window begins with the last frame of the one before.
    The noise of a frame depends on seed and frame alone; a longer video begins as a shorter one of
    whole windows.

    Args:
        animator: the model.
        picture: what the first frame shows.
        caption: what the video shows, in words.
        seed: same seed, same pixels.
        frames: how many; None means as trained.
        negative: what it should not show, "" for nothing.
        settings: steps, sampler, and guidance w_i (image) and w_p (text); None means the model's.
        on_step: called with (steps done, steps in all).

    Raises:
        InputError: for a number of frames or a seed out of range, a picture far larger than in
            training, or a caption that is empty, too long or not text.
    """
    check_seed(seed)
    frames = animator.frames if frames is None else frames
    windows, each = animator.windows(frames), min(frames, animator.frames)
    editor = animator.video
    settings = editor.settings if settings is None else settings
    given = editor.encode(picture[None])
    generator = torch.Generator().manual_seed(seed)  # of samplers with fresh noise
    shown: list[Tensor] = []
    for window in range(windows):
        first = window * (animator.frames - 1)
        noise = normals(seed, "animate", torch.arange(first, first + each), given.shape[1:])
        drawn = editor.edit_latents(
            beginning_with(given, each),
            [clean_instruction(caption, what="caption")],
            [CAPTION],
            [generator],
            negative=[clean_instruction(negative, what="negative text") if negative else ""],
            settings=settings,
            on_step=_counted(on_step, window, windows, settings.num_steps),
            noise=rearrange(noise, "f c h w -> 1 (f c) h w"),
        )
        latents = rearrange(drawn, "1 (f c) h w -> f c h w", f=each)
        given = latents[-1:]
        shown.append(editor.decode(latents[min(window, 1) :], picture.shape[-2:]))
    return torch.cat(shown)[:frames]


def _counted(on_step: OnStep | None, window: int, windows: int, num_steps: int) -> StepEnd | None:
    """Let `on_step` count the steps of all windows."""
    if on_step is None:
        return None
    return progress(lambda done, each: on_step(window * each + done, windows * each), num_steps)
