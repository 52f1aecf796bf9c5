"""What models and their parts are told apart by: hashes of tensors and of the facts beside them.

Each tensor enters with name, shape and numbers; a large one by evenly spaced numbers, so that a
production model takes a fraction of a second instead of several. Training moves every number, but a
sparse change may pass unseen: these hashes tell models apart, they are no seal.
"""

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from emu_edit.models.codec import KLCodec, PackedCodec, PatchCodec
from emu_edit.models.interfaces import ImageCodec, TextEncoder
from emu_edit.models.networks import EditNetworks

HASHED = 65536  # numbers of a tensor at most
PROBES = ("", "a red hat", "Add 2 dogs!", "é")  # few tokens each, whatever the tokenizer


def hash_of(
    facts: object, tensors: Iterable[tuple[str, Tensor]], precision: torch.dtype | None = None
) -> str:
    """Return the SHA-256 of JSON-ready facts and of named tensors, in the order given.

    With `precision`, floating-point numbers are first brought to that one, and storage does not
    count; without, the tensors' own precision is part of the hash.
    """
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, stored in tensors:
        tensor = stored
        if is_traceable_wrapper_subclass(stored):
            tensor = stored.dequantize()  # pyright: ignore[reportAttributeAccessIssue]  torchao's
        kind = f"{tensor.dtype} " if precision is None else ""
        digest.update(f"{name} {kind}{tuple(tensor.shape)} ".encode())
        numbers = tensor.detach().flatten()[:: -(-max(tensor.numel(), 1) // HASHED)].cpu()
        if precision is not None and numbers.is_floating_point():
            numbers = numbers.to(precision)
        # as bytes: numpy has no bfloat16
        digest.update(numbers.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def codec_numbers(codec: ImageCodec) -> list[object]:
    """Return the codec's kind and the numbers that no tensor of it holds."""
    match codec:
        case PatchCodec():
            return ["PatchCodec", codec.patch, codec.shift, codec.scale]
        case KLCodec():
            return ["KLCodec", codec.scale_condition, codec.shift, codec.scale]
        case PackedCodec():
            return ["PackedCodec", codec.mean.flatten().tolist(), codec.std.flatten().tolist()]
        case _:
            return [type(codec).__name__]


def codec_fingerprint(codec: ImageCodec) -> str:
    """Return the hash of a codec: its kind, numbers and tensors.

    In bfloat16: a trainer may have cast a frozen network to it, and it is the same network.
    """
    return hash_of(codec_numbers(codec), sorted(codec.state_dict().items()), torch.bfloat16)


def text_fingerprint(text_encoder: TextEncoder) -> str:
    """Return the hash of a text encoder: its tensors in bfloat16, and what its tokenizer reads.

    The ids and the mask of a few short texts show another vocabulary and other padding.
    """
    ids, mask = text_encoder.tokenize(PROBES)
    tensors = sorted(text_encoder.state_dict().items())
    return hash_of([ids.tolist(), mask.tolist()], tensors, torch.bfloat16)


def base_fingerprint(denoiser: nn.Module) -> str:
    """Return the hash of a picture model that adapters name their base by: its tensors.

    In bfloat16: a trainer may have cast the frozen base to it. A float16 copy is another base.
    """
    return hash_of([], sorted(denoiser.state_dict().items()), torch.bfloat16)


def model_hash(networks: EditNetworks) -> str:
    """Return the hash that tells base models apart: of denoiser, text encoder and codec.

    The table of tasks is left out: a task more is no other base. In float32, so that device and
    storage do not matter: a model of `export --half` is another base than the full one (its weights
    are rounded), and the same however it is stored again.
    """
    parts = {
        "denoiser": networks.denoiser,
        "text_encoder": networks.text_encoder,
        "codec": networks.codec,
    }
    tensors = (
        (f"{part}.{name}", tensor)
        for part, module in parts.items()
        for name, tensor in sorted(module.state_dict().items())
    )
    return hash_of(codec_numbers(networks.codec), tensors, torch.float32)
