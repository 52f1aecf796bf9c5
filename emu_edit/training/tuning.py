"""Tuning a picture model on one video: `VideoModule`'s step, its layers of time and its queries.

Source: EI², Zhang et al. 2023, arXiv:2305.17431, with the numbers of Tune-A-Video, Wu et al. 2022,
arXiv:2212.11565, section 5 (500 steps, 3e-5, the queries of self- and cross-attention, 50 steps and
guidance 12.5 later), since EI²'s own are not known.
"""

from dataclasses import dataclass, replace

import torch
from diffusers.models.attention import BasicTransformerBlock
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.batch import ClipBatch, ClipSample
from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.samplers import OnStep
from emu_edit.editing.tuned import Tuned
from emu_edit.errors import InputError
from emu_edit.images import reflect_to_multiple, resize, with_shorter_side
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.inflate import unet_of
from emu_edit.models.temporal import TemporalSpec
from emu_edit.models.video import VideoDenoiser
from emu_edit.training.draws import Phase
from emu_edit.training.optim import OptimizerSettings, adamw
from emu_edit.training.video_module import VideoModule

GUIDANCE, NUM_STEPS = 12.5, 50


@dataclass(frozen=True)
class TuneSettings:
    """How a picture model is tuned.

    Attributes:
        steps: optimizer steps.
        lr: learning rate, constant.
        plain: temporal attention as in Emu Video and self-attention as it is, without EI²'s; what
            the comparison is with.
        head_dim: width of a head of temporal attention.
        seed: of the noise.
    """

    steps: int = 500
    lr: float = 3e-5
    plain: bool = False
    head_dim: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.steps < 1 or not self.lr > 0:
            raise InputError(f"steps={self.steps} must be at least 1 and lr={self.lr} above 0")

    @property
    def spec(self) -> TemporalSpec:
        """Return the temporal layers: attention alone, told of no given frame."""
        spec = TemporalSpec(
            convolution_levels=(), head_dim=self.head_dim, mlp_ratio=0, picture_condition=False
        )
        return spec if self.plain else replace(spec, stam=True, coarse=2)


def tune(
    model: str,
    frames: UInt8[Tensor, "f 3 h w"],
    caption: str,
    settings: TuneSettings,
    *,
    rate: int = 8,
    size: int | None = None,
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> Tuned:
    """Tune a picture model on the frames of a video; its directory stays as it is.

    Args:
        model: what draws, as of `VideoModule`.
        frames: of the video.
        caption: what they show.
        settings: how.
        rate: frames a second.
        size: what their shorter side becomes; None means the model's.
        device: to tune on.
        on_step: called with (steps done, steps in all).

    Raises:
        InputError: if the model does not draw, or has no attention of such heads.
    """
    module = VideoModule(
        model,
        settings.spec,
        frames=len(frames),
        rate=rate,
        dropout=DropoutRates(0.0, 0.0, 0.0, 0.0),
        optimizer=OptimizerSettings(lr=settings.lr, weight_decay=0.0, warmup_steps=0),
        seed=settings.seed,
    )
    side = module.editor_settings.image_size if size is None else size
    sides = with_shorter_side(side, height=frames.shape[-2], width=frames.shape[-1])
    frames = torch.stack([resize(frame, sides) for frame in frames])
    module.editor_settings = replace(
        module.editor_settings,
        image_size=side,
        guidance=Guidance(GUIDANCE, 1.0),
        num_steps=NUM_STEPS,
    )
    _free_queries(module)
    clip = ClipSample(
        key="clip",
        instruction=caption,
        task=0,
        source=None,
        target=reflect_to_multiple(frames, module.networks.codec.factor),
        rate=float(rate),
    )
    _learn(module.to(device), clip, settings.steps, on_step)
    return Tuned(module.eval().animator(), caption)


def _free_queries(module: VideoModule) -> None:
    """Let the queries of the picture model's attention learn, too."""
    denoiser = module.networks.denoiser
    assert isinstance(denoiser, VideoDenoiser)
    for block in unet_of(denoiser.base).modules():
        if isinstance(block, BasicTransformerBlock):
            for attention in (block.attn1, block.attn2):
                if attention is not None:
                    attention.to_q.requires_grad_(True)


def _learn(module: VideoModule, clip: ClipSample, steps: int, on_step: OnStep | None) -> None:
    """Make the steps, each with noise of its own."""
    optimizer = adamw(module, module.optimizer_settings)
    for step in range(steps):
        batch = ClipBatch.collate([replace(clip, position=step)])
        drawn = module.drawn(batch, Phase.train).to(module.device)
        optimizer.zero_grad()
        module.step(drawn, dropout=None)["loss"].backward()
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, steps)
