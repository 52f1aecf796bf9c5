"""The records that flow from the data plane to training: one sample, and a stacked batch.

Pictures are uint8 here, lossless and a quarter of the traffic; strings stay strings, so the data
plane knows no tokenizer. `position` is the sample's place in the global stream: all randomness of
training (timestep, noise, dropout, flips) is drawn from it, so that ranks, workers and restarts
cannot change what a sample meets. Samples of a cache carry latents in place of pictures, which are
then 0x0.
"""

from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from emu_edit.encoded import Encoded


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be used, and whose place another of its task has taken.

    Attributes:
        position: the place in the stream.
        task: its task, or `dataset/task` where data sets are mixed.
        shard: the file it lies in.
        index: which sample of the shard it is, from 0.
        samples: how many samples the shard has.
        key: its name in the shard.
        kind: what is wrong with it in a word, for counting.
        reason: what is wrong with it in full.
    """

    position: int
    task: str
    shard: str
    index: int
    samples: int
    key: str
    kind: str
    reason: str


@dataclass(frozen=True)
class EditSample:
    """One pair. `mask` is True where the edit may change pixels; None if there is no mask.

    `bad` are the samples that should have been here, the last of them replaced by this one.
    """

    key: str
    source: UInt8[Tensor, "3 h w"]
    target: UInt8[Tensor, "3 h w"]
    instruction: str
    task: int
    mask: Bool[Tensor, "mh mw"] | None = None
    source_caption: str = ""
    target_caption: str = ""
    position: int = 0
    encoded: Encoded | None = None
    bad: tuple[BadSample, ...] = ()


@dataclass(frozen=True)
class EditBatch:
    """Samples of one size, stacked.

    Rows of `mask` whose `has_mask` is False are all True and mean nothing. `bad` are the samples in
    whose place others came, of all rows.
    """

    key: tuple[str, ...]
    source: UInt8[Tensor, "b 3 h w"]
    target: UInt8[Tensor, "b 3 h w"]
    instruction: tuple[str, ...]
    task: Int64[Tensor, " b"]
    mask: Bool[Tensor, "b mh mw"]
    has_mask: Bool[Tensor, " b"]
    source_caption: tuple[str, ...]
    target_caption: tuple[str, ...]
    position: Int64[Tensor, " b"]
    # keyword only: a batch with more fields can follow (`DrawnBatch`)
    encoded: Encoded | None = field(default=None, kw_only=True)
    bad: tuple[BadSample, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.key)

    @staticmethod
    def collate(samples: "list[EditSample]") -> "EditBatch":
        """Stack samples; all must have the size of the first.

        Raises:
            ValueError: if the list is empty or sizes differ; the message names the keys.
        """
        if not samples:
            raise ValueError("collate needs at least one sample, got none")
        first = samples[0]
        for sample in samples:
            if (
                sample.source.shape != first.source.shape
                or sample.target.shape != first.source.shape
            ):
                raise ValueError(
                    f"one batch holds one size: {first.key} is {tuple(first.source.shape[1:])}, "
                    f"{sample.key} is {tuple(sample.source.shape[1:])} -> "
                    f"{tuple(sample.target.shape[1:])}"
                )
        # the size of the pictures, which samples of a cache do not have
        masks = [s.mask for s in samples if s.mask is not None]
        everywhere = torch.ones_like(masks[0] if masks else first.source[0], dtype=torch.bool)
        encoded = [s.encoded for s in samples if s.encoded is not None]
        return EditBatch(
            key=tuple(s.key for s in samples),
            source=torch.stack([s.source for s in samples]),
            target=torch.stack([s.target for s in samples]),
            instruction=tuple(s.instruction for s in samples),
            task=torch.tensor([s.task for s in samples]),
            mask=torch.stack([everywhere if s.mask is None else s.mask for s in samples]),
            has_mask=torch.tensor([s.mask is not None for s in samples]),
            source_caption=tuple(s.source_caption for s in samples),
            target_caption=tuple(s.target_caption for s in samples),
            position=torch.tensor([s.position for s in samples]),
            encoded=Encoded.collate(encoded) if encoded else None,
            bad=tuple(bad for s in samples for bad in s.bad),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "EditBatch":
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "EditBatch":
        """Return the batch with its tensors in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def share_memory(self) -> "EditBatch":
        """Return the batch with its tensors in memory that other processes can map.

        Raises:
            RuntimeError: if the system has no more of it.
        """
        return self._map(lambda tensor: tensor.share_memory_())

    def _map(self, function) -> "EditBatch":
        tensors = {
            name: function(value)
            for name in (entry.name for entry in fields(self))
            if isinstance(value := getattr(self, name), Tensor)
        }
        encoded = None if self.encoded is None else self.encoded.map(function)
        return replace(self, **tensors, encoded=encoded)
