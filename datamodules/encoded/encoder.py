"""From pairs of a shard folder to the members of a cache: decode in workers, encode in batches.

Everything is computed in float32, whatever precision it is stored in.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, UInt8
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.encoded.reader import (
    BROKEN,
    CACHED_FROM,
    KIND,
    MASK,
    MEAN,
    STD,
    TOKENS,
    of_wording,
)
from datamodules.shards.folder import ShardFolder
from datamodules.shards.index import ROLES
from datamodules.shards.manifest import ShardEntry
from datamodules.stream.limits import TextRule
from datamodules.stream.reader import OpenShard, decode_pair, wordings_of
from datamodules.stream.transforms import Crop
from emu_edit.errors import BadSampleError, InputError
from emu_edit.images import encode_png, to_float
from emu_edit.models.fingerprints import codec_fingerprint, text_fingerprint
from emu_edit.models.interfaces import TextFeatures
from emu_edit.models.networks import EditNetworks
from emu_edit.models.surgery import learns
from emu_edit.models.text import MULTIPLE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Members = dict[str, str | bytes]  # of a sample, as webdataset's writer takes them


@dataclass(frozen=True)
class ReadPair:
    """A pair on its way into a cache, cut to the training size; `fault` in place of pictures.

    Attributes:
        key: its name.
        text: its json, empty if that cannot be used.
        pictures: source and target, stacked; None if they cannot be used.
        mask: where the edit may change, if the pair has one.
        is_cut: whether a part of the pictures lies outside the square.
        is_shortened: whether its instruction was cut to what the text encoder takes.
        fault: (kind, reason) if the pair cannot be used.
    """

    key: str
    text: dict[str, Any]
    pictures: UInt8[Tensor, "2 3 h w"] | None
    mask: Bool[Tensor, "h w"] | None
    is_cut: bool
    is_shortened: bool
    fault: tuple[str, str] | None


class PairReader(Dataset[ReadPair]):
    """Read the pairs of some shards by (shard, sample), cut to the centre square."""

    def __init__(
        self,
        folder: ShardFolder,
        entries: Sequence[ShardEntry],
        image_size: int,
        texts: TextRule | None = None,
    ) -> None:
        self._folder = folder
        self._texts = TextRule() if texts is None else texts
        self._entries = entries
        self._crop = Crop(image_size)
        self._open: tuple[int, OpenShard] | None = None

    def __getstate__(self) -> dict[str, object]:
        # a spawned worker opens its own files
        return {**self.__dict__, "_open": None}

    def __getitem__(self, place: tuple[int, int]) -> ReadPair:
        """Read a pair; one that cannot be used comes with its fault."""
        entry, sample = place
        shard = self._shard(entry)
        key = shard.key(sample)
        text: dict[str, Any] = {}
        try:
            text = shard.text(sample)
            fitted = self._texts(wordings_of(text), shard.where(sample))
            text["instruction"], *others = [wording.text for wording in fitted]
            if "instruction_alt" in text:
                text["instruction_alt"] = others
            source, target, mask = decode_pair(shard, sample)
        except BadSampleError as error:
            reason = str(error).removeprefix(f"{shard.where(sample)}: ")
            return ReadPair(key, text, None, None, False, False, (error.kind, reason))
        is_shortened = any(wording.reason for wording in fitted)
        is_cut = source.shape[-1] != source.shape[-2]
        source, target, mask = self._crop(source, target, mask, position=0)
        text[CACHED_FROM] = {
            role: f"{checksum:08x}"
            for role, checksum in zip(ROLES, shard.index[sample].crc32, strict=True)
            if shard.member(sample, role) is not None
        }
        pictures = torch.stack([source, target])
        return ReadPair(key, text, pictures, mask, is_cut, is_shortened, None)

    def __getitems__(self, places: list[tuple[int, int]]) -> list[ReadPair] | InputError:
        """Read a batch; an error travels as a value, without a worker's traceback around it."""
        try:
            return [self[place] for place in places]
        except InputError as error:
            return error

    def _shard(self, entry: int) -> OpenShard:
        if self._open is None or self._open[0] != entry:
            shard, folder = self._entries[entry], self._folder
            descriptor = folder.open(shard)  # before its path: while open, it stays
            self._open = entry, OpenShard(folder.path(shard), shard, descriptor)
        return self._open[1]


def read_batches(
    reader: PairReader, batches: list[list[tuple[int, int]]], num_workers: int
) -> Iterator[list[ReadPair]]:
    """Yield batches in order."""
    loader = DataLoader(
        reader, batch_sampler=batches, num_workers=num_workers, collate_fn=lambda pairs: pairs
    )
    for pairs in loader:
        if isinstance(pairs, InputError):
            raise pairs
        yield pairs


