"""Puts temporal layers into a picture model that stays what it is.

The layers belong to a `TemporalAdapter` and hang on the U-Net as hooks: its class, its weights and
the names of its weights are untouched, and so are its paths of text, time, class and task. Without
a call of `video` around it the U-Net is the picture model, bit for bit.
Source: Emu Video, Girdhar et al. 2023, arXiv:2311.10709, section 3: frozen spatial layers, temporal
ones after each, C + 1 zero input channels for the picture and its mask.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emu_edit.errors import InputError
from emu_edit.models.frame_attention import FrameAttention, Look
from emu_edit.models.interfaces import TextFeatures
from emu_edit.models.motion import ChangeOut, MotionReader, Nearest, VideoCall
from emu_edit.models.recompute import remember_in
from emu_edit.models.stam import Stam
from emu_edit.models.surgery import freeze
from emu_edit.models.temporal import (
    TemporalAttention,
    TemporalConvolution,
    TemporalSpec,
    TextAttention,
)
from emu_edit.models.unet import UNetDenoiser

Base = UNet2DConditionModel | UNetDenoiser


# by adapter: two may hang on one U-Net, a generator's and an interpolator's; a thread has its own
_CALLS: ContextVar[Mapping["TemporalAdapter", VideoCall]] = ContextVar(
    "calls", default=MappingProxyType({})
)


class TemporalAdapter(nn.Module):
    """All that a picture model learns to become a video model.

    Its state dict is the adapter file. Move it to a device with its base, of which it owns nothing.

    Attributes:
        spec: which layers; `chunk` and `gradient_checkpointing` are read at every call, so that a
            copy with others may be put in its place.
        condition_channels: c + 1 of a condition, 0 without `spec.picture_condition`.

    Raises:
        InputError: if the base has no such levels, or `spec.head_dim` does not divide a width.
    """

    def __init__(self, base: Base, spec: TemporalSpec) -> None:
        super().__init__()
        self.spec = spec
        unet = unet_of(base)
        self._owner = (base,)  # in a tuple, which torch does not look into
        self._traced: VideoCall | None = None
        num_levels = len(unet.config["block_out_channels"])
        for levels in (spec.convolution_levels, spec.attention_levels):
            if max(levels or (), default=0) >= num_levels:
                raise InputError(
                    f"the temporal layers are for levels {levels}, the U-Net has 0 to "
                    f"{num_levels - 1}"
                )
        self.convolutions, self.attentions = nn.ModuleDict(), nn.ModuleDict()
        self.texts = nn.ModuleDict()
        self.condition_channels = unet.config["out_channels"] + 1 if spec.picture_condition else 0
        self.condition_in = self._widening(unet.conv_in) if spec.picture_condition else None
        self.change_out = ChangeOut(unet.conv_out) if spec.still else None
        self.motion = None
        if spec.motion:
            self.motion = MotionReader(
                unet.config["out_channels"],
                unet.config["cross_attention_dim"],
                unet.conv_in.out_channels,
                width=spec.motion,
                identity=spec.identity,
            )
        for name, place in unet.named_modules():
            self._follow(name, place, _level(name, num_levels))

    def _widening(self, conv_in: nn.Conv2d) -> nn.Conv2d:
        """Return the first convolution's share for the condition: a sum, so it may lie apart."""
        size, stride, padding = conv_in.kernel_size, conv_in.stride, conv_in.padding
        wide = nn.Conv2d(
            self.condition_channels,
            conv_in.out_channels,
            (size[0], size[1]),
            stride=(stride[0], stride[1]),
            padding=padding if isinstance(padding, str) else (padding[0], padding[1]),
            bias=False,
        )
        nn.init.zeros_(wide.weight)
        return wide

    def _follow(self, name: str, place: nn.Module, level: int) -> None:
        """Make the temporal layer that follows a layer of the U-Net, if one does."""
        spec, key = self.spec, name.replace(".", "/")
        is_convolved = spec.convolution_levels is None or level in spec.convolution_levels
        is_attended = spec.attention_levels is None or level in spec.attention_levels
        if isinstance(place, BasicTransformerBlock) and is_attended:
            kind = Stam if spec.stam else TemporalAttention
            self.attentions[key] = kind(place.dim, spec)
            if spec.text and place.attn2 is not None:
                width = place.attn2.cross_attention_dim
                self.texts[key] = TextAttention(place.dim, width, spec)
        if isinstance(place, nn.Conv2d) and place.kernel_size != (1, 1) and is_convolved:
            self.convolutions[key] = TemporalConvolution(
                place.out_channels, spec.kernel_size, identity=spec.identity
            )

    @property
    def base(self) -> Base:
        """The picture model it was made for."""
        return self._owner[0]

    def attach(self) -> None:
        """Hang the layers on the U-Net; once."""
        unet = unet_of(self.base)
        if self.condition_in is not None:  # first: the temporal convolution there sees the sum
            unet.conv_in.register_forward_hook(self._condition)
        for key, layer in self.texts.items():
            place = unet.get_submodule(key.replace("/", "."))
            place.register_forward_hook(partial(self._tell, layer), with_kwargs=True)
        for layers, run in ((self.convolutions, _convolve), (self.attentions, _attend)):
            for key, layer in layers.items():
                place = unet.get_submodule(key.replace("/", "."))
                place.register_forward_hook(partial(self._mix, partial(run, layer)))
        if self.spec.coarse:
            for place in unet.modules():
                if isinstance(place, BasicTransformerBlock):
                    usual = place.attn1.processor
                    place.attn1.set_processor(_Wider(self, usual))  # pyright: ignore[reportArgumentType]
        if self.change_out is not None:  # last: it puts another output in the place of all that
            unet.conv_out.register_forward_hook(self._change)

    @contextmanager
    def video(
        self,
        frames: int,
        condition: Float[Tensor, "rows c1 h w"] | None = None,
        text: TextFeatures | None = None,
        size: tuple[int, int] | None = None,
    ) -> Iterator[None]:
        """Let the U-Net see the rows "(b f)" of its calls in this block as videos.

        Put it around each call; a backward pass may come later, also with gradient checkpointing.
        Arguments and errors are those of `told`.
        """
        with self.during(self.told(frames, condition, text, size)):
            yield

    def told(
        self,
        frames: int,
        condition: Float[Tensor, "rows c1 h w"] | None = None,
        text: TextFeatures | None = None,
        size: tuple[int, int] | None = None,
    ) -> VideoCall:
        """Return what `during` takes; the motion reader runs here, and nowhere else.

        Args:
            frames: f, of every video of the batch.
            condition: of `given_frames` or `given_picture`, a row for each of the call; None is a
                condition of zeros, that is, nothing is given.
            text: a row for each video, for `spec.motion`, which reads nothing without.
            size: height and width of the latents, for `spec.coarse`, which sees nothing without.

        Raises:
            InputError: for less than a frame, or a condition where the adapter takes none.
        """
        if frames < 1:
            raise InputError(f"a video has at least 1 frame, got frames={frames}")
        if condition is not None and condition.shape[1] != self.condition_channels:
            raise InputError(
                f"the condition has {condition.shape[1]} channels, the temporal layers take "
                f"{self.condition_channels}"
            )
        nearest = read = None
        if self.change_out is not None and condition is not None:
            nearest = Nearest.of(rearrange(condition, "(b f) c1 h w -> b f c1 h w", f=frames))
        if self.motion is not None and nearest is not None and text is not None:
            read, change = self.motion(nearest, text)
            nearest = replace(nearest, start=nearest.start + change)
        return VideoCall(frames, condition, nearest, read, size)

    @contextmanager
    def during(self, call: VideoCall) -> Iterator[None]:
        """Let the U-Net see its calls in this block as it is told; see `video`."""
        remember_in(self.base)  # at every call: checkpointing may just have been enabled
        before = self._traced
        self._traced = call
        token = _CALLS.set({**_CALLS.get(), self: call})
        try:
            yield
        finally:
            _CALLS.reset(token)
            self._traced = before

    def _call(self) -> VideoCall | None:
        """Return what the innermost `video` around this call says, None outside."""
        if torch.compiler.is_compiling():  # which guards an attribute and cannot read a variable
            return self._traced
        return _CALLS.get().get(self)

    def _condition(self, _layer: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        call = self._call()
        if call is None or call.condition is None:
            return None
        assert self.condition_in is not None
        added = self.condition_in(call.condition.to(self.condition_in.weight.dtype))
        if added.shape != output.shape:
            raise InputError(
                f"the condition is of {tuple(call.condition.shape)}, which gives {len(added)} "
                f"frames, not the {len(output)} of this call, or of another size"
            )
        if call.read is not None:
            added = added + call.read
        return output + added.to(output.dtype)

    def _change(self, _layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        """Return z0 of each frame from the last features, see `ChangeOut`."""
        call = self._call()
        if call is None:
            return None
        assert self.change_out is not None
        return self.change_out(inputs[0], output, call.nearest)

    def _tell(
        self,
        layer: nn.Module,
        _place: nn.Module,
        inputs: tuple[Tensor | None, ...],
        named: dict[str, Tensor | None],
        output: Tensor,
    ) -> Tensor | None:
        """Let the tokens of a transformer block attend to what the block was told."""
        assert isinstance(layer, TextAttention)
        # by position where diffusers' checkpointing calls the block
        given = dict(zip(TOLD, inputs, strict=False)) | named
        text, bias = given.get("encoder_hidden_states"), given.get("encoder_attention_mask")
        if self._call() is None or text is None:
            return None
        kind = layer.to_out.weight.dtype
        return _run(layer, output.to(kind), text.to(kind), bias, spec=self.spec).to(output.dtype)

    def _mix(self, run: "Run", _layer: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        call = self._call()
        if call is None:
            return None
        if len(output) % call.frames != 0:
            raise InputError(
                f"{len(output)} rows are no whole number of videos of {call.frames} frames; give "
                "each frame its row"
            )
        return run(output, call.frames, self.spec)


@dataclass
class _Wider:
    """Self-attention that sees the other frames while its U-Net is told of a video."""

    adapter: TemporalAdapter
    usual: Callable[..., Tensor]

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *more: object, **named: object
    ) -> Tensor:
        call = self.adapter._call()
        if call is None or call.size is None or call.frames == 1:
            return self.usual(attn, hidden_states, *more, **named)
        wide = FrameAttention(Look.coarse, call.frames, call.size, self.adapter.spec.coarse)
        return wide(attn, hidden_states)


Run = Callable[[Tensor, int, TemporalSpec], Tensor]
# the first arguments of a block of diffusers
TOLD = ("hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask")


def inflate(base: Base, spec: TemporalSpec) -> TemporalAdapter:
    """Give a picture model temporal layers; it stays the picture model outside `video`.

    Args:
        base: a U-Net of diffusers (Stable Diffusion 1.x, 2.x, SDXL, ...) or a denoiser of ours.
        spec: which layers.

    Raises:
        InputError: if they do not fit.
    """
    adapter = TemporalAdapter(base, spec).to(unet_of(base).device)
    adapter.attach()
    return adapter


def unet_of(base: Base) -> UNet2DConditionModel:
    """Return the U-Net of a picture model."""
    return base.unet if isinstance(base, UNetDenoiser) else base


def train_temporal(adapter: TemporalAdapter, *, spatial: bool = False) -> list[nn.Parameter]:
    """Freeze the base, let the adapter learn, and return the parameters that do.

    Args:
        adapter: on its base.
        spatial: let the U-Net's own weights learn, too. The base is then another one afterwards:
            its adapter fits it, and no longer the one on the disk.
    """
    freeze(adapter.base)
    learning: list[nn.Module] = [adapter]
    if spatial:
        learning.append(unet_of(adapter.base))
    for module in learning:
        module.train().requires_grad_(True)
    return [parameter for module in learning for parameter in module.parameters()]


def given_frames(
    z: Float[Tensor, "b f c h w"], is_given: Bool[Tensor, "b f"]
) -> Float[Tensor, "rows c1 h w"]:
    """Make the condition that tells the given frames' latents and which they are, c1 = c + 1.

    Latents that are not given become zeros; the last channel is 1 where a frame is given.
    Source: Emu Video, arXiv:2311.10709, section 3.
    """
    mask = is_given[:, :, None, None, None].to(z.dtype)
    z = torch.where(mask.bool(), z, 0.0)
    mask = mask.expand(*z.shape[:2], 1, *z.shape[3:])
    return rearrange(torch.cat([z, mask], dim=2), "b f c h w -> (b f) c h w")


def given_picture(z: Float[Tensor, "b c h w"], frames: int) -> Float[Tensor, "rows c1 h w"]:
    """Make the condition of a video that begins with a picture: its latents are frame 0."""
    b = len(z)
    is_given = torch.arange(frames, device=z.device)[None].expand(b, -1) == 0
    return given_frames(z[:, None].expand(-1, frames, -1, -1, -1), is_given)


def _level(name: str, num_levels: int) -> int:
    """Return the level of a layer of a U-Net by its name in diffusers."""
    match name.split("."):
        case ["down_blocks", number, *_]:
            return int(number)
        case ["up_blocks", number, *_]:
            return num_levels - 1 - int(number)
        case ["mid_block", *_]:
            return num_levels - 1
        case _:
            return 0


def _convolve(layer: TemporalConvolution, x: Tensor, frames: int, spec: TemporalSpec) -> Tensor:
    """Run a temporal convolution on "(b f) c h w"."""
    size = x.shape[-2:]
    # of channels-last pictures too this is a view, and channels last
    video = rearrange(x, "(b f) c h w -> b c f (h w)", f=frames).to(layer.weight.dtype)
    parts = [_run(layer, part, spec=spec) for part in video.split(_width(len(video), spec), dim=3)]
    video = torch.cat(parts, dim=3).to(x.dtype)
    return rearrange(video, "b c f (h w) -> (b f) c h w", h=size[0], w=size[1])


def _attend(layer: TemporalAttention | Stam, x: Tensor, frames: int, spec: TemporalSpec) -> Tensor:
    """Run temporal attention on the tokens "(b f) n c" of a transformer block."""
    video = rearrange(x, "(b f) n c -> b f n c", f=frames).to(layer.to_out.weight.dtype)
    positions = torch.arange(frames, device=x.device, dtype=torch.float32)
    b, parts = len(video), []
    for part in video.split(_width(b, spec), dim=2):
        out = _run(layer, rearrange(part, "b f n c -> (b n) f c"), positions, spec=spec)
        parts.append(rearrange(out, "(b n) f c -> b f n c", b=b))
    return rearrange(torch.cat(parts, dim=2), "b f n c -> (b f) n c").to(x.dtype)


def _width(videos: int, spec: TemporalSpec) -> int:
    """Return how many cells of each video make a chunk."""
    return max(spec.chunk // videos, 1)


def _run(layer: nn.Module, *inputs: Tensor | None, spec: TemporalSpec) -> Tensor:
    if spec.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
