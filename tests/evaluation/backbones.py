"""Tiny random CLIP and DINO on disk, under the names that the protocols ask for."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

from emu_edit.metrics.protocols import CLIP_B32, CLIP_L14, DINO_S16

WORDS = ("a", "the", "cat", "dog", "red", "blue", "on", "grass", "in", "city", "day", "with", "hat")
BEGIN, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<unknown>"
SIDE, PATCH = 224, 112  # the protocols cut 224; two patches a side are enough


def write_backbones(folder: Path) -> Path:
    """Write both CLIPs (of different weights) and DINO; return the folder."""
    for seed, name in enumerate((CLIP_B32, CLIP_L14)):
        _write_clip(folder / name.replace("/", "--"), seed)
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=SIDE,
        patch_size=PATCH,
    )
    model = ViTModel(config, add_pooling_layer=False)
    _draw(model, 7)
    model.save_pretrained(folder / DINO_S16.replace("/", "--"))
    return folder


def _draw(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # wide, else all features are nearly equal
        nn.init.normal_(parameter, std=0.3, generator=generator)


def _write_clip(folder: Path, seed: int) -> None:
    ids = {word: i for i, word in enumerate([UNKNOWN, BEGIN, END, *WORDS])}
    layer = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    text = {
        **layer,
        "vocab_size": len(ids),
        "max_position_embeddings": 16,
        "bos_token_id": ids[BEGIN],
        "eos_token_id": ids[END],
        "pad_token_id": ids[END],
    }
    config = CLIPConfig(
        text_config=text,
        vision_config={**layer, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=10,
    )
    model = CLIPModel(config)
    _draw(model, seed)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]  # the stub has it read-only
    tokenizer.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, ids[BEGIN]), (END, ids[END])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
    ).save_pretrained(folder)
