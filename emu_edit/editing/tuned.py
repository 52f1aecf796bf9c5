"""Editing one video by a picture model that was tuned on it: noise of the source, another caption.

The video's frames are inverted to noise under its own caption, and drawn from there under another
one, so that what both captions say stays where it is.
Source: EI², Zhang et al. 2023, arXiv:2305.17431; Tune-A-Video, Wu et al. 2022, arXiv:2212.11565,
section 4.3.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance, guided
from emu_edit.diffusion.prediction import Predict
from emu_edit.diffusion.samplers import StepEnd, noise_of, sample
from emu_edit.diffusion.schedule import Time
from emu_edit.editing.animate import Animator, load_animator
from emu_edit.editing.generate import load_generator
from emu_edit.editing.settings import EditorSettings
from emu_edit.errors import InputError
from emu_edit.files import write_json
from emu_edit.models.conditioning import branches
from emu_edit.models.directory import read_json
from emu_edit.models.interfaces import Conditioning
from emu_edit.tasks import CAPTION
from emu_edit.text_rules import clean_instruction

RECORD = "tuned.json"  # in a model directory: what it was tuned on
VERSION = 1


@dataclass(frozen=True)
class Tuned:
    """A picture model tuned on one video.

    Attributes:
        animator: the picture model and its temporal layers.
        caption: of the video it was tuned on.
    """

    animator: Animator
    caption: str

    @staticmethod
    def from_pretrained(model: Path, device: str | None = None) -> "Tuned":
        """Read what `save_pretrained` wrote.

        Raises:
            InputError: if a part is missing or damaged.
        """
        values = read_json(model / RECORD)
        caption = values.get("caption")
        if values.get("version") != VERSION or not isinstance(caption, str):
            raise InputError(f"{model / RECORD} is no record of version {VERSION}; tune again")
        animator = load_animator(load_generator(model, device), model)
        return Tuned(animator, clean_instruction(caption, what="caption"))

    def save_pretrained(self, path: Path | str) -> None:
        """Write the model's directory with its temporal layers, and the caption."""
        self.animator.save_pretrained(path)
        write_json(Path(path) / RECORD, {"version": VERSION, "caption": self.caption})

    def times(self, num_steps: int) -> list[Time]:
        """Return the times to walk: those of the sampler in which anything is left of a video."""
        schedule = self.animator.video.schedule
        found = schedule.times(num_steps, 1)
        return [t for t in found if schedule.level(t).alpha > 0] or [schedule.num_steps // 2]

    @torch.no_grad()
    def edit(
        self,
        latents: Float[Tensor, "f c h w"],
        text: str,
        settings: EditorSettings,
        *,
        negative: str = "",
        on_step: StepEnd | None = None,
    ) -> Float[Tensor, "f c h w"]:
        """Draw frames anew under another caption, from their own noise.

        Args:
            latents: of the frames.
            text: what they are to show.
            settings: steps, sampler and guidance of the drawing; the inversion has none.
            negative: what they should not show.
            on_step: hears of every step of the drawing.
        """
        video, times = self.animator.video, self.times(settings.num_steps)
        z_0 = latents.to(video.device).flatten(0, 1)[None]
        noise = noise_of(
            self._told(z_0, self.caption, "", Guidance(1.0, 1.0)),
            z_0,
            schedule=video.schedule,
            prediction=video.prediction,
            times=times,
        )
        guidance = Guidance(settings.guidance.text, 1.0)
        drawn = sample(
            self._told(z_0, text, negative, guidance),
            noise,
            schedule=video.schedule,
            prediction=video.prediction,
            sampler=settings.sampler,
            generator=torch.Generator().manual_seed(0),
            on_step=on_step,
            times=times,
        )
        return drawn[0].unflatten(0, (len(latents), -1))

    def _told(
        self, like: Float[Tensor, "1 fc h w"], text: str, negative: str, guidance: Guidance
    ) -> Predict:
        networks = self.animator.video.networks
        told, null_text = networks.encode_text([text], [negative])
        cond = Conditioning(told, torch.zeros_like(like), networks.task_vectors([CAPTION]))
        stacked = branches(cond, null_text, guidance.needed)
        return guided(networks.denoiser.told(stacked), guidance)
