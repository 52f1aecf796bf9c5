"""A random autoencoder, as small as diffusers allows."""

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


def tiny_vae(shift: float | None = 0.25) -> AutoencoderKL:
    """Return an autoencoder of factor 2 whose latents are shifted and scaled."""
    vae = AutoencoderKL.from_config({
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 8],
        "norm_num_groups": 4,
        "latent_channels": 4,
        "scaling_factor": 0.5,
        "shift_factor": shift,
    })
    assert isinstance(vae, AutoencoderKL)
    return vae
