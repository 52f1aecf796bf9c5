"""A tiny random I3D in the published layout, and its scores computed from it in plain numpy.

The numpy half imports nothing of the project: float64, every name as it stands in the published
file.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

FILE = "rgb_imagenet.pt"
WIDTHS = {"b0": 3, "b1a": 2, "b1b": 4, "b2a": 2, "b2b": 3, "b3b": 2}  # of each mixed module
MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
CLASSES = 7


def i3d_weights() -> dict[str, Tensor]:
    """Draw weights so large that different inputs have different scores."""
    kernels = {
        "Conv3d_1a_7x7": (4, 3, 7),
        "Conv3d_2b_1x1": (4, 4, 1),
        "Conv3d_2c_3x3": (6, 4, 3),
    }
    width = 6
    for name in MIXED:
        befores = {"b1b": WIDTHS["b1a"], "b2b": WIDTHS["b2a"]}
        for unit, after in WIDTHS.items():
            side = 3 if unit in befores else 1
            kernels[f"Mixed_{name}.{unit}"] = (after, befores.get(unit, width), side)
        width = sum(WIDTHS[unit] for unit in ("b0", "b1b", "b2b", "b3b"))
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    for name, (after, before, side) in kernels.items():
        drawn = torch.randn(after, before, side, side, side, generator=generator)
        weights[f"{name}.conv3d.weight"] = drawn * (2 / (before * side**3)) ** 0.5
        weights[f"{name}.bn.weight"] = 1 + 0.2 * torch.randn(after, generator=generator)
        weights[f"{name}.bn.bias"] = 0.3 * torch.randn(after, generator=generator)
        weights[f"{name}.bn.running_mean"] = 0.2 * torch.randn(after, generator=generator)
        weights[f"{name}.bn.running_var"] = 0.5 + torch.rand(after, generator=generator)
        weights[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
    weights["logits.conv3d.weight"] = torch.randn(CLASSES, width, 1, 1, 1, generator=generator)
    weights["logits.conv3d.bias"] = torch.randn(CLASSES, generator=generator)
    return weights


def write_i3d(folder: Path) -> Path:
    """Write them as they are published."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(i3d_weights(), folder / FILE)
    return folder


def i3d_scores(weights: dict[str, Tensor], video: Array) -> Array:
    """Return the scores of a video "3 f h w" in [-1, 1]."""
    w = {name: value.double().numpy() for name, value in weights.items()}
    x = _pool(_unit(video, w, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = _unit(_unit(x, w, "Conv3d_2b_1x1"), w, "Conv3d_2c_3x3")
    x = _pool(x, (1, 3, 3), (1, 2, 2))
    for name in MIXED:
        at = f"Mixed_{name}"
        x = np.concatenate([
            _unit(x, w, f"{at}.b0"),
            _unit(_unit(x, w, f"{at}.b1a"), w, f"{at}.b1b"),
            _unit(_unit(x, w, f"{at}.b2a"), w, f"{at}.b2b"),
            _unit(_pool(x, (3, 3, 3), (1, 1, 1)), w, f"{at}.b3b"),
        ])
        if name == "3c":
            x = _pool(x, (3, 3, 3), (2, 2, 2))
        if name == "4f":
            x = _pool(x, (2, 2, 2), (2, 2, 2))
    rows = []
    for start in range(x.shape[1] - 1):  # pairs of moments
        mean = x[:, start : start + 2].mean((1, 2, 3))
        rows.append(w["logits.conv3d.weight"][:, :, 0, 0, 0] @ mean + w["logits.conv3d.bias"])
    return np.mean(rows, axis=0)


def _unit(x: Array, w: dict[str, Array], name: str, stride: int = 1) -> Array:
    kernel = w[f"{name}.conv3d.weight"]
    side = kernel.shape[-1]
    seen = _windows(x, (side,) * 3, (stride,) * 3)
    y = np.einsum("cfhwtuv,dctuv->dfhw", seen, kernel, optimize=True)
    mean, var, scale, shift = (
        w[f"{name}.bn.{part}"][:, None, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return np.maximum((y - mean) / np.sqrt(var + 1e-3) * scale + shift, 0)


def _pool(x: Array, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Array:
    return _windows(x, kernel, stride).max((4, 5, 6))


def _windows(x: Array, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Array:
    """Return what each output place sees: zeros outside, ceil(length / stride) places."""
    places = [-(-length // step) for length, step in zip(x.shape[1:], stride, strict=True)]
    lacks = [
        max((count - 1) * step + side - length, 0)
        for count, step, side, length in zip(places, stride, kernel, x.shape[1:], strict=True)
    ]
    wide = np.pad(x, [(0, 0), *((lack // 2, lack - lack // 2) for lack in lacks)])
    seen = np.lib.stride_tricks.sliding_window_view(wide, kernel, axis=(1, 2, 3))
    return seen[:, :: stride[0], :: stride[1], :: stride[2]]
