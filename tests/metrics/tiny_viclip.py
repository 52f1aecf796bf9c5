"""A tiny random ViCLIP in the published layout, and its features computed from it in plain numpy.

The numpy half imports nothing of the project: float64, loops over frames and heads, every name as
it stands in the published file.
"""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

FILE = "ViClip-InternVid-10M-FLT.pth"
SIDE, PATCH, FRAMES, WORDS = 28, 14, 8, 32
VIDEO, TEXT, DIM, HEAD = 128, 64, 24, 64
LAYERS = 2


def viclip_weights(vocabulary: int) -> dict[str, Tensor]:
    """Draw weights so large that different inputs have different features."""
    shapes: dict[str, tuple[int, ...]] = {
        "temp": (),
        "vision_encoder.class_embedding": (VIDEO,),
        "vision_encoder.positional_embedding": ((SIDE // PATCH) ** 2 + 1, VIDEO),
        "vision_encoder.temporal_positional_embedding": (1, FRAMES, VIDEO),
        "vision_encoder.proj": (VIDEO, DIM),
        "vision_encoder.conv1.weight": (VIDEO, 3, 1, PATCH, PATCH),
        "text_encoder.positional_embedding": (WORDS, TEXT),
        "text_encoder.text_projection": (TEXT, DIM),
        "text_encoder.token_embedding.weight": (vocabulary, TEXT),
    }
    for name in ("ln_pre", "ln_post"):
        shapes |= _norm_shapes(f"vision_encoder.{name}", VIDEO)
    shapes |= _norm_shapes("text_encoder.ln_final", TEXT)
    for half, width in (("vision_encoder", VIDEO), ("text_encoder", TEXT)):
        for layer in range(LAYERS):
            at = f"{half}.transformer.resblocks.{layer}"
            shapes |= _norm_shapes(f"{at}.ln_1", width) | _norm_shapes(f"{at}.ln_2", width)
            shapes |= {
                f"{at}.attn.in_proj_weight": (3 * width, width),
                f"{at}.attn.in_proj_bias": (3 * width,),
                f"{at}.attn.out_proj.weight": (width, width),
                f"{at}.attn.out_proj.bias": (width,),
                f"{at}.mlp.c_fc.weight": (4 * width, width),
                f"{at}.mlp.c_fc.bias": (4 * width,),
                f"{at}.mlp.c_proj.weight": (width, 4 * width),
                f"{at}.mlp.c_proj.bias": (width,),
            }
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.15 * torch.randn(shape, generator=generator)
        + (1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        for name, shape in sorted(shapes.items())
    }


def write_viclip(folder: Path, vocabulary: int) -> Path:
    """Write them as they are published: a torch file with the weights under "model"."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": viclip_weights(vocabulary)}, folder / FILE)
    return folder


def _norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def video_feature(weights: dict[str, Tensor], frames: Array) -> Array:
    """Return the projected class token of normalised frames "8 3 side side"."""
    w = {name: value.double().numpy() for name, value in weights.items()}
    count = SIDE // PATCH
    kernel = w["vision_encoder.conv1.weight"].reshape(VIDEO, -1)
    places = w["vision_encoder.positional_embedding"]
    tokens = [w["vision_encoder.class_embedding"] + places[0]]
    for time, frame in enumerate(frames):
        for row in range(count):
            for column in range(count):
                top, left = row * PATCH, column * PATCH
                patch = frame[:, top : top + PATCH, left : left + PATCH]
                token = kernel @ patch.reshape(-1) + places[1 + row * count + column]
                tokens.append(token + w["vision_encoder.temporal_positional_embedding"][0, time])
    x = _norm(np.stack(tokens), w, "vision_encoder.ln_pre")
    x = _blocks(x, w, "vision_encoder", is_causal=False)
    return _norm(x[0], w, "vision_encoder.ln_post") @ w["vision_encoder.proj"]


def text_feature(weights: dict[str, Tensor], ids: list[int]) -> Array:
    """Return the projected end mark of token ids, padded with zeros as the published program does.

    The feature is taken where the id is highest, as there.
    """
    w = {name: value.double().numpy() for name, value in weights.items()}
    padded = ids + [0] * (WORDS - len(ids))
    x = w["text_encoder.token_embedding.weight"][padded] + w["text_encoder.positional_embedding"]
    x = _norm(_blocks(x, w, "text_encoder", is_causal=True), w, "text_encoder.ln_final")
    return x[int(np.argmax(padded))] @ w["text_encoder.text_projection"]


def resized(frame: NDArray[np.uint8], height: int, width: int, kernel: str) -> Array:
    """Resample "h w 3" between pixels, without anti-aliasing, to whole levels."""
    rows = _weights_along(frame.shape[0], height, kernel)
    columns = _weights_along(frame.shape[1], width, kernel)
    values = np.einsum("yh,hwc,xw->yxc", rows, frame.astype(np.float64), columns)
    return np.clip(values, 0, 255).round()


def _weights_along(before: int, after: int, kernel: str) -> Array:
    """Return how much each output pixel takes of each input pixel; edges are repeated."""
    matrix = np.zeros((after, before))
    for i in range(after):
        at = (i + 0.5) * before / after - 0.5
        for j in range(math.floor(at) - 1, math.floor(at) + 3):
            x = abs(at - j)
            matrix[i, min(max(j, 0), before - 1)] += _kernel(x, kernel)
    return matrix


def _kernel(x: float, kernel: str) -> float:
    if kernel == "bilinear":
        return max(0.0, 1 - x)
    a = -0.75  # Keys 1981, with the parameter that torch takes without anti-aliasing
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def _blocks(x: Array, w: dict[str, Array], half: str, *, is_causal: bool) -> Array:
    length, width = x.shape
    hidden = np.tril(np.ones((length, length))) == 0 if is_causal else np.zeros((length, length))
    for layer in range(LAYERS):
        at = f"{half}.transformer.resblocks.{layer}"
        y = _norm(x, w, f"{at}.ln_1")
        mixed = y @ w[f"{at}.attn.in_proj_weight"].T + w[f"{at}.attn.in_proj_bias"]
        q, k, v = (mixed[:, i * width : (i + 1) * width] for i in range(3))
        heads = []
        for start in range(0, width, HEAD):
            part = slice(start, start + HEAD)
            scores = np.where(hidden, -np.inf, q[:, part] @ k[:, part].T / math.sqrt(HEAD))
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(shares / shares.sum(axis=1, keepdims=True) @ v[:, part])
        x = x + _linear(np.concatenate(heads, axis=1), w, f"{at}.attn.out_proj")
        wide = _linear(_norm(x, w, f"{at}.ln_2"), w, f"{at}.mlp.c_fc")
        x = x + _linear(wide / (1 + np.exp(-1.702 * wide)), w, f"{at}.mlp.c_proj")
    return x


def _linear(x: Array, w: dict[str, Array], name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(x: Array, w: dict[str, Array], name: str) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]
