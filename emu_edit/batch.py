"""The records that flow from the data plane to training: one sample, and a stacked batch.

Pictures are uint8 here, lossless and a quarter of the traffic; strings stay strings, so the data
plane knows no tokenizer. `position` is the sample's place in the global stream: all randomness of
training (timestep, noise, dropout, flips) is drawn from it, so that ranks, workers and restarts
cannot change what a sample meets.
"""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class EditSample:
    """One pair. `mask` is True where the edit may change pixels; None if there is no mask."""

    key: str
    source: UInt8[Tensor, "3 h w"]
    target: UInt8[Tensor, "3 h w"]
    instruction: str
    task: int
    mask: Bool[Tensor, "h w"] | None = None
    source_caption: str = ""
    target_caption: str = ""
    position: int = 0


@dataclass(frozen=True)
class EditBatch:
    """Samples of one size, stacked.

    Rows of `mask` whose `has_mask` is False are all True and mean nothing.
    """

    key: tuple[str, ...]
    source: UInt8[Tensor, "b 3 h w"]
    target: UInt8[Tensor, "b 3 h w"]
    instruction: tuple[str, ...]
    task: Int64[Tensor, " b"]
    mask: Bool[Tensor, "b h w"]
    has_mask: Bool[Tensor, " b"]
    source_caption: tuple[str, ...]
    target_caption: tuple[str, ...]
    position: Int64[Tensor, " b"]

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
        everywhere = torch.ones(first.source.shape[1:], dtype=torch.bool)
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
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "EditBatch":
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "EditBatch":
        """Return the batch with its tensors in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function) -> "EditBatch":
        tensors = {
            field.name: function(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)
