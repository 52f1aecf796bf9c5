"""From pixels in [-1, 1] to latents of about unit variance and back: patches, or an autoencoder.

The tiny model works on patches: space-to-depth loses nothing, costs nothing and makes a 16 x 16 map
of 64 x 64 pixels. A pretrained base brings its own autoencoder; transformers see 2 x 2 of its cells
as one.
"""

from importlib import import_module
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from emu_edit.errors import InputError
from emu_edit.models.interfaces import ImageCodec
from emu_edit.models.sources import config_of, find_part, load_diffusers, refuse_unrunnable
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
        path: model directory (or its `vae/`), a hub name `owner/name` or `owner/name/vae`, or a
            single file; safetensors only.
        scale_condition: scale the source latents too. InstructPix2Pix and its checkpoints leave
            them unscaled; a model that predicts the change needs source and target in the same
            units.
        config: for a single file, a local model directory of the same base.

    Raises:
        InputError: if it cannot be found or loaded.
    """

    def __init__(self, path: str, scale_condition: bool = False, config: str | None = None) -> None:
        super().__init__()
        # diffusers has dozens of autoencoders, for which whoever edits with patches need not wait
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        vae = load_diffusers(AutoencoderKL, find_part(path, "vae", config))
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


class PackedCodec(ImageCodec):
    """A frozen autoencoder whose latents are packed 2 x 2 into one cell, as transformers see them.

    z = (packed - mean) / std, channel by channel: FLUX.1's autoencoder has one number for each in
    its config, Qwen-Image's has one for each channel, FLUX.2's has those of a batch norm of packed
    latents. Channels of a cell are ordered (channel, row, column).
    Source: the Flux Kontext, Flux2 and Qwen-Image-Edit pipelines of diffusers.

    Args:
        path: model directory (or its `vae/`), a hub name `owner/name` or `owner/name/vae`, or a
            single file; safetensors only.
        config: for a single file, a local model directory of the same base.

    Raises:
        InputError: if it cannot be found or loaded, or is another kind of autoencoder.
    """

    PACK = 2
    KINDS: ClassVar = {
        "AutoencoderKL": "autoencoder_kl",
        "AutoencoderKLFlux2": "autoencoder_kl_flux2",
        "AutoencoderKLQwenImage": "autoencoder_kl_qwenimage",
    }
    mean: Tensor
    std: Tensor

    def __init__(self, path: str, config: str | None = None) -> None:
        super().__init__()
        self.source = find_part(path, "vae", config)
        name = str(config_of(self.source).get("_class_name"))
        if name not in self.KINDS:
            raise InputError(f"{self.source} is a {name}, needs one of {', '.join(self.KINDS)}")
        module = import_module(f"diffusers.models.autoencoders.{self.KINDS[name]}")
        self.vae: Any = freeze(load_diffusers(getattr(module, name), self.source))
        self.is_of_video = name == "AutoencoderKLQwenImage"
        mean, std = self._statistics(name)
        self.register_buffer("mean", mean.float().view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.float().view(-1, 1, 1), persistent=False)
        self.latent_channels = len(mean)
        halvings = (
            len(self.vae.temperal_downsample)
            if self.is_of_video
            else len(self.vae.config["block_out_channels"]) - 1
        )
        self.factor = self.PACK * 2**halvings
        refuse_unrunnable(self._smallest, str(self.source))

    def _statistics(self, name: str) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Return mean and deviation of each packed channel."""
        config = self.vae.config
        if name == "AutoencoderKLFlux2":
            norm = self.vae.bn
            return norm.running_mean, (norm.running_var + config["batch_norm_eps"]).sqrt()
        if self.is_of_video:
            mean, std = (torch.tensor(config[f"latents_{of}"]) for of in ("mean", "std"))
        else:
            shift, scale = config["shift_factor"] or 0.0, config["scaling_factor"]
            mean, std = (
                torch.full((config["latent_channels"],), value) for value in (shift, 1 / scale)
            )
        return mean.repeat_interleave(self.PACK**2), std.repeat_interleave(self.PACK**2)

    def _smallest(self) -> Tensor:
        picture = self.decode(torch.zeros(1, self.latent_channels, 1, 1))
        return self.posterior(picture)[0]

    def posterior(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Return mean and standard deviation of the packed latent."""
        check_sides(images, self.factor)
        images = images.to(self.vae.dtype)
        given = images[:, :, None] if self.is_of_video else images
        distribution = self.vae.encode(given, return_dict=False)[0]
        mean, std = (
            functional.pixel_unshuffle(each[:, :, 0] if self.is_of_video else each, self.PACK)
            for each in (distribution.mean, distribution.std)
        )
        return (mean - self.mean) / self.std, std / self.std

    def encode_condition(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Encode sources like targets: they are tokens of one sequence."""
        return self.posterior(images)[0]

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Decode packed latents to pixels, not clamped."""
        z = functional.pixel_shuffle(latents * self.std + self.mean, self.PACK).to(self.vae.dtype)
        if self.is_of_video:
            return self.vae.decode(z[:, :, None], return_dict=False)[0][:, :, 0]
        return self.vae.decode(z, return_dict=False)[0]


def check_sides(images: Float[Tensor, "b 3 H W"], factor: int) -> None:
    """Refuse pictures whose sides are no multiples of `factor`."""
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise InputError(
            f"picture of {width}x{height} pixels: both sides must be multiples of {factor}; "
            "pad or resize it"
        )
