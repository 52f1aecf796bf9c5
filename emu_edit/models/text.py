"""Text encoders: strings to one feature per token, through any encoder of the transformers library.

A text that is too long is refused with its token count, never cut: half an instruction is another
instruction. (Training data are cut, skipped or refused before, see `datamodules.stream.limits`.)
Special tokens typed by the user ("</s>") are encoded as the text they are.
"""

from functools import partial
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForTextEncoding,
    AutoTokenizer,
    CLIPTextConfig,
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
        pad_id = tokenizer.pad_token_id
        if not isinstance(pad_id, int):
            raise InputError(
                f"the tokenizer {tokenizer.name_or_path!r} has no pad token; "
                "set one in its tokenizer_config.json"
            )
        self.pad_id = pad_id
        self.model = model
        self.tokenizer = tokenizer
        self.dim = int(model.config.hidden_size)
        self.max_tokens = max_tokens
        self.attend_padding = attend_padding

    @property
    def limit(self) -> TextLimit:
        """Return what a text has to be within; it goes to other processes with the tokenizer."""
        return TextLimit(self.max_tokens, partial(_count, self.tokenizer))

    def tokenize(
        self, texts: tuple[str, ...] | list[str]
    ) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return token ids and mask on the CPU; the mask is all True when padding is attended.

        Raises:
            InputError: if a text has more than `max_tokens` tokens.
        """
        encoded = self.tokenizer(list(texts), split_special_tokens=True, verbose=False)["input_ids"]
        for text, row in zip(texts, encoded, strict=True):
            if len(row) > self.max_tokens:
                raise InputError(
                    f"text of {len(row)} tokens, the text encoder takes at most {self.max_tokens}; "
                    f"shorten {text[:40]!r}..."
                )
        longest = max(map(len, encoded), default=1)
        length = (
            self.max_tokens
            if self.attend_padding
            else min(-(-longest // MULTIPLE) * MULTIPLE, self.max_tokens)
        )
        ids = torch.full((len(encoded), length), self.pad_id, dtype=torch.int64)
        mask = torch.full((len(encoded), length), self.attend_padding)
        for i, row in enumerate(encoded):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask

    def forward(self, texts: tuple[str, ...] | list[str]) -> TextFeatures:
        """Encode texts on the module's device."""
        ids, mask = self.tokenize(texts)
        device = self.model.device
        ids, mask = ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        attention_mask = None if self.attend_padding else mask.long()
        tokens = self.model(input_ids=ids, attention_mask=attention_mask).last_hidden_state
        return TextFeatures(tokens=tokens, mask=mask)


def _count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"])


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
        model, tokenizer = _load(source, _tokenizer_source(source))
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and max_tokens > positions:
            raise InputError(
                f"text_encoder.max_tokens={max_tokens}, but {source} has {positions} positions; "
                "lower it"
            )
        _refuse_other_vocabulary(model, tokenizer, source)
        super().__init__(
            model if trainable else freeze(model),
            tokenizer,
            max_tokens=max_tokens,
            attend_padding=attend_padding,
        )
        refuse_unrunnable(lambda: self(("a", "")).tokens, str(source))


def _tokenizer_source(source: PartSource) -> PartSource:
    if source.subfolder == "text_encoder":
        return PartSource(source.root, "tokenizer")
    folder = Path(source.root)
    if folder.name == "text_encoder" and (folder.parent / "tokenizer").is_dir():
        return PartSource(str(folder.parent), "tokenizer")
    return source


def _load(
    source: PartSource, tokenizer_source: PartSource
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if Path(tokenizer_source.root).is_dir():
        judge_directory(Path(tokenizer_source.root, tokenizer_source.subfolder))
    reach(source)
    with refusing(f"cannot load a text encoder from {source}"):
        config = AutoConfig.from_pretrained(
            source.root, subfolder=source.subfolder, trust_remote_code=False
        )
        # AutoModelForTextEncoding does not know "clip", a whole CLIP with its text half inside
        loader = CLIPTextModel if config.model_type == "clip" else AutoModelForTextEncoding
        refuse_larger(lambda: _untrained(config), source)
        with quiet_transformers():
            loaded = loader.from_pretrained(
                source.root,
                subfolder=source.subfolder,
                use_safetensors=True,
                output_loading_info=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(
            tokenizer_source.root, subfolder=tokenizer_source.subfolder, trust_remote_code=False
        )
    model, info = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
    refuse_missing(info["missing_keys"], source)
    refuse_non_finite(model.named_parameters(), str(source))
    # transformers keeps the checkpoint's own precision, which may be half
    model.float()
    return model, tokenizer


def _refuse_other_vocabulary(
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


def _untrained(config: PretrainedConfig) -> PreTrainedModel:
    if config.model_type == "clip":
        return CLIPTextModel(cast("CLIPTextConfig", getattr(config, "text_config", config)))
    return AutoModelForTextEncoding.from_config(config, trust_remote_code=False)
