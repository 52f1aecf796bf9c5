"""The two teachers of a student that edits videos: what they say of a noisy video, what they draw.

They are frozen, so what one draws of a clip is a function of clip, epoch and seed: it is kept where
it may be asked for again, and drawn anew, to the same bits, after a restart. Each is drawn alone,
or its last bits would depend on the batch.
Source: factorised diffusion distillation, Emu Video Edit (EVE), Singer et al. 2024,
arXiv:2403.09334, sections 3.2 and 4.1.
"""

import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance, guided
from emu_edit.diffusion.prediction import Predict, Prediction
from emu_edit.diffusion.samplers import sample
from emu_edit.diffusion.schedule import Schedule
from emu_edit.errors import InputError
from emu_edit.models.conditioning import branches
from emu_edit.models.eve import EveDenoiser, Mode
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.randomness import normals

PLAIN = Guidance(1.0, 1.0)


@dataclass(frozen=True)
class Distillation:
    """How a student is told by its teachers.

    Attributes:
        steps: k, of a generation in training.
        edit: alpha, how much the teacher and the judge of edits count.
        video: beta, of videos.
        scores: lambda, how much score distillation counts against the judges.
        judged_from: the optimizer step from which the judges are heard; before, scores alone.
        uniform: the times of a generation as a sampler spaces them, and not one of each bin.
        teacher_steps: sampler steps of what the teachers draw for the judges, and of the first
            frame.
        kept: samples of teachers that are kept for later epochs.
        refreshed: epochs after which a sample is drawn anew, from other noise.
        guidance: of the teachers.
        dino: folder of a DINO or DINOv2 that the judges look through; none takes the picture model.
        judge_lr: their learning rate.

    Source: 3 steps, alpha = beta = 0.5, lambda = 2.5 and 1000 steps without judges,
    arXiv:2403.09334, section 4.1; the rest is not stated there.

    Raises:
        InputError: if a number is out of its range.
    """

    steps: int = 3
    edit: float = 0.5
    video: float = 0.5
    scores: float = 2.5
    judged_from: int = 1000
    uniform: bool = False
    teacher_steps: int = 8
    kept: int = 4096
    refreshed: int = 1
    guidance: Guidance = PLAIN
    dino: str | None = None
    judge_lr: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name in ("steps", "teacher_steps", "kept", "refreshed"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"distillation.{name}={value} must be at least 1")
        for name in ("edit", "video", "scores", "judged_from"):
            if not (value := getattr(self, name)) >= 0:
                raise InputError(f"distillation.{name}={value} must be at least 0")
        if not self.judge_lr > 0:
            raise InputError(f"distillation.judge_lr={self.judge_lr} must be above 0")


@dataclass
class Teachers:
    """What the frozen networks inside a student say and draw.

    Attributes:
        denoiser: all of them.
        schedule: theirs.
        prediction: what they output.
        settings: guidance, steps, and how many samples are kept.
        seed: key of their noise.
        kept: by clip, teacher and epoch.
    """

    denoiser: EveDenoiser
    schedule: Schedule
    prediction: Prediction
    settings: Distillation
    seed: int
    kept: OrderedDict[tuple[str, str, int], Tensor] = field(default_factory=OrderedDict)

    def told(self, cond: Conditioning, null_text: TextFeatures, mode: Mode) -> Predict:
        """Bind the conditions of a teacher, guided."""
        guidance = self.settings.guidance
        stacked = branches(cond, null_text, guidance.needed)
        return guided(self.denoiser.told(stacked, mode), guidance)

    @torch.no_grad()
    def samples(
        self,
        keys: Sequence[str],
        epoch: int,
        mode: Mode,
        cond: Conditioning,
        null_text: TextFeatures,
    ) -> Float[Tensor, "b fc h w"]:
        """Return what a teacher draws of each clip in an epoch."""
        generation, rows = epoch // self.settings.refreshed, []
        for i, key in enumerate(keys):
            name = (key, mode.name, generation)
            if name not in self.kept:
                self.kept[name] = self._drawn(name, mode, _row(cond, i), null_text).cpu()
                if len(self.kept) > self.settings.kept:
                    self.kept.popitem(last=False)
            rows.append(self.kept[name].to(cond.z_source))
        return torch.stack(rows)

    def _drawn(
        self,
        name: tuple[str, str, int],
        mode: Mode,
        cond: Conditioning,
        null_text: TextFeatures,
    ) -> Float[Tensor, "fc h w"]:
        key, teacher, generation = name
        _, channels, height, width = cond.z_source.shape
        number = torch.tensor([zlib.crc32(key.encode()) * 2**20 + generation])
        noise = normals(self.seed, f"teacher {teacher}", number, (channels // 2, height, width))
        drawn = sample(
            self.told(cond, null_text, mode),
            noise.to(cond.z_source),
            schedule=self.schedule,
            prediction=self.prediction,
            num_steps=self.settings.teacher_steps,
        )
        return drawn[0]


def _row(cond: Conditioning, i: int) -> Conditioning:
    text = TextFeatures(cond.text.tokens[i : i + 1], cond.text.mask[i : i + 1])
    return Conditioning(text, cond.z_source[i : i + 1], cond.v_task[i : i + 1])
