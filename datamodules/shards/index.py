"""Scan a tar once, refuse what cannot be trusted, and note where every member lies.

webdataset streams a tar and passes over much in silence: a shard cut at a header just ends, a
sample without its target comes out as half a sample, members of one key that are not adjacent
become two samples. Here each of these is an error with its reason, found before training, and
training then reads members by offset. A shard holds the samples of one task; a sample is the
adjacent members `<key>.source.png`, `<key>.target.png`, `<key>.json` and, optionally,
`<key>.mask.png` (pictures may also be jpg, jpeg or webp). In an encoder cache
(`datamodules.encoded.reader`) the pair is latents: `<key>.source.safetensors` and
`<key>.target.safetensors`; of clips (`datamodules.shards.clips`) it may be mp4s. A caption with
what it describes (task `caption`) has no source.
"""

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np

from datamodules.listing import how_to_convert
from datamodules.shards.manifest import MAKE_AGAIN, ShardEntry
from datamodules.shards.tar_headers import AGAIN, BLOCK, Member, read_members
from emu_edit.errors import InputError, ShardError
from emu_edit.files import atomic_file, open_regular, open_stream, sha256_of
from emu_edit.tasks import CAPTION
from emu_edit.text_rules import clean_instruction

ROLES = ("source", "target", "json", "mask")
REQUIRED = ("source", "target", "json")
MAX_MEMBER_BYTES = 256 * 2**20  # a picture of 64 megapixels without any compression fits
MAX_JSON_BYTES = 2**20
MAX_NAME_BYTES = 1024  # of a member; every row of an index is as wide as the longest key

_PICTURES = ("png", "jpg", "jpeg", "webp")
_ROLE_OF = {
    "json": "json",
    **{f"{role}.{kind}": role for role in ("source", "target", "mask") for kind in _PICTURES},
    **{f"{role}.{kind}": role for role in ("source", "target") for kind in ("safetensors", "mp4")},
}
_END_BLOCKS = 2  # POSIX.1-2001: an archive ends with two blocks of zeros
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}

# the header of a .npy file is a Python literal; a damaged one fails in many ways, or promises more
# rows than there is memory
_BAD_HEADER = (
    *(OSError, ValueError, EOFError, SyntaxError, TokenError),
    *(OverflowError, MemoryError, RecursionError, TypeError),
)
_LONGEST_HEAD = 4096  # bytes at the beginning of an index; ours are 256

Index = np.ndarray  # structured; its fields are those of `index_shard`
_Place = tuple[int, int, int]  # offset, size, crc32


def index_path(shard: Path) -> Path:
    """Return where the index of a shard lies: `local-000000.tar` -> `local-000000.idx.npy`."""
    return shard.with_suffix(".idx.npy")


def index_shard(path: Path, *, task: str) -> Index:
    """Read the whole shard and return one row per sample, in the order of the tar.

    Fields: `key` (bytes), and for the four `ROLES` the `offset`, `size` and `crc32` of the member
        (size 0: no mask).
    Pictures are not decoded; `datamodules.checks.folders` does that.

    Raises:
        ShardError: naming file, key and reason, for a file that is not a complete plain tar, for
            members that are not regular files or have odd names, and for samples that are doubled,
            scattered, incomplete, or whose json has no usable instruction or another task.
    """
    samples: dict[str, dict[str, _Place]] = {}
    current = None
    with _open(path) as stream:
        end = 0
        for member in _members(path, stream):
            key, role = _split(path, member.name)
            _refuse_repeats(path, key, role, samples, is_current=key == current)
            current = key
            data, crc32 = _read(path, stream, member)
            if role == "json":
                check_text(data, task, where=f"{path}: sample {key!r}")
            samples.setdefault(key, {})[role] = (member.start, member.size, crc32)
            end = member.end
        refuse_missing_end(path, stream, end)
    _refuse_halves(path, samples, task)
    return _to_array(samples)


def save_index(shard: Path, index: Index) -> None:
    """Write the index beside its shard."""
    with atomic_file(index_path(shard)) as stream:
        np.save(stream, index, allow_pickle=False)


def add_index(path: Path, *, task: str, kind: str = "", shape: str = "") -> ShardEntry:
    """Write the index of a complete shard beside it, and return the manifest's entry."""
    index = index_shard(path, task=task)
    save_index(path, index)
    size, sha256 = path.stat().st_size, sha256_of(path)
    return ShardEntry(task, path.name, size, sha256, len(index), kind, shape)


@dataclass(frozen=True)
class IndexRow:
    """Where the members of one sample lie: of each of the `ROLES`, size 0 where there is none."""

    key: str
    offset: tuple[int, ...]
    size: tuple[int, ...]
    crc32: tuple[int, ...]


