"""The denoiser: diffusers' `UNet2DConditionModel`, told the source picture and the task.

Source latents are concatenated to z_t on the channels. The task vector v enters twice: a linear map
gives 4 extra text tokens, another one is added to the timestep embedding. Both maps start at zero,
and the tokens are attended beside the text (`task_attention.py` says why), so that step 0 equals
the U-Net without task, bit for bit.

A U-Net from scratch may also be told the pooled text through the timestep embedding
(`modulate_by_text`). Which object an instruction means is then a product of what a pixel shows and
what the text says, in every residual block, and is learnt several times sooner (CONTRIBUTING,
decision 7).
Source: Sheynin et al. 2023, arXiv:2311.10089, section 4.2; the two maps as in Movie Gen,
arXiv:2410.13720; modulation as FiLM, Perez et al. 2018, arXiv:1709.07871, through the timestep
embedding as in ADM, Dhariwal and Nichol 2021, arXiv:2105.05233, with pooled text as in SDXL,
arXiv:2307.01952.
"""

from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from einops import rearrange
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor, nn

from emu_edit.errors import InputError
from emu_edit.models.interfaces import Conditioning, Denoiser
from emu_edit.models.positions import PositionMaps
from emu_edit.models.sources import find_part, load_diffusers
from emu_edit.models.surgery import check_plain, open_class_embedding, widen_for_source
from emu_edit.models.task_attention import NUM_TASK_TOKENS, attend_task_tokens

TASK_FILE = Path("tasks", "tasks.safetensors")
FIRST_POSITIONS = "positions.maps.0.weight"  # its shape tells the number of octaves


class UNetDenoiser(Denoiser):
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
            each direction, each half as long as the one before (`positions.py`); 0 does not.
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
        attend_task_tokens(unet)
        self.unet = unet
        self.latent_channels = unet.config["out_channels"]
        self.text_dim = unet.config["cross_attention_dim"]
        self.task_dim = task_dim
        self.task_to_tokens = _zero_linear(task_dim, NUM_TASK_TOKENS * self.text_dim)
        time_dim = unet.time_embedding.linear_2.out_features
        self.task_to_time = _zero_linear(task_dim, time_dim)
        self.text_to_time = nn.Linear(self.text_dim, time_dim) if modulate_by_text else None
        self.positions = PositionMaps(unet, octaves) if octaves > 0 else None

    def maps(self) -> dict[str, Tensor]:
        """Return the weights that are not the U-Net's, by name: those of the maps to it."""
        return {
            name: value for name, value in self.state_dict().items() if not name.startswith("unet.")
        }

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Int64[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Return the raw output (eps, v, z0 or change, as the model was trained)."""
        task_tokens = rearrange(
            self.task_to_tokens(cond.v_task), "b (n d) -> b n d", n=NUM_TASK_TOKENS
        )
        mask = cond.text.mask
        return self.unet(
            torch.cat([z_t, cond.z_source], dim=1),
            t,
            torch.cat([cond.text.tokens, task_tokens.to(cond.text.tokens.dtype)], dim=1),
            encoder_attention_mask=torch.cat(
                [mask, mask.new_ones(len(mask), NUM_TASK_TOKENS)], dim=1
            ),
            class_labels=self._time_shift(cond),
            return_dict=False,
        )[0]

    def _time_shift(self, cond: Conditioning) -> Float[Tensor, "b d"]:
        shift = self.task_to_time(cond.v_task)
        if self.text_to_time is None:
            return shift
        return shift + self.text_to_time(cond.text.mean())


class PretrainedUNetDenoiser(UNetDenoiser):
    """The U-Net of a Stable Diffusion 1.x/2.x, of an editing checkpoint or of our own.

    A text-to-image U-Net gets zero weights for the source latents; a U-Net that already edits keeps
    all of its channels. A model directory of this project also brings its own maps.

    Args:
        path: model directory (or its `unet/`), or a hub name `owner/name/unet`; safetensors only.
        task_dim: width of the task vector.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a
            third more time.

    Raises:
        InputError: if it cannot be found or loaded, or is of another kind (SDXL, inpainting).
    """

    def __init__(self, path: str, task_dim: int = 64, gradient_checkpointing: bool = False) -> None:
        nn.Module.__init__(self)
        source = find_part(path, "unet")
        unet = load_diffusers(UNet2DConditionModel, source)
        check_plain(unet, str(source))
        widen_for_source(unet, str(source))
        open_class_embedding(unet)
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        task_file = Path(source.root) / TASK_FILE
        maps = load_file(task_file) if task_file.is_file() else {}
        octaves = maps[FIRST_POSITIONS].shape[1] // 4 if FIRST_POSITIONS in maps else 0
        self._wrap(unet, task_dim, "text_to_time.weight" in maps, octaves)
        if maps:
            self._load_maps(maps, task_file)

    def _load_maps(self, tensors: dict[str, Tensor], task_file: Path) -> None:
        for name, value in self.maps().items():
            if name not in tensors or tensors[name].shape != value.shape:
                found = tuple(tensors[name].shape) if name in tensors else "nothing"
                raise InputError(
                    f"{task_file}: {name} is {found}, needs {tuple(value.shape)}; "
                    "set task_dim to the model's"
                )
            value.copy_(tensors[name])


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


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
