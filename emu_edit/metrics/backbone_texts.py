"""Texts as CLIP, PickScore and ViCLIP read them: byte pairs of one vocabulary, cut where they end.

A text is tokenized as transformers' CLIP tokenizer does it; where a protocol says so, it is mended
before as OpenAI's own does.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from emu_edit.errors import InputError
from emu_edit.models.sources import first_line
from emu_edit.text_rules import MAX_CHARACTERS

try:
    from ftfy import fix_text  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:  # an optional library
    fix_text = None

OLD_END_ID = 2  # of CLIP configs before transformers PR 24773: "the highest id ends the text"


class TextReader:
    """A tokenizer and how much of a text its network reads.

    Attributes:
        max_tokens: longest text the network reads, marks at both ends included.
        mends_texts: whether texts are mended before they are read, see `mended`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, mends_texts: bool = False
    ) -> None:
        self.max_tokens = max_tokens
        self.mends_texts = mends_texts
        self._tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """Tokenize up to `max_tokens`, marks included; the last one is always the end mark.

        Raises:
            InputError: if the text is not Unicode.
        """
        return self._tokens(text, cut=True)

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts that are longer than the network reads."""
        return sum(
            len(text) > MAX_CHARACTERS or len(self._tokens(text, cut=False)) > self.max_tokens
            for text in texts
        )

    def count_unmended(self, texts: Sequence[str]) -> int:
        """Count the texts whose encoding may be broken and could not be mended, without ftfy."""
        return sum(self.mends_texts and fix_text is None and not t.isascii() for t in texts)

    def _tokens(self, text: str, *, cut: bool) -> list[int]:
        # characters first: the time a tokenizer takes grows with what comes in, not what is kept
        start = text[:MAX_CHARACTERS]
        if any("\ud800" <= character <= "\udfff" for character in start):
            raise InputError(
                f"the text {start[:40]!r} has a lone surrogate, which stands for no character; "
                "save its file as UTF-8"
            )
        encoded = self._tokenizer(
            mended(start) if self.mends_texts else start,
            split_special_tokens=True,  # a typed "<|endoftext|>" would end the text
            truncation=cut,
            max_length=self.max_tokens if cut else None,
            verbose=False,
        )
        return cast("list[int]", encoded["input_ids"])


def mended(text: str) -> str:
    """Mend a text as OpenAI's CLIP does: "itâ€™s" to "it's" with ftfy, "&amp;amp;" to "&".

    Without the library ftfy a broken encoding stays as it is, and only HTML is undone.
    Source: `basic_clean` of openai/CLIP, simple_tokenizer.py.
    """
    fixed = text if fix_text is None else fix_text(text)
    return html.unescape(html.unescape(fixed)).strip()


def load_tokenizer(folder: Path, vocab_size: int, end_id: object) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a directory and check that its ids are those of the network.

    Args:
        folder: with tokenizer.json, or vocab.json and merges.txt.
        vocab_size: how many tokens the network knows.
        end_id: which one ends a text for it.

    Raises:
        InputError: if it cannot be read, or is another model's.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises this very class
        message = f"cannot load the tokenizer of {folder}: {first_line(error)}"
        raise InputError(message) from error
    if len(tokenizer) > vocab_size or end_id not in (OLD_END_ID, tokenizer.eos_token_id):
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens and ends a text with "
            f"{tokenizer.eos_token_id}, the model has {vocab_size} and expects "
            f"{end_id}; they belong to different models"
        )
    return tokenizer
