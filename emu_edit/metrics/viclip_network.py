"""ViCLIP's two towers, with the names and shapes that its published weights have.

A CLIP whose picture tower sees a few frames at once: every patch of every frame is a token, its
place in the frame and its place in time are added to it, and all attend to each other and to one
class token. All sizes are read off the weights, so the file alone decides; a head is 64 wide, as in
every CLIP of OpenAI.

Source: Wang et al. 2023, InternVid, arXiv:2307.06942, section 4; names of weights as in the file
ViClip-InternVid-10M-FLT.pth.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from emu_edit.errors import InputError
from emu_edit.metrics.published_weights import PublishedWeights

HEAD = 64  # channels of an attention head
UNUSED = ("temp",)  # of the training objective


@dataclass(frozen=True)
class TowerSizes:
    """The sizes of a transformer.

    Attributes:
        width: channels of a token.
        layers: number of blocks.
        dim: channels of the feature.
    """

    width: int
    layers: int
    dim: int


@dataclass(frozen=True)
class ViclipSizes:
    """The sizes of ViCLIP; those of the published one in brackets.

    Attributes:
        video: of the picture tower (1024 channels, 24 blocks, feature of 768).
        text: of the text tower (768, 12, 768).
        frames: frames at once (8).
        patch: side of a patch in pixels (14).
        side: of a frame in pixels (224).
        vocabulary: number of tokens (49408).
        max_tokens: longest text, marks at both ends included (32).
    """

    video: TowerSizes
    text: TowerSizes
    frames: int
    patch: int
    side: int
    vocabulary: int
    max_tokens: int


class Viclip(nn.Module):
    """Both towers."""

    def __init__(self, sizes: ViclipSizes) -> None:
        super().__init__()
        self.vision_encoder = VideoTower(sizes)
        self.text_encoder = TextTower(sizes)

    @staticmethod
    def of_weights(weights: PublishedWeights) -> "Viclip":
        """Build the network that the weights are for, and give it them.

        Raises:
            InputError: if a weight is missing, has another shape than the others ask for, or is
                none of ViCLIP's.
        """
        used = {name: weight for name, weight in weights.named.items() if name not in UNUSED}
        weights = replace(weights, named=used)
        with torch.device("meta"):
            network = Viclip(_sizes(weights))
        weights.give(network)
        return network


class VideoTower(nn.Module):
    """Frames to the feature of a video."""

    def __init__(self, sizes: ViclipSizes) -> None:
        super().__init__()
        width, patch = sizes.video.width, (1, sizes.patch, sizes.patch)
        self.conv1 = nn.Conv3d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        places = (sizes.side // sizes.patch) ** 2 + 1
        self.positional_embedding = nn.Parameter(torch.empty(places, width))
        self.temporal_positional_embedding = nn.Parameter(torch.empty(1, sizes.frames, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, sizes.video.layers)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, sizes.video.dim))

    def forward(self, frames: Float[Tensor, "b f 3 s s"]) -> Float[Tensor, "b d"]:
        """Compute the projected class token of normalised frames."""
        patches = self.conv1(frames.transpose(1, 2))  # b c f h w
        tokens = patches.flatten(3).permute(0, 2, 3, 1)  # b f n c
        tokens = tokens + self.positional_embedding[1:]
        tokens = tokens + self.temporal_positional_embedding[0, :, None]
        first = self.class_embedding + self.positional_embedding[0]  # one for all frames
        x = torch.cat([first.expand(len(tokens), 1, -1), tokens.flatten(1, 2)], dim=1)
        x = self.transformer(self.ln_pre(x), is_causal=False)
        return self.ln_post(x[:, 0]) @ self.proj


class TextTower(nn.Module):
    """Tokens to the feature of a text."""

    def __init__(self, sizes: ViclipSizes) -> None:
        super().__init__()
        width = sizes.text.width
        self.token_embedding = nn.Embedding(sizes.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(sizes.max_tokens, width))
        self.transformer = Transformer(width, sizes.text.layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, sizes.text.dim))

    def forward(self, ids: Int64[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Compute the projected last token, which is the end mark.

        What would stand behind the end mark cannot be seen from it: texts need no padding.
        """
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.transformer(x, is_causal=True)
        return self.ln_final(x[:, -1]) @ self.text_projection


class Transformer(nn.Module):
    """Blocks, one after the other."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x: Float[Tensor, "b l c"], *, is_causal: bool) -> Float[Tensor, "b l c"]:
        """Run all blocks; causal ones look only back."""
        for block in self.resblocks:
            x = block(x, is_causal=is_causal)
        return x


class Block(nn.Module):
    """Attention and two dense layers, each after a norm and added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = Attention(width)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b l c"], *, is_causal: bool) -> Float[Tensor, "b l c"]:
        """Run both halves."""
        x = x + self.attn(self.ln_1(x), is_causal=is_causal)
        return x + self.mlp(self.ln_2(x))


class Attention(nn.Module):
    """Self-attention with query, key and value in one matrix, as torch names it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b l c"], *, is_causal: bool) -> Float[Tensor, "b l c"]:
        """Attend in heads of `HEAD` channels."""
        mixed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(2, (-1, HEAD)).transpose(1, 2) for part in mixed.chunk(3, dim=2))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        return self.out_proj(heads.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Four times as wide, with x sigmoid(1.702 x) between.

    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        """Run both layers."""
        hidden = self.c_fc(x)
        return self.c_proj(hidden * torch.sigmoid(1.702 * hidden))


def _sizes(weights: PublishedWeights) -> ViclipSizes:
    """Read the sizes off those weights that tell them."""

    def tower(half: str, projection: str) -> TowerSizes:
        width, dim = weights.shape(f"{half}.{projection}", 2)
        ends = f"{half}.transformer.resblocks.", ".attn.in_proj_bias"
        layers = sum(name.startswith(ends[0]) and name.endswith(ends[1]) for name in weights.named)
        if width % HEAD:
            raise InputError(f"{weights.where}: {half} is {width} wide, needs a multiple of {HEAD}")
        return TowerSizes(width, layers, dim)

    patch = weights.shape("vision_encoder.conv1.weight", 5)[-1]
    places = weights.shape("vision_encoder.positional_embedding", 2)[0] - 1
    return ViclipSizes(
        video=tower("vision_encoder", "proj"),
        text=tower("text_encoder", "text_projection"),
        frames=weights.shape("vision_encoder.temporal_positional_embedding", 3)[1],
        patch=patch,
        side=patch * math.isqrt(max(places, 0)),
        vocabulary=weights.shape("text_encoder.token_embedding.weight", 2)[0],
        max_tokens=weights.shape("text_encoder.positional_embedding", 2)[0],
    )
