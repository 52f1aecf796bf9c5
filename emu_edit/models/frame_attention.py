"""Self-attention that looks at other frames, without training.

Weights and queries stay what they are; a frame's keys and values are joined by other frames'. Each
frame always sees itself in full, so that one frame alone gives what the picture editor gives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from emu_edit.errors import InputError


class Look(Enum):
    """Which other frames a frame's self-attention sees.

    own: none, every frame is edited for itself.
    anchor: the first frame of the scene, as in Text2Video-Zero (Khachatryan et al. 2023,
        arXiv:2303.13439), beside itself.
    previous: the frame before, beside itself.
    both: anchor and previous, the sparse-causal attention of Tune-A-Video (Wu et al. 2022,
        arXiv:2212.11565), beside itself.
    coarse: all other frames of the window, averaged over patches; FFAM of EI² (Zhang et al. 2023,
        arXiv:2305.17431).
    """

    own = "own"
    anchor = "anchor"
    previous = "previous"
    both = "both"
    coarse = "coarse"


@dataclass
class FrameAttention:
    """A processor for self-attention over rows "(branch frame)"; argument names are diffusers'.

    Attributes:
        look: which frames are seen; the anchor is row 0 of each branch.
        frames: rows of one branch of guidance; branches never see each other.
        size: height and width of the latents, from which each level's follow.
        pool: side of the patches of `coarse`, in cells of the level.
    """

    look: Look
    frames: int
    size: tuple[int, int]
    pool: int = 2

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Attend from each frame to itself and to the others it looks at."""
        assert encoder_hidden_states is None
        assert attention_mask is None
        assert attn.to_k is not None
        assert attn.to_v is not None
        assert attn.to_out is not None
        x = rearrange(hidden_states, "(g f) n c -> g f n c", f=self.frames)
        # averaging commutes with the linear maps: fewer tokens are projected
        seen = torch.cat([x, self._others(x)], dim=2)
        keys, values = (
            rearrange(each(seen), "g f m (a d) -> (g f) a m d", a=attn.heads)
            for each in (attn.to_k, attn.to_v)
        )
        queries = rearrange(attn.to_q(hidden_states), "b n (a d) -> b a n d", a=attn.heads)
        out = functional.scaled_dot_product_attention(queries, keys, values)
        projection, dropout = attn.to_out
        return dropout(projection(rearrange(out, "b a n d -> b n (a d)")))

    def _others(self, x: Float[Tensor, "g f n c"]) -> Float[Tensor, "g f m c"]:
        before = torch.cat([x[:, :1], x[:, :-1]], dim=1)
        anchor = x[:, :1].expand_as(x)
        match self.look:
            case Look.anchor:
                return anchor
            case Look.previous:
                return before
            case Look.both:
                return torch.cat([anchor, before], dim=2)
            case Look.coarse:
                return self._coarse(x)
            case Look.own:
                return x[:, :, :0]

    def _coarse(self, x: Float[Tensor, "g f n c"]) -> Float[Tensor, "g f m c"]:
        groups, frames, count, _ = x.shape
        height, width = level_size(self.size, count)
        picture = rearrange(x, "g f (h w) c -> (g f) c h w", h=height, w=width)
        pooled = functional.avg_pool2d(picture, self.pool, ceil_mode=True, count_include_pad=False)
        tokens = rearrange(pooled, "(g f) c h w -> g f (h w) c", g=groups)
        others = [[j for j in range(frames) if j != i] for i in range(frames)]
        index = torch.tensor(others, dtype=torch.int64, device=x.device).view(frames, frames - 1)
        return rearrange(tokens[:, index], "g f k n c -> g f (k n) c")


def level_size(size: tuple[int, int], count: int) -> tuple[int, int]:
    """Find the height and width of the U-Net's level that has so many cells.

    Each level halves the sides and rounds up, as diffusers' `Downsample2D` does.
    """
    height, width = size
    while height * width > count:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != count:
        raise InputError(
            f"this denoiser has a level of {count} cells, which latents of {size[0]}x{size[1]} do "
            "not give; edit with --look own"
        )
    return height, width


def looking_layers(denoiser: nn.Module, look: Look) -> list[Attention]:
    """Return every self-attention of `denoiser` that is to look at other frames; none for `own`.

    Raises:
        InputError: if it has none of diffusers' U-Net: the blocks of a transformer attend to text,
            picture and source in one.
    """
    if look is Look.own:
        return []
    layers = [
        block.attn1 for block in denoiser.modules() if isinstance(block, BasicTransformerBlock)
    ]
    if not layers:
        raise InputError(
            f"this model has no self-attention that could look at other frames (--look "
            f"{look.value}), as a U-Net has; edit with --look own"
        )
    return layers


@contextmanager
def looking(denoiser: nn.Module, attention: FrameAttention) -> Iterator[None]:
    """Let every self-attention of `denoiser` look at other frames until the block ends.

    Raises:
        InputError: see `looking_layers`.
    """
    layers = looking_layers(denoiser, attention.look)
    usual = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(attention)  # pyright: ignore[reportArgumentType]
        yield
    finally:
        for layer, processor in zip(layers, usual, strict=True):
            layer.set_processor(processor)  # pyright: ignore[reportArgumentType]
