"""Tiny picture models in the exact formats of Stable Diffusion 1.5, 2.1, XL and ours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from emu_edit.models.inflate import Base, TemporalAdapter, inflate
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.temporal import TemporalSpec
from tests.models.conftest import TASK_DIM, TEXT_DIM, small_denoiser

SPEC = TemporalSpec(head_dim=4)
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
POOLED, TIME_DIM = 8, 4  # of SDXL's additional embedding


@dataclass(frozen=True)
class Picture:
    """A picture model and what it is told about each row; `draw` calls it with all of it."""

    base: Base
    call: Callable[[Tensor, Tensor, torch.Generator], Tensor]

    def draw(self, z: Tensor) -> Tensor:
        """Return the output for rows of latents, each with its own text, step and the like."""
        generator = torch.Generator().manual_seed(1)
        return self.call(z, torch.arange(len(z)) * 37, generator)


def _unet(down: tuple[str, ...], widths: tuple[int, ...], **settings) -> UNet2DConditionModel:
    up = [name.replace("Down", "Up") for name in reversed(down)]
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=down,
        up_block_types=tuple(up),
        block_out_channels=widths,
        layers_per_block=1,  # 2 in the real ones
        cross_attention_dim=TEXT_DIM,
        norm_num_groups=4,
        **settings,
    ).eval()


def _tell_text(unet: UNet2DConditionModel, z: Tensor, t: Tensor, g: torch.Generator) -> Tensor:
    text = torch.randn(len(z), 5, TEXT_DIM, generator=g)
    return unet(z, t, text, return_dict=False)[0]


def _tell_sizes(unet: UNet2DConditionModel, z: Tensor, t: Tensor, g: torch.Generator) -> Tensor:
    text, pooled = (torch.randn(len(z), *s, generator=g) for s in ((5, TEXT_DIM), (POOLED,)))
    sizes = torch.randint(0, 64, (len(z), 6), generator=g)
    added = {"text_embeds": pooled, "time_ids": sizes}
    return unet(z, t, text, added_cond_kwargs=added, return_dict=False)[0]


def _tell_task(denoiser: nn.Module, z: Tensor, t: Tensor, g: torch.Generator) -> Tensor:
    text = torch.randn(len(z), 5, TEXT_DIM, generator=g)
    task = torch.randn(len(z), TASK_DIM, generator=g)
    mask = torch.arange(5)[None] < torch.arange(1, len(z) + 1)[:, None]
    source = torch.randn(z.shape, generator=g)
    return denoiser(z, t, Conditioning(TextFeatures(text, mask), source, task))


def sd15() -> Picture:
    unet = _unet((CROSS, CROSS, PLAIN), (8, 8, 16), attention_head_dim=2)
    return Picture(unet, partial(_tell_text, unet))


def sd21() -> Picture:
    unet = _unet(
        (CROSS, CROSS, PLAIN),
        (8, 8, 16),
        attention_head_dim=(1, 1, 2),
        use_linear_projection=True,
        upcast_attention=True,
    )
    return Picture(unet, partial(_tell_text, unet))


def sdxl() -> Picture:
    unet = _unet(
        (PLAIN, CROSS, CROSS),
        (8, 8, 16),
        attention_head_dim=(1, 1, 2),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 3),
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_DIM,
        projection_class_embeddings_input_dim=POOLED + 6 * TIME_DIM,
    )
    return Picture(unet, partial(_tell_sizes, unet))


def ours() -> Picture:
    denoiser = small_denoiser(modulate_by_text=True, position_octaves=2).eval()
    nn.init.normal_(denoiser.task_to_tokens.weight)  # a trained one attends to its task
    nn.init.normal_(denoiser.task_to_time.weight)
    return Picture(denoiser, partial(_tell_task, denoiser))


FORMATS = [sd15, sd21, sdxl, ours]


def draw_video(picture: Picture, adapter: TemporalAdapter, z: Tensor, frames: int = 3) -> Tensor:
    """Return the output for videos of so many frames, a row for each frame."""
    with adapter.video(frames):
        return picture.draw(z)


@torch.no_grad()
def trained(picture: Picture, spec: TemporalSpec = SPEC) -> TemporalAdapter:
    """Inflate and move every weight, as training would."""
    adapter = inflate(picture.base, spec)
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return adapter
