"""What two models are told apart by: the numbers of their tensors and of their codec."""

import torch
from torch import Tensor

from emu_edit.models.codec import KLCodec, PatchCodec
from emu_edit.models.interfaces import ImageCodec

# Tensors above this many numbers are hashed by as many evenly spaced ones: a production model's
# fingerprint then takes a fraction of a second instead of several. Training moves every number.
HASHED = 65536


def spaced_bytes(tensor: Tensor, precision: torch.dtype | None = None) -> memoryview:
    """Return the bytes of a tensor's numbers, of a large one's every n-th, in their own precision.

    With `precision`, floating-point numbers are brought to that one first.

    Sparse changes of a large tensor may pass unseen: this tells models apart, it is no seal.
    """
    numbers = tensor.detach().flatten()[:: -(-max(tensor.numel(), 1) // HASHED)].cpu()
    if precision is not None and numbers.is_floating_point():
        numbers = numbers.to(precision)
    # as bytes: numpy has no bfloat16
    return numbers.contiguous().view(torch.uint8).numpy().data


def codec_numbers(codec: ImageCodec) -> list[object]:
    """Return the codec's kind and the numbers that no tensor of it holds."""
    match codec:
        case PatchCodec():
            return ["PatchCodec", codec.patch, codec.shift, codec.scale]
        case KLCodec():
            return ["KLCodec", codec.scale_condition, codec.shift, codec.scale]
        case _:
            return [type(codec).__name__]
