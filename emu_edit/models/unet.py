"""The denoiser: diffusers' `UNet2DConditionModel`, told source, task and place.

Source latents are concatenated to z_t on the channels. The task vector enters twice: a linear map
gives 4 extra text tokens (`TaskTokenAttention`), another one is added to the timestep embedding. A
U-Net from scratch may also be told the pooled text through the timestep embedding, so that which
object an instruction means is a product of pixel and text in every residual block (CONTRIBUTING,
decision 7), and where in the picture each cell is (`PositionMaps`). The maps of task and place
start at zero, so that step 0 equals the U-Net without them, bit for bit; they are kept outside
`unet/`, which stays a plain diffusers directory.
Source: Sheynin et al. 2023, arXiv:2311.10089, section 4.2; the two maps as in Movie Gen,
arXiv:2410.13720; modulation as FiLM, Perez et al. 2018, arXiv:1709.07871, through the timestep
embedding as in ADM, Dhariwal and Nichol 2021, arXiv:2105.05233, with pooled text as in SDXL,
arXiv:2307.01952.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from einops import rearrange
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.nn import functional

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

SIZES, CELL = 6, 8  # numbers about its size that SDXL is told, and its pixels a cell
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
        attend_task_tokens(unet)
        self.unet = unet
        self.latent_channels = unet.config["out_channels"]
        self.text_dim = unet.config["cross_attention_dim"]
        if unet.config["addition_embed_type"] == "text_time":
            times = SIZES * unet.config["addition_time_embed_dim"]
            self.pooled_dim = unet.config["projection_class_embeddings_input_dim"] - times
        self.task_dim = task_dim
        self.task_to_tokens = zero_linear(task_dim, NUM_TASK_TOKENS * self.text_dim)
        time_dim = unet.time_embedding.linear_2.out_features
        self.task_to_time = zero_linear(task_dim, time_dim)
        self.text_to_time = nn.Linear(self.text_dim, time_dim) if modulate_by_text else None
        self.positions = PositionMaps(unet, octaves) if octaves > 0 else None

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Return the raw output (eps, v, z0, change or flow, as the model was trained)."""
        weights = self.task_to_time.weight.dtype  # bf16 where a trainer's precision is bf16-true
        if z_t.dtype != weights:
            return self(z_t.to(weights), t, cond.to(weights)).to(z_t.dtype)
        text, mask = cond.text.tokens, cond.text.mask
        tokens = self.task_to_tokens(cond.v_task).to(text.dtype)
        task_tokens = rearrange(tokens, "b (n d) -> b n d", n=NUM_TASK_TOKENS)
        shift = self.task_to_time(cond.v_task)
        if self.text_to_time is not None:
            shift = shift + self.text_to_time(cond.text.mean())
        added = None
        if self.pooled_dim:
            added = {"text_embeds": text[:, 0, : self.pooled_dim], "time_ids": sizes_of(z_t)}
            text, mask = text[:, 1:], mask[:, 1:]
        return self.unet(
            torch.cat([z_t, cond.z_source], dim=1),
            t,
            torch.cat([text, task_tokens], dim=1),
            encoder_attention_mask=functional.pad(mask, (0, NUM_TASK_TOKENS), value=True),
            class_labels=shift,
            added_cond_kwargs=added,
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
        for attn in _cross_attentions(plain):
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
        path: model directory (or its `unet/`), or a hub name `owner/name/unet`; safetensors only.
        task_dim: width of the task vector.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a
            third more time.

    Raises:
        InputError: if it cannot be found or loaded, or is of another kind (inpainting, say).
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


def sizes_of(z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 6"]:
    """Return what SDXL is told of a picture: its original size, no crop, its size; in pixels.

    Source: Podell et al. 2023, arXiv:2307.01952, section 2.2; a picture of ours is whole, and was
    never smaller.
    """
    sizes = z.new_zeros(len(z), SIZES)
    sizes[:, 0::4], sizes[:, 1::4] = (side * CELL for side in z.shape[-2:])
    return sizes


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear map that gives 0 until it is trained."""
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


def positions(like: Float[Tensor, "b c h w"], octaves: int) -> Float[Tensor, "1 p h w"]:
    """Say where each cell is in its picture, by p = 4 `octaves` waves.

    sin(2^k pi x), cos(2^k pi x) for k = 0 ... octaves - 1, then the same of y; x and y are the
    cell's centre in fractions of the picture, so the waves stretch with it.
    Source: Mildenhall et al. 2020 (NeRF), arXiv:2003.08934, eq. 4.
    """
    height, width = like.shape[-2:]
    frequencies = torch.pi * 2.0 ** torch.arange(octaves, device=like.device)

    def waves(count: int) -> Float[Tensor, "k n"]:
        centres = (torch.arange(count, device=like.device) + 0.5) / count
        angles = frequencies[:, None] * centres
        return torch.cat([angles.sin(), angles.cos()])

    across = waves(width)[:, None, :].expand(-1, height, -1)
    down = waves(height)[:, :, None].expand(-1, -1, width)
    return torch.cat([across, down]).to(like)[None]


class PositionMaps(nn.Module):
    """Adds a linear map of the positions wherever the resolution has just changed.

    A convolution sees the picture's edge and nothing else of its place, so a small network learns
    late what depends on it: words in their band, "in the top left corner", a mosaic's tiles.

    Args:
        unet: gets a hook at its first convolution and at every change of resolution, but owns none
            of the weights here.
        octaves: of the positions, at least 1.

    Source: coordinates for convolutions as in CoordConv, Liu et al. 2018, arXiv:1807.03247; added
    as a transformer's position embedding is, Vaswani et al. 2017, arXiv:1706.03762; where: ours.
    """

    def __init__(self, unet: UNet2DConditionModel, octaves: int) -> None:
        super().__init__()
        self.octaves = octaves
        self.maps = nn.ModuleList()
        for layer, channels in _resolution_changes(unet):
            linear = nn.Conv2d(4 * octaves, channels, kernel_size=1, bias=False)
            nn.init.zeros_(linear.weight)
            self.maps.append(linear)
            layer.register_forward_hook(partial(_add, linear, octaves))


def _add(
    linear: nn.Conv2d, octaves: int, _layer: nn.Module, _inputs: object, output: Tensor
) -> Tensor:
    return output + linear(positions(output, octaves)).to(output)


def _resolution_changes(unet: UNet2DConditionModel) -> Iterator[tuple[nn.Module, int]]:
    """Yield the layers after which a resolution begins, with the channels of their output."""
    yield unet.conv_in, unet.conv_in.out_channels
    for layer in unet.modules():
        if isinstance(layer, Downsample2D | Upsample2D):
            yield layer, layer.out_channels


class TaskTokenAttention:
    """Cross-attention with the 4 task tokens, its last keys, beside the text and not among it.

        out = softmax(q k_text) v_text + softmax(q k_task) v_task

    In one common softmax even zero tokens would take their share of attention away from the text
    (key 0 gives logit 0, not minus infinity). Apart, zero tokens give v_task = W_v 0 = 0 (to_v has
    no bias): the second term is exactly 0, while its gradient with respect to the tokens is not. It
    costs no time that could be measured (11 M parameters, CPU). Nothing here has weights; whoever
    loads `unet/` with diffusers alone has to call `attend_task_tokens`, because diffusers would put
    the tokens into the common softmax.
    Source: the two sums follow IP-Adapter, Ye et al. 2023, arXiv:2308.06721, eq. 5; the 4 tokens
    follow Movie Gen, arXiv:2410.13720, section 5, which says it follows Emu Edit,
    arXiv:2311.10089.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: Float[Tensor, "b l d"],
        attention_mask: Float[Tensor, "b 1 l"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Attend to text and task apart and add; argument names are diffusers'.

        `attention_mask` is the bias that diffusers makes of the key mask.
        """
        assert attn.to_k is not None
        assert attn.to_v is not None
        assert attn.to_out is not None
        q, k, v = (
            rearrange(x, "b n (heads d) -> b heads n d", heads=attn.heads)
            for x in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        text, task = slice(None, -NUM_TASK_TOKENS), slice(-NUM_TASK_TOKENS, None)
        bias = None if attention_mask is None else attention_mask[:, None, :, text]
        out = functional.scaled_dot_product_attention(
            q, k[:, :, text], v[:, :, text], attn_mask=bias
        )
        out = out + functional.scaled_dot_product_attention(q, k[:, :, task], v[:, :, task])
        projection, dropout = attn.to_out
        return dropout(projection(rearrange(out, "b heads n c -> b n (heads c)")))


def attend_task_tokens(unet: UNet2DConditionModel) -> None:
    """Install `TaskTokenAttention` in every cross-attention of `unet`."""
    for attn in _cross_attentions(unet):
        attn.set_processor(TaskTokenAttention())  # pyright: ignore[reportArgumentType]


def _cross_attentions(unet: UNet2DConditionModel) -> Iterator[Attention]:
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock) and module.attn2 is not None:
            yield module.attn2
