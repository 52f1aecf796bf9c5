"""From pictures and words to what the loss needs: z_0, the conditioning, and the null text.

The border between the data plane and the networks: uint8 becomes float here (through
`emu_edit.images`), strings become features, task indices become vectors. What frozen
networks made of a pair earlier is taken as it is. This draws nothing, and of pictures knows no
schedule; given frames of clips are noised by one, where a model is trained so.
"""

from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from emu_edit.batch import ClipBatch, EditBatch, EncodedBatch, EncodedText
from emu_edit.diffusion.prediction import add_noise
from emu_edit.diffusion.schedule import Schedule, uniform_timesteps
from emu_edit.errors import InputError
from emu_edit.images import to_float
from emu_edit.models.fingerprints import codec_fingerprint, text_fingerprint
from emu_edit.models.given import GivenFrames
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.networks import EditNetworks
from emu_edit.models.surgery import learns
from emu_edit.training.draws import DrawnBatch, DrawnClips

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
        self._null_text: tuple[tuple, TextFeatures] | None = None

    def __call__(
        self, drawn: DrawnBatch
    ) -> tuple[Float[Tensor, "b c h w"], Conditioning, TextFeatures]:
        """Return (z_0, cond, null_text); nothing is dropped yet.

        z_0 = mean + std eps_posterior

        with the mean and deviation of the target's posterior; z_source is the source's mode,
        null_text the encoding of "" (b = 1, or one for each picture that the text encoder sees).
        A row without a source has that of a withheld one, 0.

        Raises:
            InputError: if the batch was encoded by other networks, or holds clips.
        """
        networks, batch = self.networks, drawn.batch
        match batch:
            case EditBatch():
                shown = to_float(batch.source)
                # the texts first: a masked encoder of transformers reads its mask back, and would
                # wait for the codec here
                text, null_text = self._encoded(list(batch.instruction), shown)
                with torch.no_grad():
                    mean, std = networks.codec.posterior(to_float(batch.target))
                    z_source = networks.codec.encode_condition(shown)
                    z_source = z_source * batch.has_source[:, None, None, None]
            case EncodedBatch():
                self._check_codec(batch.codec)
                mean, std = batch.target, batch.target_std
                with torch.no_grad():
                    z_source = networks.codec.as_condition(batch.source)
                text, null_text = self._text(batch)
            case ClipBatch():
                raise InputError(
                    "this module trains on pictures and the data are clips (ClipDataModule); "
                    "give data of pictures, or a module of clips"
                )
        z_0 = mean.float() + std.float() * drawn.eps_posterior
        v_task = networks.task_embedding(batch.task)
        return z_0, Conditioning(text=text, z_source=z_source.float(), v_task=v_task), null_text

    def _text(self, batch: EncodedBatch) -> tuple[TextFeatures, TextFeatures]:
        if batch.text is None:
            shown = None
            if self.networks.text_encoder.sees_pictures:
                with torch.no_grad():
                    shown = self.networks.codec.decode(batch.source)
            return self._encoded(list(batch.instruction), shown)
        self._check_text(batch.text)
        return (
            TextFeatures(tokens=batch.text.tokens, mask=batch.text.mask),
            TextFeatures(tokens=batch.text.null_tokens[None], mask=batch.text.null_mask[None]),
        )

    def _encoded(
        self, texts: list[str], pictures: Float[Tensor, "b 3 H W"] | None = None
    ) -> tuple[TextFeatures, TextFeatures]:
        """Return the features of texts and, of as many tokens, those of "".

        The encoding of "" by a frozen encoder that sees no pictures is kept; it is made alone, so
        that it does not depend on which batch came first.
        """
        encoder = self.networks.text_encoder
        is_fake = isinstance(next(encoder.parameters(), None), FakeTensor)  # of `fit --plan`
        if learns(encoder) or encoder.sees_pictures or is_fake:
            return self.networks.encode_text(texts, pictures=pictures)
        # other weights, another device or precision: whatever replaces numbers leaves a trace here
        state = (
            *((p.data_ptr(), p._version, p.dtype, p.device) for p in encoder.parameters()),
            *((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")),
        )
        if self._null_text is None or self._null_text[0] != state:
            # validation runs in inference mode, whose tensors training could not use
            with torch.inference_mode(mode=False), torch.no_grad():
                self._null_text = state, encoder([""])
        text, null = encoder(texts), self._null_text[1]
        missing = text.mask.shape[1] - null.mask.shape[1]
        return text, TextFeatures(
            tokens=functional.pad(null.tokens, (0, 0, 0, missing)),
            mask=functional.pad(null.mask, (0, missing)),
        )

    def _check_codec(self, codec: str) -> None:
        if codec != self._codec_fingerprint:
            raise InputError(
                f"data.train holds latents of the codec {codec[:SHOWN]}, model.codec is "
                f"{self._codec_fingerprint[:SHOWN]}; {CACHE_AGAIN}"
            )

    def _check_text(self, text: EncodedText) -> None:
        if self.networks.text_encoder.sees_pictures:
            raise InputError(
                "data.train holds text features, which are one for each text, and "
                f"model.text_encoder makes others for each picture; {CACHE_AGAIN}"
            )
        if learns(self.networks.text_encoder):
            raise InputError(
                "data.train holds text features, which model.text_encoder would learn to make "
                f"otherwise; freeze it (trainable: false), or {CACHE_AGAIN}"
            )
        if text.encoder != self._text_fingerprint:
            raise InputError(
                f"data.train holds features of the text encoder {text.encoder[:SHOWN]}, "
                f"model.text_encoder is {self._text_fingerprint[:SHOWN]}; {CACHE_AGAIN}"
            )

    # of frozen networks, and needed for encoded batches only: once, when the first comes
    @cached_property
    def _codec_fingerprint(self) -> str:
        return codec_fingerprint(self.networks.codec)

    @cached_property
    def _text_fingerprint(self) -> str:
        return text_fingerprint(self.networks.text_encoder)


class ClipEncoder(BatchEncoder):
    """Encode clips with captions, for networks whose denoiser takes videos.

    A row is a clip, its channels are those of its frames, "(f c)"; all networks are frozen.

    Args:
        networks: the model's.
        given: which frames the model is told, as z_source, and with how much noise.
        schedule: whose noise that is.
    """

    def __init__(self, networks: EditNetworks, given: GivenFrames, schedule: Schedule) -> None:
        super().__init__(networks)
        self.given, self.schedule = given, schedule

    @torch.no_grad()
    def __call__(
        self, drawn: DrawnBatch
    ) -> tuple[Float[Tensor, "b fc h w"], Conditioning, TextFeatures]:
        """Return (z_0, cond, null_text); z_source has the given frames' modes, zeros elsewhere."""
        networks, batch = self.networks, drawn.batch
        assert isinstance(batch, ClipBatch)
        frames = batch.target.shape[1]
        posterior = networks.codec.posterior(to_float(batch.target.flatten(0, 1)))
        mean, std = (
            rearrange(each.float(), "(b f) c h w -> b (f c) h w", f=frames) for each in posterior
        )
        told = mean.unflatten(1, (frames, -1))[:, list(self.given.places(frames))]
        if isinstance(drawn, DrawnClips):
            told = self._noised(told, drawn)
        text, null_text = self._encoded(list(batch.instruction))
        cond = Conditioning(
            text, self.given.placed(told, frames), networks.task_embedding(batch.task)
        )
        return mean + std * drawn.eps_posterior, cond, null_text

    def _noised(
        self, told: Float[Tensor, "b n c h w"], drawn: DrawnClips
    ) -> Float[Tensor, "b n c h w"]:
        """Noise what is told, all frames of a clip alike: t uniform in 0..train_noise."""
        t = uniform_timesteps(drawn.u_given, self.given.train_noise + 1)
        noisy = add_noise(told.flatten(1, 2), drawn.eps_given, self.schedule.at(t))
        return noisy.view_as(told)


class SourceClipEncoder(BatchEncoder):
    """Encode clips that a student is to edit: what they show and what is asked; no result."""

    @torch.no_grad()
    def __call__(
        self, drawn: DrawnBatch
    ) -> tuple[Float[Tensor, "b fc h w"], Conditioning, TextFeatures]:
        """Return (z, cond, null_text); z is the source's modes, "(f c)", z_source as of edits."""
        networks, batch = self.networks, drawn.batch
        assert isinstance(batch, ClipBatch)
        frames = batch.source.shape[1]
        mean, _ = networks.codec.posterior(to_float(batch.source.flatten(0, 1)))
        z = rearrange(mean.float(), "(b f) c h w -> b (f c) h w", f=frames)
        text, null_text = self._encoded(list(batch.instruction))
        cond = Conditioning(
            text, networks.codec.as_condition(z), networks.task_embedding(batch.task)
        )
        return z, cond, null_text
