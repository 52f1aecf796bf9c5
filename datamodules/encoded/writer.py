"""Write a cache: run the frozen networks over a shard folder once and keep what they say.

One shard after another appears complete under its name. `cache.json`, written first, says what is
being made; run again, the command keeps the shards that are whole, so an interruption costs one
shard. Of the pairs, a few batches are in memory. A pair that cannot be used keeps its place, with
the reason: the order of training is that of the pictures, and so are the substitutes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path

from webdataset.writer import TarWriter

from datamodules.encoded.encoder import (
    DTYPES,
    CacheEncoder,
    Members,
    PairReader,
    ReadPair,
    read_batches,
)
from datamodules.encoded.reader import CACHE, NULL_TEXT, CacheHeader
from datamodules.shards.evaluation_only import refuse_declared, refuse_name, refuse_output
from datamodules.shards.folder import LocalFolder, ShardFolder
from datamodules.shards.index import add_index
from datamodules.shards.manifest import Manifest, ShardEntry, verify_hash, write_manifest
from datamodules.stream.limits import LongTexts, TextRule
from emu_edit.errors import InputError, ShardError, closest
from emu_edit.files import atomic_file, read_regular, write_json
from emu_edit.models.networks import EditNetworks
from emu_edit.terminal import plural

WORK = "cache.json"  # says what a folder is being made of, until its manifest does and after
NAMED = 3  # broken pairs named in a summary; `shards check` of the pictures lists all
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class EncodingSettings:
    """How a cache is written.

    Attributes:
        image_size: side of the centre square that is cut and resampled, a multiple of the codec's
            factor.
        dtype: precision on disk. float32 gives the losses of training on pictures to 1e-5; the
            halves take half the room and move latents by a part in 500 (bfloat16: 8 bits) or 4000
            (float16: 11 bits).
        batch_size: pairs the networks encode at a time.
        num_workers: processes that decode.
        long_texts: what becomes of instructions that are longer than the text encoder takes; all
            are kept whole where it learns.

    Raises:
        InputError: for another precision, or sizes below 1.
    """

    image_size: int
    dtype: str = "float32"
    batch_size: int = 16
    num_workers: int = 0
    long_texts: LongTexts = LongTexts.truncate

    def __post_init__(self) -> None:
        """Refuse what cannot be used."""
        if self.dtype not in DTYPES:
            hint = closest(self.dtype, list(DTYPES))
            raise InputError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}.{hint}")
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size} must be at least 1")


@dataclass
class CacheReport:
    """What became of a run.

    Attributes:
        manifest: of the cache.
        header: what the manifest says of it.
        kept: shards that were whole already.
        cut: pairs of this run that are not square and lost their ends.
        shortened: pairs of this run whose instruction was longer than the text encoder takes.
        broken: pairs of this run that cannot be used, each with its reason.
    """

    manifest: Manifest
    header: CacheHeader
    kept: int = 0
    cut: int = 0
    shortened: int = 0
    broken: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return the report as a few lines."""
        size = sum(entry.bytes for entry in self.manifest.entries)
        text = "and text features" if self.header.text_encoder else "without text features"
        lines = [
            f"{plural(self.manifest.num_samples, 'pair')} of "
            f"{plural(len(self.manifest.tasks), 'task')}: latents "
            f"{text} at {self.header.image_size} px in {self.header.dtype}, {size / 2**20:.1f} MiB"
        ]
        if self.kept:
            lines.append(f"{self.kept} shards were there already")
        if self.cut:
            lines.append(f"{self.cut} pairs are not square: only their centre is in the cache")
        if self.shortened:
            lines.append(
                f"{self.shortened} instructions are longer than the text encoder takes and were "
                "cut (--long-texts skip or refuse does otherwise)"
            )
        if self.broken:
            named = "; ".join(self.broken[:NAMED])
            lines.append(f"{len(self.broken)} pairs cannot be used and are marked: {named}")
        return "\n".join(lines)


def write_cache(
    folder: ShardFolder,
    output: Path,
    networks: EditNetworks,
    settings: EncodingSettings,
    on_step: OnStep | None = None,
) -> CacheReport:
    """Write the cache of a shard folder, or what is missing of it.

    Args:
        folder: shards of pictures.
        output: the folder to write; one that an interrupted run of the same began is completed.
        networks: in eval mode, on the device to compute on; a text encoder that learns is left out.
        settings: how.
        on_step: called with the pairs done and their total.

    Raises:
        InputError: if `output` holds something else, the size does not go with the codec, or the
            shards are of an evaluation set.
        BadDataError: if an instruction is too long and that is to be refused.
        ShardError: if a shard of `folder` is damaged.
    """
    manifest = folder.manifest
    if CacheHeader.of(manifest, folder) is not None:
        raise InputError(f"{folder} is a cache already; give the folder of pictures it came from")
    refuse_declared(manifest.made_by, folder.name)
    refuse_name(Path(folder.name))
    refuse_output(output)
    if settings.image_size % networks.codec.factor:
        raise InputError(
            f"image size {settings.image_size} is no multiple of {networks.codec.factor}, the "
            "pixels of a latent; give another with --image-size"
        )
    encoder = CacheEncoder(networks, settings.dtype)
    header = _begin(folder, output, manifest, encoder, settings)
    report = CacheReport(manifest, header)
    whole = {entry: _whole(output / entry.file, entry) for entry in manifest.entries}
    report.kept = sum(entry is not None for entry in whole.values())
    missing = [entry for entry, found in whole.items() if found is None]
    run = _Run(output, encoder, report, on_step)
    run.count = manifest.num_samples - sum(entry.samples for entry in missing)
    whole |= zip(missing, run.shards(folder, missing, settings), strict=True)
    entries = [entry for entry in whole.values() if entry is not None]
    made_by: dict[str, object] = {"program": "emu-edit shards cache", CACHE: asdict(header)}
    report.manifest = write_manifest(output, entries, made_by=made_by)
    return report


