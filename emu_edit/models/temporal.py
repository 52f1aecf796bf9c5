"""The layers that make a picture model a video model: they mix frames and nothing else.

A convolution over the frames follows a convolution of the picture, attention over the frames
follows attention within it. Both begin as the identity, so that the video model starts as the
picture model on every frame; no norm takes statistics over frames; attention knows only how far
apart two frames are, so that it does not matter where a window begins. Where the layers go is
`inflate`'s business.
Source: pseudo-3D layers and the identity at the start, Make-A-Video, Singer et al. 2022,
arXiv:2209.14792, section 3.2; after every convolution and attention, the last projection zero, Emu
Video, Girdhar et al. 2023, arXiv:2311.10709, section 3.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from emu_edit.errors import InputError

# beyond these a file is damaged or hostile
LARGEST_KERNEL, WIDEST_HEAD, WIDEST_MLP, WIDEST_MOTION, WIDEST_POOL = 15, 1024, 16, 1024, 64
MOST_POSITIONS = 2**24


@dataclass(frozen=True)
class TemporalSpec:
    """Which temporal layers a U-Net gets, and how they run.

    Level 0 is the finest resolution; the middle of the U-Net counts to the coarsest.

    Attributes:
        convolution_levels: levels with temporal convolutions; None for all.
        attention_levels: levels with temporal attention, where the U-Net has attention there; None
            for all.
        kernel_size: frames a temporal convolution sees, odd.
        head_dim: width of a head of temporal attention, even; must divide the width of each level
            with attention.
        mlp_ratio: width of the MLP after temporal attention, as a multiple of the level's; 0 leaves
            the MLP out.
        rotary_base: of the rotary positions, above 1: the slowest angle turns once in 2 pi times as
            many frames.
        picture_condition: widen the first convolution by the picture that the video begins with,
            and by its mask.
        still: give each frame as the nearest given one, the picture model's and a change, of which
            an untrained network gives the given one: its video stands still. Of z0 only; ours.
        text: let the frames' places attend to the text a second time, with weights of their own:
            a text encoder that has read captions of pictures alone knows no words of motion. Ours.
        motion: width of a small network that reads off the nearest given frame and the text what
            moves where; 0 leaves it out. A multiple of 8, with `still` only; ours.
        stam: temporal attention of EI² in place of Emu Video's, see `emu_edit.models.stam`; then
            there is no MLP.
        coarse: let each frame's own attention see all other frames, averaged over squares of so
            many cells (FFAM of EI²); 0 does not.
        identity: start as the identity; without, weights start as torch draws them, which is worse
            and here to show by how much.
        gradient_checkpointing: recompute temporal layers in the backward pass: less memory, more
            time.
        chunk: places (videos times cells) that go through a temporal layer at once; bounds memory,
            changes nothing else.

    Raises:
        InputError: if a number is out of its range; it names the number.
    """

    convolution_levels: tuple[int, ...] | None = None
    attention_levels: tuple[int, ...] | None = None
    kernel_size: int = 3
    head_dim: int = 64  # Emu Video's
    mlp_ratio: int = 4
    rotary_base: float = 10_000.0  # of the paper, see `rotate`
    picture_condition: bool = True
    still: bool = False
    text: bool = False
    motion: int = 0
    stam: bool = False
    coarse: int = 0
    identity: bool = True
    gradient_checkpointing: bool = False
    chunk: int = 2048  # times 31 heads stays below 65536, once the limit of CUDA's attention grids

    def __post_init__(self) -> None:
        """Refuse what makes no layer."""
        ranges = {
            "kernel_size": (1, LARGEST_KERNEL),
            "head_dim": (2, WIDEST_HEAD),
            "mlp_ratio": (0, WIDEST_MLP),
            "motion": (0, WIDEST_MOTION),
            "coarse": (0, WIDEST_POOL),
            "chunk": (1, MOST_POSITIONS),
        }
        for name, (least, most) in ranges.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise InputError(f"temporal.{name} is {value}, needs {least} to {most}")
        if self.kernel_size % 2 == 0 or self.head_dim % 2 == 1:
            raise InputError(
                f"temporal.kernel_size={self.kernel_size} must be odd and "
                f"temporal.head_dim={self.head_dim} even"
            )
        if self.still and not self.picture_condition:
            raise InputError(
                "temporal.still begins with a given picture; keep picture_condition, or give "
                "temporal.still=false, too"
            )
        if self.motion % 8:
            raise InputError(f"temporal.motion is {self.motion}, needs a multiple of 8")
        if self.motion and not self.still:
            raise InputError(
                f"temporal.motion={self.motion} is a part of temporal.still=true; give "
                "temporal.motion=0, too"
            )
        if not 1 < self.rotary_base < math.inf:
            raise InputError(f"temporal.rotary_base is {self.rotary_base}, needs more than 1")
        for name in ("convolution_levels", "attention_levels"):
            levels = getattr(self, name)
            if levels is not None and (min(levels, default=0) < 0 or len({*levels}) < len(levels)):
                raise InputError(f"temporal.{name} is {levels}, needs each level once, from 0")

    def to_dict(self) -> dict[str, object]:
        """Give the spec as JSON-ready primitives."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @staticmethod
    def from_dict(values: Mapping[str, object], *, where: str) -> "TemporalSpec":
        """Rebuild a spec from `to_dict`; `where` names the file in messages.

        Raises:
            InputError: if an entry is missing, unknown or not of the kind `to_dict` writes.
        """
        values = {"stam": False, "coarse": 0, **values}  # files of before EI² have neither
        kinds = {field.name: type(field.default) for field in fields(TemporalSpec)}
        if odd := {*kinds} ^ {*values}:
            raise InputError(f"{where}: the entry {min(odd)!r} is missing or unknown")
        for name, kind in kinds.items():
            if not _is_of_kind(values[name], kind):
                raise InputError(
                    f"{where}: {name} is {str(values[name])[:40]}, which is of another kind"
                )
        found = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        try:
            return TemporalSpec(**found)  # pyright: ignore[reportArgumentType]
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def _is_of_kind(value: object, kind: type) -> bool:
    """Whether JSON's value may stand for an entry whose default is of a kind; None is for lists."""
    if kind is type(None):
        is_list = isinstance(value, list) and all(type(level) is int for level in value)
        return value is None or is_list
    return type(value) is kind


