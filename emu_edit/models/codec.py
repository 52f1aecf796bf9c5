"""From pixels in [-1, 1] to latents of about unit variance and back: patches, or any AutoencoderKL.

The tiny model works on patches: space-to-depth loses nothing, costs nothing and makes a 16 x 16 map
of 64 x 64 pixels. A pretrained base brings its own autoencoder.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from emu_edit.errors import InputError
from emu_edit.models.interfaces import ImageCodec
from emu_edit.models.sources import find_part, load_diffusers, refuse_unrunnable
from emu_edit.models.surgery import freeze


class PatchCodec(ImageCodec):
    """Space-to-depth, shifted and scaled: z = (patches - shift) * scale. Exact for all 256 levels.

    Args:
        patch: side of a patch in pixels; a latent has 3 patch² channels.
        shift: mean pixel value to take away, in [-1, 1].
        scale: one over the standard deviation of pixels; 2 fits photographs and the world (about
            0.5).

    Raises:
        InputError: if patch < 1 or scale <= 0.
    """

    def __init__(self, patch: int = 4, shift: float = 0.0, scale: float = 2.0) -> None:
        super().__init__()
        if patch < 1 or scale <= 0:
            raise InputError(
                f"codec.patch={patch} must be at least 1 and codec.scale={scale:g} above 0"
            )
        self.patch, self.shift, self.scale = patch, shift, scale
        self.latent_channels = 3 * patch**2
        self.factor = patch

    def posterior(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Return the latent and a zero deviation: nothing is uncertain about a patch."""
        check_sides(images, self.factor)
        z = (functional.pixel_unshuffle(images, self.patch) - self.shift) * self.scale
        return z, torch.zeros_like(z)

    def encode(
        self,
        images: Float[Tensor, "b 3 H W"],
        generator: torch.Generator | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "b c h w"]:
        """Encode exactly; `generator` is not used."""
        return self.posterior(images)[0]

    def encode_condition(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Encode sources like targets."""
        return self.encode(images)

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Put the patches back in place."""
        return functional.pixel_shuffle(latents / self.scale + self.shift, self.patch)


class KLCodec(ImageCodec):
    """A pretrained AutoencoderKL, frozen.

    z = (sample or mode - shift_factor) * scaling_factor, both numbers from its config.

    Args:
        path: model directory (or its `vae/`), or a hub name `owner/name` or `owner/name/vae`;
            safetensors only.
        scale_condition: scale the source latents too. InstructPix2Pix and its checkpoints leave
            them unscaled; a model that predicts the change needs source and target in the same
            units.

    Raises:
        InputError: if it cannot be found or loaded.
    """

    def __init__(self, path: str, scale_condition: bool = False) -> None:
        super().__init__()
        # diffusers has dozens of autoencoders, for which whoever edits with patches need not wait
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        vae = load_diffusers(AutoencoderKL, find_part(path, "vae"))
        self.vae = freeze(vae)
        self.scale_condition = scale_condition
        self.scale = float(vae.config["scaling_factor"])
        self.shift = float(vae.config["shift_factor"] or 0.0)
        self.latent_channels = vae.config["latent_channels"]
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        refuse_unrunnable(self._smallest, f"{path} (vae)")

    def _smallest(self) -> Tensor:
        picture = self.decode(torch.zeros(1, self.latent_channels, 1, 1))
        return self.posterior(picture)[0]

    def posterior(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Return mean and standard deviation of the scaled latent."""
        distribution = self._distribution(images)
        return (distribution.mean - self.shift) * self.scale, distribution.std * self.scale

    def encode(
        self, images: Float[Tensor, "b 3 H W"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Encode targets: a posterior sample when `generator` is given, else the mode; scaled."""
        mean, std = self.posterior(images)
        if generator is None:
            return mean
        # drawn on the CPU: CUDA streams differ between GPU models, seeds must not
        return mean + std * torch.randn(mean.shape, generator=generator).to(mean)

    def encode_condition(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Encode sources: the mode, in the autoencoder's own units unless `scale_condition`."""
        if self.scale_condition:
            return self.posterior(images)[0]
        return self._distribution(images).mode()

    def _distribution(self, images: Float[Tensor, "b 3 H W"]) -> Any:
        check_sides(images, self.factor)
        return self.vae.encode(images.to(self.vae.dtype), return_dict=False)[0]

    def as_condition(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return scaled latents in the autoencoder's own units unless `scale_condition`."""
        return latents if self.scale_condition else latents / self.scale + self.shift

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Decode scaled latents to pixels, not clamped."""
        z = latents / self.scale + self.shift
        return self.vae.decode(z.to(self.vae.dtype), return_dict=False)[0]  # pyright: ignore[reportArgumentType]


def check_sides(images: Float[Tensor, "b 3 H W"], factor: int) -> None:
    """Refuse pictures whose sides are no multiples of `factor`."""
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise InputError(
            f"picture of {width}x{height} pixels: both sides must be multiples of {factor}; "
            "pad or resize it"
        )