class _Run:
    """The pass over the shards that are missing: encodes, writes, counts."""

    def __init__(
        self, output: Path, encoder: CacheEncoder, report: CacheReport, on_step: OnStep | None
    ) -> None:
        self.count = 0  # pairs done
        self._output = output
        self._encoder = encoder
        self._report = report
        self._on_step = on_step

    def shards(
        self, folder: ShardFolder, entries: list[ShardEntry], settings: EncodingSettings
    ) -> Iterator[ShardEntry]:
        """Write a shard of the cache for each of `entries`, in order."""
        size = settings.batch_size
        batches = [
            [(number, sample) for sample in range(first, min(first + size, entry.samples))]
            for number, entry in enumerate(entries)
            for first in range(0, entry.samples, size)
        ]
        texts = TextRule(self._encoder.text_limit, settings.long_texts)
        reader = PairReader(folder, entries, settings.image_size, texts)
        read = zip(batches, read_batches(reader, batches, settings.num_workers), strict=True)
        for number, of_shard in groupby(read, key=lambda batch_and_pairs: batch_and_pairs[0][0][0]):
            entry = entries[number]
            verify_hash(folder.path(entry), entry)  # what the header says of it is true
            pairs = (pairs for _, pairs in of_shard)
            yield _write_shard(self._output / entry.file, entry, self._members(pairs, entry))

    def _members(self, batches: Iterable[list[ReadPair]], entry: ShardEntry) -> Iterator[Members]:
        for pairs in batches:
            self._report.cut += sum(pair.is_cut for pair in pairs)
            self._report.shortened += sum(pair.is_shortened for pair in pairs)
            self._report.broken += [f"{pair.key} ({pair.fault[1]})" for pair in pairs if pair.fault]
            yield from self._encoder(pairs, entry.task)
            self.count += len(pairs)
            if self._on_step is not None:
                self._on_step(self.count, self._report.manifest.num_samples)


def _begin(
    folder: ShardFolder,
    output: Path,
    manifest: Manifest,
    encoder: CacheEncoder,
    settings: EncodingSettings,
) -> CacheHeader:
    """Write down what the folder is being made of, or check that it is what was begun."""
    null_text = encoder.null_text() if encoder.has_text else b""
    header = CacheHeader(
        image_size=settings.image_size,
        dtype=settings.dtype,
        codec=encoder.codec,
        text_encoder=encoder.text_encoder,
        null_text=hashlib.sha256(null_text).hexdigest() if null_text else "",
        folder=str(folder.root.resolve()) if isinstance(folder, LocalFolder) else folder.name,
        shards={entry.file: entry.sha256 for entry in manifest.entries},
        long_texts=settings.long_texts.name,
    )
    if (output / WORK).is_file():
        return _begun(output, header)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is no cache; give a new folder with -o")
    output.mkdir(parents=True, exist_ok=True)
    if null_text:
        with atomic_file(output / NULL_TEXT) as stream:
            stream.write(null_text)
    write_json(output / WORK, asdict(header))
    return header


def _begun(output: Path, header: CacheHeader) -> CacheHeader:
    """Return the header of a cache that was begun; refuse one of something else."""
    try:
        old = CacheHeader.from_dict(json.loads(read_regular(output / WORK)), output / WORK)
    except ValueError as error:
        raise InputError(f"{output / WORK} is damaged ({error}); give a new folder") from error
    # another machine's last bits of it may differ; those of the first run hold
    header = replace(header, null_text=old.null_text, folder=old.folder)
    names = [name for name, value in asdict(header).items() if value != asdict(old)[name]]
    if names:
        raise InputError(
            f"{output} is a cache made with another {' and another '.join(names)}; give a new "
            "folder with -o, or remove this one"
        )
    return old


def _whole(path: Path, entry: ShardEntry) -> ShardEntry | None:
    """Return the entry of a shard that an earlier run has written; None if there is none."""
    if not path.is_file():
        return None
    try:
        found = add_index(path, task=entry.task, kind=entry.kind)
    except ShardError:
        return None
    return found if found.samples == entry.samples else None


def _write_shard(path: Path, source: ShardEntry, samples: Iterable[Members]) -> ShardEntry:
    with (
        atomic_file(path) as stream,
        TarWriter(stream, encoder=False, compress=False, mtime=0.0) as tar,
    ):
        for members in samples:
            tar.write(members)
    return add_index(path, task=source.task, kind=source.kind)
