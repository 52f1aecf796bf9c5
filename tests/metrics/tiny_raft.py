"""A narrow random RAFT in the published layout, and its flow computed from it in plain numpy.

The numpy half imports nothing of the project: float64, a loop over the places for what is looked
up and what is upsampled, every name as it stands in the published file.
"""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

FOLDER, FILE = "raft_large", "raft_large_C_T_SKHT_V2-ff5fadd5.pth"
FEATURES, CONTEXT, HIDDEN = (6, 8, 10, 12), (6, 7, 8, 11), 5


def raft_weights() -> dict[str, Tensor]:
    """Draw weights so large that different frames have different flows."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (one, two, three, last) in (
        ("feature_encoder", FEATURES),
        ("context_encoder", CONTEXT),
    ):
        convs = {"convnormrelu.0": (one, 3, 7, 7), "conv": (last, three, 1, 1)}
        for layer, before, after in ((1, one, one), (2, one, two), (3, two, three)):
            for block in (0, 1):
                at, inputs = f"layer{layer}.{block}", after if block else before
                convs[f"{at}.convnormrelu1.0"] = (after, inputs, 3, 3)
                convs[f"{at}.convnormrelu2.0"] = (after, after, 3, 3)
                if layer > 1 and block == 0:
                    convs[f"{at}.downsample.0"] = (after, inputs, 1, 1)
        shapes |= {f"{name}.{conv}": shape for conv, shape in convs.items()}
    motion = "update_block.motion_encoder"
    gru_inputs = HIDDEN + (CONTEXT[-1] - HIDDEN) + 7 + 2
    shapes |= {
        f"{motion}.convcorr1.0": (9, 4 * 81, 1, 1),
        f"{motion}.convcorr2.0": (8, 9, 3, 3),
        f"{motion}.convflow1.0": (6, 2, 7, 7),
        f"{motion}.convflow2.0": (4, 6, 3, 3),
        f"{motion}.conv.0": (7, 8 + 4, 3, 3),
        "update_block.flow_head.conv1": (10, HIDDEN, 3, 3),
        "update_block.flow_head.conv2": (2, 10, 3, 3),
        "mask_predictor.convrelu.0": (9, HIDDEN, 3, 3),
        "mask_predictor.conv": (576, 9, 1, 1),
    }
    for unit, kernel in (("convgru1", (1, 5)), ("convgru2", (5, 1))):
        for gate in "zrq":
            name = f"update_block.recurrent_block.{unit}.conv{gate}"
            shapes[name] = (HIDDEN, gru_inputs, *kernel)
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    for name, shape in sorted(shapes.items()):
        scale = math.sqrt(3 / math.prod(shape[1:]))
        weights[f"{name}.weight"] = scale * torch.randn(shape, generator=generator)
        weights[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)
        if name.startswith("context_encoder") and name.endswith(".0"):
            norm = f"{name[:-2]}.1"
            for part in ("weight", "bias", "running_mean"):
                drawn = 0.2 * torch.randn(shape[0], generator=generator)
                weights[f"{norm}.{part}"] = drawn + (part == "weight")
            weights[f"{norm}.running_var"] = 0.5 + torch.rand(shape[0], generator=generator)
            weights[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    return weights


def write_raft(folder: Path, speed: float = 1.0) -> Path:
    """Write them as they are published: a torch file with the weights and nothing else.

    With little speed flows are so short that most of a small frame is found in the next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = raft_weights()
    for part in ("weight", "bias"):
        weights[f"update_block.flow_head.conv2.{part}"] *= speed
    torch.save(weights, folder / FILE)
    return folder