class IndexFile:
    """The index of a shard as it lies on the disk; a row is read when it is asked for.

    Not mapped into memory: a process that touches the map of a file that was truncated meanwhile
    dies without a word (SIGBUS). Reading has no file position, so forked workers may share it.

    Raises:
        ShardError: if the index is missing, damaged, or does not belong to this shard.
    """

    def __init__(self, shard: Path, entry: ShardEntry) -> None:
        self.path, self._shard = index_path(shard), shard.name
        self._bytes, self._last = entry.bytes, (-1, IndexRow("", (), (), ()))
        try:
            self._descriptor = open_regular(self.path)
            head = io.BytesIO(os.pread(self._descriptor, _LONGEST_HEAD, 0))
            np.lib.format.read_magic(head)
            shape, _, self.dtype = np.lib.format.read_array_header_1_0(head)
            size = os.fstat(self._descriptor).st_size
        except _BAD_HEADER as error:
            reason = " ".join(str(error).split())
            raise ShardError(
                f"{self.path} cannot be read as a shard index ({reason:.200}); {MAKE_AGAIN}"
            ) from error
        self._start, self._count, n = head.tell(), entry.samples, len(ROLES)
        names = self.dtype.names or ()
        width = self.dtype["key"].itemsize if "key" in names else 0
        if self.dtype != _row(width) or shape != (entry.samples,) or width > MAX_NAME_BYTES:
            rows = " x ".join(map(str, shape))
            raise ShardError(
                f"{self.path} is not the index of {self._shard}: it has {rows:.40} rows of "
                f"{list(names)}, the manifest says {entry.samples} samples; {MAKE_AGAIN}"
            )
        self._fields = struct.Struct(f"<{width}s{n}Q{n}Q{n}I")  # as _row
        if size != self._start + entry.samples * self._fields.size:
            raise self._damaged(f"it has {size} bytes, too few or too many for its rows")

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, sample: int) -> IndexRow:
        """Return the row of a sample, 0..len - 1; the last one is remembered.

        Raises:
            ShardError: if the file was damaged, truncated or overwritten.
        """
        if self._last[0] == sample:
            return self._last[1]
        if not 0 <= sample < self._count:
            raise IndexError(f"row {sample} is outside 0..{self._count - 1}")
        name, *numbers = self._fields.unpack(self._read(sample, 1))
        key = name.rstrip(b"\0").decode("utf-8", "surrogateescape")
        if not key.isprintable():  # a lone surrogate is not
            raise self._damaged(f"the key of row {sample} is no text")
        n = len(ROLES)
        row = IndexRow(key, *(tuple(numbers[i : i + n]) for i in range(0, 3 * n, n)))
        if any(o + s > self._bytes for o, s in zip(row.offset, row.size, strict=True)):
            raise self._outside()
        self._last = sample, row
        return row

    def whole(self) -> Index:
        """Read all rows; raises as one row does."""
        index = np.frombuffer(self._read(0, self._count), dtype=self.dtype)
        # each of them first: the sum of two damaged ones may wrap around
        if max(index["offset"].max(), index["size"].max()) > self._bytes or (
            (index["offset"] + index["size"]).max() > self._bytes
        ):
            raise self._outside()
        return index

    def _read(self, first: int, count: int) -> bytes:
        size = self._fields.size
        try:
            data = os.pread(self._descriptor, count * size, self._start + first * size)
        except OSError as error:
            raise ShardError(f"{self.path} cannot be read ({error.strerror})") from error
        if len(data) != count * size:
            raise self._damaged(f"it ends before row {first + count}, cut while it was in use")
        return data

    def _outside(self) -> ShardError:
        return self._damaged(f"it points outside the {self._bytes} bytes of {self._shard}")

    def _damaged(self, reason: str) -> ShardError:
        return ShardError(f"{self.path} is damaged: {reason}; {MAKE_AGAIN}")


def load_index(shard: Path, entry: ShardEntry) -> Index:
    """Read the whole index of a shard; raises as `IndexFile`."""
    return IndexFile(shard, entry).whole()


def check_text(data: bytes, task: str, *, where: str) -> dict[str, Any]:
    """Parse the json of a sample: an instruction `clean_instruction` accepts, and its task.

    `instruction_alt`, if there, lists other wordings, as good as the instruction.

    Raises:
        ShardError: with the reason, starting with `where`.
    """
    try:
        text = json.loads(data.decode())
    except (ValueError, RecursionError) as error:  # the latter from thousands of brackets
        raise ShardError(f"{where}: its json cannot be parsed ({error})") from error
    if not isinstance(text, dict):
        raise ShardError(
            f"{where}: its json is {type(text).__name__}, needs an object with instruction and task"
        )
    _check_kinds(text, where)
    if text["task"] != task:
        raise ShardError(
            f"{where}: its json says task {text['task']!r}, the manifest says {task!r}"
        )
    try:
        text["instruction"] = clean_instruction(text["instruction"], where=where)
        if "instruction_alt" in text:
            others = text["instruction_alt"]
            text["instruction_alt"] = [clean_instruction(other, where=where) for other in others]
    except InputError as error:
        raise ShardError(str(error)) from error
    return text


