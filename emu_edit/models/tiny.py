"""The tiny text encoder: a small T5 encoder and a byte-level BPE tokenizer; nothing is downloaded.

Both are trained here: the encoder with the denoiser, the tokenizer (`tiny_tokenizer.json`, package
data) once, by `train_tokenizer`, on the phrasings of the procedural world. Any text works: what the
merges do not know falls back to bytes. Relative positions, so a text may stand anywhere and be of
any length.
Source: T5 encoder, Raffel et al. 2020, arXiv:1910.10683; byte-level BPE, Radford et al. 2019
(GPT-2).
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from emu_edit.errors import InputError
from emu_edit.models.text import ModelText

TOKENIZER_FILE = Path(__file__).parent / "tiny_tokenizer.json"
PAD, EOS = "<pad>", "</s>"
PAD_ID, EOS_ID = 0, 1  # special tokens come first in a trained vocabulary


class TinyText(ModelText):
    """A small T5 encoder from scratch; padding is masked.

    Args:
        dim: width of the features.
        num_layers: transformer layers.
        num_heads: attention heads; must divide `dim`.
        max_tokens: longest text in tokens, the end mark included.

    Raises:
        InputError: if `dim` is not divisible by `num_heads`.
    """

    def __init__(
        self, dim: int = 128, num_layers: int = 2, num_heads: int = 4, max_tokens: int = 96
    ) -> None:
        if dim % num_heads != 0:
            raise InputError(
                f"text_encoder.dim={dim} is not divisible by text_encoder.num_heads={num_heads}"
            )
        tokenizer = load_tokenizer(TOKENIZER_FILE)
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=dim,
            d_kv=dim // num_heads,
            d_ff=2 * dim,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_proj="gated-gelu",
            # no dropout: the output stays a function of weights and input; data are endless
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
        )
        super().__init__(
            T5EncoderModel(config), tokenizer, max_tokens=max_tokens, attend_padding=False
        )


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer written by `train_tokenizer`."""
    return PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token=PAD, eos_token=EOS)


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int = 1024) -> None:
    """Train the byte-level BPE tokenizer and write it as one JSON file.

    The same texts give the same file. All 256 bytes are in the vocabulary; an end mark closes each
    text, so the empty text has one token.

    Raises:
        InputError: if `vocab_size` has no room for the 256 bytes and the two marks.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + 2:
        raise InputError(
            f"vocab_size={vocab_size} has no room for 256 bytes and 2 marks; give at least 258"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    # sorted, so that neither order nor doubles of an iterable matter
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, EOS_ID)]
    )
    path.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
