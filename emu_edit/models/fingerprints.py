"""What two models are told apart by: the numbers of their tensors and of their codec."""

import hashlib
import json

import torch
from torch import Tensor, nn

from emu_edit.models.codec import KLCodec, PatchCodec
from emu_edit.models.interfaces import ImageCodec, TextEncoder

# Tensors above this many numbers are hashed by as many evenly spaced ones: a production model's
# fingerprint then takes a fraction of a second instead of several. Training moves every number.
HASHED = 65536
PROBES = ("", "a red hat", "Add 2 dogs!", "é")  # few tokens each, whatever the tokenizer


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


def codec_fingerprint(codec: ImageCodec) -> str:
    """Return the SHA-256 that tells codecs apart, of their kind, numbers and tensors.

    In bfloat16: a trainer may have cast a frozen network to it, and it is the same network.
    """
    digest = hashlib.sha256(json.dumps(codec_numbers(codec)).encode())
    _add_tensors(digest, codec)
    return digest.hexdigest()


def text_fingerprint(text_encoder: TextEncoder) -> str:
    """Return the SHA-256 that tells text encoders apart, of their tensors and of what they read.

    The tokenizer enters by the ids and the mask it gives for a few short texts, which shows another
    vocabulary and other padding.
    """
    ids, mask = text_encoder.tokenize(PROBES)
    digest = hashlib.sha256(json.dumps([ids.tolist(), mask.tolist()]).encode())
    _add_tensors(digest, text_encoder)
    return digest.hexdigest()


def _add_tensors(digest: "hashlib._Hash", module: nn.Module) -> None:
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(spaced_bytes(tensor, torch.bfloat16))
