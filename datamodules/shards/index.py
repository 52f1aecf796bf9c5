"""Scan a tar once, refuse what cannot be trusted, and note where every member lies.

webdataset streams a tar and passes over much in silence: a shard cut at a header just ends, a
sample without its target comes out as half a sample, members of one key that are not adjacent
become two samples. Here each of these is an error with its reason, found before training, and
training then reads members by offset. A shard holds the samples of one task; a sample is the
adjacent members `<key>.source.png`, `<key>.target.png`, `<key>.json` and, optionally,
`<key>.mask.png` (pictures may also be jpg, jpeg or webp). In an encoder cache
(`datamodules.encoded.reader`) the pair is latents: `<key>.source.safetensors` and
`<key>.target.safetensors`.
"""

import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np

from datamodules.shards.manifest import MAKE_AGAIN, ShardEntry
from emu_edit.errors import InputError, ShardError
from emu_edit.files import atomic_file, sha256_of
from emu_edit.text_rules import clean_instruction

ROLES = ("source", "target", "json", "mask")
REQUIRED = ("source", "target", "json")
MAX_MEMBER_BYTES = 256 * 2**20  # a picture of 64 megapixels without any compression fits
MAX_JSON_BYTES = 2**20

_PICTURES = ("png", "jpg", "jpeg", "webp")
_ROLE_OF = {
    "json": "json",
    **{f"{role}.{kind}": role for role in ("source", "target", "mask") for kind in _PICTURES},
    **{f"{role}.safetensors": role for role in ("source", "target")},
}
_BLOCK = 512  # bytes; everything in a tar is padded to this
_END_BLOCKS = 2  # POSIX.1-2001: an archive ends with two blocks of zeros
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}

# the header of a .npy file is a Python literal; a damaged one fails in many ways, or promises more
# rows than there is memory
_BAD_HEADER = (OSError, ValueError, EOFError, SyntaxError, TokenError, OverflowError, MemoryError)

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
    with _open(path) as (stream, tar):
        end = 0
        for info in _members(path, tar):
            key, role = _split(path, info)
            _refuse_repeats(path, key, role, samples, is_current=key == current)
            current = key
            data = _read(path, stream, info)
            if role == "json":
                check_text(data, task, where=f"{path}: sample {key!r}")
            samples.setdefault(key, {})[role] = (info.offset_data, info.size, zlib.crc32(data))
            end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
        _refuse_missing_end(path, stream, end)
    _refuse_halves(path, samples)
    return _to_array(samples)


def save_index(shard: Path, index: Index) -> None:
    """Write the index beside its shard."""
    with atomic_file(index_path(shard)) as stream:
        np.save(stream, index, allow_pickle=False)


def add_index(path: Path, *, task: str) -> ShardEntry:
    """Write the index of a complete shard beside it, and return the manifest's entry."""
    index = index_shard(path, task=task)
    save_index(path, index)
    return ShardEntry(task, path.name, path.stat().st_size, sha256_of(path), len(index))


def load_index(shard: Path, entry: ShardEntry) -> Index:
    """Map the index of a shard into memory; processes that read the same file share its pages.

    Raises:
        ShardError: if the index is missing, damaged, or does not belong to this shard.
    """
    path = index_path(shard)
    try:
        index = np.lib.format.open_memmap(path, mode="r")
    except _BAD_HEADER as error:
        raise ShardError(
            f"{path} cannot be read as a shard index ({error}); {MAKE_AGAIN}"
        ) from error
    names = index.dtype.names or ()
    width = index.dtype["key"].itemsize if "key" in names else 0
    if index.dtype != _row(width) or index.shape != (entry.samples,):
        rows = " x ".join(map(str, index.shape))
        raise ShardError(
            f"{path} is not the index of {shard.name}: it has {rows} rows of {list(names)}, "
            f"the manifest says {entry.samples} samples; {MAKE_AGAIN}"
        )
    # each of them first: the sum of two damaged ones may wrap around
    if max(index["offset"].max(), index["size"].max()) > entry.bytes or (
        (index["offset"] + index["size"]).max() > entry.bytes
    ):
        raise ShardError(
            f"{path} is damaged: it points outside the {entry.bytes} bytes of {shard.name}; "
            f"{MAKE_AGAIN}"
        )
    return index


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
def _open(path: Path) -> Iterator[tuple[BinaryIO, tarfile.TarFile]]:
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
            stream.seek(0)
            if not head:
                raise ShardError(f"{path}: the file is empty, needs a tar")
            for magic, name in _COMPRESSED.items():
                if head.startswith(magic):
                    raise ShardError(
                        f"{path}: is compressed with {name}; shards are plain tars, unpack it first"
                    )
            with _opened(path, stream) as tar:
                yield stream, tar
    except tarfile.ReadError as error:
        reason = (
            "is cut inside a member"
            if "unexpected end" in str(error)
            else f"is not a plain tar ({error})"
        )
        raise ShardError(f"{path}: {reason}; fetch or write it again") from error
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror or error})") from error