def raft_flow(weights: dict[str, Tensor], before: Array, after: Array, updates: int) -> Array:
    """Return the flow "2 h w" between frames "3 h w" in [-1, 1]."""
    w = {name: value.double().numpy() for name, value in weights.items()}
    one, other = (_encoded(frame, w, "feature_encoder") for frame in (before, after))
    pyramid = [np.einsum("chw,cyx->hwyx", one, other) / math.sqrt(len(one))]
    for _ in range(3):
        last = pyramid[-1]
        h, v = last.shape[2] // 2 * 2, last.shape[3] // 2 * 2
        last = last[:, :, :h, :v]
        pyramid.append(
            (
                last[..., ::2, ::2]
                + last[..., 1::2, ::2]
                + last[..., ::2, 1::2]
                + last[..., 1::2, 1::2]
            )
            / 4
        )
    context = _encoded(before, w, "context_encoder")
    hidden, context = np.tanh(context[:HIDDEN]), np.maximum(context[HIDDEN:], 0)
    flow = np.zeros((2, *one.shape[1:]))
    for _ in range(updates):
        seen = _relu(_conv(_looked_up(pyramid, flow), w, "update_block.motion_encoder.convcorr1.0"))
        seen = _relu(_conv(seen, w, "update_block.motion_encoder.convcorr2.0"))
        moved = _relu(_conv(flow, w, "update_block.motion_encoder.convflow1.0"))
        moved = _relu(_conv(moved, w, "update_block.motion_encoder.convflow2.0"))
        joined = np.concatenate([seen, moved])
        motion = _relu(_conv(joined, w, "update_block.motion_encoder.conv.0"))
        x = np.concatenate([context, motion, flow])
        for unit in ("convgru1", "convgru2"):
            at = f"update_block.recurrent_block.{unit}"
            both = np.concatenate([hidden, x])
            z, r = (1 / (1 + np.exp(-_conv(both, w, f"{at}.conv{gate}"))) for gate in "zr")
            q = np.tanh(_conv(np.concatenate([r * hidden, x]), w, f"{at}.convq"))
            hidden = (1 - z) * hidden + z * q
        step = _relu(_conv(hidden, w, "update_block.flow_head.conv1"))
        flow = flow + _conv(step, w, "update_block.flow_head.conv2")
    mask = 0.25 * _conv(
        _relu(_conv(hidden, w, "mask_predictor.convrelu.0")), w, "mask_predictor.conv"
    )
    return _upsampled(flow, mask)


def _encoded(frame: Array, w: dict[str, Array], name: str) -> Array:
    x = _relu(_norm(_conv(frame, w, f"{name}.convnormrelu.0", 2), w, f"{name}.convnormrelu.1"))
    for layer in (1, 2, 3):
        for block in (0, 1):
            at = f"{name}.layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            y = _conv(x, w, f"{at}.convnormrelu1.0", stride)
            y = _relu(_norm(y, w, f"{at}.convnormrelu1.1"))
            y = _conv(y, w, f"{at}.convnormrelu2.0")
            y = _relu(_norm(y, w, f"{at}.convnormrelu2.1"))
            if stride == 2:
                x = _norm(_conv(x, w, f"{at}.downsample.0", 2), w, f"{at}.downsample.1")
            x = _relu(x + y)
    return _conv(x, w, f"{name}.conv")


def _norm(x: Array, w: dict[str, Array], name: str) -> Array:
    """Normalise by what was measured in training, or, where nothing was, by the frame's own."""
    if f"{name}.weight" not in w:
        mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-5)
    mean, variance, weight, bias = (
        w[f"{name}.{part}"][:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def _conv(x: Array, w: dict[str, Array], name: str, stride: int = 1) -> Array:
    kernel = w[f"{name}.weight"]
    _, _, rows, columns = kernel.shape
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2))
    total = np.zeros((len(kernel), -(-height // stride), -(-width // stride)))
    for i in range(rows):
        for j in range(columns):
            part = padded[:, i : i + height : stride, j : j + width : stride]
            total += np.tensordot(kernel[:, :, i, j], part, 1)
    return total + w[f"{name}.bias"][:, None, None]


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _looked_up(pyramid: list[Array], flow: Array) -> Array:
    """Read 9 x 9 correlations of each level around where each place is believed to be."""
    _, height, width = flow.shape
    steps = np.arange(-4, 5)
    found = np.zeros((4, 9, 9, height, width))
    for level, products in enumerate(pyramid):
        for row in range(height):
            for column in range(width):
                x = (column + flow[0, row, column]) / 2**level + steps[:, None]
                y = (row + flow[1, row, column]) / 2**level + steps[None]
                found[level, :, :, row, column] = _between(products[row, column], x, y)
    return found.reshape(-1, height, width)


def _between(picture: Array, x: Array, y: Array) -> Array:
    """Read a picture at "x y" between its pixels; it is zero around."""
    height, width = picture.shape
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    total = np.zeros(np.broadcast(x, y).shape)
    for column in (left, left + 1):
        for row in (top, top + 1):
            share = (1 - np.abs(x - column)) * (1 - np.abs(y - row))
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            total += inside * share * picture[row.clip(0, height - 1), column.clip(0, width - 1)]
    return total


def _upsampled(flow: Array, mask: Array) -> Array:
    """Mix the nine flows around each place by softmax, anew for each of its 8 x 8 pixels."""
    _, height, width = flow.shape
    padded = np.pad(flow, ((0, 0), (1, 1), (1, 1)))
    parts = np.exp(mask.reshape(9, 8, 8, height, width))
    parts /= parts.sum(0)
    result = np.zeros((2, 8 * height, 8 * width))
    for row in range(height):
        for column in range(width):
            nine = padded[:, row : row + 3, column : column + 3].reshape(2, 9)
            for y in range(8):
                pixels = 8 * nine @ parts[:, y, :, row, column]
                result[:, 8 * row + y, 8 * column : 8 * column + 8] = pixels
    return result
