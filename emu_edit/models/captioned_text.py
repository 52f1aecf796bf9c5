"""Two texts in one slot: what to change, and what the result shows.

An edit adapter is told the instruction and its picture model the caption of the result, and both
travel as one text, "instruction => caption", and as one row of features: their tokens take turns,
so that whatever pads, drops and stacks features treats them like those of any text.
Source: what each of the two is told, Emu Video Edit, Singer et al. 2024, arXiv:2403.09334, section
3.1; the turns are ours.
"""

from functools import partial

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional

from emu_edit.models.interfaces import TextEncoder, TextFeatures, TextLimit
from emu_edit.models.surgery import freeze
from emu_edit.text_rules import parted


class CaptionedText(TextEncoder):
    """A frozen text encoder that reads an instruction and a caption apart.

    Of a text without a caption the caption is "", which is what a picture model is told where text
    is withheld.

    Args:
        encoder: a picture model's, without a vector of the whole text.
    """

    takes_captions = True

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = freeze(encoder)
        self.dim, self.max_tokens = encoder.dim, encoder.max_tokens

    @property
    def limit(self) -> TextLimit:
        """Return what each of the two has to be within."""
        return TextLimit(self.max_tokens, partial(_longer, self.encoder.limit))

    def tokenize(
        self, texts: tuple[str, ...] | list[str]
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return token ids and mask on the CPU, instruction and caption taking turns."""
        ids, mask = self.encoder.tokenize(_both(texts))
        return turns(*ids.chunk(2)), turns(*mask.chunk(2))

    def forward(self, texts: tuple[str, ...] | list[str]) -> TextFeatures:
        """Encode texts on the module's device."""
        told = self.encoder(_both(texts))
        return TextFeatures(turns(*told.tokens.chunk(2)), turns(*told.mask.chunk(2)))


def apart(text: TextFeatures) -> tuple[TextFeatures, TextFeatures]:
    """Return the features of the instructions and those of the captions."""
    if text.mask.shape[1] % 2:  # padded by somebody who does not know of turns
        text = TextFeatures(
            functional.pad(text.tokens, (0, 0, 0, 1)), functional.pad(text.mask, (0, 1))
        )
    instruction, caption = (
        TextFeatures(text.tokens[:, first::2], text.mask[:, first::2]) for first in (0, 1)
    )
    return instruction, caption


def turns(first: Tensor, second: Tensor) -> Tensor:
    """Let the tokens of two texts take turns: "b l ..." and "b l ..." become "b 2l ..."."""
    return torch.stack([first, second], dim=2).flatten(1, 2)


def _both(texts: tuple[str, ...] | list[str]) -> list[str]:
    """Return all instructions, then all captions."""
    pairs = [parted(text) for text in texts]
    return [instruction for instruction, _ in pairs] + [caption for _, caption in pairs]


def _longer(limit: TextLimit, text: str) -> int:
    return max(map(limit.count, parted(text)))
