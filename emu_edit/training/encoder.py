"""From pictures and words to what the loss needs: z_0, the conditioning, and the null text.

The border between the data plane and the networks: uint8 becomes float here (through
`emu_edit.images`), strings become features, task indices become vectors. It knows no schedule and
draws nothing.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emu_edit.images import to_float
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.weights import EditNetworks
from emu_edit.training.draws import DrawnBatch


class BatchEncoder:
    """Encode batches with the given networks, which it uses but does not own.

    The codec is always frozen, so nothing is recorded for its gradient; the text encoder and the
    task table are run in the caller's gradient mode.
    """

    def __init__(self, networks: EditNetworks) -> None:
        self.networks = networks

    def __call__(
        self, batch: DrawnBatch
    ) -> tuple[Float[Tensor, "b c h w"], Conditioning, TextFeatures]:
        """Return (z_0, cond, null_text); nothing is dropped yet.

        z_0 = mean + std eps_posterior

        with the mean and deviation of the target's posterior; z_source is the source's mode,
        null_text the encoding of "" (b = 1).
        """
        codec = self.networks.codec
        with torch.no_grad():
            mean, std = codec.posterior(to_float(batch.target))
            z_0 = mean.float() + std.float() * batch.eps_posterior
            z_source = codec.encode_condition(to_float(batch.source)).float()
        text, null_text = self.networks.encode_text(list(batch.instruction))
        v_task = self.networks.task_embedding(batch.task)
        return z_0, Conditioning(text=text, z_source=z_source, v_task=v_task), null_text
