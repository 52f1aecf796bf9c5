"""The random numbers of one training step, drawn on the CPU before the batch leaves for the device.

Every number is a function of (seed, purpose, position in the stream), so micro-batches, ranks,
workers and restarts cannot change what a sample meets. Drawing here, and not in the step, keeps the
step free of host synchronisation: reading positions back from a GPU would stall it.
"""

from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from emu_edit.batch import Batch, TensorRecord
from emu_edit.randomness import normals, uniforms


class Phase(Enum):
    """What the numbers are for: position 7 of the validation set is not that of training."""

    train = "train"
    validate = "validate"
    test = "test"


@dataclass(frozen=True)
class DrawnBatch(TensorRecord):
    """A batch with its random numbers.

    Attributes:
        batch: the pairs.
        u: uniforms in [0, 1): column 0 picks the timestep, columns 1 and 2 the conditioning
            dropout.
        eps: the noise the denoiser has to see through.
        eps_posterior: the noise with which the codec's posterior is sampled.
    """

    batch: Batch
    u: Float[Tensor, "b 3"]
    eps: Float[Tensor, "b c lh lw"]
    eps_posterior: Float[Tensor, "b c lh lw"]

    def __len__(self) -> int:
        return len(self.batch)


@dataclass(frozen=True)
class DrawnClips(DrawnBatch):
    """Clips with their random numbers, for a model whose given frames are noised.

    Attributes:
        u_given: uniforms in [0, 1) that pick the noise level of a clip's given frames.
        eps_given: their noise.
    """

    u_given: Float[Tensor, " b"]
    eps_given: Float[Tensor, "b nc lh lw"]


def draw(
    batch: Batch, *, seed: int, phase: Phase, latent_shape: tuple[int, int, int]
) -> DrawnBatch:
    """Draw the numbers of a batch that is still on the CPU; elsewhere it waits for the device."""
    position = batch.position.cpu()

    def purpose(name: str) -> str:
        return f"{phase.name}/{name}"

    u_t = uniforms(seed, purpose("timestep"), position, 1)
    u_drop = uniforms(seed, purpose("dropout"), position, 2)
    return DrawnBatch(
        batch,
        u=torch.cat([u_t, u_drop], dim=1),
        eps=normals(seed, purpose("noise"), position, latent_shape),
        eps_posterior=normals(seed, purpose("posterior"), position, latent_shape),
    )


def with_given_noise(drawn: DrawnBatch, *, seed: int, phase: Phase, frames: int) -> DrawnClips:
    """Draw the noise of so many given frames, too; the other numbers stay what they are."""
    position = drawn.batch.position.cpu()
    clip_frames = drawn.batch.target.shape[1]
    channels = drawn.eps.shape[1] // clip_frames * frames
    return DrawnClips(
        **vars(drawn),
        u_given=uniforms(seed, f"{phase.name}/given level", position, 1)[:, 0],
        eps_given=normals(
            seed, f"{phase.name}/given noise", position, (channels, *drawn.eps.shape[2:])
        ),
    )
