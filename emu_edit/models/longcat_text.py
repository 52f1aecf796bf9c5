"""Text features of LongCat-Image-Edit: the model that sees the picture, told in other words.

The picture is shown at half the size it is edited at, a text has a window of its own, of which the
denoiser attends to the padding too, and words in quotation marks, which are to be drawn, are
encoded letter by letter. The end of the template is left out: nothing that is kept comes after it.
Source: the LongCat-Image-Edit pipeline of diffusers; its paper, arXiv:2512.07584. Padding has the
place it had in training (transformers 4: 1), which transformers 5 has changed.
"""

import math
import re
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emu_edit.errors import InputError
from emu_edit.models.chat_text import plain_ids
from emu_edit.models.interfaces import NUM_TASK_TOKENS, TextLimit
from emu_edit.models.text import padded
from emu_edit.models.vision_text import VisionText, pipeline_of

BEFORE = (
    "<|im_start|>system\nAs an image editing expert, first analyze the content and attributes of "
    "the input image(s). Then, based on the user's editing instructions, clearly and precisely "
    "determine how to modify the given image(s), ensuring that only the specified parts are altered"
    " and all other aspects remain consistent with the original(s).<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|>"
)
AREA, MULTIPLE = 1024 * 1024, 16  # of the picture that is edited, in pixels
PADDING = 1  # its place along each direction
DRAWS = "LongCatImagePipeline"  # of the model that draws from a caption
INNER = r"(?<=[a-zA-Z])'(?=[a-zA-Z])"  # an apostrophe within a word, which quotes nothing
QUOTED = re.compile(
    rf"""((?!{INNER})'(?:{INNER}|[^'])*'|"[^"]*"|\u2018[^\u2018\u2019]*\u2019|\u201c[^\u201c\u201d]*\u201d)"""
)


class LongCatText(VisionText):
    """The frozen Qwen2.5-VL of LongCat-Image-Edit, in the precision of its file.

    Args:
        path: model directory (`text_encoder/` and `tokenizer/` inside), or a hub name
            `owner/name/text_encoder`; safetensors only.
        max_tokens: tokens of a text's window, padding included, template and picture not.

    Raises:
        InputError: if it cannot be found or loaded, is another model, or its tokenizer has no token
            for pictures.
    """

    template: ClassVar = (BEFORE, "")
    of: ClassVar = "LongCat-Image-Edit"
    processor: ClassVar = "text_processor"

    def __init__(self, path: str, max_tokens: int = 512) -> None:
        super().__init__(path, max_tokens)
        self.dropped = len(self.before) - 1  # up to the mark where the picture begins

    @property
    def limit(self) -> TextLimit:
        """Return what a text has to be within: it leaves padding, where the task is told."""
        return TextLimit(self.max_tokens - NUM_TASK_TOKENS, partial(count_quoted, self.tokenizer))

    def tokenize(
        self, texts: tuple[str, ...] | list[str], cells: int = 1
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return token ids, with so many for a picture, and which are no padding, on the CPU.

        Raises:
            InputError: if a text is too long.
        """
        rows, beside = [self._row(text, cells) for text in texts], self.around + cells
        return padded(
            self.tokenizer,
            texts,
            rows,
            most=self.limit.max_tokens,
            beside=beside,
            length=beside + self.max_tokens,
        )

    def _row(self, text: str, cells: int) -> list[int]:
        words = quoted_ids(self.tokenizer, text)
        return [*self.before, *self.cell * cells, *self.between, *words]

    def _told(self, mask: Bool[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
        return torch.ones_like(mask)

    def _places(self, mask: Bool[Tensor, "b l"], rows: int, columns: int) -> Int64[Tensor, "3 b l"]:
        return super()._places(mask, rows, columns).masked_fill(~mask, PADDING)

    def _resized(self, height: int, width: int) -> list[tuple[int, int]]:
        whole = edited_size(height, width)
        return [whole, (whole[0] // 2, whole[1] // 2)]

    def _refuse_relatives(self) -> None:
        if pipeline_of(self.source) == DRAWS:
            raise InputError(
                f"{self.source.root} draws from a caption and shows its text encoder no picture; "
                f"give {self.of}"
            )


def edited_size(height: int, width: int) -> tuple[int, int]:
    """Return the sides at which the pipeline edits: about `AREA`, multiples of 16, rounded up."""
    wide = math.sqrt(AREA * width / height)
    high = wide / (width / height)
    return math.ceil(high / MULTIPLE) * MULTIPLE, math.ceil(wide / MULTIPLE) * MULTIPLE


def quoted_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text as letters, each letter of a quotation for itself."""
    parts = QUOTED.split(text)  # every second one is a quotation
    pieces = [part for i, words in enumerate(parts) for part in (words if i % 2 else [words])]
    return [token for piece in pieces for token in plain_ids(tokenizer, piece)]


def count_quoted(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return how many tokens a text has."""
    return len(quoted_ids(tokenizer, text))
