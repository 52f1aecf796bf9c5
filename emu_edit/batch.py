"""The records that flow from the data plane to training: one sample, and a stacked batch.

A sample is a pair of pictures or of clips, or what frozen encoders made of pictures: a codec and a
text encoder that never learn give the same of a pair in every epoch, so it can be read from disk
instead. Pictures are uint8 here, lossless and a quarter of the traffic; strings stay strings, so
the data plane knows no tokenizer. `position` is the sample's place in the global stream: all
randomness of training (timestep, noise, dropout, flips) is drawn from it, so that ranks, workers
and restarts cannot change what a sample meets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

TEXT_TOO_LONG = "text_too_long"

Record = TypeVar("Record", bound="TensorRecord")


@dataclass(frozen=True)
class TensorRecord:
    """A record whose tensors move together, those of records in it, too."""

    def map(self: Record, function: Callable[[Tensor], Tensor]) -> Record:
        """Apply `function` to each tensor."""
        changed = {}
        for name, value in vars(self).items():
            match value:
                case Tensor():
                    changed[name] = function(value)
                case TensorRecord():
                    changed[name] = value.map(function)
        return replace(self, **changed)

    def to(self: Record, device: torch.device | str, non_blocking: bool = False) -> Record:
        """Move the tensors to `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: Record) -> Record:
        """Copy the tensors to page-locked memory."""
        return self.map(lambda tensor: tensor.pin_memory())

    def share_memory(self: Record) -> Record:
        """Move the tensors to memory that other processes can map.

        Raises:
            RuntimeError: if the system has no more of it.
        """
        return self.map(lambda tensor: tensor.share_memory_())


@dataclass(frozen=True)
class EncodedText(TensorRecord):
    """Features of an instruction and of the empty text; l tokens, of which `mask` are real.

    Attributes:
        tokens: features of the instruction.
        mask: True where a token is attended.
        null_tokens: features of "", kept so that the text can still be dropped.
        null_mask: its mask.
        encoder: fingerprint of the text encoder.
    """

    tokens: Float[Tensor, "... l d"]
    mask: Bool[Tensor, "... l"]
    null_tokens: Float[Tensor, "n d"]
    null_mask: Bool[Tensor, " n"]
    encoder: str

    @staticmethod
    def collate(texts: "list[EncodedText]") -> "EncodedText":
        """Stack texts, padded to the longest, the empty one too; what is added is masked."""
        first = texts[0]
        longest = max(len(first.null_mask), *(len(text.mask) for text in texts))

        def longer(tokens: Tensor) -> Tensor:
            return pad(tokens, (0, 0, 0, longest - len(tokens)))

        def masked(mask: Tensor) -> Tensor:
            return pad(mask, (0, longest - len(mask)))

        return EncodedText(
            tokens=torch.stack([longer(text.tokens) for text in texts]),
            mask=torch.stack([masked(text.mask) for text in texts]),
            null_tokens=longer(first.null_tokens),
            null_mask=masked(first.null_mask),
            encoder=first.encoder,
        )


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be used, and whose place another of its task has taken.

    `kind` is `TEXT_TOO_LONG` for one that is left out by choice, which is no damage.

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
class CutText:
    """An instruction that was longer than the text encoder takes, and was cut.

    Attributes:
        task: its task, or `dataset/task` where data sets are mixed.
        shard: the file it lies in.
        key: the name of its sample in the shard.
        reason: how long it was.
    """

    task: str
    shard: str
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PairSample:
    """What every sample says of its pair.

    Attributes:
        mask: True where the edit may change pixels; None if there is no mask.
        bad: the samples that should have been here, the last of them replaced by this one.
        cut: says so if a part of the instruction was left out.
    """

    key: str
    instruction: str
    task: int
    mask: Bool[Tensor, "mh mw"] | None = None
    source_caption: str = ""
    target_caption: str = ""
    position: int = 0
    bad: tuple[BadSample, ...] = ()
    cut: CutText | None = None


@dataclass(frozen=True, kw_only=True)
class EditSample(PairSample):
    """A pair of pictures; without a source the instruction is the target's caption."""

    source: UInt8[Tensor, "3 h w"] | None
    target: UInt8[Tensor, "3 h w"]


@dataclass(frozen=True, kw_only=True)
class EncodedSample(PairSample):
    """What frozen encoders made of a pair; latents are scaled as the codec scales them.

    The target's posterior is kept and not a draw from it, so that every epoch draws afresh.

    Attributes:
        source: mean of the source's posterior; a condition is never sampled.
        target: mean of the target's posterior.
        target_std: its deviation; zeros for a codec that is sure.
        text: None where the text encoder learns, or sees the source picture.
        codec: fingerprint of the codec.
    """

    source: Float[Tensor, "c h w"]
    target: Float[Tensor, "c h w"]
    target_std: Float[Tensor, "c h w"]
    text: EncodedText | None
    codec: str


@dataclass(frozen=True, kw_only=True)
class PairBatch(TensorRecord):
    """What every batch says of its pairs.

    Rows of `mask` whose `has_mask` is False are all True and mean nothing. `bad` are the samples in
    whose place others came, `cut` the instructions that were too long, of all rows.
    """

    key: tuple[str, ...]
    instruction: tuple[str, ...]
    task: Int64[Tensor, " b"]
    mask: Bool[Tensor, "b mh mw"]
    has_mask: Bool[Tensor, " b"]
    source_caption: tuple[str, ...]
    target_caption: tuple[str, ...]
    position: Int64[Tensor, " b"]
    bad: tuple[BadSample, ...] = ()
    cut: tuple[CutText, ...] = ()

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True, kw_only=True)
class EditBatch(PairBatch):
    """Pairs of pictures of one size, stacked.

    Rows of `source` whose `has_source` is False are black and mean nothing.
    """

    source: UInt8[Tensor, "b 3 h w"]
    has_source: Bool[Tensor, " b"]
    target: UInt8[Tensor, "b 3 h w"]

    @staticmethod
    def collate(samples: list[EditSample]) -> "EditBatch":
        """Stack samples; all must have the size of the first.

        Raises:
            ValueError: if the list is empty or sizes differ; the message names the keys.
        """
        if not samples:
            raise ValueError("collate needs at least one sample, got none")
        sources, has_source = _sources(samples)
        size = samples[0].target.shape[1:]
        return EditBatch(
            source=sources,
            has_source=has_source,
            target=torch.stack([sample.target for sample in samples]),
            **_stacked(samples, mask_size=size),
        )


@dataclass(frozen=True, kw_only=True)
class EncodedBatch(PairBatch):
    """Encoded pairs, stacked; fields as in `EncodedSample`. Without any mask, `mask` is 0x0."""

    source: Float[Tensor, "b c h w"]
    target: Float[Tensor, "b c h w"]
    target_std: Float[Tensor, "b c h w"]
    text: EncodedText | None
    codec: str

    @staticmethod
    def collate(samples: list[EncodedSample]) -> "EncodedBatch":
        """Stack samples.

        Raises:
            ValueError: if they were not all encoded by the same networks.
        """
        makers = {(sample.codec, sample.text and sample.text.encoder) for sample in samples}
        if len(makers) != 1:
            raise ValueError(f"one batch holds the latents of one codec, got {sorted(makers)}")
        texts = [sample.text for sample in samples if sample.text is not None]
        return EncodedBatch(
            source=torch.stack([sample.source for sample in samples]),
            target=torch.stack([sample.target for sample in samples]),
            target_std=torch.stack([sample.target_std for sample in samples]),
            text=EncodedText.collate(texts) if texts else None,
            codec=samples[0].codec,
            **_stacked(samples, mask_size=(0, 0)),
        )


@dataclass(frozen=True, kw_only=True)
class ClipSample(PairSample):
    """A pair of clips, f frames each; the mask is of every frame.

    Attributes:
        source: None for a clip that nobody edited: the instruction is its caption.
        rate: frames a second.
    """

    source: UInt8[Tensor, "f 3 h w"] | None
    target: UInt8[Tensor, "f 3 h w"]
    mask: Bool[Tensor, "f mh mw"] | None = None
    rate: float


@dataclass(frozen=True, kw_only=True)
class ClipBatch(PairBatch):
    """Pairs of clips of one length and size, stacked; F travels as an axis of its own.

    Rows of `source` whose `has_source` is False are black and mean nothing.
    """

    source: UInt8[Tensor, "b f 3 h w"]
    has_source: Bool[Tensor, " b"]
    target: UInt8[Tensor, "b f 3 h w"]
    mask: Bool[Tensor, "b f mh mw"]
    rate: Float[Tensor, " b"]

    @staticmethod
    def collate(samples: list[ClipSample]) -> "ClipBatch":
        """Stack samples; all must have the frames and the size of the first.

        Raises:
            ValueError: if the list is empty or shapes differ; the message names the keys.
        """
        if not samples:
            raise ValueError("collate needs at least one sample, got none")
        sources, has_source = _sources(samples)
        frames, _, height, width = samples[0].target.shape
        return ClipBatch(
            source=sources,
            has_source=has_source,
            target=torch.stack([sample.target for sample in samples]),
            rate=torch.tensor([sample.rate for sample in samples]),
            **_stacked(samples, mask_size=(frames, height, width)),
        )


def _sources(samples: Sequence[EditSample] | Sequence[ClipSample]) -> tuple[Tensor, Tensor]:
    """Stack sources, black where there is none, and whether there is one."""
    first = samples[0].target.shape
    sources = [torch.zeros_like(s.target) if s.source is None else s.source for s in samples]
    for sample, source in zip(samples, sources, strict=True):
        if not source.shape == sample.target.shape == first:
            raise ValueError(
                f"one batch holds one length and size: {samples[0].key} is {tuple(first)}, "
                f"{sample.key} is {tuple(source.shape)} -> {tuple(sample.target.shape)}"
            )
    return torch.stack(sources), torch.tensor([s.source is not None for s in samples])


Sample = EditSample | EncodedSample | ClipSample
Batch = EditBatch | EncodedBatch | ClipBatch


def _stacked(samples: Sequence[PairSample], mask_size: Sequence[int]) -> dict[str, Any]:
    """Stack what samples say; where none has a mask, the one that means nothing has `mask_size`."""
    masks = [s.mask for s in samples if s.mask is not None]
    everywhere = torch.ones(masks[0].shape if masks else tuple(mask_size), dtype=torch.bool)
    return {
        "key": tuple(s.key for s in samples),
        "instruction": tuple(s.instruction for s in samples),
        "task": torch.tensor([s.task for s in samples]),
        "mask": torch.stack([everywhere if s.mask is None else s.mask for s in samples]),
        "has_mask": torch.tensor([s.mask is not None for s in samples]),
        "source_caption": tuple(s.source_caption for s in samples),
        "target_caption": tuple(s.target_caption for s in samples),
        "position": torch.tensor([s.position for s in samples]),
        "bad": tuple(bad for s in samples for bad in s.bad),
        "cut": tuple(s.cut for s in samples if s.cut is not None),
    }
