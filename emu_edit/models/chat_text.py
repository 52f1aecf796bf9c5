"""Text features from hidden layers of a language model that is asked in its chat template.

Several layers are stacked into one wide feature for each token. The text is put into the template
as plain text: marks of the template that a user types are encoded as the letters they are, which
stock pipelines do not do. It leaves padding at the end of the window, where the task is told.
Source: the Flux2 Klein pipeline of diffusers (Qwen3, layers 9, 18 and 27, 512 tokens, padded, and
the denoiser attends to the padding).
"""

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from emu_edit.errors import InputError
from emu_edit.models.interfaces import NUM_TASK_TOKENS, TextEncoder, TextFeatures, TextLimit
from emu_edit.models.sources import PartSource, find_part, refuse_unrunnable, refusing
from emu_edit.models.surgery import freeze
from emu_edit.models.text import (
    load_text,
    padded,
    refuse_other_vocabulary,
    tokenizer_source,
    write_parts,
)

PLACE = "{instruction}"  # in the template while it is taken apart


class ChatText(TextEncoder):
    """A frozen language model as text encoder, in the precision of its file.

    Args:
        path: model directory (`text_encoder/` and `tokenizer/` inside), or a hub name
            `owner/name/text_encoder`; safetensors only.
        layers: hidden states to stack; 0 is the embedding, k what the k-th layer gives.
        max_tokens: tokens of the window, template and padding included.

    Raises:
        InputError: if it cannot be found or loaded, has fewer layers, or its tokenizer has no chat
            template.

    Attributes:
        kind: transformers' class that chooses the model's.
        before: tokens of the template before the text; `after`, those after it.
    """

    kind: Any = AutoModelForCausalLM

    def __init__(self, path: str, layers: list[int] | None = None, max_tokens: int = 512) -> None:
        super().__init__()
        self.source = find_part(path, "text_encoder")
        model, self.tokenizer = load_chat(self.source, self.kind)
        self.model: Any = freeze(model)
        self.layers = [9, 18, 27] if layers is None else layers
        config = self.model.config.get_text_config()
        count = int(config.num_hidden_layers)
        if not self.layers or not all(0 <= layer <= count for layer in self.layers):
            raise InputError(
                f"text_encoder.layers={self.layers}, but {self.source} has layers 0 to {count}"
            )
        refuse_other_vocabulary(self.model, self.tokenizer, self.source)
        self.dim = len(self.layers) * int(config.hidden_size)
        self.max_tokens = max_tokens
        self.before, self.after = self._template()
        refuse_unrunnable(lambda: self(("a", "")).tokens, str(self.source))

    @property
    def limit(self) -> TextLimit:
        """Return what a text has to be within; it goes to other processes with the tokenizer."""
        around = len(self.before) + len(self.after)
        return TextLimit(
            self.max_tokens - NUM_TASK_TOKENS, partial(count_around, self.tokenizer, around)
        )

    def tokenize(
        self, texts: tuple[str, ...] | list[str]
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return token ids and which are no padding, on the CPU.

        Raises:
            InputError: if a text is too long.
        """
        return padded(
            self.tokenizer,
            texts,
            self._rows(texts),
            most=self.limit.max_tokens,
            length=self.max_tokens,
            what=" with its template",
        )

    def _rows(self, texts: tuple[str, ...] | list[str]) -> list[list[int]]:
        return [[*self.before, *plain_ids(self.tokenizer, text), *self.after] for text in texts]

    def forward(self, texts: tuple[str, ...] | list[str]) -> TextFeatures:
        """Encode texts on the model's device; all tokens count as real, padding too."""
        ids, mask = self.tokenize(texts)
        return TextFeatures(self._stacked(ids, mask), self._moved(torch.ones_like(mask)))

    def _stacked(
        self, ids: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"], **more: Tensor
    ) -> Float[Tensor, "b l d"]:
        """Return the layers of each token, side by side; `more` goes to the model, too."""
        states = self.model.base_model(
            input_ids=self._moved(ids),
            attention_mask=self._moved(mask).long(),
            output_hidden_states=True,
            use_cache=False,
            **{name: self._moved(each) for name, each in more.items()},
        ).hidden_states
        return torch.cat([states[layer] for layer in self.layers], dim=-1)

    def _moved(self, each: Tensor) -> Tensor:
        return each.to(self.model.device, non_blocking=True)

    def _template(self) -> tuple[list[int], list[int]]:
        """Return the tokens before and after a user's words."""
        with refusing(
            f"{self.source}: its tokenizer has no chat template that takes a user's words"
        ):
            shown = self._asked(PLACE)
            before, after = shown.split(PLACE)
            encode = partial(self.tokenizer, add_special_tokens=False)
            return encode(before)["input_ids"], encode(after)["input_ids"]

    def _asked(self, words: str) -> str:
        """Return a user's words in the template, up to where the model would answer."""
        shown = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": words}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        return cast("str", shown)

    def write(self, folder: Path) -> dict[str, str]:
        """Write `text_encoder/` and `tokenizer/` into a folder; return the class of each."""
        return write_parts(folder, {"text_encoder": self.model, "tokenizer": self.tokenizer})


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text as letters, marks of the template too."""
    return tokenizer(text, split_special_tokens=True, add_special_tokens=False, verbose=False)[
        "input_ids"
    ]


def count_around(tokenizer: PreTrainedTokenizerBase, around: int, text: str) -> int:
    """Return the tokens of a text in a template of `around` tokens."""
    return around + len(plain_ids(tokenizer, text))


def load_chat(source: PartSource, kind: Any) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a language model by one of transformers' auto classes, and its tokenizer.

    Raises:
        InputError: as `load_text`.
    """
    words = tokenizer_source(source)
    return load_text(source, words, "auto", kind, what="language model")
