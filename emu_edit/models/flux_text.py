"""Text features of the later FLUX models: layers of language models that could see, and do not.

Source: pipelines of diffusers: Flux2 (Mistral 3, layers 10, 20 and 30, 512 tokens) and FLUX.3's
(Qwen3-VL, layers 4, 8, ... 32, windows of 80 tokens).
"""

from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers import AutoModelForImageTextToText

from emu_edit.errors import InputError
from emu_edit.models.chat_text import ChatText, count_around
from emu_edit.models.families import WINDOW
from emu_edit.models.interfaces import TextFeatures, TextLimit
from emu_edit.models.text import padded

# what FLUX.2 dev was trained with, line break included
SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on"
    " object relationships, object\nattribution and actions without speculation."
)
PADDING = 1  # the place of padding in its training (transformers 4); transformers 5 has 0


class Flux3Text(ChatText):
    """A frozen Qwen3-VL as FLUX.3 is told, in the precision of its file.

    A text has the fewest windows of 80 tokens that hold it, and the denoiser attends to all of
    them. The last four tokens, where the task is told, are padding or the end of the template.

    Args:
        path: model directory (`text_encoder/` and `tokenizer/` inside), or a hub name
            `owner/name/text_encoder`; safetensors only.
        layers: hidden states to stack; 0 is the embedding, k what the k-th layer gives.
        max_tokens: longest text in tokens with its template, a multiple of 80.

    Raises:
        InputError: if it cannot be found or loaded, has fewer layers, its tokenizer has no chat
            template, or `max_tokens` is no multiple of 80.
    """

    kind = AutoModelForImageTextToText

    def __init__(self, path: str, layers: list[int] | None = None, max_tokens: int = 480) -> None:
        if max_tokens < 1 or max_tokens % WINDOW:
            raise InputError(
                f"text_encoder.max_tokens={max_tokens}, needs a multiple of {WINDOW}, the window "
                "FLUX.3 was trained with"
            )
        super().__init__(path, list(range(4, 33, 4)) if layers is None else layers, max_tokens)

    @property
    def limit(self) -> TextLimit:
        """Return what a text has to be within; it goes to other processes with the tokenizer."""
        around = len(self.before) + len(self.after)
        return TextLimit(self.max_tokens, partial(count_around, self.tokenizer, around))

    def tokenize(
        self, texts: tuple[str, ...] | list[str]
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return token ids and which are no padding, on the CPU, in windows of the longest text.

        Raises:
            InputError: if a text is too long.
        """
        rows = self._rows(texts)
        length = whole_windows(max(map(len, rows), default=1))
        return padded(
            self.tokenizer,
            texts,
            rows,
            most=self.max_tokens,
            length=min(length, self.max_tokens),
            what=" with its template",
        )

    def forward(self, texts: tuple[str, ...] | list[str]) -> TextFeatures:
        """Encode texts on the model's device; of each the tokens of its own windows are real."""
        ids, mask = self.tokenize(texts)
        along = torch.arange(ids.shape[1])
        tokens = self._stacked(ids, mask, position_ids=along.where(mask, PADDING))
        return TextFeatures(tokens, self._moved(along < whole_windows(mask.sum(dim=1)[:, None])))


class MistralText(ChatText):
    """The frozen Mistral 3 of FLUX.2 dev, in the precision of its file.

    Its tokenizer pads on the left, so the last four tokens, where the task is told, are the end of
    the text; the denoiser attends to the padding.

    Args:
        path: model directory (`text_encoder/` and `tokenizer/` inside), or a hub name
            `owner/name/text_encoder`; safetensors only.
        layers: hidden states to stack; 0 is the embedding, k what the k-th layer gives.
        max_tokens: tokens of the window, template and padding included.

    Raises:
        InputError: if it cannot be found or loaded, has fewer layers, or its tokenizer has no chat
            template.
    """

    kind = AutoModelForImageTextToText

    def __init__(self, path: str, layers: list[int] | None = None, max_tokens: int = 512) -> None:
        super().__init__(path, [10, 20, 30] if layers is None else layers, max_tokens)

    def tokenize(
        self, texts: tuple[str, ...] | list[str]
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return token ids, padded on the tokenizer's side, and which are no padding, on the CPU.

        Raises:
            InputError: if a text is too long.
        """
        ids, mask = super().tokenize(texts)
        if self.tokenizer.padding_side == "right":
            return ids, mask
        along = torch.arange(ids.shape[1]) - (~mask).sum(dim=1, keepdim=True)
        along = along % ids.shape[1]  # the padding of each row goes round to its front
        return ids.gather(1, along), mask.gather(1, along)

    def _asked(self, words: str) -> str:
        said = {"system": SYSTEM, "user": words}
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in said.items()
        ]
        return cast("str", self.tokenizer.apply_chat_template(messages, tokenize=False))


def whole_windows(length: Any) -> Any:
    """Return the tokens of the fewest windows that hold so many, of one text or of each."""
    return -(-length // WINDOW) * WINDOW
