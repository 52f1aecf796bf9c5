"""Keyed randomness: every draw is a pure function of (seed, purpose, position in the stream).

No generator state is kept or saved: ranks, workers, micro-batches and restarts cannot change what
a sample meets. Drawn on the CPU with numpy's Philox, a counter-based generator (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3"): CUDA streams differ between GPU models, seeds
must not.
"""

import zlib

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from emu_edit.errors import InputError


def check_seed(seed: int, what: str = "a seed", *, bits: int = 63) -> None:
    """Refuse (InputError) a seed outside 0..2^bits - 1; 63 is what torch and files can hold.

    `what` is its name in the message.
    """
    if not 0 <= seed < 2**bits:
        # Python does not write a number of more than 4300 digits
        came = seed if seed.bit_length() < 100 else f"a number of {seed.bit_length()} bits"
        raise InputError(f"{what} must be at least 0 and below 2^{bits}, got {came}")


def keyed_generator(seed: int, purpose: str, position: int) -> np.random.Generator:
    """Return the generator of one sample for one purpose, e.g. ("noise", 12345)."""
    key = np.array([seed % 2**64, zlib.crc32(purpose.encode())], dtype=np.uint64)
    # the position fills the highest counter word, so streams of neighbouring positions never
    # overlap
    counter = np.array([0, 0, 0, position % 2**64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def uniforms(
    seed: int, purpose: str, positions: Int64[Tensor, " b"], n: int
) -> Float[Tensor, "b n"]:
    """Draw n numbers in [0, 1) for each position (float32, CPU)."""
    generators = (keyed_generator(seed, purpose, position) for position in positions.tolist())
    return torch.from_numpy(np.stack([g.random(n, dtype=np.float32) for g in generators]))


def normals(
    seed: int, purpose: str, positions: Int64[Tensor, " b"], shape: tuple[int, ...]
) -> Float[Tensor, "b ..."]:
    """Draw a standard normal tensor of `shape` for each position (float32, CPU)."""
    generators = (keyed_generator(seed, purpose, position) for position in positions.tolist())
    rows = [g.standard_normal(shape, dtype=np.float32) for g in generators]
    return torch.from_numpy(np.stack(rows))
