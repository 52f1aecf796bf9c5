"""The reading of one pair: files of a stranger in, a checked `PairRecord` or a reason out.

All layouts meet here, so that the same pair is judged the same way whatever folder it came in.
Pictures keep their size (the reader of shards crops); within a pair the sizes must agree, after
EXIF rotation.
"""

import hashlib
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8

from datamodules.writer import PairRecord
from emu_edit.errors import BadImageError, BadSampleError, InputError
from emu_edit.images import decode_mask, read_image, read_image_bytes
from emu_edit.text_rules import clean_instruction

MAX_TEXT_BYTES = 65536  # of an instruction file; 2,000 characters of UTF-8 need at most 8,000
_LONGEST_PART = 255  # bytes of one file name on every common file system
_LONGEST_NAME = 1000
_LONGEST_STEM = 40  # of the readable part of a key


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
    unreadable_picture = "unreadable picture"
    sizes_differ = "sizes differ"
    identical_pair = "identical pair"


@dataclass(frozen=True)
class Skipped:
    """One pair left out: its place in the user's folder, the reason, and the exact finding."""

    name: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class PairFiles:
    """One listed pair, nothing read yet. `instruction` is the text, or the file that holds it.

    `name` is the place shown to the user; `identity` is unique in the folder and decides the key.
    """

    name: str
    identity: str
    task: str
    source: Path
    target: Path
    instruction: str | Path
    mask: Path | None = None
    source_caption: str = ""
    target_caption: str = ""


class _RefusedPairError(BadSampleError):
    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason


def read_pair(pair: PairFiles) -> PairRecord | Skipped:
    """Read and check one pair; what is wrong with it is returned, not raised."""
    try:
        return _read(pair)
    except _RefusedPairError as error:
        return Skipped(pair.name, error.reason, str(error))


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


def _read(pair: PairFiles) -> PairRecord:
    for path, reason in (
        (pair.source, Reason.missing_source),
        (pair.target, Reason.missing_target),
        (pair.mask, Reason.missing_mask),
    ):
        if path is not None and not path.exists():
            raise _RefusedPairError(reason, f"{path}: no such file")
    instruction = _instruction(pair)
    captions = [_caption(text, pair.name) for text in (pair.source_caption, pair.target_caption)]
    source, target = _picture(pair.source), _picture(pair.target)
    if source.shape != target.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (source, target))
        raise _RefusedPairError(Reason.sizes_differ, f"source and target are {sizes}")
    if np.array_equal(source, target):
        raise _RefusedPairError(Reason.identical_pair, "source and target have the same pixels")
    return PairRecord(
        key=key_of(pair.identity),
        source=source,
        target=target,
        instruction=instruction,
        task=pair.task,
        mask=None if pair.mask is None else _mask(pair.mask, source.shape),
        source_caption=captions[0],
        target_caption=captions[1],
        extra={"origin": pair.name},
    )


def _instruction(pair: PairFiles) -> str:
    text = pair.instruction
    if isinstance(text, Path):
        text = _text_file(text)
    if not text.strip():
        raise _RefusedPairError(Reason.empty_instruction, f"{pair.name}: the instruction is empty")
    try:
        return clean_instruction(text, pair.name)
    except InputError as error:
        raise _RefusedPairError(Reason.bad_instruction, str(error)) from error


def _text_file(path: Path) -> str:
    if not path.is_file():
        raise _RefusedPairError(Reason.missing_instruction, f"{path}: no such file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            detail = f"{path}: has more than {MAX_TEXT_BYTES} bytes"
            raise _RefusedPairError(Reason.bad_instruction, detail)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"{path}: is not UTF-8 at byte {error.start}"
        raise _RefusedPairError(Reason.bad_instruction, detail) from error
    except OSError as error:
        detail = f"{path}: cannot be read ({error.strerror})"
        raise _RefusedPairError(Reason.missing_instruction, detail) from error


def _caption(text: str, name: str) -> str:
    if not text.strip():
        return ""
    try:
        return clean_instruction(text, name, what="caption")
    except InputError as error:
        raise _RefusedPairError(Reason.bad_caption, str(error)) from error


def _picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    try:
        return read_image(path).permute(1, 2, 0).contiguous().numpy()
    except BadImageError as error:
        raise _RefusedPairError(Reason.unreadable_picture, str(error)) from error


def _mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        mask = decode_mask(read_image_bytes(path), str(path)).numpy()
    except BadImageError as error:
        raise _RefusedPairError(Reason.unreadable_picture, str(error)) from error
    if mask.shape != shape[:2]:
        sizes = f"{mask.shape[1]}x{mask.shape[0]} and the pictures {shape[1]}x{shape[0]}"
        raise _RefusedPairError(Reason.sizes_differ, f"{path}: the mask is {sizes}")
    return mask