class CacheEncoder:
    """Turn pairs into members of a cache.

    Args:
        networks: on the device to compute on, in eval mode; a text encoder that learns, or that
            sees the source picture, is left out.
        dtype: precision on disk: float32, bfloat16 or float16.
    """

    def __init__(self, networks: EditNetworks, dtype: str) -> None:
        self._networks = networks
        self._dtype = DTYPES[dtype]
        self.codec = codec_fingerprint(networks.codec)
        text = networks.text_encoder
        self.has_text = not (learns(text) or text.sees_pictures)
        self.text_limit = networks.text_encoder.limit if self.has_text else None
        self.text_encoder = text_fingerprint(networks.text_encoder) if self.has_text else ""

    @torch.no_grad()
    def null_text(self) -> bytes:
        """Return the features of the empty text, as a file."""
        _, null = self._networks.encode_text([])
        return save(self._stored(_rows(null)[0]))

    @torch.no_grad()
    def __call__(self, pairs: list[ReadPair], task: str) -> list[Members]:
        """Return the members of each pair, in order.

        Raises:
            InputError: if a number is too large for the precision on disk.
        """
        usable = [pair for pair in pairs if pair.pictures is not None]
        encoded = iter(self._encode(usable))
        return [
            _broken(pair, task) if pair.pictures is None else _members(pair, *next(encoded))
            for pair in pairs
        ]

    def _encode(self, pairs: list[ReadPair]) -> list[tuple[bytes, bytes]]:
        """Return the source and target members of each pair."""
        if not pairs:
            return []
        pictures = torch.stack([pair.pictures for pair in pairs if pair.pictures is not None])
        images = to_float(pictures.to(self._networks.device))
        source, _ = self._networks.codec.posterior(images[:, 0])
        target, std = self._networks.codec.posterior(images[:, 1])
        texts = self._texts(pairs) if self.has_text else [{}] * len(pairs)
        members = []
        for i, pair in enumerate(pairs):
            given = {MEAN: source[i], **texts[i]}
            wanted = {MEAN: target[i]} | ({STD: std[i]} if bool(std[i].any()) else {})
            members.append(tuple(save(self._stored(part, pair.key)) for part in (given, wanted)))
        return members

    def _texts(self, pairs: list[ReadPair]) -> list[dict[str, Tensor]]:
        """Return the features of every wording of each pair; no more texts at once than pairs."""
        wordings = [wordings_of(pair.text) for pair in pairs]
        places = [(i, k) for i, words in enumerate(wordings) for k in range(len(words))]
        texts: list[dict[str, Tensor]] = [{} for _ in pairs]
        for first in range(0, len(places), len(pairs)):
            batch = places[first : first + len(pairs)]
            rows = _rows(self._networks.encode_text([wordings[i][k] for i, k in batch])[0])
            for (i, k), row in zip(batch, rows, strict=True):
                texts[i] |= {of_wording(name, k): tensor for name, tensor in row.items()}
        return texts

    def _stored(self, tensors: dict[str, Tensor], where: str = '""') -> dict[str, Tensor]:
        """Bring numbers to the precision on disk; masks stay what they are."""
        stored = {}
        for name, tensor in tensors.items():
            kept = tensor.to(self._dtype) if tensor.is_floating_point() else tensor
            if not bool(kept.isfinite().all()):
                raise InputError(
                    f"{where}: its {name} is not finite in {self._dtype}; write the cache with "
                    "--dtype float32, and check the networks if that does not help"
                )
            stored[name] = kept.cpu().contiguous()
        return stored


def _rows(text: TextFeatures) -> list[dict[str, Tensor]]:
    """Return the features of each text, with the padding it would have alone."""
    rows = []
    for tokens, mask in zip(text.tokens, text.mask, strict=True):
        real = int(mask.sum())
        length = min(-(-real // MULTIPLE) * MULTIPLE, len(mask))
        rows.append({TOKENS: tokens[:length], MASK: mask[:length]})
    return rows


def _members(pair: ReadPair, source: bytes, target: bytes) -> Members:
    members: Members = {
        "__key__": pair.key,
        "source.safetensors": source,
        "target.safetensors": target,
        # a lone surrogate, which UTF-8 cannot hold, becomes the escape it was in the pair's json
        "json": json.dumps(pair.text, ensure_ascii=False).encode(errors="backslashreplace"),
    }
    if pair.mask is not None:
        members["mask.png"] = encode_png((pair.mask * 255).to(torch.uint8).expand(3, -1, -1))
    return members


def _broken(pair: ReadPair, task: str) -> Members:
    """Keep the place of a pair that cannot be used."""
    kind, reason = pair.fault or ("unusable", "")
    text = {
        "instruction": "(cannot be used)",
        **pair.text,
        "task": task,
        CACHED_FROM: {BROKEN: reason, KIND: kind},
    }
    return _members(replace(pair, text=text), save({}), save({}))
