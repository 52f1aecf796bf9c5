"""A random autoencoder, as small as diffusers allows."""

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


def tiny_vae(
    shift: float | None = 0.25, *, levels: int = 2, channels: int = 4, scale: float = 0.5
) -> AutoencoderKL:
    """Return an autoencoder of factor 2^(levels - 1) whose latents are shifted and scaled."""
    vae = AutoencoderKL.from_config({
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [8] * levels,
        "norm_num_groups": 4,
        "latent_channels": channels,
        "scaling_factor": scale,
        "shift_factor": shift,
    })
    assert isinstance(vae, AutoencoderKL)
    return vae
