"""Editing the frames of a scene together, by a model that was made for videos.

A stage of `VideoEditor` as any other, in constant memory: windows of as many frames as the temporal
layers were trained on, each of which shares some frames with the one before. Of those the result is
known; the first frame of a scene is edited as a picture is.
Source: Emu Video Edit (EVE), Singer et al. 2024, arXiv:2403.09334, section 4.1, after InsV2V, Cheng
et al. 2023, arXiv:2311.00213, section 3.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from emu_edit.diffusion.samplers import StepEnd
from emu_edit.editing.editor import Editor
from emu_edit.editing.eve import VideoStack
from emu_edit.editing.find import find_model
from emu_edit.editing.task_mix import task_vectors
from emu_edit.editing.tuned import RECORD, Tuned
from emu_edit.models.directory import TEMPORAL
from emu_edit.models.edit_adapter import PART
from emu_edit.models.eve import Mode
from emu_edit.video.editor import Stage, VideoEditor, VideoSettings, VideoTurn
from emu_edit.video.noise import NoiseMode, frame_noise
from emu_edit.video.windows import Window, Windowed

SHARED = 4  # of so many frames a window shares one with the one before, as InsV2V's 4 of 16
KNOWN = "known."  # names of latents in a saved state


@dataclass(kw_only=True)
class StackedStage(Stage):
    """One instruction on a stream of frames, edited by all networks of a stack.

    The noise of frames is independent, as the layers were trained; `settings.noise`, `look` and
    `window` are for editors of pictures and mean nothing here.

    Attributes:
        stack: what edits.
        known: latents of the results of the window before, by frame.
    """

    stack: VideoStack
    known: dict[int, Float[Tensor, "c h w"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the windows."""
        size = self.stack.frames
        overlap = self.settings.overlap or -(-size // SHARED)
        self.windows = Windowed(self._edit, size, min(overlap, size - 1))

    @torch.no_grad()
    def _edit(self, window: Window) -> UInt8[Tensor, "f 3 h w"]:
        shots, editor, turn = window.shots, self.editor, self.turn
        frames = torch.stack([shot.pixels for shot in shots])
        numbers = [shot.number for shot in shots]
        latents = editor.encode(frames)
        noise = frame_noise(NoiseMode.independent, turn.seed, numbers, latents.shape[1:])
        assert turn.task is not None
        edit = partial(
            self.stack.window,
            text=turn.instruction,
            v_task=task_vectors(editor.networks, [turn.task]),
            settings=self.usual,
            negative=turn.negative,
            on_step=self.on_step,
        )
        again = [self.known[number] for number in numbers[: window.context + window.old]]
        if again:
            known = torch.stack(again).to(latents)
        else:
            known = edit(latents[:1], latents[:0], noise=noise[:1], mode=Mode.edit_teacher)
        edited = torch.cat([known, edit(latents, known, noise=noise)[len(known) :]])
        self.known = dict(zip(numbers, edited.cpu(), strict=True))
        return editor.decode(edited, frames.shape[-2:])

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return all that is remembered, as tensors and as numbers."""
        tensors, numbers = super().state()
        known = {f"{KNOWN}{number}": z.contiguous() for number, z in self.known.items()}
        return {**tensors, **known}, numbers

    def restore(self, tensors: dict[str, Tensor], numbers: dict) -> None:
        """Remember what `state` returned."""
        super().restore(tensors, numbers)
        self.known = {
            int(name.removeprefix(KNOWN)): z
            for name, z in tensors.items()
            if name.startswith(KNOWN)
        }


@dataclass(kw_only=True)
class TunedStage(Stage):
    """One caption for a video, by a model that was tuned on it.

    Attributes:
        tuned: what edits.
    """

    tuned: Tuned

    def __post_init__(self) -> None:
        """Make windows of as many frames as it was tuned on, which share none."""
        self.windows = Windowed(self._edit, self.tuned.animator.frames)

    @torch.no_grad()
    def _edit(self, window: Window) -> UInt8[Tensor, "f 3 h w"]:
        frames = torch.stack([shot.pixels for shot in window.shots])
        edited = self.tuned.edit(
            self.editor.encode(frames),
            self.turn.instruction,
            self.usual,
            negative=self.turn.negative,
            on_step=self.on_step,
        )
        return self.editor.decode(edited, frames.shape[-2:])


VideoModel = Editor | VideoStack | Tuned


def video_editor(
    model: VideoModel,
    turns: Sequence[VideoTurn],
    settings: VideoSettings = VideoSettings(),
    on_step: StepEnd | None = None,
) -> VideoEditor:
    """Return what edits videos: frame by frame with an editor, frames together with others."""
    match model:
        case VideoStack():
            make = partial(StackedStage, stack=model)
        case Tuned():
            make = partial(TunedStage, tuned=model)
        case _:
            make = None
    return VideoEditor(editor_of(model), turns, settings, on_step, make)


def load_video_model(path: Path | str, device: str | None = None) -> VideoModel:
    """Load a model directory: a stack where it has an edit adapter and temporal layers.

    Raises:
        InputError: as `Editor.from_pretrained`, `VideoStack.from_pretrained` and
            `Tuned.from_pretrained`.
    """
    folder = find_model(path)
    if (folder / RECORD).is_file():
        return Tuned.from_pretrained(folder, device)
    if (folder / PART).is_dir() and (folder / TEMPORAL).is_dir():
        return VideoStack.from_pretrained(folder, device)
    return Editor.from_pretrained(folder, device)


def editor_of(model: VideoModel) -> Editor:
    """Return what encodes, decodes, and says how to sample."""
    match model:
        case VideoStack():
            return model.editor
        case Tuned():
            return model.animator.video
        case _:
            return model
