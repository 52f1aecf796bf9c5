"""Judges of what a student draws: light heads on the features of a frozen network.

One judge looks at edits, frame by frame: is this what comes out of that picture by this
instruction? One looks at videos: does this move as a video of that caption does? Both look through
DINO at pixels, or, where there is none, through the picture model itself at latents.
Source: Emu Video Edit, Singer et al. 2024, arXiv:2403.09334, section 3.2: frozen DINO, projections
of text and pictures joined by an attention layer, one layer of temporal attention; several heads on
several layers, conditions by projection, Sauer et al. 2023, arXiv:2311.17042, section 3.2. Widths,
which layers, and the picture model as a judge's eye (as latent adversarial diffusion distillation,
Sauer et al. 2024, arXiv:2403.12015, does it) are ours.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from emu_edit.errors import InputError
from emu_edit.models.interfaces import Conditioning, ImageCodec, TextFeatures
from emu_edit.models.sources import PartSource, refuse_missing, refusing
from emu_edit.models.surgery import freeze
from emu_edit.models.trust import judge_directory
from emu_edit.models.unet import UNetDenoiser

WIDTH, HEADS = 64, 4
DINO_LAYERS = 4  # evenly spaced, the last among them
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINO was trained


class FrameFeatures(nn.Module, ABC):
    """A frozen network through which judges see frames.

    Attributes:
        widths: of each map of features.
    """

    widths: list[int]

    @abstractmethod
    def forward(self, z: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n l d"]]:
        """Return maps of features of frames' latents, each as tokens."""


