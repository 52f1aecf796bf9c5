"""Two text encoders as one: tokens, and a vector of the whole text, as FLUX.1 and SDXL are told.

The vector is the first row of the features, with zeros up to their width, so that whatever keeps,
drops and stacks features of texts treats it like any token; the denoiser takes it off again. All
tokens count as real: these denoisers attend to the padding.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase

from emu_edit.models.interfaces import NUM_TASK_TOKENS, TextEncoder, TextFeatures, TextLimit
from emu_edit.models.sources import PartSource, find_part, refuse_unrunnable
from emu_edit.models.surgery import freeze
from emu_edit.models.text import (
    count_tokens,
    ids_of,
    load_text,
    padded,
    refuse_other_vocabulary,
    write_parts,
)


class PooledText(TextEncoder):
    """Two frozen encoders, each in the precision of its file; what FLUX.1 and SDXL have in common.

    Attributes:
        tokenizer: of the encoder that says how long a text may be.
        blanks: padding a text leaves at the end of the window.
        parts: all encoders and tokenizers, by their folders.
    """

    tokenizer: PreTrainedTokenizerBase
    blanks: int = 0
    parts: dict[str, Any]

    @property
    def limit(self) -> TextLimit:
        """Return what a text has to be within; it goes to other processes with the tokenizer."""
        return TextLimit(self.max_tokens - self.blanks, partial(count_tokens, self.tokenizer))

    def tokenize(
        self, texts: tuple[str, ...] | list[str]
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return the first tokenizer's ids and which are no padding, on the CPU.

        Raises:
            InputError: if a text is too long.
        """
        return self._padded(self.tokenizer, texts)

    def _padded(
        self, tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...] | list[str]
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        rows, most = ids_of(tokenizer, texts), self.limit.max_tokens
        return padded(tokenizer, texts, rows, most=most, length=self.max_tokens)

    def write(self, folder: Path) -> dict[str, str]:
        """Write both encoders and tokenizers into a folder; return the class of each."""
        return write_parts(folder, self.parts)


class FluxText(PooledText):
    """CLIP and T5 of a FLUX.1.

    T5 gives the tokens, CLIP, which reads the first 77 and no more, the vector.
    Source: the Flux Kontext pipeline of diffusers.

    Args:
        path: model directory with `text_encoder/`, `tokenizer/`, `text_encoder_2/`, `tokenizer_2/`,
            or a hub name `owner/name`; safetensors only.
        max_tokens: tokens of T5's window, padding included.

    Raises:
        InputError: if one cannot be found or loaded, or T5 is narrower than CLIP.
    """

    def __init__(self, path: str, max_tokens: int = 512) -> None:
        super().__init__()
        self.source = model_of(path, "text_encoder_2")
        clip, self.clip_tokenizer = _part(self.source, "text_encoder", "tokenizer")
        t5, self.tokenizer = _part(self.source, "text_encoder_2", "tokenizer_2")
        self.clip: Any = freeze(clip)
        self.t5: Any = freeze(t5)
        self.dim = int(self.t5.config.d_model)
        self.pooled_dim = int(self.clip.config.hidden_size)
        self.max_tokens, self.blanks = max_tokens, NUM_TASK_TOKENS  # where the task is told
        self.parts = {
            "text_encoder": clip,
            "text_encoder_2": t5,
            "tokenizer": self.clip_tokenizer,
            "tokenizer_2": self.tokenizer,
        }
        refuse_unrunnable(lambda: self(("a", "")).tokens, str(self.source))

    def forward(self, texts: tuple[str, ...] | list[str]) -> TextFeatures:
        """Encode texts on the module's device; all tokens count as real, padding too."""
        device = self.t5.device
        ids, _ = self.tokenize(texts)
        tokens = self.t5(input_ids=ids.to(device, non_blocking=True)).last_hidden_state
        short = self.clip_tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=int(self.clip.config.max_position_embeddings),
            split_special_tokens=True,
            return_tensors="pt",
        )
        pooled = self.clip(short["input_ids"].to(device, non_blocking=True)).pooler_output
        return with_pooled(tokens, pooled)


class SDXLText(PooledText):
    """The two CLIPs of a Stable Diffusion XL.

    Tokens are the last but one layers of both, side by side; the vector is the second's projection.
    Source: Podell et al. 2023, arXiv:2307.01952, and its pipelines of diffusers.

    Args:
        path: model directory with `text_encoder/`, `tokenizer/`, `text_encoder_2/`, `tokenizer_2/`,
            or a hub name `owner/name`; safetensors only.

    Raises:
        InputError: if one cannot be found or loaded.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.source = model_of(path, "text_encoder_2")
        first, self.tokenizer = _part(self.source, "text_encoder", "tokenizer")
        second, self.tokenizer_2 = _part(
            self.source, "text_encoder_2", "tokenizer_2", CLIPTextModelWithProjection
        )
        self.encoders: Any = freeze(nn.ModuleList([first, second]))
        self.dim = sum(int(encoder.config.hidden_size) for encoder in self.encoders)
        self.pooled_dim = int(second.config.projection_dim)
        self.max_tokens = int(first.config.max_position_embeddings)
        self.parts = {
            "text_encoder": first,
            "text_encoder_2": second,
            "tokenizer": self.tokenizer,
            "tokenizer_2": self.tokenizer_2,
        }
        refuse_unrunnable(lambda: self(("a", "")).tokens, str(self.source))

    def forward(self, texts: tuple[str, ...] | list[str]) -> TextFeatures:
        """Encode texts on the module's device; all tokens count as real, padding too."""
        # the two pad with different tokens
        second, _ = self._padded(self.tokenizer_2, texts)
        device = self.encoders[0].device
        of_both = [
            encoder(ids.to(device, non_blocking=True), output_hidden_states=True)
            for encoder, ids in zip(self.encoders, (self.tokenize(texts)[0], second), strict=True)
        ]
        tokens = torch.cat([output.hidden_states[-2] for output in of_both], dim=-1)
        return with_pooled(tokens, of_both[1].text_embeds)


def with_pooled(tokens: Float[Tensor, "b l d"], pooled: Float[Tensor, "b p"]) -> TextFeatures:
    """Put a vector of each text before its tokens, see above; p is at most d."""
    first = functional.pad(pooled, (0, tokens.shape[-1] - pooled.shape[-1])).to(tokens.dtype)
    tokens = torch.cat([first[:, None], tokens], dim=1)
    return TextFeatures(
        tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    )


def model_of(path: str, part: str) -> PartSource:
    """Return the model that has a part, whether its own path or the part's is given."""
    source = find_part(path, part)
    folder = Path(source.root)
    if not source.subfolder and folder.is_dir() and folder.name.startswith("text_encoder"):
        return PartSource(str(folder.parent))
    return PartSource(source.root)


def _part(
    model: PartSource, encoder: str, tokenizer: str, kind: type | None = None
) -> tuple[Any, Any]:
    source = PartSource(model.root, encoder)
    if Path(model.root).is_dir():
        find_part(str(Path(model.root, encoder)), encoder)
    loaded, words = load_text(source, PartSource(model.root, tokenizer), "auto", kind)
    refuse_other_vocabulary(loaded, words, source)
    return loaded, words
