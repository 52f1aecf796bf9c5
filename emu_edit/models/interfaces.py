"""The three slots of a model (denoiser, text encoder, image codec) and the records between them.

Everything upstream and downstream is written against these; a network knows no noise schedule and
no data set.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64, Real
from torch import Tensor, nn

from emu_edit.diffusion.prediction import Predict, TrainedAs
from emu_edit.errors import InputError

NUM_TASK_TOKENS = 4  # text tokens through which a denoiser is told the task


@dataclass(frozen=True)
class TextFeatures:
    """What a text encoder gives: a feature per token, and which tokens are real (True = attend)."""

    tokens: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]

    def mean(self) -> Float[Tensor, "b d"]:
        """Return the mean of the real tokens; every text has at least its end mark."""
        is_real = self.mask[..., None].to(self.tokens.dtype)
        return (self.tokens * is_real).sum(dim=1) / is_real.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class TextLimit:
    """How long a text may be for a text encoder; without weights, for processes that read data.

    Attributes:
        max_tokens: longest text in tokens, special ones included.
        count: the tokens of a text, special ones included.
    """

    max_tokens: int
    count: Callable[[str], int]

    def fits(self, text: str) -> bool:
        """Tell whether the encoder takes all of a text."""
        return self.count(text) <= self.max_tokens

    def cut(self, text: str) -> str:
        """Return the words of a text, from its first, that fit; of a first word too long, a part.

        Source: ours; the usual truncation cuts between tokens, in the middle of a word.
        """
        if self.fits(text):
            return text
        words = text.split(" ")
        return self._most(words, " ") or self._most(list(words[0]), "")

    def _most(self, parts: list[str], between: str) -> str:
        # the first number of parts that is too many; the one before was counted, or is none
        too_many = bisect_left(
            range(len(parts) + 1), True, key=lambda n: not self.fits(between.join(parts[:n]))
        )
        return between.join(parts[: max(too_many - 1, 0)])


@dataclass(frozen=True)
class Conditioning:
    """All a denoiser is told.

    Text, source latents (zeros = no image) and the task vector (zeros = no task). The task is a
    vector, not an index: inversion learns it, interpolation mixes it.
    """

    text: TextFeatures
    z_source: Float[Tensor, "b c h w"]
    v_task: Float[Tensor, "b k"]

    def to(self, dtype: torch.dtype) -> "Conditioning":
        """Return it in another precision."""
        text = TextFeatures(tokens=self.text.tokens.to(dtype), mask=self.text.mask)
        return Conditioning(text, self.z_source.to(dtype), self.v_task.to(dtype))

    def for_frames(self, frames: int) -> "Conditioning":
        """Return it with each row repeated for every frame of a video: rows "(b f)"."""
        text = TextFeatures(
            tokens=self.text.tokens.repeat_interleave(frames, dim=0),
            mask=self.text.mask.repeat_interleave(frames, dim=0),
        )
        z_source, v_task = (
            each.repeat_interleave(frames, dim=0) for each in (self.z_source, self.v_task)
        )
        return Conditioning(text, z_source, v_task)

    @staticmethod
    def cat(parts: "list[Conditioning]") -> "Conditioning":
        """Stack conditionings along the batch; their token counts must agree."""
        return Conditioning(
            text=TextFeatures(
                tokens=torch.cat([p.text.tokens for p in parts]),
                mask=torch.cat([p.text.mask for p in parts]),
            ),
            z_source=torch.cat([p.z_source for p in parts]),
            v_task=torch.cat([p.v_task for p in parts]),
        )


class Denoiser(nn.Module, ABC):
    """The slot for the denoising network.

    Attributes:
        latent_channels: channels c of z_t, of z_source, and of the output.
        task_dim: width k of the task vector.
        text_dim: width d of the text features it expects.
        trained_as: what its first weights were trained for; None for weights from scratch.
        pooled_dim: width of the vector of the whole text it expects before the tokens, see
            `emu_edit.models.pooled_text`; 0 expects none.
        licence: what a licence of its weights forbids, in one line; None where nothing is known.
        keeps_norm: whether its base is guided so, see `emu_edit.diffusion.guidance.guided`.
        part: name of the submodule that is a network of diffusers, and of its folder in a model
            directory.
        spared: bytes that its frozen weights will take less than their type says, where it has
            shapes only and they are to be quantised.
    """

    latent_channels: int
    task_dim: int
    text_dim: int
    trained_as: TrainedAs | None = None
    pooled_dim: int = 0
    licence: str | None = None
    keeps_norm: bool = False
    part: str = "unet"
    spared: int = 0

    def maps(self) -> dict[str, Tensor]:
        """Return the weights that are not the network's of diffusers, by name."""
        own = f"{self.part}."
        return {n: value for n, value in self.state_dict().items() if not n.startswith(own)}

    def load_maps(self, tensors: Mapping[str, Tensor], where: Path) -> None:
        """Take over what `maps` returned.

        Raises:
            InputError: if one is missing or of another shape; `where` is the file.
        """
        for name, value in self.maps().items():
            if name not in tensors or tensors[name].shape != value.shape:
                found = tuple(tensors[name].shape) if name in tensors else "nothing"
                raise InputError(
                    f"{where}: {name} is {found}, needs {tuple(value.shape)}; "
                    "set task_dim to the model's"
                )
            value.copy_(tensors[name])

    @abstractmethod
    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Return the raw network output (eps, v, z0, change or flow, as the model was trained).

        `t` is a time of the model's schedule, 0 to T: whole steps of a table, fractions on a path.
        """

    def told(self, cond: Conditioning) -> Predict:
        """Bind the conditions, for all steps of a sampler."""
        return partial(self, cond=cond)


class TextEncoder(nn.Module, ABC):
    """The slot for the text encoder: strings in, features out; owns its tokenizer.

    Attributes:
        dim: width d of the features.
        max_tokens: longest text in tokens; longer text is an InputError, never cut in silence.
        pooled_dim: width of the vector of the whole text before its tokens; 0 gives none.
        sees_pictures: whether `forward` takes each text's source picture, too (pixels in [-1, 1]).
        takes_captions: whether a text may be "instruction => caption of the result".
    """

    dim: int
    max_tokens: int
    pooled_dim: int = 0
    sees_pictures: bool = False
    takes_captions: bool = False

    @property
    @abstractmethod
    def limit(self) -> TextLimit:
        """Return what a text has to be within."""

    @abstractmethod
    def forward(self, texts: tuple[str, ...] | list[str]) -> TextFeatures:
        """Encode texts on the module's device, padded to the longest or to `max_tokens`."""

    @abstractmethod
    def tokenize(
        self, texts: tuple[str, ...] | list[str]
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return token ids and mask on the CPU."""


class ImageCodec(nn.Module, ABC):
    """The slot for pixels in [-1, 1] <-> latents scaled to about unit variance.

    Attributes:
        latent_channels: channels c of a latent.
        factor: pixels per latent cell along each side; picture sides must be multiples of it.
    """

    latent_channels: int
    factor: int

    @abstractmethod
    def posterior(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Return mean and standard deviation of the scaled latent.

        For callers that bring their own noise, drawn per sample, or keep latents in a cache.
        """

    def encode(
        self, images: Float[Tensor, "b 3 H W"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Encode targets: a posterior sample when `generator` is given, else its mode; scaled."""
        mean, std = self.posterior(images)
        if generator is None:
            return mean
        # drawn on the CPU: CUDA streams differ between GPU models, seeds must not
        return mean + std * torch.randn(mean.shape, generator=generator).to(mean)

    @abstractmethod
    def encode_condition(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Encode sources: the posterior mode; scaled when the model predicts the change."""

    def as_condition(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return scaled latents, an edit's result say, in the units of `encode_condition`."""
        return latents

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Decode scaled latents to pixels, not clamped."""
