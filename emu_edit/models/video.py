"""A picture model with temporal layers in the slot of a denoiser, so that all else stays as it is.

A row is a video: its channels are those of its frames, one after another, "(f c)". Noise, loss,
dropout of conditions, guidance and samplers then take videos as they take pictures. The frames that
are given come where the source of an edit comes, zeros where none is.
Source: Emu Video, Girdhar et al. 2023, arXiv:2311.10709, section 3.
"""

from copy import copy
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.models.codec import KLCodec
from emu_edit.models.inflate import TemporalAdapter, given_frames
from emu_edit.models.interfaces import Conditioning, Denoiser, ImageCodec
from emu_edit.models.unet import UNetDenoiser


class VideoDenoiser(Denoiser):
    """Denoise videos with a picture model and the temporal layers that hang on it.

    The picture model is told text and task in every frame, and no source.

    Args:
        adapter: the layers; their base must be a denoiser of ours.
    """

    def __init__(self, adapter: TemporalAdapter) -> None:
        super().__init__()
        base = adapter.base
        assert isinstance(base, UNetDenoiser)
        self.latent_channels, self.task_dim = base.latent_channels, base.task_dim
        self.text_dim, self.trained_as = base.text_dim, base.trained_as
        self.base, self.adapter = base, adapter

    def forward(
        self, z_t: Float[Tensor, "b fc h w"], t: Int64[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b fc h w"]:
        """Return the output for every frame; `cond.z_source` has the given ones, of z_t's shape."""
        c = self.latent_channels
        z = rearrange(z_t, "b (f c) h w -> (b f) c h w", c=c)
        given = rearrange(cond.z_source, "b (f c) h w -> b f c h w", c=c)
        f = given.shape[1]
        condition = None
        if self.adapter.condition_channels:
            condition = given_frames(given, (given != 0).flatten(2).any(dim=2))
        told = replace(cond, z_source=torch.zeros_like(given[:, 0])).for_frames(f)
        with self.adapter.video(f, condition):
            output = self.base(z, t.repeat_interleave(f), told)
        return rearrange(output, "(b f) c h w -> b (f c) h w", f=f)


def drawing_base(denoiser: Denoiser, where: str) -> UNetDenoiser:
    """Return a denoiser that can carry temporal layers.

    Raises:
        InputError: if it is of another kind.
    """
    if not isinstance(denoiser, UNetDenoiser):
        raise InputError(f"{where} has a {type(denoiser).__name__}; videos need a UNetDenoiser")
    return denoiser


def codec_of_frames(codec: ImageCodec) -> ImageCodec:
    """Return the same codec with given frames in the units of noisy ones; zeros then stay zeros."""
    if isinstance(codec, KLCodec):
        codec = copy(codec)
        codec.scale_condition = True
    return codec