class DinoFeatures(FrameFeatures):
    """DINO or DINOv2 of transformers, on decoded frames.

    Args:
        path: its directory, safetensors; none is fetched.
        codec: of the latents; gradients flow through it.

    Raises:
        InputError: if it cannot be read, or is of another kind.
    """

    def __init__(self, path: str, codec: ImageCodec) -> None:
        super().__init__()
        from transformers import AutoModel  # of vision: slow to import

        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise InputError(f"there is no DINO at {folder}; give a folder of transformers' layout")
        judge_directory(folder)
        with refusing(f"cannot load a DINO from {folder}"):
            net, info = AutoModel.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, local_files_only=True
            )
        kind = net.config.model_type
        if kind not in {"vit", "dinov2"}:
            raise InputError(f"{folder} is a {kind}, judges look through DINO or DINOv2 (ViT)")
        missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
        refuse_missing(missing, PartSource(str(folder)))
        self.net, self._codec = freeze(net), (codec,)
        count = net.config.num_hidden_layers
        self._layers = sorted({count - i * count // DINO_LAYERS for i in range(DINO_LAYERS)})
        self.widths = [net.config.hidden_size] * len(self._layers)
        size, self._patch = net.config.image_size, net.config.patch_size
        self._side = size if isinstance(size, int) else size[0]

    def forward(self, z: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n l d"]]:
        """Return the patches' tokens of some layers, without the class's."""
        pixels = (self._codec[0].decode(z) + 1) / 2
        pixels = functional.interpolate(pixels, (self._side, self._side), mode="bilinear")
        mean, std = (pixels.new_tensor(each)[:, None, None] for each in (MEAN, STD))
        found = self.net(pixel_values=(pixels - mean) / std, output_hidden_states=True)
        patches = (self._side // self._patch) ** 2
        return [found.hidden_states[i][:, -patches:] for i in self._layers]


class BaseFeatures(FrameFeatures):
    """The picture model's own features on the way down, of nearly clean latents and no text.

    Args:
        base: the picture model; used, not owned.
        nothing: what it is told of one frame: no text, no source, to draw.
    """

    def __init__(self, base: UNetDenoiser, nothing: Conditioning) -> None:
        super().__init__()
        self._base, self._nothing = (base,), nothing
        self._blocks = (*base.unet.down_blocks, base.unet.mid_block)
        self.widths = [
            *base.unet.config["block_out_channels"],
            base.unet.config["block_out_channels"][-1],
        ]

    def forward(self, z: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n l d"]]:
        """Return what each level of the U-Net gives, and the middle."""
        found: list[Tensor] = []

        def keep(_block: nn.Module, _inputs: object, output: Tensor | tuple) -> None:
            features = output if isinstance(output, Tensor) else output[0]
            found.append(features.flatten(2).transpose(1, 2))

        n, told = len(z), self._nothing
        text = TextFeatures(
            told.text.tokens.expand(n, -1, -1).to(z.device),
            told.text.mask.expand(n, -1).to(z.device),
        )
        v_task = told.v_task.expand(n, -1).to(z.device)
        hooks = [block.register_forward_hook(keep) for block in self._blocks if block is not None]
        try:
            t = torch.zeros(n, dtype=torch.int64, device=z.device)
            self._base[0](z, t, Conditioning(text, torch.zeros_like(z), v_task))
        finally:
            for hook in hooks:
                hook.remove()
        return found


class Judges(nn.Module):
    """The judge of edits, D_e, and the judge of videos, D_v.

    Args:
        features: what they look through; frozen.
        text_dim: width of the text features.
    """

    def __init__(self, features: FrameFeatures, text_dim: int) -> None:
        super().__init__()
        self.features = freeze(features)
        self.edits = nn.ModuleList(EditHead(width, text_dim) for width in features.widths)
        self.videos = nn.ModuleList(VideoHead(width, text_dim) for width in features.widths)

    def of_edits(
        self,
        source: Float[Tensor, "n c h w"],
        instruction: TextFeatures,
        output: Float[Tensor, "n c h w"],
    ) -> Float[Tensor, " k"]:
        """Return how real each edited frame is, by each head, k = n times heads."""
        with torch.no_grad():
            befores = [each.mean(dim=1) for each in self.features(source)]
        text = instruction.mean()
        judged = [
            head(after, before, text)
            for head, after, before in zip(self.edits, self.features(output), befores, strict=True)
        ]
        return torch.cat(judged)

    def of_videos(
        self, video: Float[Tensor, "b f c h w"], caption: TextFeatures
    ) -> Float[Tensor, " k"]:
        """Return how real each video is, by each head, k = b times heads."""
        b, text = len(video), caption.mean()
        maps = self.features(video.flatten(0, 1))
        judged = [
            head(rearrange(each, "(b f) l d -> b f l d", b=b), text)
            for head, each in zip(self.videos, maps, strict=True)
        ]
        return torch.cat(judged)


class EditHead(nn.Module):
    """A judge of edited frames, on one map of features.

        D = mean over places of (h c / sqrt(w) + u h),  c = mean of attention(W_t text, W_s source)

    Args:
        width: of the features.
        text_dim: of the text features.
    """

    def __init__(self, width: int, text_dim: int) -> None:
        super().__init__()
        self.places = _places(width)
        self.of_text, self.of_source = nn.Linear(text_dim, WIDTH), nn.Linear(width, WIDTH)
        self.join = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.plain = nn.Linear(WIDTH, 1)

    def forward(
        self,
        after: Float[Tensor, "n l d"],
        before: Float[Tensor, "n d"],
        text: Float[Tensor, "n e"],
    ) -> Float[Tensor, " n"]:
        """Return how real the frames are."""
        told = torch.stack([self.of_text(text), self.of_source(before)], dim=1)
        condition = self.join(told, told, told, need_weights=False)[0].mean(dim=1)
        return _judged(self.places(after), condition, self.plain)


class VideoHead(nn.Module):
    """A judge of videos, on one map of features: attention over the frames of every place.

    Args:
        width: of the features.
        text_dim: of the text features.
    """

    def __init__(self, width: int, text_dim: int) -> None:
        super().__init__()
        self.places = _places(width)
        self.of_text = nn.Linear(text_dim, WIDTH)
        self.over_time = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.plain = nn.Linear(WIDTH, 1)

    def forward(
        self, video: Float[Tensor, "b f l d"], text: Float[Tensor, "b e"]
    ) -> Float[Tensor, " b"]:
        """Return how real the videos are."""
        b = len(video)
        h = rearrange(self.places(video), "b f l w -> (b l) f w")
        h = h + self.over_time(h, h, h, need_weights=False)[0]
        h = functional.silu(rearrange(h, "(b l) f w -> b (f l) w", b=b))
        return _judged(h, self.of_text(text), self.plain)


def _places(width: int) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH)
    )


def _judged(
    h: Float[Tensor, "n l w"], condition: Float[Tensor, "n w"], plain: nn.Linear
) -> Float[Tensor, " n"]:
    projected = (h * condition[:, None]).sum(dim=2) / WIDTH**0.5
    return (projected + plain(h)[..., 0]).mean(dim=1)
