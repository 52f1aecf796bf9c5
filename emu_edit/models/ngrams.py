"""A text as a bag of words, pairs of words and pieces of words: what tells a short request apart.

Each is hashed to a row of one table; the feature of a text is the mean of its rows. There is no
vocabulary, so no word is unknown: a slip of the keyboard leaves most pieces of a word, and a noun
nobody thought of says next to nothing. Small letters only.
Source: bags of n-grams of words and letters with the hashing trick, Joulin et al. 2017
(arXiv:1607.01759) and Bojanowski et al. 2017 (arXiv:1607.04606).
"""

import re
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from safetensors.torch import save_file
from torch import Tensor, nn

from emu_edit.errors import InputError
from emu_edit.files import write_json
from emu_edit.models.directory import read_json
from emu_edit.models.interfaces import TextEncoder, TextFeatures, TextLimit
from emu_edit.models.sources import load_tensors
from emu_edit.text_rules import MAX_CHARACTERS

KIND = "emu_edit_ngrams"  # `model_type` of the encoder's config
CONFIG, WEIGHTS = "config.json", "model.safetensors"
PIECES = (3, 4, 5)  # letters of a piece of a word; the ends of a word count as one letter each
SHORTEST = 4  # letters of a word that has pieces
MOST_ROWS = 2**20
STANDARD_DEVIATION = 0.05  # of the rows before training

_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")


class NgramText(TextEncoder):
    """One vector for each n-gram, hashed; the embedded task predictor's encoder.

    Args:
        dim: width of the features.
        rows: of the table; n-grams share a row when there are more of them.

    Raises:
        InputError: if a number is out of range.
    """

    attend_padding = False

    def __init__(self, dim: int = 32, rows: int = 2**15) -> None:
        super().__init__()
        if not (0 < dim <= MOST_ROWS and 0 < rows <= MOST_ROWS):
            raise InputError(f"an n-gram encoder of {rows} rows of {dim} numbers cannot be built")
        self.dim = dim
        # a text has at most a word, a pair and three pieces for every letter
        self.max_tokens = 5 * MAX_CHARACTERS
        self.table = nn.Embedding(rows, dim)
        nn.init.normal_(self.table.weight, std=STANDARD_DEVIATION)

    @property
    def limit(self) -> TextLimit:
        """Return what a text has to be within: no line of text that people write is too long."""
        return TextLimit(self.max_tokens, count)

    def tokenize(
        self, texts: tuple[str, ...] | list[str]
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return the row of each n-gram of each text, and which are no padding, on the CPU.

        Raises:
            InputError: if a text has more than `max_tokens` n-grams.
        """
        rows = self.table.num_embeddings
        hashed = [[zlib.crc32(gram.encode()) % rows for gram in ngrams(text)] for text in texts]
        longest = max(map(len, hashed), default=1)
        if longest > self.max_tokens:
            raise InputError(
                f"text of {longest} n-grams, the predictor takes at most {self.max_tokens}; "
                "shorten it"
            )
        ids = torch.zeros(len(hashed), longest, dtype=torch.int64)
        mask = torch.zeros(len(hashed), longest, dtype=torch.bool)
        for i, row in enumerate(hashed):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask

    def by_length(self, texts: tuple[str, ...] | list[str]) -> list[list[int]]:
        """Group texts, by their places, as `ModelText` does: all in one, no padding is computed."""
        return [list(range(len(texts)))]

    def forward(self, texts: tuple[str, ...] | list[str]) -> TextFeatures:
        """Look up the n-grams of texts, on the module's device."""
        ids, mask = self.tokenize(texts)
        device = self.table.weight.device
        return TextFeatures(tokens=self.table(ids.to(device)), mask=mask.to(device))

    @torch.no_grad()
    def round(self) -> None:
        """Round the table to 16 bits, in which it is written: a file gives the same answers."""
        self.table.weight.copy_(self.table.weight.half())

    def write(self, folder: Path) -> None:
        """Write `text_encoder/` into a folder: the table in 16 bits, and its config."""
        part = folder / "text_encoder"
        part.mkdir()
        table = self.table.weight.detach().cpu().half().contiguous()
        save_file({"table": table}, part / WEIGHTS)
        rows, dim = table.shape
        write_json(part / CONFIG, {"model_type": KIND, "rows": rows, "hidden_size": dim})

    @classmethod
    def read(cls, folder: Path) -> "NgramText":
        """Read what `write` wrote.

        Raises:
            InputError: if a file is missing or damaged, or they do not belong together.
        """
        part = folder / "text_encoder"
        values = read_json(part / CONFIG)
        rows, dim = values.get("rows"), values.get("hidden_size")
        found = load_tensors(part / WEIGHTS)
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        if type(rows) is not int or type(dim) is not int or shapes != {"table": (rows, dim)}:
            raise InputError(
                f"{part / WEIGHTS} has {shapes}, its {CONFIG} says {rows!r} rows of {dim!r} "
                "numbers; they belong to different predictors"
            )
        with torch.random.fork_rng(devices=[]):  # the drawn weights are overwritten
            encoder = cls(dim, rows)
        encoder.load_state_dict({"table.weight": found["table"].float()})
        return encoder


def is_ngram_text(folder: Path) -> bool:
    """Tell whether `NgramText.write` wrote the encoder in a folder."""
    file = folder / "text_encoder" / CONFIG
    return file.is_file() and read_json(file).get("model_type") == KIND


def count(text: str) -> int:
    """Count the n-grams of a text."""
    return sum(1 for _ in ngrams(text))


def ngrams(text: str) -> Iterator[str]:
    """Yield the words of a text, its pairs of neighbours, and the pieces of its longer words.

    Words, numbers and single signs count as words; the ends of the text pair like words, so that
    every text has one n-gram.
    """
    words = _WORD.findall(text.lower().replace("\u2019", "'"))
    for word in words:
        yield word
        if len(word) >= SHORTEST:
            marked = f"<{word}>"
            for n in PIECES:
                yield from (f"~{marked[i : i + n]}" for i in range(len(marked) - n + 1))
    for first, second in pairwise(["<", *words, ">"]):
        yield f"{first} {second}"
