"""ClipDataModule: shards of edited clips -> batches under Lightning, streamed as pictures are.

Order, mixture, resume, substitutes for bad samples and loading are those of `EditDataModule`; only
what is made of a shard's members differs. A sample is a window of so many frames of a clip, inside
one shot where one is long enough; in training it is drawn, keyed by the position in the stream, in
evaluation it is the first. All frames of a window are cut out at the same place. Clips that have
nothing but captions (`shards convert clips`) are of the task `caption`: name it in `data.tasks`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from datamodules.edit import EditDataModule
from datamodules.shards.clips import ClipFacts
from datamodules.stream.mixing import Lane
from datamodules.stream.reader import Decode, OpenShard, decode_clip
from datamodules.stream.transforms import Crop
from emu_edit.batch import ClipSample, Sample
from emu_edit.errors import BadSampleError, InputError
from emu_edit.randomness import keyed_generator


@dataclass(frozen=True)
class ClipDecoder:
    """Decode clips, take a window of frames, and bring it to the training size.

    Args:
        crop: the square that is cut out of every frame.
        frames: how many a sample has.
        seed: keys the window; None takes the first.
    """

    crop: Crop
    frames: int
    seed: int | None = None

    def __call__(
        self,
        shard: OpenShard,
        sample: int,
        position: int,
        wording: int,  # noqa: ARG002  clips have no words
    ) -> Callable[..., Sample]:
        """Decode source, target and mask of a sample.

        Raises:
            BadSampleError: naming shard and key, if it is no clip, too short, or unreadable.
        """
        where = shard.where(sample)
        facts = ClipFacts.of(shard.text(sample))
        if facts is None:
            raise BadSampleError(
                f"{where}: its json has no clip with frames and rate; data.train needs shards of "
                "clips",
                "no_clip",
            )
        if facts.frames < self.frames:
            raise BadSampleError(
                f"{where}: has {facts.frames} frames, data.frames={self.frames} are needed",
                "too_few_frames",
            )
        source, target, mask = decode_clip(shard, sample, facts)
        window = self._window(facts, position)
        parts = [frames[window] for frames in (target if source is None else source, target)]
        masks = None if mask is None else mask[window]
        cut = [
            self.crop(s, t, None if masks is None else masks[i], position, shard.shape)
            for i, (s, t) in enumerate(zip(*parts, strict=True))
        ]
        sources, targets, kept = zip(*cut, strict=True)
        return partial(
            ClipSample,
            source=None if source is None else torch.stack(sources),
            target=torch.stack(targets),
            mask=None if masks is None else torch.stack(kept),
            rate=float(facts.rate),
        )

    def _window(self, facts: ClipFacts, position: int) -> slice:
        """Return which frames are taken."""
        every = range(facts.frames - self.frames + 1)
        whole = [i for i in every if not any(i < cut < i + self.frames for cut in facts.cuts)]
        starts, place = whole or every, 0
        if self.seed is not None:
            generator = keyed_generator(self.seed, "frames", position)
            place = int(generator.integers(len(starts)))
        return slice(starts[place], starts[place] + self.frames)


class ClipDataModule(EditDataModule):
    """Feed edited clips, or clips with captions.

    Args:
        train: folder of training shards or its address, or several as NAME: FOLDER.
        val: folder or address of validation shards.
        image_size: side of the square every frame is cut and resampled to.
        frames: of a sample; a longer clip gives a window, a shorter one another sample.
        global_batch: clips per optimizer step, over all processes and accumulated batches.
        **others: as of `EditDataModule`.
    """

    def __init__(
        self,
        train: dict[str, str] | str,
        val: str | None = None,
        image_size: int = 64,
        frames: int = 16,
        global_batch: int = 8,
        **others: Any,  # the one signature of all data modules; jsonargparse follows it to the base
    ) -> None:
        super().__init__(
            train=train, val=val, image_size=image_size, global_batch=global_batch, **others
        )
        if frames < 1:
            raise InputError(f"data.frames={frames} must be at least 1")
        self._frames = frames

    def decoder(self, lanes: Sequence[Lane], *, is_training: bool) -> Decode:
        """Return what makes a clip of the members of a shard."""
        del lanes  # of clips, all
        if is_training:
            return ClipDecoder(self._crop, self._frames, self._seed)
        return ClipDecoder(self._val_crop, self._frames)

    def settings(self) -> dict[str, object]:
        """Return what else decides which samples there are: as of pictures, and the frames."""
        return {**super().settings(), "frames": self._frames}
