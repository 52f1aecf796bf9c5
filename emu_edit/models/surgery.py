"""Changes to a pretrained U-Net that leave its output as it was: room for source and task.

Everything new starts at zero, so that step 0 equals the base network; the tests compare outputs. No
weight of the base is moved or lost, also not those of a checkpoint that already edits (twice as
many input as output channels).
"""

from typing import TypeVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from emu_edit.errors import InputError

# Other values bring a second condition, or another attention than the one wired here.
PLAIN: dict[str, object] = {
    "encoder_hid_dim_type": None,
    "cross_attention_norm": None,
    "time_cond_proj_dim": None,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "attention_type": "default",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "class_embeddings_concat": False,
}
BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def freeze(module: AnyModule) -> AnyModule:
    """Put `module` in eval mode and take its parameters out of training; returns it."""
    return module.eval().requires_grad_(False)


def channels_last(module: AnyModule) -> AnyModule:
    """Store convolution weights channels-last; the numbers agree up to rounding."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return module


def learns(module: nn.Module) -> bool:
    """Whether any weight of `module` is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


def check_plain(unet: UNet2DConditionModel, where: str) -> None:
    """Refuse a U-Net with conditions this project does not feed."""
    config = unet.config
    if config["addition_embed_type"] not in {None, "text_time"}:
        raise InputError(
            f"{where} has addition_embed_type={config['addition_embed_type']!r}, needs none, or "
            "SDXL's 'text_time'"
        )
    for name, expected in PLAIN.items():
        if config[name] != expected:
            raise InputError(
                f"{where} has {name}={config[name]!r}, needs {expected!r}; "
                "give a Stable Diffusion 1.x, 2.x or XL model"
            )
    blocks = {*config["down_block_types"], *config["up_block_types"]}
    if blocks - BLOCKS:
        raise InputError(
            f"{where} has blocks of kind {sorted(blocks - BLOCKS)}, needs only "
            f"{sorted(BLOCKS)}; give a Stable Diffusion 1.x, 2.x or XL model"
        )
    if (
        config["class_embed_type"] not in {None, "identity"}
        or config["num_class_embeds"] is not None
    ):
        raise InputError(
            f"{where} is conditioned on classes "
            f"(class_embed_type={config['class_embed_type']!r}), the place of the task vector; "
            "give a model without class embedding"
        )


def widen_input(unet: UNet2DConditionModel, extra: int) -> None:
    """Give the first convolution `extra` more input channels, appended, with zero weights."""
    old = unet.conv_in
    new = nn.Conv2d(
        old.in_channels + extra,
        old.out_channels,
        kernel_size=(old.kernel_size[0], old.kernel_size[1]),
        padding=(old.kernel_size[0] // 2, old.kernel_size[1] // 2),
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=new.in_channels)


def widen_for_source(unet: UNet2DConditionModel, where: str) -> None:
    """Make room for the source latents: c input channels become 2c, 2c stay 2c.

    Raises:
        InputError: for any other number, e.g. the 9 channels of an inpainting model.
    """
    found, latent = unet.config["in_channels"], unet.config["out_channels"]
    if found == latent:
        widen_input(unet, latent)
    elif found != 2 * latent:
        raise InputError(
            f"{where} takes {found} input channels, needs {latent} (text-to-image) or "
            f"{2 * latent} (editing); inpainting and depth models do not fit, give another base"
        )


def open_class_embedding(unet: UNet2DConditionModel) -> None:
    """Let `class_labels` be a vector added to the timestep embedding (diffusers' "identity")."""
    unet.class_embedding = nn.Identity()
    unet.register_to_config(class_embed_type="identity")
