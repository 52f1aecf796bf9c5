"""One pair on its way from somebody's data to a shard, and what a converter is.

A `Converter` lists the pairs of one data set or layout and knows its task names; all else is the
same for all. `read_pair` reads one: bytes of a stranger in, a checked `PairRecord` or a reason out;
whether a readable pair is worth training on is for `datamodules.convert.gates`. Pictures keep their
size (the reader of shards crops); within a pair the sizes must agree, after EXIF rotation.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from datamodules.convert.picture import MissingPictureError, Picture
from datamodules.listing import decode_text
from datamodules.shards.writer import PairRecord
from emu_edit.errors import BadSampleError, InputError
from emu_edit.files import open_stream
from emu_edit.images import decode_mask, resize
from emu_edit.pictures import EXTENSIONS
from emu_edit.text_rules import clean_instruction

MAX_TEXT_BYTES = 65536  # of an instruction file; 2,000 characters of UTF-8 need at most 8,000
_LONGEST_PART = 255  # bytes of one file name on every common file system
_LONGEST_NAME = 1000
_LONGEST_STEM = 40  # of the readable part of a key
# what tables hold where they hold nothing: Python's, JSON's, pandas' and people's words for it
_NOTHING = {"none", "null", "nan", "n/a", "<na>"}

# the region of a pair, worked out from its source; True where the edit may change, None is no mask
Mask = Callable[[UInt8[np.ndarray, "h w 3"]], Bool[np.ndarray, "_ _"] | None]


class Reason(Enum):
    """Why a pair was left out; the values are the words of the report."""

    bad_line = "bad line"
    unsafe_name = "unsafe name"
    ambiguous_name = "ambiguous name"
    refused_format = "refused format"
    missing_source = "missing source"
    missing_target = "missing target"
    missing_mask = "missing mask"
    missing_instruction = "missing instruction"
    empty_instruction = "empty instruction"
    bad_instruction = "bad instruction"
    bad_caption = "bad caption"
    no_task = "no task of ours"
    unreadable_picture = "unreadable picture"
    unreadable_video = "unreadable video"
    missing_video = "text for no video"
    missing_caption = "missing caption"
    empty_caption = "empty caption"
    lengths_differ = "lengths differ"
    too_short = "shot too short"
    sizes_differ = "sizes differ"
    aspect_differs = "aspect differs"
    too_small = "too small"
    identical_pair = "identical pair"
    near_identical = "near-identical pair"
    blank_picture = "blank picture"
    unlike_pair = "pictures unlike each other"
    mask_misfit = "mask does not fit"
    equal_captions = "equal captions"
    low_score = "low score"
    little_motion = "too little motion"
    duplicate = "duplicate"
    group_full = "enough of its group"
    listed_bad = "listed as bad"
    validation_table = "validation table"
    evaluation_leak = "evaluation leak"
    unnamed = "named by no line"
    not_followed = "not followed"
    hidden_file = "hidden file"
    other_file = "no file of a pair"


@dataclass(frozen=True)
class SkippedPair:
    """A pair left out: its place in the user's data, the reason, and the exact finding."""

    name: str
    reason: Reason
    detail: str


@dataclass(frozen=True, kw_only=True)
class RawItem(ABC):
    """One listed entry, no pixel read yet.

    Attributes:
        name: the place shown to the user, e.g. "train-00000.parquet, row 12".
        identity: unique in the data; it decides the key.
        instruction: the text, or the file that holds it.
        raw_task: as the data name it, "" where they name none.
        task: one of ours where the layout itself decides; None leaves it to the run.
        source_caption: what the source shows, "" where unknown.
        target_caption: what the target shows.
        scores: of the pair's quality, as the data have them; None is a score that is empty.
        likeness: least share of the picture that edits of this kind leave as it was (0 to 1, see
            `gates.kept_share`); None where any change is possible.
        group: pairs of one session, prompt or picture; they are kept together when data are parted.
        extra: anything JSON can hold that travels with the sample.
    """

    name: str
    identity: str
    instruction: str | Path
    raw_task: str = ""
    task: str | None = None
    source_caption: str = ""
    target_caption: str = ""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    likeness: float | None = None
    group: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)

    @abstractmethod
    def read(
        self, task: str, *, resize_above: float | None
    ) -> "Iterator[PairRecord | SkippedPair]":
        """Yield what it holds, read and checked, and what of it has to be left out.

        Raises:
            RefusedPairError: with the reason why it, or the rest of it, cannot be used.
        """


