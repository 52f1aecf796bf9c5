"""The denoiser: diffusers' `UNet2DConditionModel`, told source, task and place.

Source latents are concatenated to z_t on the channels; text, task and place are told by the maps of
`emu_edit.models.unet_inputs`. Those of task and place start at zero, so that step 0 equals the
U-Net without them, bit for bit; they are kept outside `unet/`, which stays a plain diffusers
directory. That a U-Net from scratch may be told the pooled text is decision 7 of docs/decisions.md.
Source: Sheynin et al. 2023, arXiv:2311.10089, section 4.2.
"""

from pathlib import Path
from typing import cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float, Real
from torch import Tensor, nn

from emu_edit.errors import InputError
from emu_edit.models.interfaces import NUM_TASK_TOKENS, Conditioning, Denoiser, TextFeatures
from emu_edit.models.sources import (
    find_part,
    find_training,
    load_diffusers,
    load_tensors,
    refuse_unrunnable,
)
from emu_edit.models.surgery import check_plain, open_class_embedding, widen_for_source
from emu_edit.models.unet_inputs import Control, TaskMaps, cross_attentions

TASK_FILE = Path("tasks", "tasks.safetensors")
FIRST_POSITIONS = "positions.maps.0.weight"  # its shape tells the number of octaves


class UNetDenoiser(TaskMaps, Denoiser):
    """A U-Net from scratch, of any size.

    Args:
        latent_channels: channels c of a latent (the U-Net takes 2c: z_t and source).
        channels: width of each resolution level, finest first; each level below the first halves
            the sides.
        attention: whether a level has self- and cross-attention; the middle always has.
        layers_per_block: residual blocks of each level on the way down (one more on the way up).
        text_dim: width of the text features.
        task_dim: width of the task vector.
        head_dim: width of an attention head; must divide every level's width.
        norm_groups: groups of the group norms; must divide every level's width.
        modulate_by_text: add a linear map of the mean text token to the timestep embedding, and let
            that embedding scale and shift every residual block instead of only shifting it.
        zero_output: start with an output of zero; with `change` prediction the untrained network
            then copies.
        sample_size: side of the latent it is meant for; kept in the config for diffusers, nothing
            depends on it.
        position_octaves: tell every cell where in the picture it is, in so many pairs of waves for
            each direction, each half as long as the one before; 0 does not.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a
            third more time.

    Raises:
        InputError: if the lists differ in length or a width is not divisible.
    """

    def __init__(
        self,
        latent_channels: int,
        channels: list[int],
        *,
        attention: list[bool],
        layers_per_block: int = 1,
        text_dim: int = 128,
        task_dim: int = 64,
        head_dim: int = 32,
        norm_groups: int = 16,
        modulate_by_text: bool = False,
        zero_output: bool = False,
        sample_size: int = 16,
        position_octaves: int = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_widths(channels, attention, head_dim=head_dim, norm_groups=norm_groups)
        down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention]
        up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)]
        unet = UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=2 * latent_channels,
            out_channels=latent_channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=tuple(channels),
            layers_per_block=layers_per_block,
            cross_attention_dim=text_dim,
            # diffusers calls the number of heads "attention_head_dim"
            attention_head_dim=tuple(width // head_dim for width in channels),  # pyright: ignore[reportArgumentType]
            norm_num_groups=norm_groups,
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift" if modulate_by_text else "default",
            use_linear_projection=True,
        )
        if zero_output:
            for parameter in unet.conv_out.parameters():
                nn.init.zeros_(parameter)
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self._wrap(unet, task_dim, modulate_by_text, position_octaves)

    def _wrap(
        self, unet: UNet2DConditionModel, task_dim: int, modulate_by_text: bool, octaves: int
    ) -> None:
        self.unet = unet
        self.latent_channels = unet.config["out_channels"]
        self.add_maps(unet, task_dim, modulate_by_text, octaves)

    def forward(
        self,
        z_t: Float[Tensor, "b c h w"],
        t: Real[Tensor, " b"],
        cond: Conditioning,
        control: Control | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Return the raw output (eps, v, z0, change or flow, as the model was trained).

        `control` is added to the U-Net's features on their way.
        """
        weights = self.task_to_time.weight.dtype  # bf16 where a trainer's precision is bf16-true
        if z_t.dtype != weights:
            control = None if control is None else control.to(weights)
            return self(z_t.to(weights), t, cond.to(weights), control).to(z_t.dtype)
        told = self.unet_told(z_t, cond)
        return self.unet(
            torch.cat([z_t, cond.z_source], dim=1),
            t,
            told.tokens,
            encoder_attention_mask=told.mask,
            class_labels=told.shift,
            added_cond_kwargs=told.added,
            down_block_additional_residuals=None if control is None else control.down,
            mid_block_additional_residual=None if control is None else control.middle,
            return_dict=False,
        )[0]

    def write(self, folder: Path) -> None:
        """Write the U-Net into `unet/`, for diffusers."""
        self.unet.save_pretrained(folder / self.part, safe_serialization=True)

    @torch.no_grad()
    def merged(self, v_task: Float[Tensor, " k"]) -> UNet2DConditionModel:
        """Return a plain U-Net of diffusers that does one task and takes no other condition.

            b_time' = b_time + shift        b_out' = b_out + W_out W_v mean(tokens)

        The first is exact. The second puts the mean of the task tokens' values in place of their
        softmax: exact where the tokens are alike (all zero, say), otherwise off by their spread
        times how unevenly they are attended to, both of which grow with the tokens. Source: ours.

        Raises:
            InputError: if this network is told more than a plain one: pooled text or positions.
        """
        if self.text_to_time is not None or self.positions is not None:
            raise InputError(
                "this U-Net is told the pooled text or positions, which no plain U-Net of "
                "diffusers is; only one that began as Stable Diffusion can be merged"
            )
        config = {**self.unet.config, "class_embed_type": None}
        with v_task.device:
            plain = cast("UNet2DConditionModel", UNet2DConditionModel.from_config(config))
        plain.load_state_dict(self.unet.state_dict())
        plain.time_embedding.linear_2.bias += self.task_to_time(v_task)
        token = self.task_to_tokens(v_task).view(NUM_TASK_TOKENS, -1).mean(dim=0)
        for attn in cross_attentions(plain):
            assert attn.to_v is not None
            assert attn.to_out is not None
            projection = attn.to_out[0]
            projection.bias += projection.weight @ attn.to_v(token)
        return plain.eval()


class PretrainedUNetDenoiser(UNetDenoiser):
    """The U-Net of a Stable Diffusion 1.x, 2.x or XL, of an editing checkpoint or of our own.

    A text-to-image U-Net gets zero weights for the source latents; a U-Net that already edits keeps
    all of its channels. A model directory of this project also brings its own maps.

    Args:
        path: model directory (or its `unet/`), a hub name `owner/name/unet`, or a single file;
            safetensors only.
        task_dim: width of the task vector.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a
            third more time.
        config: for a single file, a local model directory of the same base.

    Raises:
        InputError: if it cannot be found or loaded, or is of another kind (inpainting, say).
    """

    def __init__(
        self,
        path: str,
        task_dim: int = 64,
        gradient_checkpointing: bool = False,
        config: str | None = None,
    ) -> None:
        nn.Module.__init__(self)
        source = find_part(path, "unet", config)
        unet = load_diffusers(UNet2DConditionModel, source)
        check_plain(unet, str(source))
        widen_for_source(unet, str(source))
        open_class_embedding(unet)
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        task_file = Path(source.root) / TASK_FILE
        maps = load_tensors(task_file) if task_file.is_file() else {}
        octaves = maps[FIRST_POSITIONS].shape[1] // 4 if FIRST_POSITIONS in maps else 0
        self._wrap(unet, task_dim, "text_to_time.weight" in maps, octaves)
        self.trained_as = find_training(source)
        if maps:
            self.load_maps(maps, task_file)
        refuse_unrunnable(self._smallest, str(source))

    def _smallest(self) -> Tensor:
        side = 2 ** (len(self.unet.config["block_out_channels"]) - 1)
        z = torch.zeros(1, self.latent_channels, side, side)
        text = TextFeatures(torch.zeros(1, 2, self.text_dim), torch.ones(1, 2, dtype=torch.bool))
        cond = Conditioning(text=text, z_source=z, v_task=torch.zeros(1, self.task_dim))
        return self(z, torch.zeros(1, dtype=torch.int64), cond)


def _check_widths(
    channels: list[int], attention: list[bool], *, head_dim: int, norm_groups: int
) -> None:
    if not channels or len(channels) != len(attention):
        raise InputError(
            f"denoiser.channels has {len(channels)} levels and denoiser.attention "
            f"{len(attention)}; give one entry per level in both, at least one"
        )
    for name, divisor in (("head_dim", head_dim), ("norm_groups", norm_groups)):
        for width in channels:
            if width % divisor != 0:
                raise InputError(
                    f"denoiser.channels={channels}: "
                    f"{width} is not divisible by denoiser.{name}={divisor}"
                )
