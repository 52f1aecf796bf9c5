"""The records that flow from the data plane to training: one sample, and a stacked batch.

Pictures are uint8 here, lossless and a quarter of the traffic; strings stay strings, so the data
plane knows no tokenizer. `position` is the sample's place in the global stream: all randomness of
training (timestep, noise, dropout, flips) is drawn from it, so that ranks, workers and restarts
cannot change what a sample meets. Samples of a cache carry latents in place of pictures, which are
then 0x0.

What frozen encoders made of a pair, kept so that training need not make it again.

A codec and a text encoder that never learn say the same of a pair in every epoch. The record holds
what they said, of one pair or of a stacked batch, and the fingerprints of the networks that said
it. It keeps the target's posterior and not a draw from it, so that sampling stays fresh, and the
features of "" beside those of the instruction, so that dropout stays live.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

OnTensor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EncodedText:
    """Features of an instruction and of the empty text; l tokens, of which `mask` are real.

    Attributes:
        tokens: features of the instruction.
        mask: True where a token is attended.
        null_tokens: features of "".
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
        return EncodedText(
            tokens=torch.stack([_longer(text.tokens, longest) for text in texts]),
            mask=torch.stack([_masked(text.mask, longest) for text in texts]),
            null_tokens=_longer(first.null_tokens, longest),
            null_mask=_masked(first.null_mask, longest),
            encoder=first.encoder,
        )

    def map(self, function: OnTensor) -> "EncodedText":
        """Return the record with `function` applied to each tensor."""
        return replace(
            self,
            tokens=function(self.tokens),
            mask=function(self.mask),
            null_tokens=function(self.null_tokens),
            null_mask=function(self.null_mask),
        )


@dataclass(frozen=True)
class Encoded:
    """Latents of a pair, scaled as the codec scales them, and its text where that was frozen, too.

    Attributes:
        source: mean of the source's posterior; a condition is never sampled.
        target: mean of the target's posterior.
        target_std: its deviation; zeros for a codec that is sure.
        text: None where the text encoder learns.
        codec: fingerprint of the codec.
    """

    source: Float[Tensor, "... c h w"]
    target: Float[Tensor, "... c h w"]
    target_std: Float[Tensor, "... c h w"]
    text: EncodedText | None
    codec: str

    @staticmethod
    def collate(pairs: "list[Encoded]") -> "Encoded":
        """Stack pairs.

        Raises:
            ValueError: if they were not all encoded by the same networks.
        """
        makers = {(pair.codec, pair.text and pair.text.encoder) for pair in pairs}
        if len(makers) != 1:
            raise ValueError(f"one batch holds the latents of one codec, got {sorted(makers)}")
        texts = [pair.text for pair in pairs if pair.text is not None]
        return Encoded(
            source=torch.stack([pair.source for pair in pairs]),
            target=torch.stack([pair.target for pair in pairs]),
            target_std=torch.stack([pair.target_std for pair in pairs]),
            text=EncodedText.collate(texts) if texts else None,
            codec=pairs[0].codec,
        )

    def map(self, function: OnTensor) -> "Encoded":
        """Return the record with `function` applied to each tensor."""
        return replace(
            self,
            source=function(self.source),
            target=function(self.target),
            target_std=function(self.target_std),
            text=None if self.text is None else self.text.map(function),
        )


def _longer(tokens: Float[Tensor, "l d"], length: int) -> Float[Tensor, "m d"]:
    return pad(tokens, (0, 0, 0, length - len(tokens)))


def _masked(mask: Bool[Tensor, " l"], length: int) -> Bool[Tensor, " m"]:
    return pad(mask, (0, length - len(mask)))


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
