"""From pictures and words to what the loss needs: z_0, the conditioning, and the null text.

The border between the data plane and the networks: uint8 becomes float here (through
`emu_edit.images`), strings become features, task indices become vectors. What a cache has kept of
frozen networks is taken from it instead. It knows no schedule and draws nothing.
"""

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from emu_edit.batch import EditBatch, Encoded, EncodedText
from emu_edit.errors import InputError
from emu_edit.images import to_float
from emu_edit.models.fingerprints import codec_fingerprint, text_fingerprint
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.networks import EditNetworks
from emu_edit.models.surgery import learns
from emu_edit.training.draws import DrawnBatch

SHOWN = 12  # digits of a fingerprint in messages
CACHE_AGAIN = (
    "write the cache again with `emu-edit shards cache`, or train on the pictures themselves"
)


class BatchEncoder:
    """Encode batches with the given networks, which it uses but does not own.

    The codec is always frozen, so nothing is recorded for its gradient; the text encoder and the
    task table are run in the caller's gradient mode.
    """

    def __init__(self, networks: EditNetworks) -> None:
        self.networks = networks

    def __call__(
        self, drawn: DrawnBatch
    ) -> tuple[Float[Tensor, "b c h w"], Conditioning, TextFeatures]:
        """Return (z_0, cond, null_text); nothing is dropped yet.

        z_0 = mean + std eps_posterior

        with the mean and deviation of the target's posterior; z_source is the source's mode,
        null_text the encoding of "" (b = 1).

        Raises:
            InputError: if the batch comes from a cache that other networks have written.
        """
        mean, std, z_source = self._latents(drawn.batch)
        z_0 = mean + std * drawn.eps_posterior
        text, null_text = self._text(drawn.batch)
        v_task = self.networks.task_embedding(drawn.batch.task)
        return z_0, Conditioning(text=text, z_source=z_source, v_task=v_task), null_text

    @torch.no_grad()
    def _latents(
        self, batch: EditBatch
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Return mean and deviation of the target's posterior, and z_source."""
        codec = self.networks.codec
        if batch.encoded is None:
            mean, std = codec.posterior(to_float(batch.target))
            z_source = codec.encode_condition(to_float(batch.source))
        else:
            self._check_codec(batch.encoded)
            mean, std = batch.encoded.target, batch.encoded.target_std
            z_source = codec.as_condition(batch.encoded.source)
        return mean.float(), std.float(), z_source.float()

    def _text(self, batch: EditBatch) -> tuple[TextFeatures, TextFeatures]:
        if batch.encoded is None or (kept := batch.encoded.text) is None:
            return self.networks.encode_text(list(batch.instruction))
        self._check_text(kept)
        return (
            TextFeatures(tokens=kept.tokens, mask=kept.mask),
            TextFeatures(tokens=kept.null_tokens[None], mask=kept.null_mask[None]),
        )

    def _check_codec(self, kept: Encoded) -> None:
        if kept.codec != self._codec_fingerprint:
            raise InputError(
                f"data.train holds latents of the codec {kept.codec[:SHOWN]}, model.codec is "
                f"{self._codec_fingerprint[:SHOWN]}; {CACHE_AGAIN}"
            )

    def _check_text(self, kept: EncodedText) -> None:
        if learns(self.networks.text_encoder):
            raise InputError(
                "data.train holds text features, which model.text_encoder would learn to make "
                f"otherwise; freeze it (trainable: false), or {CACHE_AGAIN}"
            )
        if kept.encoder != self._text_fingerprint:
            raise InputError(
                f"data.train holds features of the text encoder {kept.encoder[:SHOWN]}, "
                f"model.text_encoder is {self._text_fingerprint[:SHOWN]}; {CACHE_AGAIN}"
            )

    # frozen networks, and needed with a cache only: once, when it first comes
    @cached_property
    def _codec_fingerprint(self) -> str:
        return codec_fingerprint(self.networks.codec)

    @cached_property
    def _text_fingerprint(self) -> str:
        return text_fingerprint(self.networks.text_encoder)