@dataclass(frozen=True, kw_only=True)
class RawPair(RawItem):
    """A listed pair of pictures.

    Attributes:
        source: the picture before.
        target: the picture after.
        mask: the region; None is no mask.
    """

    source: Picture
    target: Picture
    mask: Mask | None = None

    def read(self, task: str, *, resize_above: float | None) -> Iterator[PairRecord]:
        """Yield the pair, see `read_pair`."""
        yield read_pair(self, task, resize_above=resize_above)


class RefusedPairError(BadSampleError):
    """A pair cannot be used, for one of the reasons of the report."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason


def read_pair(pair: RawPair, task: str, *, resize_above: float | None = None) -> PairRecord:
    """Read and check one pair.

    Args:
        pair: where it is.
        task: what it teaches.
        resize_above: None refuses a target of another size than its source; a number resamples it
            to the source's size, unless the sides' ratios differ by more than this share.

    Raises:
        RefusedPairError: with the reason why it cannot be used.
    """
    instruction, *captions = texts_of(pair)
    source = _pixels(pair.source, Reason.missing_source)
    target = same_size(_pixels(pair.target, Reason.missing_target), source, resize_above)
    if torch.equal(source, target):
        raise RefusedPairError(Reason.identical_pair, "source and target have the same pixels")
    before = source.permute(1, 2, 0).contiguous().numpy()
    return PairRecord(
        key=key_of(pair.identity),
        source=before,
        target=target.permute(1, 2, 0).contiguous().numpy(),
        instruction=instruction,
        task=task,
        mask=None if pair.mask is None else _mask(pair.mask, before, pair.name),
        source_caption=captions[0],
        target_caption=captions[1],
        extra={**pair.extra, "origin": pair.name},
    )


def texts_of(item: RawItem, *, what: str = "instruction") -> tuple[str, str, str]:
    """Return instruction and captions of an entry, checked, and check what travels with it.

    Raises:
        RefusedPairError: if one cannot be used; `what` is how messages call the instruction.
    """
    _check_provenance(item)
    instruction = _instruction(item, what)
    source, target = (
        _caption(text, item.name) for text in (item.source_caption, item.target_caption)
    )
    return instruction, source, target


def white_mask(picture: Picture, *, is_optional: bool = False) -> Mask:
    """Return the region that a picture shows in white; an optional one may be missing."""

    def region(_source: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "_ _"] | None:
        try:
            return decode_mask(picture.fetch(), picture.where).numpy()
        except MissingPictureError:
            if is_optional:
                return None
            raise

    return region


def key_of(identity: str) -> str:
    """Return a key that no name can turn into a path: a readable stem and 64 bits of SHA-256."""
    stem = re.sub(r"[^A-Za-z0-9]+", "_", PurePosixPath(identity).stem)[:_LONGEST_STEM].strip("_")
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{stem}-{digest}" if stem else digest


def is_safe_name(name: str) -> bool:
    """Tell whether `name` stays inside its folder: relative, no "..", printable, not too long."""
    parts = re.split(r"[/\\]", name)
    return (
        name.isprintable()
        and name == name.strip()
        and not any(part in {"", ".", ".."} or ":" in part for part in parts)
        and all(len(part.encode()) <= _LONGEST_PART for part in parts)
        and len(name.encode()) <= _LONGEST_NAME
    )


def check_name(name: str, what: str) -> None:
    """Refuse the pair if a file it names may lie outside its folder."""
    if not is_safe_name(name):
        raise RefusedPairError(Reason.unsafe_name, unsafe_name(name, what))


def unsafe_name(name: str, what: str) -> str:
    """Say why a name is not safe; one from a system with drives and backslashes is told apart."""
    detail = f"{what} {name!r} must be a relative name inside the folder, without '..'"
    if re.match(r"[A-Za-z]:[/\\]", name):
        detail += "; cut the drive and folders before it off"
    elif re.search(r"[\b\f\n\r\t]", name.strip()):
        detail += "; in JSON one \\ is no part of a path: write / or two \\"
    return detail


def _check_provenance(pair: RawItem) -> None:
    """Refuse bytes, dates and NaN among what travels with a sample: json could not hold them."""
    travels = {**pair.extra, "raw_task": pair.raw_task, "group": pair.group, "origin": pair.name}
    for name, value in travels.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            detail = f"{pair.name}: {name} is {value!r:.60}, which no json of UTF-8 can hold"
            raise RefusedPairError(Reason.bad_line, detail) from error


def _instruction(pair: RawItem, what: str) -> str:
    text = pair.instruction
    if isinstance(text, Path):
        text = _text_file(text)
    if not text.strip() or text.strip().lower() in _NOTHING:
        says = f"says {text.strip()!r}" if text.strip() else "is empty"
        raise RefusedPairError(Reason.empty_instruction, f"{pair.name}: the {what} {says}")
    try:
        return clean_instruction(text, pair.name, what=what)
    except InputError as error:
        raise RefusedPairError(Reason.bad_instruction, str(error)) from error


def _text_file(path: Path) -> str:
    if not path.is_file():
        raise RefusedPairError(Reason.missing_instruction, f"{path}: no such file")
    try:
        with open_stream(path) as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            detail = f"{path}: has more than {MAX_TEXT_BYTES} bytes"
            raise RefusedPairError(Reason.bad_instruction, detail)
    except OSError as error:
        detail = f"{path}: cannot be read ({error.strerror})"
        raise RefusedPairError(Reason.missing_instruction, detail) from error
    try:
        return decode_text(data, str(path))
    except InputError as error:
        raise RefusedPairError(Reason.bad_instruction, str(error)) from error


def _caption(text: str, name: str) -> str:
    if not text.strip() or text.strip().lower() in _NOTHING:
        return ""
    try:
        return clean_instruction(text, name, what="caption")
    except InputError as error:
        raise RefusedPairError(Reason.bad_caption, str(error)) from error


def _pixels(picture: Picture, missing: Reason) -> UInt8[torch.Tensor, "3 h w"]:
    try:
        return picture.decode()
    except MissingPictureError as error:
        raise RefusedPairError(missing, str(error)) from error
    except InputError as error:
        raise RefusedPairError(Reason.unreadable_picture, str(error)) from error


def same_size(
    target: UInt8[torch.Tensor, "3 _ _"],
    source: UInt8[torch.Tensor, "3 h w"],
    resize_above: float | None,
) -> UInt8[torch.Tensor, "3 h w"]:
    """Return the target in the size of its source, see `read_pair`."""
    (height, width), (tall, wide) = source.shape[1:], target.shape[1:]
    if (height, width) == (tall, wide):
        return target
    sizes = f"source and target are {width}x{height} and {wide}x{tall}"
    if resize_above is None:
        raise RefusedPairError(Reason.sizes_differ, sizes)
    ratio = (width * tall) / (height * wide)
    if max(ratio, 1 / ratio) - 1 > resize_above:
        raise RefusedPairError(Reason.aspect_differs, sizes)
    return resize(target, (height, width))


def _mask(mask: Mask, source: UInt8[np.ndarray, "h w 3"], name: str) -> np.ndarray | None:
    try:
        region = mask(source)
    except MissingPictureError as error:
        raise RefusedPairError(Reason.missing_mask, str(error)) from error
    except InputError as error:
        raise RefusedPairError(Reason.unreadable_picture, str(error)) from error
    if region is not None and region.shape != source.shape[:2]:
        sizes = f"{region.shape[1]}x{region.shape[0]} and the pictures "
        sizes += f"{source.shape[1]}x{source.shape[0]}"
        raise RefusedPairError(Reason.mask_misfit, f"{name}: the mask is {sizes}")
    return region


def _in_tables(name: PurePosixPath) -> bool:
    """Tell whether public sets have such files: tables, lists, and pictures that these name."""
    return name.suffix.lower() in {".parquet", ".jsonl", ".json", *EXTENSIONS}


@dataclass(frozen=True)
class FieldMap:
    """Which fields of somebody's samples or columns of his tables are what.

    Attributes:
        source: the picture before.
        target: the picture after.
        instruction: the text.
        mask: where the edit may change, white; "" is none.
        task: the name of the task; "" is none.
    """

    source: str
    target: str
    instruction: str
    mask: str = ""
    task: str = ""


@dataclass(frozen=True)
class Converter:
    """What is peculiar to one data set or layout.

    Attributes:
        name: as on the command line.
        list_pairs: lists the pairs of a file or folder, in an order that depends on nothing else;
            it is called twice, so listing must be cheap: no picture is read. Raises InputError if
            the layout or the columns are another's.
        tasks: the data's task names in ours; None where there is no such task of the sixteen. No
            table at all means that the names are ours. Letters and digits alone count, so one line
            stands for "color_alter" and "ColorAlter".
        has_place: tells of a name below the folder whether the layout has a place for such a file;
            other files are counted (`passed_by`).
        unit: what is written, for the report.
        per_shard: how many of them a shard holds at most.
        takes_patterns: a path that is not there may be a pattern, which the converter looks up.
    """

    name: str
    list_pairs: Callable[[Path], Iterator[RawItem | SkippedPair]]
    tasks: Mapping[str, str | None] | None = None
    has_place: Callable[[PurePosixPath], bool] = _in_tables
    takes_patterns: bool = False
    unit: str = "pair"
    per_shard: int = 1000
