"""A picture model with temporal layers in the slot of a denoiser, so that all else stays as it is.

A row is a video: its channels are those of its frames, one after another, "(f c)". Noise, loss,
dropout of conditions, guidance and samplers then take videos as they take pictures. The frames that
are given come where the source of an edit comes, zeros where none is.
Source: Emu Video, Girdhar et al. 2023, arXiv:2311.10709, section 3.
"""

from copy import copy
from dataclasses import replace
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Real
from torch import Tensor

from emu_edit.diffusion.prediction import Predict
from emu_edit.errors import InputError
from emu_edit.models.codec import KLCodec
from emu_edit.models.inflate import TemporalAdapter, given_frames
from emu_edit.models.interfaces import Conditioning, Denoiser, ImageCodec
from emu_edit.models.motion import VideoCall
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
        self.pooled_dim = base.pooled_dim
        self.base, self.adapter = base, adapter

    def forward(
        self,
        z_t: Float[Tensor, "b fc h w"],
        t: Real[Tensor, " b"],
        cond: Conditioning,
        call: VideoCall | None = None,
    ) -> Float[Tensor, "b fc h w"]:
        """Return the output for every frame.

        Args:
            z_t: noisy frames.
            t: the step of each video.
            cond: `z_source` has the given frames, of z_t's shape, zeros elsewhere.
            call: of `call_of(cond)`, where that is known already.
        """
        call = self.call_of(cond) if call is None else call
        nothing = torch.zeros_like(self._frames(cond.z_source)[:, 0])
        told = replace(cond, z_source=nothing).for_frames(call.frames)
        with self.adapter.during(call):
            output = self.base(
                self._frames(z_t).flatten(0, 1), t.repeat_interleave(call.frames), told
            )
        return rearrange(output, "(b f) c h w -> b (f c) h w", f=call.frames)

    def told(self, cond: Conditioning) -> Predict:
        """Bind the conditions; what moves where is read once."""
        return partial(self, cond=cond, call=self.call_of(cond))

    def call_of(self, cond: Conditioning) -> VideoCall:
        """Return what the temporal layers are told, whatever the noise."""
        given, condition = self._frames(cond.z_source), None
        if self.adapter.condition_channels:
            condition = given_frames(given, (given != 0).flatten(2).any(dim=2))
        size = (given.shape[-2], given.shape[-1])
        return self.adapter.told(given.shape[1], condition, cond.text, size)

    def expectation_error(
        self, call: VideoCall, z_0: Float[Tensor, "b fc h w"]
    ) -> Float[Tensor, ""]:
        """Return how wrong the frames are that the motion reader expects; 0 without a reader."""
        if self.adapter.motion is None or call.nearest is None:
            return z_0.new_zeros(())
        return call.nearest.error(self._frames(z_0))

    def _frames(self, z: Float[Tensor, "b fc h w"]) -> Float[Tensor, "b f c h w"]:
        return rearrange(z, "b (f c) h w -> b f c h w", c=self.latent_channels)


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
