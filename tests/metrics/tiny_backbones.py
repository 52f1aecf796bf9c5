"""Tiny random CLIP and DINO as files, and their features computed from those files in plain numpy.

The numpy half imports nothing of the project and nothing of transformers: the published equations
of a pre-norm transformer, in float64, over the arrays that stand in model.safetensors.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

from emu_edit.metrics.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from emu_edit.models.sources import quiet_transformers

Array = NDArray[np.float64]

SIDE, PATCH, HEADS, WIDTH = 32, 8, 2, 16
CLIP_CUT = Preprocess(short_side=SIDE, filter="bicubic", crop=SIDE, mean=CLIP_MEAN, std=CLIP_STD)
DINO_CUT = Preprocess(
    short_side=36, filter="bicubic", crop=SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD
)
LAYERS = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 24,
}
LETTERS = "abcdefghijklmnopqrstuvwxyz<|>"  # an unknown one would become the end mark
MERGES = ("c a", "ca t</w>", "d o", "do g</w>")
MARKS = ("<|startoftext|>", "<|endoftext|>")


def write_clip(folder: Path, *, positions: int = 77) -> Path:
    """Write a CLIP of two layers and a byte-pair tokenizer that knows letters, cat, and dog."""
    write_tokenizer(folder)
    words = len(json.loads((folder / "vocab.json").read_text()))
    text = {
        "vocab_size": words,
        "max_position_embeddings": positions,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }
    config = CLIPConfig(
        text_config={**LAYERS, **text},
        vision_config={**LAYERS, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=12,
    )
    _save(CLIPModel(config), folder)
    return folder


def write_dino(folder: Path) -> Path:
    """Write a vision transformer of two layers, with the pooler that DINO does not use."""
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=24,
        image_size=SIDE,
        patch_size=PATCH,
    )
    _save(ViTModel(config), folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    singles = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    words = [*singles, *(merge.replace(" ", "") for merge in MERGES), *MARKS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *MERGES, "")))
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


def _save(model: CLIPModel | ViTModel, folder: Path) -> None:
    """Save with weights so large that different inputs have different features."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_((1.0 if is_scale else 0.0) + 0.3 * noise)
    with quiet_transformers():
        model.save_pretrained(folder)


def clip_image(folder: Path, pixels: Array) -> Array:
    """Return CLIP's projected features of normalised pixels "3 h w"."""
    w = _weights(folder)
    patches = _patches(pixels, w["vision_model.embeddings.patch_embedding.weight"])
    x = np.concatenate([w["vision_model.embeddings.class_embedding"][None], patches])
    x += w["vision_model.embeddings.position_embedding.weight"]
    x = _norm(x, w, "vision_model.pre_layrnorm", 1e-5)
    x = _clip_layers(x, w, "vision_model", is_causal=False)
    return _norm(x[0], w, "vision_model.post_layernorm", 1e-5) @ w["visual_projection.weight"].T


def clip_text(folder: Path, ids: list[int]) -> Array:
    """Return CLIP's projected features of token ids, marks included."""
    w = _weights(folder)
    x = w["text_model.embeddings.token_embedding.weight"][ids]
    x += w["text_model.embeddings.position_embedding.weight"][: len(ids)]
    x = _clip_layers(x, w, "text_model", is_causal=True)
    return _norm(x[-1], w, "text_model.final_layer_norm", 1e-5) @ w["text_projection.weight"].T


def dino_image(folder: Path, pixels: Array) -> Array:
    """Return DINO's class token of normalised pixels "3 h w"."""
    w = _weights(folder)
    patches = _patches(pixels, w["embeddings.patch_embeddings.projection.weight"])
    patches += w["embeddings.patch_embeddings.projection.bias"]
    x = (
        np.concatenate([w["embeddings.cls_token"][0], patches])
        + w["embeddings.position_embeddings"][0]
    )
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        names = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
        y = _norm(x, w, f"{at}.layernorm_before", 1e-12)
        x = x + _attend(y, w, at, (*names, "attention.output.dense"))
        y = _norm(x, w, f"{at}.layernorm_after", 1e-12)
        hidden = _linear(y, w, f"{at}.intermediate.dense")
        gelu = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = x + _linear(gelu, w, f"{at}.output.dense")
    return _norm(x[0], w, "layernorm", 1e-12)


def _clip_layers(x: Array, w: dict[str, Array], half: str, *, is_causal: bool) -> Array:
    names = tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out"))
    for layer in range(2):
        at = f"{half}.encoder.layers.{layer}"
        x = x + _attend(_norm(x, w, f"{at}.layer_norm1", 1e-5), w, at, names, is_causal=is_causal)
        hidden = _linear(_norm(x, w, f"{at}.layer_norm2", 1e-5), w, f"{at}.mlp.fc1")
        x = x + _linear(hidden / (1 + np.exp(-1.702 * hidden)), w, f"{at}.mlp.fc2")
    return x


def _attend(
    x: Array, w: dict[str, Array], at: str, names: tuple[str, ...], *, is_causal: bool = False
) -> Array:
    q, k, v = (_linear(x, w, f"{at}.{name}") for name in names[:3])
    hidden = np.tril(np.ones((len(x), len(x)))) == 0 if is_causal else np.zeros((len(x), len(x)))
    mixed = []
    for head in np.split(np.arange(WIDTH), HEADS):
        scores = q[:, head] @ k[:, head].T / math.sqrt(len(head))
        scores = np.where(hidden, -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed.append(weights / weights.sum(axis=1, keepdims=True) @ v[:, head])
    return _linear(np.concatenate(mixed, axis=1), w, f"{at}.{names[3]}")


def _patches(pixels: Array, kernel: Array) -> Array:
    """Multiply each patch, read row by row, with the flattened kernels."""
    count = pixels.shape[-1] // PATCH
    cut = pixels.reshape(3, count, PATCH, count, PATCH).transpose(1, 3, 0, 2, 4)
    return cut.reshape(count**2, -1) @ kernel.reshape(len(kernel), -1).T


def _linear(x: Array, w: dict[str, Array], name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(x: Array, w: dict[str, Array], name: str, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def _weights(folder: Path) -> dict[str, Array]:
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
