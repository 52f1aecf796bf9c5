"""One picture model and all that hangs on it: edit adapter, temporal layers, and what aligns them.

Four networks are one, and which it is, is said at every call (`Mode`): the student, which edits
videos with everything; the teacher of edits, which knows no other frame; the teacher of videos,
which knows no source; and adapters and layers plugged together without what aligns them, which is
LoRA on the picture model and on nothing else. The LoRA begins at zero, so that an untrained student
is the one that is plugged together.
Source: Emu Video Edit (EVE), Singer et al. 2024, arXiv:2403.09334, section 3.1; LoRA as in Hu et
al. 2021, arXiv:2106.09685, through peft.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from enum import Enum
from functools import cache, partial

import torch
from einops import rearrange
from jaxtyping import Float, Real
from torch import Tensor, nn

from emu_edit.diffusion.prediction import Predict
from emu_edit.models.captioned_text import apart
from emu_edit.models.edit_adapter import EditAdapterDenoiser
from emu_edit.models.inflate import TemporalAdapter, given_frames
from emu_edit.models.interfaces import Conditioning, Denoiser
from emu_edit.models.lora import add_lora
from emu_edit.models.motion import VideoCall
from emu_edit.models.surgery import freeze

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
RANK = 16  # neither is stated in the paper

# whether the call now running is aligned; read where a LoRA is, again when a layer is recomputed
_ALIGNED: ContextVar[bool] = ContextVar("aligned", default=False)


class Mode(Enum):
    """Which network a call is of."""

    student = "student"
    edit_teacher = "edit_teacher"
    video_teacher = "video_teacher"
    plugged = "plugged"


class EveDenoiser(Denoiser):
    """Edit videos with an edit adapter and temporal layers on one picture model.

    A row is a video, its channels are those of its frames, "(f c)". `z_source` has two such rows
    one after the other: the frames that are given of the result, zeros elsewhere, and those of the
    source. All is frozen but the LoRA.

    Args:
        editor: the picture model with its edit adapter.
        adapter: temporal layers on the same picture model.
    """

    def __init__(self, editor: EditAdapterDenoiser, adapter: TemporalAdapter) -> None:
        super().__init__()
        self.editor, self.adapter = freeze(editor), freeze(adapter)
        self.latent_channels, self.text_dim = editor.latent_channels, editor.text_dim
        self.task_dim, self.trained_as = editor.task_dim, editor.trained_as
        self.is_aligned = False  # whether there is a LoRA

    def align(
        self, rank: int = RANK, alpha: float | None = None, targets: Sequence[str] = TARGETS
    ) -> None:
        """Hang a LoRA on the picture model, zero and to be trained.

        Raises:
            InputError: as `add_lora`.
        """
        add_lora(self.editor.base.unet, targets, rank, alpha)
        self.follow_mode()

    def follow_mode(self) -> None:
        """Let the LoRA that is there take part in calls of the student, and in no other."""
        from peft.tuners.lora import LoraLayer  # pyright: ignore[reportMissingImports]

        for layer in self.editor.base.unet.modules():
            if isinstance(layer, LoraLayer):
                layer.__class__ = _by_mode(type(layer))  # pyright: ignore[reportAttributeAccessIssue]
        self.is_aligned = True

    def train(self, mode: bool = True) -> "EveDenoiser":
        """Set the mode; temporal layers stay in eval: a teacher learns nothing of what it sees."""
        super().train(mode)
        self.adapter.eval()
        return self

    def forward(
        self,
        z_t: Float[Tensor, "b fc h w"],
        t: Real[Tensor, " b"],
        cond: Conditioning,
        mode: Mode = Mode.student,
        call: VideoCall | None = None,
    ) -> Float[Tensor, "b fc h w"]:
        """Return the output for every frame.

        Args:
            z_t: noisy frames.
            t: the step of each video.
            cond: what is told; `z_source` as in the class.
            mode: which of the networks.
            call: of `call_of(cond)`, where that is known already.
        """
        editor, frames = self.editor, z_t.shape[1] // self.latent_channels
        rows, times = self._frames(z_t).flatten(0, 1), t.repeat_interleave(frames)
        each = self._each(cond, frames)
        control = None
        if mode is not Mode.video_teacher:
            control = editor.control(rows, times, editor.asked(each))
        moving = nullcontext()
        if mode is not Mode.edit_teacher:
            moving = self.adapter.during(self.call_of(cond) if call is None else call)
        with moving, _aligned(mode is Mode.student):
            output = editor.base(rows, times, editor.drawn(each), control)
        return rearrange(output, "(b f) c h w -> b (f c) h w", f=frames)

    def told(self, cond: Conditioning, mode: Mode = Mode.student) -> Predict:
        """Bind the conditions; what moves where is read once."""
        call = None if mode is Mode.edit_teacher else self.call_of(cond)
        return partial(self, cond=cond, mode=mode, call=call)

    def call_of(self, cond: Conditioning) -> VideoCall:
        """Return what the temporal layers are told: the caption and the given frames."""
        given, condition = self._frames(cond.z_source.chunk(2, dim=1)[0]), None
        if self.adapter.condition_channels:
            condition = given_frames(given, (given != 0).flatten(2).any(dim=2))
        return self.adapter.told(given.shape[1], condition, apart(cond.text)[1])

    def _each(self, cond: Conditioning, frames: int) -> Conditioning:
        """Return what each frame is told, rows "(b f)"; its source is its own."""
        source = self._frames(cond.z_source.chunk(2, dim=1)[1])
        told = Conditioning(cond.text, source[:, 0], cond.v_task).for_frames(frames)
        return Conditioning(told.text, source.flatten(0, 1), told.v_task)

    def _frames(self, z: Float[Tensor, "b fc h w"]) -> Float[Tensor, "b f c h w"]:
        return rearrange(z, "b (f c) h w -> b f c h w", c=self.latent_channels)


@contextmanager
def _aligned(is_student: bool) -> Iterator[None]:
    token = _ALIGNED.set(is_student)
    try:
        yield
    finally:
        _ALIGNED.reset(token)


@cache
def _by_mode(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class of peft's LoRA layers that is off but in calls of the student.

    peft's own switch is a flag on every layer, which a layer that is recomputed in the backward
    pass would find as it was left by another call.
    """
    is_off = property(lambda _layer: not _ALIGNED.get())
    return type(kind.__name__, (kind,), {"disable_adapters": is_off})


def placed(
    given: Float[Tensor, "b n c h w"], source: Float[Tensor, "b f c h w"]
) -> Float[Tensor, "b fc2 h w"]:
    """Return `z_source` of the first n frames of a result and of all of the source."""
    missing = torch.zeros_like(source[:, given.shape[1] :])
    return torch.cat([given, missing, source], dim=1).flatten(1, 2)
