"""What frozen encoders made of a pair, kept so that training need not make it again.

A codec and a text encoder that never learn say the same of a pair in every epoch. The record holds
what they said, of one pair or of a stacked batch, and the fingerprints of the networks that said
it. It keeps the target's posterior and not a draw from it, so that sampling stays fresh, and the
features of "" beside those of the instruction, so that dropout stays live.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

OnTensor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EncodedText:
    """Features of an instruction and of the empty text; l tokens, of which `mask` are real.

    Attributes:
        tokens: features of the instruction.
        mask: True where a token is attended.
        null_tokens: features of "".
        null_mask: its mask.
        encoder: fingerprint of the text encoder.
    """

    tokens: Float[Tensor, "... l d"]
    mask: Bool[Tensor, "... l"]
    null_tokens: Float[Tensor, "n d"]
    null_mask: Bool[Tensor, " n"]
    encoder: str

    @staticmethod
    def collate(texts: "list[EncodedText]") -> "EncodedText":
        """Stack texts, padded to the longest, the empty one too; what is added is masked."""
        first = texts[0]
        longest = max(len(first.null_mask), *(len(text.mask) for text in texts))
        return EncodedText(
            tokens=torch.stack([_longer(text.tokens, longest) for text in texts]),
            mask=torch.stack([_masked(text.mask, longest) for text in texts]),
            null_tokens=_longer(first.null_tokens, longest),
            null_mask=_masked(first.null_mask, longest),
            encoder=first.encoder,
        )

    def map(self, function: OnTensor) -> "EncodedText":
        """Return the record with `function` applied to each tensor."""
        return replace(
            self,
            tokens=function(self.tokens),
            mask=function(self.mask),
            null_tokens=function(self.null_tokens),
            null_mask=function(self.null_mask),
        )


@dataclass(frozen=True)
class Encoded:
    """Latents of a pair, scaled as the codec scales them, and its text where that was frozen, too.

    Attributes:
        source: mean of the source's posterior; a condition is never sampled.
        target: mean of the target's posterior.
        target_std: its deviation; zeros for a codec that is sure.
        text: None where the text encoder learns.
        codec: fingerprint of the codec.
    """

    source: Float[Tensor, "... c h w"]
    target: Float[Tensor, "... c h w"]
    target_std: Float[Tensor, "... c h w"]
    text: EncodedText | None
    codec: str

    @staticmethod
    def collate(pairs: "list[Encoded]") -> "Encoded":
        """Stack pairs.

        Raises:
            ValueError: if they were not all encoded by the same networks.
        """
        makers = {(pair.codec, pair.text and pair.text.encoder) for pair in pairs}
        if len(makers) != 1:
            raise ValueError(f"one batch holds the latents of one codec, got {sorted(makers)}")
        texts = [pair.text for pair in pairs if pair.text is not None]
        return Encoded(
            source=torch.stack([pair.source for pair in pairs]),
            target=torch.stack([pair.target for pair in pairs]),
            target_std=torch.stack([pair.target_std for pair in pairs]),
            text=EncodedText.collate(texts) if texts else None,
            codec=pairs[0].codec,
        )

    def map(self, function: OnTensor) -> "Encoded":
        """Return the record with `function` applied to each tensor."""
        return replace(
            self,
            source=function(self.source),
            target=function(self.target),
            target_std=function(self.target_std),
            text=None if self.text is None else self.text.map(function),
        )


def _longer(tokens: Float[Tensor, "l d"], length: int) -> Float[Tensor, "m d"]:
    return pad(tokens, (0, 0, 0, length - len(tokens)))


def _masked(mask: Bool[Tensor, " l"], length: int) -> Bool[Tensor, " m"]:
    return pad(mask, (0, length - len(mask)))
