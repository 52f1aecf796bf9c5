"""What a U-Net is told beside the noisy latent: text, task and place; its maps and its attention.

The task vector enters twice: a linear map gives 4 extra text tokens (`TaskTokenAttention`), another
one is added to the timestep embedding. A U-Net from scratch may also be told the pooled text
through the timestep embedding, and where in the picture each cell is (`PositionMaps`). A denoiser
and a copy of its half that reads a source picture (`emu_edit.models.edit_adapter`) are told so.
Source: Sheynin et al. 2023, arXiv:2311.10089, section 4.2; the two maps as in Movie Gen,
arXiv:2410.13720; modulation as FiLM, Perez et al. 2018, arXiv:1709.07871, through the timestep
embedding as in ADM, Dhariwal and Nichol 2021, arXiv:2105.05233, with pooled text as in SDXL,
arXiv:2307.01952.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from emu_edit.models.interfaces import NUM_TASK_TOKENS, Conditioning

SIZES, CELL = 6, 8  # numbers about its size that SDXL is told, and its pixels a cell

Net = Any  # a U-Net of diffusers, or a ControlNet, whose module is slow to import


@dataclass(frozen=True)
class Told:
    """What a U-Net of diffusers takes beside latents and time.

    Attributes:
        tokens: of the text, the task's 4 last.
        mask: which of them are no padding.
        shift: added to the timestep embedding.
        added: SDXL's two further conditions; None elsewhere.
    """

    tokens: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]
    shift: Float[Tensor, "b e"]
    added: dict[str, Tensor] | None


@dataclass(frozen=True)
class Control:
    """What is added to a U-Net's features: at the skip of each layer on the way down, and between.

    Source: ControlNet, Zhang et al. 2023, arXiv:2302.05543, section 3.
    """

    down: tuple[Tensor, ...]
    middle: Tensor

    def to(self, dtype: torch.dtype) -> "Control":
        """Return it in another precision."""
        return Control(tuple(each.to(dtype) for each in self.down), self.middle.to(dtype))


class TaskMaps(nn.Module):
    """The maps with which a U-Net is told text and task; those of the task begin at zero.

    Attributes:
        task_dim: width k of the task vector.
        text_dim: width d of the text features.
        pooled_dim: width of the vector of the whole text before its tokens; 0 expects none.
    """

    task_dim: int
    text_dim: int
    pooled_dim: int = 0

    def add_maps(self, net: Net, task_dim: int, modulate_by_text: bool, octaves: int) -> None:
        """Make the maps for a network; `octaves` of positions, 0 for none."""
        attend_task_tokens(net)
        self.text_dim, self.task_dim = net.config["cross_attention_dim"], task_dim
        if net.config["addition_embed_type"] == "text_time":
            times = SIZES * net.config["addition_time_embed_dim"]
            self.pooled_dim = net.config["projection_class_embeddings_input_dim"] - times
        self.task_to_tokens = zero_linear(task_dim, NUM_TASK_TOKENS * self.text_dim)
        time_dim = net.time_embedding.linear_2.out_features
        self.task_to_time = zero_linear(task_dim, time_dim)
        self.text_to_time = nn.Linear(self.text_dim, time_dim) if modulate_by_text else None
        self.positions = PositionMaps(net, octaves) if octaves > 0 else None

    def unet_told(self, z_t: Float[Tensor, "b c h w"], cond: Conditioning) -> Told:
        """Return what the U-Net takes for some conditions; of z_t only the size counts."""
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
        told = torch.cat([text, task_tokens], dim=1)
        return Told(told, functional.pad(mask, (0, NUM_TASK_TOKENS), value=True), shift, added)


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

    def __init__(self, unet: Net, octaves: int) -> None:
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


def _resolution_changes(unet: Net) -> Iterator[tuple[nn.Module, int]]:
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


def attend_task_tokens(unet: Net) -> None:
    """Install `TaskTokenAttention` in every cross-attention of `unet`."""
    for attn in cross_attentions(unet):
        attn.set_processor(TaskTokenAttention())  # pyright: ignore[reportArgumentType]


def cross_attentions(unet: Net) -> Iterator[Attention]:
    """Yield the layers that attend to the text."""
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock) and module.attn2 is not None:
            yield module.attn2
