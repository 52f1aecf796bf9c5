"""A cache: a shard folder that holds latents and text features in place of pictures.

What frozen networks say of a pair is the same in every epoch, and is most of a step's time. `shards
cache` writes it once, into shards of the usual kind: the tasks, file names, counts and keys of the
folder it was made from, so order, resume and mixing are those of the pictures. A sample is

    KEY.source.safetensors   what the network is given: `mean` of the source, `tokens`, `mask`
    KEY.target.safetensors   what it learns to make: `mean` and, where there is doubt, `std`
    KEY.json                 instruction, task, captions, and checksums of what they were made from
    KEY.mask.png             where the edit may change, at the training size, if the pair has one

The manifest says under `cache` of which size the pictures were, which networks encoded them
(fingerprints; training compares them with its own) and the hashes of the shards they came from.
Latents are those of the centre square, not mirrored: draws of a crop or a flip need pictures.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from datamodules.shards.folder import ShardFolder
from datamodules.shards.manifest import MANIFEST, Manifest, load_manifest
from datamodules.stream.mixing import Lane
from datamodules.stream.reader import Decode, OpenShard, PictureDecoder
from datamodules.stream.transforms import Crop
from emu_edit.batch import EncodedSample, EncodedText, Sample
from emu_edit.errors import BadSampleError, InputError, ShardError
from emu_edit.images import decode_mask

CACHE = "cache"  # entry of a manifest's `made_by` that makes its folder a cache
CACHED_FROM = "cached_from"  # entry of a sample's json
BROKEN = "broken"  # in it: why there are no latents
KIND = "kind"  # and the kind of fault
NULL_TEXT = "null_text.safetensors"
MEAN, STD, TOKENS, MASK = "mean", "std", "tokens", "mask"
AGAIN = "write it again with `emu-edit shards cache`"


@dataclass(frozen=True)
class CacheHeader:
    """What a cache was made of, and by which networks.

    Attributes:
        image_size: side of the square the pictures were cut and resampled to.
        dtype: precision of the numbers on disk: float32, bfloat16 or float16.
        codec: fingerprint of the codec.
        text_encoder: fingerprint of the text encoder; "" if it learns, and no text is kept.
        null_text: SHA-256 of `null_text.safetensors`; "" if no text is kept.
        folder: where the pictures were.
        shards: SHA-256 of each of their shards.
        long_texts: what became of instructions that were longer than the text encoder takes.
    """

    image_size: int
    dtype: str
    codec: str
    text_encoder: str
    null_text: str
    folder: str
    shards: dict[str, str]
    long_texts: str

    @staticmethod
    def of(manifest: Manifest, where: object) -> "CacheHeader | None":
        """Return what a manifest says of its cache; None if its folder holds pictures.

        Raises:
            ShardError: if an entry is missing or of another kind.
        """
        values = manifest.made_by.get(CACHE)
        return None if values is None else CacheHeader.from_dict(values, where)

    @staticmethod
    def from_dict(values: object, where: object) -> "CacheHeader":
        """Rebuild a header from what `asdict` gave; `where` is its place, for messages."""
        kinds = {"image_size": int, "shards": dict}
        names = {field.name for field in fields(CacheHeader)}
        # versions without an entry for long texts refused them
        given: Any = {"long_texts": "refuse", **values} if isinstance(values, dict) else {}
        if given.keys() != names or not all(
            isinstance(given[name], kinds.get(name, str)) for name in names
        ):
            raise ShardError(f"{where}: what it says of its cache is damaged; {AGAIN}")
        return CacheHeader(**given)

    def same_networks(self, other: "CacheHeader") -> bool:
        """Whether samples of both can be in one batch."""
        names = ("image_size", "codec", "text_encoder")
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(frozen=True)
class Cache:
    """What all samples of a training on caches share.

    Attributes:
        header: of the first folder; those of others agree in what matters.
        null_tokens: features of "", None if no text is kept.
        null_mask: its mask.
    """

    header: CacheHeader
    null_tokens: Float[Tensor, "n d"] | None
    null_mask: Bool[Tensor, " n"] | None

    def decode(
        self,
        shard: OpenShard,
        sample: int,
        position: int = 0,  # noqa: ARG002  the crop is done
        wording: int = 0,
    ) -> Callable[..., Sample]:
        """Read latents, mask, and the features of one of the wordings, in float32.

        Raises:
            BadSampleError: naming shard and key, if the cache has no latents of the sample.
            ShardError: if its bytes are not those that were indexed.
        """
        where = shard.where(sample)
        origin = shard.text(sample).get(CACHED_FROM, {})
        if BROKEN in origin:
            raise BadSampleError(
                f"{where}: could not be used when it was cached ({origin[BROKEN]})",
                kind=origin[KIND],
            )
        try:
            source = load(shard.member(sample, "source") or b"")
            target = load(shard.member(sample, "target") or b"")
            data = shard.member(sample, "mask")
            mask = None if data is None else decode_mask(data, where="mask")
            mean = target[MEAN].float()
            std = target[STD].float() if STD in target else torch.zeros_like(mean)
            self._check_shapes([source[MEAN], mean, std], mask)
            return partial(
                EncodedSample,
                source=source[MEAN].float(),
                target=mean,
                target_std=std,
                text=self._text(source, wording),
                codec=self.header.codec,
                mask=mask,
            )
        except (SafetensorError, KeyError, ValueError) as error:  # BadImageError is one, too
            raise BadSampleError(
                f"{where}: is no sample of a cache ({error}); {AGAIN}", "latents_unreadable"
            ) from error

    def _check_shapes(self, latents: list[Tensor], mask: Tensor | None) -> None:
        """Refuse what could not be stacked to a batch."""
        side = self.header.image_size
        shapes = {tuple(tensor.shape) for tensor in latents}
        height, width = latents[0].shape[-2:] if latents[0].ndim == 3 else (0, 1)
        if len(shapes) > 1 or height != width or side % height:
            raise ValueError(f"latents of {sorted(shapes)} for pictures of {side} pixels")
        if mask is not None and mask.shape != (side, side):
            raise ValueError(f"a mask of {tuple(mask.shape)} for pictures of {side} pixels")

    def _text(self, features: dict[str, Tensor], wording: int) -> EncodedText | None:
        if self.null_tokens is None or self.null_mask is None:
            return None
        tokens, mask = (features[of_wording(name, wording)] for name in (TOKENS, MASK))
        if tokens.shape != (mask.numel(), self.null_tokens.shape[-1]) or mask.ndim != 1:
            raise ValueError(f"features of {tuple(tokens.shape)}, a mask of {tuple(mask.shape)}")
        return EncodedText(
            tokens=tokens.float(),
            mask=mask,
            null_tokens=self.null_tokens,
            null_mask=self.null_mask,
            encoder=self.header.text_encoder,
        )


def of_wording(name: str, wording: int) -> str:
    """Return the name under which a cache keeps `tokens` or `mask` of a wording."""
    return f"{name}.{wording}" if wording else name


def training_decoder(lanes: Sequence[Lane], crop: Crop) -> Decode:
    """Return what makes samples to train on: of pictures, or of latents if the folders are caches.

    Raises:
        InputError: as `open_caches`.
    """
    cache = open_caches(lanes, crop)
    return PictureDecoder(crop) if cache is None else cache.decode


def open_caches(lanes: Sequence[Lane], crop: Crop) -> Cache | None:
    """Return what the samples of some lanes share if their folders are caches; None if none is.

    Raises:
        InputError: if only some of them are, other networks or another size made one of them, or
            the training wants of them what needs pictures.
        ShardError: if one is damaged, or the pictures it was made from have changed since.
    """
    folders = list(dict.fromkeys(lane.folder for lane in lanes))
    headers = {folder: CacheHeader.of(folder.manifest, folder) for folder in folders}
    caches = {folder: header for folder, header in headers.items() if header is not None}
    if not caches:
        return None
    plain = [str(folder) for folder in folders if folder not in caches]
    if plain:
        raise InputError(
            f"data.train has caches beside folders of pictures ({', '.join(plain)}); a batch is "
            "of one kind, so cache these too or give the pictures of all"
        )
    first_folder, first = next(iter(caches.items()))
    for folder, header in caches.items():
        if not header.same_networks(first):
            raise InputError(
                f"data.train: {folder} and {first_folder} were cached with other networks or "
                f"another size; {AGAIN}"
            )
        _refuse_settings(folder, header, crop)
        _refuse_changed(folder, header)
    return _with_null_text(first_folder, first)


def evaluation_decoder(lanes: Sequence[Lane], crop: Crop) -> Decode:
    """Return what makes samples to evaluate on: of pictures, edits of which are looked at.

    Raises:
        InputError: if a folder is a cache.
    """
    for folder in dict.fromkeys(lane.folder for lane in lanes):
        if CacheHeader.of(folder.manifest, folder) is not None:
            raise InputError(
                f"data.val={folder} is a cache and has no pictures to edit; give the folder it "
                "was made from"
            )
    return PictureDecoder(crop)


def _refuse_settings(folder: ShardFolder, header: CacheHeader, crop: Crop) -> None:
    if crop.image_size != header.image_size:
        raise InputError(
            f"data.image_size={crop.image_size}, but {folder} was cached at "
            f"{header.image_size}; set data.image_size: {header.image_size}, or cache it again "
            f"with --image-size {crop.image_size}"
        )
    if crop.flip:
        raise InputError(
            f"data.flip: true needs pictures, and {folder} is a cache of unmirrored latents; set "
            "data.flip: false, or train on the pictures"
        )


def _refuse_changed(folder: ShardFolder, header: CacheHeader) -> None:
    """Refuse a cache whose pictures, where they can be seen, are no longer those it was made of."""
    origin = Path(header.folder)
    if not (origin / MANIFEST).is_file():
        return  # a cache can be used where its pictures are not
    now = {entry.file: entry.sha256 for entry in load_manifest(origin).entries}
    names = sorted(now.keys() | header.shards.keys())
    changed = [name for name in names if now.get(name) != header.shards.get(name)]
    if changed:
        raise ShardError(
            f"{folder} was cached from {origin}, where {changed[0]} has changed since"
            f"{f' ({len(changed)} shards in all)' if len(changed) > 1 else ''}; {AGAIN}"
        )


def _with_null_text(folder: ShardFolder, header: CacheHeader) -> Cache:
    if not header.null_text:
        return Cache(header, None, None)
    data = folder.read_file(NULL_TEXT)
    if hashlib.sha256(data).hexdigest() != header.null_text:
        raise ShardError(
            f"{folder}: {NULL_TEXT} changed since the cache was written; restore it, or {AGAIN}"
        )
    features = load(data)
    return Cache(header, features[TOKENS].float(), features[MASK])