class TemporalConvolution(nn.Module):
    """A convolution over the frames at every place of a picture.

        y_f = b + sum_j W_j x_(f + j),  j = -(k - 1)/2 ... (k - 1)/2

    Beyond the ends of a window stand its first and its last frame (zeros would make a still video
    move there). It starts with W_0 = 1, everything else 0.
    Source: Make-A-Video, arXiv:2209.14792, section 3.2.1; ends: ours.

    Args:
        channels: of a frame, in and out.
        kernel_size: k, odd.
        identity: start as the identity.
    """

    def __init__(self, channels: int, kernel_size: int, *, identity: bool) -> None:
        super().__init__()
        like = nn.Conv1d(channels, channels, kernel_size)
        assert like.bias is not None
        self.weight, self.bias = like.weight, like.bias
        if identity:
            nn.init.dirac_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "b c f n"]) -> Float[Tensor, "b c f n"]:
        """Convolve over f; the n places do not see each other."""
        each = self.weight.shape[-1] // 2
        first, last = x[:, :, :1], x[:, :, -1:]
        x = torch.cat([*[first] * each, x, *[last] * each], dim=2)
        return functional.conv2d(x, self.weight[..., None], self.bias)


class TemporalAttention(nn.Module):
    """Attention over the frames at every place of a picture, and an MLP.

        x' = x + W_o attend(norm(x)),  x'' = x' + W_2 gelu(W_1 norm(x'))

    The norm is over the channels of one place of one frame. W_o and W_2 start at zero, with their
    biases, so that x'' = x. Every frame sees every other; positions are rotary.
    Source: Emu Video, arXiv:2311.10709, section 3; blocks as in Vaswani et al. 2017,
    arXiv:1706.03762, the norm first.

    Args:
        channels: of a place, in and out.
        spec: widths, and whether to start as the identity.

    Raises:
        InputError: if `spec.head_dim` does not divide `channels`.
    """

    def __init__(self, channels: int, spec: TemporalSpec) -> None:
        super().__init__()
        check_heads(channels, spec)
        self.heads, self.rotary_base = channels // spec.head_dim, spec.rotary_base
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        last = [self.to_out]
        self.mlp = None
        if spec.mlp_ratio > 0:
            wide = spec.mlp_ratio * channels
            last.append(nn.Linear(wide, channels))
            self.mlp = nn.Sequential(
                nn.LayerNorm(channels), nn.Linear(channels, wide), nn.GELU(), last[-1]
            )
        for parameter in (one for linear in last for one in linear.parameters()):
            if spec.identity:
                nn.init.zeros_(parameter)

    def forward(
        self, x: Float[Tensor, "p f c"], positions: Float[Tensor, " f"]
    ) -> Float[Tensor, "p f c"]:
        """Attend over f; `positions` are times in frames, of which only differences count."""
        qkv = self.to_qkv(self.norm(x))
        q, k, v = rearrange(qkv, "p f (three a d) -> three p a f d", three=3, a=self.heads)
        q, k = (rotate(each, positions, self.rotary_base) for each in (q, k))
        out = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.to_out(rearrange(out, "p a f d -> p f (a d)"))
        return x if self.mlp is None else x + self.mlp(x)