def _opened(path: Path, stream: BinaryIO) -> tarfile.TarFile:
    with _headers_of(path):  # tarfile reads the first one now
        # "r:" opens plain tars only: a compressed one could unfold to any size
        return tarfile.open(fileobj=stream, mode="r:")


@contextmanager
def _headers_of(path: Path) -> Iterator[None]:
    try:
        yield
    except tarfile.ReadError:
        raise
    except (tarfile.TarError, ValueError) as error:  # a damaged pax header ends in int() or decode
        raise ShardError(
            f"{path}: has a damaged header ({error}); fetch or write it again"
        ) from error


def _members(path: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while True:
        with _headers_of(path):
            info = tar.next()
        if info is None:
            return
        # tarfile keeps every header; those of a long shard would fill the memory
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
        if not info.isreg() or info.issparse():
            raise ShardError(
                f"{path}: member {info.name!r} is {_kind(info)}; a shard holds regular files only"
            )
        # a negative size sends tarfile backwards for ever (CVE-2025-8194)
        limit = MAX_JSON_BYTES if info.name.endswith(".json") else MAX_MEMBER_BYTES
        if not 0 <= info.size <= limit:
            raise ShardError(
                f"{path}: member {info.name!r} has {info.size} bytes, allowed are 0..{limit}"
            )
        yield info


def _kind(info: tarfile.TarInfo) -> str:
    kinds = {"a symbolic link": info.issym(), "a hard link": info.islnk(), "a folder": info.isdir()}
    kinds |= {"a device or pipe": info.isdev(), "a sparse file": info.issparse()}
    return next((name for name, holds in kinds.items() if holds), "of an unknown type")


def _split(path: Path, info: tarfile.TarInfo) -> tuple[str, str]:
    """Return key and role; the key ends at the first dot of the file name, as in webdataset."""
    name = info.name
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
            "KEY.json and optionally KEY.mask.png (or jpg, jpeg, webp)"
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


def _read(path: Path, stream: BinaryIO, info: tarfile.TarInfo) -> bytes:
    stream.seek(info.offset_data)
    data = stream.read(info.size)
    if len(data) != info.size:
        raise ShardError(f"{path}: is cut inside a member ({info.name!r}); fetch or write it again")
    return data


def _refuse_missing_end(path: Path, stream: BinaryIO, end: int) -> None:
    """Refuse an archive that ends in a cut, in more data, or in what tarfile took for the end."""
    stream.seek(end)
    tail = stream.read(_END_BLOCKS * _BLOCK)
    if tail.count(0) == _END_BLOCKS * _BLOCK:
        while block := stream.read(2**20):  # readers would lose the second of two joined archives
            if any(block):
                raise ShardError(
                    f"{path}: has data behind its end-of-archive mark; join archives member by "
                    "member"
                )
        return
    if len(tail) >= _BLOCK and any(tail[:_BLOCK]):
        reason = f"has a header with a bad checksum at byte {end}"
    elif any(tail):
        reason = "is cut inside a header"
    else:
        reason = "has no end-of-archive mark, so it may be cut at a header"
    raise ShardError(f"{path}: {reason}; fetch or write it again")


def _refuse_halves(path: Path, samples: dict[str, dict[str, _Place]]) -> None:
    if not samples:
        raise ShardError(f"{path}: holds no samples")
    for key, roles in samples.items():
        missing = [role for role in REQUIRED if role not in roles]
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
