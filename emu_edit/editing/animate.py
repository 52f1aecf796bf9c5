"""From given frames and a caption to a video: a picture model's temporal layers, the one sampler.

A video is drawn as a picture is edited: what is given is its first frame (or its past, see
`extend`, or some frames between, see `emu_edit.editing.interpolate`), and its guidance is that of
edits with w_i for the source's scale and w_p for the text's,

    z~ = z(0) + w_i (z(I) - z(0)) + w_p (z(I, p) - z(I)).

What is longer than a clip of training comes in windows, of which one is in memory at a time.
Source: Emu Video, Girdhar et al. 2023, arXiv:2311.10709, section 3.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from emu_edit.diffusion.prediction import add_noise
from emu_edit.diffusion.samplers import OnStep, StepEnd, progress
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import find_model
from emu_edit.editing.generate import load_generator
from emu_edit.editing.layers import MOST_FRAMES, Layers, read_layers
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.models.directory import TEMPORAL
from emu_edit.models.given import Given, GivenFrames
from emu_edit.models.networks import EditNetworks
from emu_edit.models.temporal_files import load_temporal, save_temporal
from emu_edit.models.video import VideoDenoiser, codec_of_frames, drawing_base
from emu_edit.randomness import check_seed, keyed_generator, normals
from emu_edit.tasks import CAPTION
from emu_edit.text_rules import clean_instruction

IMAGE_GUIDANCE, TEXT_GUIDANCE = 2.0, 7.5  # w_i and w_p of the paper
INSTEAD = {  # what a model does, and how it is asked to
    Given.first: "begins with a picture (emu-edit generate --image, --extend)",
    Given.past: "goes on from a video (emu-edit generate --extend)",
    Given.interleaved: "draws frames between those of a video (emu-edit interpolate)",
}


@dataclass(frozen=True)
class Animator:
    """What draws videos.

    Attributes:
        drawer: the picture model.
        video: the same networks with the temporal layers, in the slot of its denoiser.
        frames: of a clip in training; what is longer is drawn in several windows.
        rate: frames a second.
        given: which of a clip's frames it is told.
    """

    drawer: Editor
    video: Editor
    frames: int
    rate: int
    given: GivenFrames = field(default_factory=GivenFrames)

    @staticmethod
    def from_pretrained(path: Path | str | None, device: str | None = None) -> "Animator":
        """Load what draws videos.

        Args:
            path: a model directory or run folder; None means the newest run.
            device: cpu, cuda, ...; None takes an accelerator if there is one, else the CPU.

        Raises:
            InputError: if there is none, it draws no videos, or a part is damaged or foreign.
        """
        model = find_drawer(path)
        return load_animator(load_generator(model, device), model)

    @property
    def places(self) -> range:
        """Which frames of a window are given."""
        return self.given.places(self.frames)

    def check_kind(self, *kinds: Given) -> None:
        """Refuse (InputError) what a model with other given frames can do."""
        if self.given.kind not in kinds:
            raise InputError(
                f"this model {INSTEAD[self.given.kind]}; for what is asked, train one with "
                f"--model.given.kind {kinds[0].name}"
            )

    def check_extends(self, asked: str) -> int:
        """Return how many frames each window after the first adds.

        Raises:
            InputError: if the model takes no frames to go on from; `asked` is what asks for it.
        """
        self.check_kind(Given.first, Given.past)
        denoiser = self.video.networks.denoiser
        assert isinstance(denoiser, VideoDenoiser)
        new = self.frames - len(self.places)
        if not new or not denoiser.adapter.condition_channels:
            raise InputError(
                f"{asked}: this model was trained on clips of {self.frames} and takes no "
                f"frame to go on from; give at most {self.frames}"
            )
        return new

    def windows(self, frames: int) -> int:
        """Return in how many windows a video is drawn: those after the first add fewer frames.

        Raises:
            InputError: if the model begins with no picture, or cannot go on from a frame and more
                are asked for than it was trained on.
        """
        self.check_kind(Given.first)
        check_frames(frames)
        if frames <= self.frames:
            return 1
        return 1 + -(-(frames - self.frames) // self.check_extends(f"frames={frames}"))

    def save_pretrained(self, path: Path | str) -> None:
        """Write the picture model's directory, and `temporal/` in it."""
        self.drawer.save_pretrained(path, write_layers=self._write_layers)

    def _write_layers(self, folder: Path) -> None:
        denoiser = self.video.networks.denoiser
        assert isinstance(denoiser, VideoDenoiser)
        save_temporal(denoiser.adapter, folder / TEMPORAL)
        Layers(
            self.video.prediction,
            zero_terminal_snr=self.video.schedule.has_zero_terminal_snr,
            frames=self.frames,
            rate=self.rate,
            given=self.given,
            settings=self.video.settings,
        ).write(folder / TEMPORAL)


def find_drawer(path: Path | str | None) -> Path:
    """Return the directory of a model that draws, by the names that `--model` takes.

    Raises:
        InputError: if there is none.
    """
    if path is not None and (Path(path).expanduser() / "unet").is_dir():  # diffusers' own, too
        return Path(path).expanduser()
    return find_model(path)


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
    told = read_layers(folder)
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
        schedule=betas.schedule(told.prediction, zero_terminal_snr=told.zero_terminal_snr),
        prediction=told.prediction,
        settings=told.settings,
    )
    told.check(editor.schedule.num_steps)
    return Animator(drawer, editor, told.frames, told.rate, told.given)


def check_frames(frames: int) -> None:
    """Refuse (InputError) a number of frames that no video has."""
    if not 1 <= frames <= MOST_FRAMES:
        raise InputError(f"frames={frames} of a video must be 1 to {MOST_FRAMES}")


