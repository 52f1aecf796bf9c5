"""ViCLIP as a metric: a few frames of a video to one feature, and texts to features beside it.

How frames are chosen and brought to the network differs between programs that use ViCLIP, and moves
its numbers. Two ways are pinned by name; EVE, which made ViCLIP a metric of video editing
(arXiv:2403.09334), does not say which it took.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn import functional as F

from emu_edit.errors import InputError
from emu_edit.files import sha256_of
from emu_edit.metrics.backbone_files import TOKENIZER_FILES, local_folder
from emu_edit.metrics.backbone_texts import TextReader, load_tokenizer
from emu_edit.metrics.backbones import feature_rows, in_full_precision
from emu_edit.metrics.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Channels,
)
from emu_edit.metrics.published_weights import PublishedWeights
from emu_edit.metrics.viclip_network import Viclip
from emu_edit.models.surgery import freeze

WEIGHTS = ("model.safetensors", "ViClip-InternVid-10M-FLT.pth")  # the first that is there


@dataclass(frozen=True)
class ViclipInput:
    """Which frames of a video the network sees, and how.

    Attributes:
        name: as in a protocol.
        sampling: "middle" takes the middle frame of each of n equal parts, "stride" every
            (count // n)-th from the first on; see `indices`.
        keeps_aspect: whether the short side is fitted and the centre cut, or both sides are fitted.
        filter: torch's, between pixels and without anti-aliasing.
        mean: subtracted from values in [0, 1]; red, green, blue.
        std: what is left is divided by it.
        source: who does it so.
    """

    name: str
    sampling: Literal["middle", "stride"]
    keeps_aspect: bool
    filter: Literal["bicubic", "bilinear"]
    mean: Channels
    std: Channels
    source: str

    def indices(self, count: int, frames: int) -> tuple[int, ...]:
        """Choose `frames` of `count` frames, in order.

        middle: of m = min(n, count) parts, from floor(i count / m) to floor((i + 1) count / m) - 1,
                the middle, rounded down
        stride: i (count // n), i = 0 … n - 1

        If there are fewer than n, all of them, and the last one again and again. (InternVid's
        program refuses such videos.)
        """
        if self.sampling == "stride" and count >= frames:
            return tuple(i * (count // frames) for i in range(frames))
        parts = min(frames, count)
        ends = [i * count // parts for i in range(parts + 1)]
        chosen = [(start + end - 1) // 2 for start, end in pairwise(ends)]
        return (*chosen, *[chosen[-1]] * (frames - parts))

    def __call__(
        self, frame: UInt8[Tensor, "3 _ _"], side: int
    ) -> Float64[Tensor, "3 {side} {side}"]:
        """Normalise a frame, on the CPU.

        Resampled values are rounded to whole levels, as both programs do it. The red channel is the
        first: InternVid's program turns OpenCV's order round before.
        """
        height, width = frame.shape[-2:]
        short = min(height, width)
        size = (side, side)
        if self.keeps_aspect:
            size = (side * height // short, side * width // short)
        resized = F.interpolate(frame[None].double(), size, mode=self.filter, align_corners=False)[
            0
        ]
        top, left = (round((length - side) / 2) for length in size)
        levels = resized.clamp(0, 255).round()[:, top : top + side, left : left + side]
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
            for values in (self.mean, self.std)
        )
        return (levels.double() / 255 - mean) / std


VICLIP_VBENCH = ViclipInput(
    name="viclip-vbench",
    sampling="middle",
    keeps_aspect=True,
    filter="bicubic",
    mean=CLIP_MEAN,
    std=CLIP_STD,
    source="VBench (arXiv:2311.17982), its overall consistency",
)
VICLIP_INTERNVID = ViclipInput(
    name="viclip-internvid",
    sampling="stride",
    keeps_aspect=False,
    filter="bilinear",
    mean=IMAGENET_MEAN,  # ViCLIP was trained with them, on frames fitted to a square
    std=IMAGENET_STD,
    source="InternVid's demonstration (Data/InternVid/viclip of OpenGVLab/InternVideo)",
)
VICLIP_INPUTS = {inputs.name: inputs for inputs in (VICLIP_VBENCH, VICLIP_INTERNVID)}


class ViclipBackbone:
    """ViCLIP, its tokenizer and its input.

    Equal inputs give bit-equal features: each goes through the network alone.

    Attributes:
        sha256: of the weight file.
        frames: how many frames it sees at once, 8 in the published one.
        max_tokens: longest text it reads, marks at both ends included, 32 in the published one.
        inputs: how a video comes in.
    """

    def __init__(
        self, network: Viclip, reader: TextReader, inputs: ViclipInput, *, sha256: str
    ) -> None:
        self.sha256 = sha256
        self.inputs = inputs
        self.max_tokens = reader.max_tokens
        tower = network.vision_encoder
        self.frames = tower.temporal_positional_embedding.shape[1]
        places = len(tower.positional_embedding) - 1
        self._side = tower.conv1.kernel_size[-1] * round(places**0.5)
        self._network = freeze(network)
        self._reader = reader

    @staticmethod
    def load(
        folder: Path,
        inputs: ViclipInput = VICLIP_VBENCH,
        *,
        tokenizer: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "ViclipBackbone":
        """Load the published weights from a directory that has one of `WEIGHTS`.

        Args:
            folder: where they lie.
            inputs: how videos come in.
            tokenizer: directory or hub name of a CLIP: ViCLIP reads texts with CLIP's own.
            dtype: of the arithmetic.
            device: where to compute.

        Raises:
            InputError: if there are none, they cannot be read or are not ViCLIP's, or the tokenizer
                has more tokens or another end mark.
        """
        path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if path is None:
            raise InputError(
                f"{folder} has no {' or '.join(WEIGHTS)}, needs the weights of ViCLIP; download it"
            )
        network = Viclip.of_weights(PublishedWeights.read(path, "ViCLIP"))
        vocabulary = network.text_encoder.token_embedding.num_embeddings
        words = load_tokenizer(local_folder(tokenizer, TOKENIZER_FILES), vocabulary, vocabulary - 1)
        max_tokens = len(network.text_encoder.positional_embedding)
        reader = TextReader(words, max_tokens=max_tokens, mends_texts=True)
        network.to(device=device, dtype=dtype)
        return ViclipBackbone(network, reader, inputs, sha256=sha256_of(path))

    def indices(self, count: int) -> tuple[int, ...]:
        """Choose the frames to be seen of a video with `count` frames, see `ViclipInput`."""
        return self.inputs.indices(count, self.frames)

    def prepared(self, frame: UInt8[Tensor, "3 _ _"]) -> Float64[Tensor, "3 s s"]:
        """Normalise a frame to the network's size."""
        return self.inputs(frame, self._side)

    @torch.no_grad()
    def video(self, prepared: Sequence[Float64[Tensor, "3 s s"]]) -> Float[Tensor, " d"]:
        """Compute the projected feature of the chosen frames, not normalised, on the CPU.

        Raises:
            InputError: if the network returns NaN or infinity.
            ValueError: if they are not as many as the network sees.
        """
        if len(prepared) != self.frames:
            raise ValueError(f"ViCLIP sees {self.frames} frames, got {len(prepared)}")
        projection = self._network.vision_encoder.proj
        batch = torch.stack(list(prepared))[None].to(projection.device, projection.dtype)
        with in_full_precision():
            feature = self._network.vision_encoder(batch)
        return feature_rows([feature], projection.shape[1])[0]

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Compute the projected features, not normalised, on the CPU.

        A text that is too long is read up to where it fits; `count_cut` counts them.

        Raises:
            InputError: if a text is not Unicode, or the network returns NaN or infinity.
        """
        projection = self._network.text_encoder.text_projection
        ids = [torch.tensor([self._reader.ids(text)], device=projection.device) for text in texts]
        features = [self._network.text_encoder(one) for one in ids]
        return feature_rows(features, projection.shape[1])

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts that are longer than the network reads."""
        return self._reader.count_cut(texts)

    def count_unmended(self, texts: Sequence[str]) -> int:
        """Count the texts whose encoding may be broken and could not be mended, without ftfy."""
        return self._reader.count_unmended(texts)