def _check_kinds(text: dict[str, Any], where: str) -> None:
    for name in ("instruction", "task"):
        if not isinstance(text.get(name), str):
            raise ShardError(f"{where}: its json has no {name} that is a string")
    for name in ("source_caption", "target_caption"):
        if not isinstance(text.get(name, ""), str):
            raise ShardError(f"{where}: {name} in its json is not a string")
    others = text.get("instruction_alt", [])
    if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
        raise ShardError(f"{where}: instruction_alt in its json is not a list of strings")


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_stream(path) as stream:
            head = stream.read(8)
            if not head:
                raise ShardError(f"{path}: the file is empty, needs a tar")
            for magic, name in _COMPRESSED.items():
                if head.startswith(magic):
                    raise ShardError(
                        f"{path}: is compressed with {name}; shards are plain tars, unpack it first"
                        f"{how_to_convert(path)}"
                    )
            yield stream
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror or error})") from error


def _members(path: Path, stream: BinaryIO) -> Iterator[Member]:
    for member in read_members(path, stream):
        if len(member.name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
            name = member.name[:80]
            raise ShardError(f"{path}: member {name!r}... has a name above {MAX_NAME_BYTES} bytes")
        if member.kind:
            raise ShardError(
                f"{path}: member {member.name!r} is {member.kind}; a shard holds regular files only"
            )
        limit = MAX_JSON_BYTES if member.name.endswith(".json") else MAX_MEMBER_BYTES
        if not 0 <= member.size <= limit:  # a negative size would send the reader backwards
            raise ShardError(
                f"{path}: member {member.name!r} has {member.size} bytes, allowed are 0..{limit}"
            )
        yield member


def _split(path: Path, name: str) -> tuple[str, str]:
    """Return key and role; the key ends at the first dot of the file name, as in webdataset."""
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or not name.isprintable():
        raise ShardError(
            f"{path}: member name {name!r} is absolute, leaves its folder, or is not printable"
        )
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    role = _ROLE_OF.get(extension.lower())
    if not stem or role is None:
        raise ShardError(
            f"{path}: member {name!r} is unknown; a sample has KEY.source.png, KEY.target.png, "
            "KEY.json and optionally KEY.mask.png (or jpg, jpeg, webp; clips also mp4)"
            f"{how_to_convert(path)}"
        )
    return (f"{folder}/{stem}" if folder else stem), role


def _refuse_repeats(
    path: Path, key: str, role: str, samples: dict[str, dict[str, _Place]], *, is_current: bool
) -> None:
    if key not in samples:
        return
    if role in samples[key]:
        what = f"has two {role} members" if is_current else "appears twice"
        raise ShardError(f"{path}: sample {key!r} {what}; keys and members must be unique")
    if not is_current:
        raise ShardError(
            f"{path}: the members of sample {key!r} are not adjacent; "
            "write them one after another (tar --sort=name does)"
        )


def _read(path: Path, stream: BinaryIO, member: Member) -> tuple[bytes, int]:
    """Return the last part of a member's bytes, of a json all of them, and the CRC-32 of all."""
    stream.seek(member.start)
    data, crc32, left = b"", 0, member.size
    while left:
        data = stream.read(min(left, MAX_JSON_BYTES))
        if not data:
            name = member.name
            raise ShardError(f"{path}: is cut inside a member ({name!r}); {AGAIN}")
        crc32, left = zlib.crc32(data, crc32), left - len(data)
    return data, crc32


def refuse_missing_end(path: Path, stream: BinaryIO, end: int) -> None:
    """Refuse an archive that ends in a cut, in more data, or in what is no header."""
    stream.seek(end)
    tail = stream.read(_END_BLOCKS * BLOCK)
    if tail.count(0) == _END_BLOCKS * BLOCK:
        while block := stream.read(2**20):  # readers would lose the second of two joined archives
            if any(block):
                raise ShardError(
                    f"{path}: has data behind its end-of-archive mark; join archives member by "
                    "member"
                )
        return
    if len(tail) >= BLOCK and any(tail[:BLOCK]):
        reason = f"has a header with a bad checksum at byte {end}"
    elif any(tail):
        reason = "is cut inside a header"
    else:
        reason = "has no end-of-archive mark, so it may be cut at a header"
    raise ShardError(f"{path}: {reason}; {AGAIN}")


def _refuse_halves(path: Path, samples: dict[str, dict[str, _Place]], task: str) -> None:
    if not samples:
        raise ShardError(f"{path}: holds no samples")
    for key, roles in samples.items():
        missing = [role for role in REQUIRED if role not in roles]
        if task == CAPTION and missing == ["source"]:
            continue
        if missing:
            raise ShardError(f"{path}: sample {key!r} has no {' and no '.join(missing)}")


def _row(width: int) -> np.dtype:
    """Return the form of a row for keys of up to `width` bytes."""
    n = len(ROLES)
    return np.dtype([
        ("key", f"S{width}"),
        ("offset", "<u8", (n,)),
        ("size", "<u8", (n,)),
        ("crc32", "<u4", (n,)),
    ])


def _to_array(samples: dict[str, dict[str, _Place]]) -> Index:
    rows = [
        (key.encode(), *zip(*(roles.get(role, (0, 0, 0)) for role in ROLES), strict=True))
        for key, roles in samples.items()
    ]
    return np.array(rows, dtype=_row(max(len(key) for key, *_ in rows)))