@dataclass(frozen=True)
class Drawing:
    """What a video is to show, and how it is drawn, window after window.

    Attributes:
        caption: in words; "" leaves it to the given frames.
        seed: same seed, same pixels.
        negative: what it should not show, "" for nothing.
        settings: steps, sampler, and guidance w_i (image) and w_p (text); None means the model's.
        on_step: hears of every step of each window, and may replace the latents.

    Raises:
        InputError: for a seed out of range, or a text that cannot be meant.
    """

    caption: str
    seed: int = 0
    negative: str = ""
    settings: EditorSettings | None = None
    on_step: StepEnd | None = None

    def __post_init__(self) -> None:
        """Clean the texts."""
        check_seed(self.seed)
        for name, what in (("caption", "caption"), ("negative", "negative text")):
            if text := getattr(self, name):
                object.__setattr__(self, name, clean_instruction(text, what=what))

    @torch.no_grad()
    def window(
        self, animator: Animator, known: Float[Tensor, "n c h w"], *, first: int, frames: int
    ) -> Float[Tensor, "f c h w"]:
        """Draw one window, given the latents of its known frames.

        The noise of a frame, and that of what is known, depends on seed and frame alone.

        Args:
            animator: the model.
            known: clean; they get the noise that the model is to be told them with.
            first: number of the window's first frame in its video.
            frames: of the window.
        """
        video, given = animator.video, animator.given
        shape = known.shape[1:]
        if given.noise:
            numbers = first + torch.tensor(given.places(frames))
            eps = normals(self.seed, "given", numbers, shape).to(known)
            level = video.schedule.at(torch.tensor([given.noise], device=known.device))
            known = add_noise(known, eps, level)
        settings = video.settings if self.settings is None else self.settings
        if not (self.caption or self.negative):  # a branch that would say what another says
            guidance = replace(settings.guidance, text=settings.guidance.image)
            settings = replace(settings, guidance=guidance)
        # of samplers with fresh noise
        key = int(keyed_generator(self.seed, "animate steps", first).integers(2**63))
        noise = normals(self.seed, "animate", torch.arange(first, first + frames), shape)
        drawn = video.edit_latents(
            given.placed(known[None], frames),
            [self.caption],
            [CAPTION],
            [torch.Generator().manual_seed(key)],
            negative=[self.negative],
            settings=settings,
            on_step=self.on_step,
            noise=rearrange(noise, "f c h w -> 1 (f c) h w"),
        )
        return rearrange(drawn, "1 (f c) h w -> f c h w", f=frames)


def animation(
    animator: Animator, picture: UInt8[Tensor, "3 h w"], drawing: Drawing, frames: int
) -> Iterator[UInt8[Tensor, "f 3 h w"]]:
    """Yield a video that begins with a picture, window by window; see `animate`."""
    size, windows = picture.shape[-2:], animator.windows(frames)
    known = animator.video.encode(picture[None])
    latents = drawing.window(animator, known, first=0, frames=min(frames, animator.frames))
    yield animator.video.decode(latents, size)
    if windows > 1:
        first, left = animator.frames - 1, frames - animator.frames
        yield from _going_on(animator, latents[-1:], drawing, size, first=first, left=left)


def extend(
    animator: Animator, past: UInt8[Tensor, "n 3 h w"], drawing: Drawing, frames: int
) -> Iterator[UInt8[Tensor, "f 3 h w"]]:
    """Yield frames that come after those of a video, window by window, on the CPU.

    A model of `Given.past` is told the last half clip, one of `Given.first` the last frame; each
    window goes on from what the one before has drawn. A longer continuation begins as a shorter.

    Args:
        animator: the model.
        past: at least as many of the video's last frames as the model is told.
        drawing: what comes.
        frames: how many new ones.

    Raises:
        InputError: if the model takes no past or the video is too short, for a number of frames out
            of range, frames far larger than in training, or a caption that is too long.
    """
    animator.check_extends(f"frames={frames}")
    check_frames(frames)
    told = len(animator.places)
    if len(past) < told:
        raise InputError(
            f"this model goes on from {told} frames, the video has {len(past)}; give a longer one"
        )
    known = animator.video.encode(past[-told:])
    return _going_on(animator, known, drawing, past.shape[-2:], first=0, left=frames)


def _going_on(
    animator: Animator,
    known: Float[Tensor, "n c h w"],
    drawing: Drawing,
    size: torch.Size,
    *,
    first: int,
    left: int,
) -> Iterator[UInt8[Tensor, "f 3 h w"]]:
    """Yield what follows known frames, the first of which has this number, until none is left."""
    told = len(known)
    while left > 0:
        latents = drawing.window(animator, known, first=first, frames=animator.frames)
        known = latents[-told:]
        yield animator.video.decode(latents[told:], size)[:left]
        first, left = first + animator.frames - told, left - (animator.frames - told)


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
            training, a caption that is empty, too long or not text, or a model that begins with no
            picture.
    """
    frames = animator.frames if frames is None else frames
    settings = animator.video.settings if settings is None else settings
    windows = animator.windows(frames)
    counted = counted_steps(on_step, windows, settings.num_steps)
    caption = clean_instruction(caption, what="caption")
    drawing = Drawing(caption, seed, negative, settings, counted)
    return torch.cat(list(animation(animator, picture, drawing, frames)))


def counted_steps(on_step: OnStep | None, windows: int, num_steps: int) -> StepEnd | None:
    """Let `on_step` count the steps of all windows."""
    if on_step is None:
        return None
    steps = iter(range(1, windows * num_steps + 1))
    return progress(lambda _done, _of: on_step(next(steps), windows * num_steps), num_steps)