def check_heads(channels: int, spec: TemporalSpec) -> None:
    """Refuse (InputError) a width that heads of `spec` do not divide."""
    if channels % spec.head_dim != 0:
        raise InputError(
            f"the U-Net has attention of width {channels}, which temporal.head_dim="
            f"{spec.head_dim} does not divide; give another head_dim, or attention_levels"
        )


class TextAttention(nn.Module):
    """Attention of a picture's places to the text, beside the picture model's own.

        x' = x + W_o attend(norm(x), y)

    W_o starts at zero, with its bias. Source: cross-attention as in Vaswani et al. 2017,
    arXiv:1706.03762; a second one in a block of temporal layers as in Stable Video Diffusion,
    arXiv:2311.15127, which tells it the picture.

    Args:
        channels: of a place, in and out.
        text_dim: of a token.
        spec: width of a head, and whether to start as the identity.
    """

    def __init__(self, channels: int, text_dim: int, spec: TemporalSpec) -> None:
        super().__init__()
        self.heads = channels // spec.head_dim
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(text_dim, 2 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        for parameter in self.to_out.parameters():
            if spec.identity:
                nn.init.zeros_(parameter)

    def forward(
        self,
        x: Float[Tensor, "r n c"],
        text: Float[Tensor, "r l d"],
        bias: Float[Tensor, "r 1 l"] | None,
    ) -> Float[Tensor, "r n c"]:
        """Attend to the l tokens of each row; `bias` is added to the logits, large and negative."""
        q = rearrange(self.to_q(self.norm(x)), "r n (a d) -> r a n d", a=self.heads)
        kv = rearrange(self.to_kv(text), "r l (two a d) -> two r a l d", two=2, a=self.heads)
        mask = None if bias is None else bias[:, None].to(q.dtype)
        out = functional.scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=mask)
        return x + self.to_out(rearrange(out, "r a n d -> r n (a d)"))


def rotate(
    x: Float[Tensor, "*rows f d"], positions: Float[Tensor, " f"], base: float
) -> Float[Tensor, "*rows f d"]:
    """Turn each pair of channels by its frame's position times the pair's speed.

        (x_2i, x_2i+1) -> (x_2i cos a - x_2i+1 sin a, x_2i sin a + x_2i+1 cos a)
        a = position * base^(-2i/d),  i = 0 ... d/2 - 1

    The product of a query at m and a key at n then depends on m - n alone.
    Source: Su et al. 2021 (RoFormer), arXiv:2104.09864, eq. 15 and 34; there base = 10000.
    """
    d = x.shape[-1]
    speeds = base ** (-torch.arange(0, d, 2, device=x.device, dtype=positions.dtype) / d)
    angles = positions[:, None] * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
