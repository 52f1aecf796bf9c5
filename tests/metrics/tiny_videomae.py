"""A tiny random fine-tuned VideoMAE as transformers saves it, and its feature in plain numpy."""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

Array = NDArray[np.float64]

SIDE, PATCH, FRAMES, TUBE, WIDTH, HEADS, LAYERS = 16, 8, 4, 2, 16, 2, 2
EPSILON = 1e-12  # of the blocks' norms; the last norm has torch's
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def write_videomae(folder: Path, *, use_mean_pooling: bool = True) -> Path:
    """Write it with weights so large that different clips have different features."""
    config = VideoMAEConfig(
        image_size=SIDE,
        patch_size=PATCH,
        num_frames=FRAMES,
        tubelet_size=TUBE,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        layer_norm_eps=EPSILON,
        use_mean_pooling=use_mean_pooling,
    )
    config.num_labels = 3
    model = VideoMAEForVideoClassification(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def videomae_feature(folder: Path, frames: Array) -> Array:
    """Return the feature of frames "4 3 16 16" in [0, 1], from the weights in the file."""
    w = {n: v.astype(np.float64) for n, v in load_file(folder / "model.safetensors").items()}
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    frames = (frames - mean) / std
    at = "videomae.embeddings.patch_embeddings.projection"
    count, tokens = SIDE // PATCH, []
    for tube in range(FRAMES // TUBE):
        for row in range(count):
            for column in range(count):
                part = frames[
                    tube * TUBE : (tube + 1) * TUBE,
                    :,
                    row * PATCH : (row + 1) * PATCH,
                    column * PATCH : (column + 1) * PATCH,
                ]
                tokens.append(_kernel(w[f"{at}.weight"]) @ part.reshape(-1) + w[f"{at}.bias"])
    x = np.stack(tokens) + _places(len(tokens))
    for layer in range(LAYERS):
        at = f"videomae.encoder.layer.{layer}"
        x = x + _attended(_norm(x, w, f"{at}.layernorm_before", EPSILON), w, f"{at}.attention")
        y = _linear(_norm(x, w, f"{at}.layernorm_after", EPSILON), w, f"{at}.intermediate.dense")
        gelu = y * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(y)
        x = x + _linear(gelu, w, f"{at}.output.dense")
    return _norm(x.mean(0), w, "fc_norm", 1e-5)


def _kernel(weight: Array) -> Array:
    """Return a kernel "d c t h w" as rows that read "t c h w"."""
    return weight.transpose(0, 2, 1, 3, 4).reshape(len(weight), -1)


def _places(count: int) -> Array:
    """Return the sines and cosines of each place, in float32 as they are published."""
    table = np.zeros((count, WIDTH))
    for place in range(count):
        for i in range(WIDTH):
            angle = place / 10000 ** (2 * (i // 2) / WIDTH)
            table[place, i] = math.cos(angle) if i % 2 else math.sin(angle)
    return table.astype(np.float32).astype(np.float64)


def _attended(x: Array, w: dict[str, Array], at: str) -> Array:
    q = x @ w[f"{at}.attention.query.weight"].T + _bias(w, at, "q", "query")
    k = x @ w[f"{at}.attention.key.weight"].T
    v = x @ w[f"{at}.attention.value.weight"].T + _bias(w, at, "v", "value")
    width, parts = WIDTH // HEADS, []
    for start in range(0, WIDTH, width):
        part = slice(start, start + width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        parts.append(shares / shares.sum(axis=1, keepdims=True) @ v[:, part])
    return _linear(np.concatenate(parts, axis=1), w, f"{at}.output.dense")


def _bias(w: dict[str, Array], at: str, short: str, long: str) -> Array:
    """Return a bias under the name it has in published files, or as newer versions write it."""
    published = w.get(f"{at}.attention.{short}_bias")
    return w[f"{at}.attention.{long}.bias"] if published is None else published


def _linear(x: Array, w: dict[str, Array], name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(x: Array, w: dict[str, Array], name: str, epsilon: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]
