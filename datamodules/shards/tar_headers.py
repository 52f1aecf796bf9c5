"""Read the headers of a plain tar, one member after another, in constant memory.

Python's tarfile reads what a header promises before anything can refuse it: a long name of 2 GiB, a
number of 5000 digits, a thousand headers that each only announce the next. Here every header has a
bound and there is no recursion. Read are ustar, the long names of GNU tar and the extended headers
of pax; of a member only what a shard needs: name, kind, size, and where its bytes begin.

Source: POSIX.1-2001, "pax"; the GNU tar manual, "Basic Tar Format".
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from emu_edit.errors import ShardError

BLOCK = 512  # bytes; everything in a tar is padded to this
MAX_HEADER_BYTES = 2**20  # of a long name or an extended header; attributes of files are in some
MAX_EXTENDED = 8  # headers in a row that speak of one member; writers use up to four
AGAIN = "fetch or write it again"

_FILES = b"07\0"  # regular, of ancient tars, and contiguous
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device or pipe",
    b"4": "a device or pipe",
    b"5": "a folder",
    b"6": "a device or pipe",
    b"S": "a sparse file",
}
_LONG_NAME, _LONG_LINK = b"L", b"K"
_NEXT, _GLOBAL = b"xX", b"g"  # pax headers: of the next member, of all that follow
_SPARSE = b"GNU.sparse."  # keywords that begin so make a sparse file of a regular one
_DIGITS = 20  # of a number in a pax header; sizes above 10^20 are none


@dataclass(frozen=True)
class Member:
    """What the headers say of a member.

    Attributes:
        name: as written; bytes that are no UTF-8 become lone surrogates.
        kind: "" for a regular file, else in words what it is.
        size: in bytes, as written: it may be negative or larger than the file.
        start: where its bytes begin in the file.
    """

    name: str
    kind: str
    size: int
    start: int

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.start + padded(self.size)


def padded(size: int) -> int:
    """Return how many bytes `size` bytes fill in a tar."""
    return -(-size // BLOCK) * BLOCK


def read_members(path: Path, stream: BinaryIO) -> Iterator[Member]:
    """Yield the members up to the first block that is no header: the end, a cut or damage.

    The caller looks at size and kind before it asks for the next one, and at what stands behind the
    last.

    Raises:
        ShardError: if the file does not begin with a header, or one is too long, malformed, or
            announces a member that is not there.
    """
    length = stream.seek(0, os.SEEK_END)
    at = 0
    while (member := _member(path, stream, at, length)) is not None:
        yield member
        at = member.end
        if at > length:
            raise ShardError(f"{path}: is cut inside a member ({member.name!r}); {AGAIN}")


def _member(path: Path, stream: BinaryIO, at: int, length: int) -> Member | None:
    """Read the headers of the member at a place in the file; None where there is no header."""
    said: dict[bytes, bytes] = {}
    for number in range(MAX_EXTENDED + 1):
        block = _block(stream, at)
        if block is None or not any(block):
            if number:
                raise _damaged(path, at, "a header announces a member that is not there")
            if block is None and at == 0:
                raise ShardError(f"{path}: is not a plain tar; {AGAIN}")
            return None
        kind, size, start = block[156:157], _number(path, at, block[124:136]), at + BLOCK
        if kind not in (_LONG_NAME, _LONG_LINK, _GLOBAL) and kind not in _NEXT:
            return _with(path, at, said, block, size)
        if not 0 <= size <= MAX_HEADER_BYTES:
            what = f"a header of {size} bytes, allowed are 0..{MAX_HEADER_BYTES}"
            raise _damaged(path, at, what)
        if start + size > length:
            raise ShardError(f"{path}: is cut inside a header; {AGAIN}")
        stream.seek(start)
        said |= _said(path, at, kind, stream.read(size))
        at = start + padded(size)
    raise _damaged(path, at, f"more than {MAX_EXTENDED} headers for one member")


def _block(stream: BinaryIO, at: int) -> bytes | None:
    """Return the header at a place, zeros of the end mark, or None if it is neither."""
    stream.seek(at)
    block = stream.read(BLOCK)
    if len(block) < BLOCK:
        return None
    field = block[148:156].strip(b" \0")
    if not any(block):
        return block
    if not field or len(field) > 7 or not set(field) <= set(b"01234567"):
        return None
    summed = block[:148] + b" " * 8 + block[156:]  # its own field counts as spaces
    wanted, plain = int(field, 8), sum(summed)
    # some writers summed signed bytes
    is_header = wanted == plain or wanted == plain - 256 * sum(byte > 127 for byte in summed)
    return block if is_header else None


def _with(path: Path, at: int, said: dict[bytes, bytes], block: bytes, size: int) -> Member:
    """Return the member of a header, with what the headers before it said."""
    name = said.get(b"path")
    if name is None:
        name = block[:100].split(b"\0")[0]
        prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
        name = prefix + b"/" + name if prefix else name
    if b"size" in said:
        size = _decimal(path, at, said[b"size"])
    kind = _KINDS[b"S"] if _SPARSE in said else _kind(block[156:157], name)
    if kind:
        name = name.rstrip(b"/")  # of a folder
    return Member(name.decode("utf-8", "surrogateescape"), kind, size, at + BLOCK)


def _kind(letter: bytes, name: bytes) -> str:
    if letter == b"\0" and name.endswith(b"/"):  # how ancient tars wrote folders
        return _KINDS[b"5"]
    return "" if letter in _FILES else _KINDS.get(letter, "of an unknown type")


def _said(path: Path, at: int, kind: bytes, data: bytes) -> dict[bytes, bytes]:
    """Return what an extended header says of the next member."""
    if kind == _LONG_LINK:
        return {}
    if kind == _LONG_NAME:
        return {b"path": data.split(b"\0")[0]}
    found: dict[bytes, bytes] = {}
    for keyword, value in _records(path, at, data):
        if keyword.startswith(_SPARSE):
            found[_SPARSE] = b""
        elif keyword in (b"path", b"size"):
            found[keyword] = value
    if kind == _GLOBAL and found:
        raise _damaged(path, at, f"{min(found).decode()!r} is given to all members")
    return found


def _records(path: Path, at: int, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keyword and value of each record of a pax header, a line "LENGTH KEYWORD=VALUE"."""
    place = 0
    while place < len(data) and data[place]:
        space = data.find(b" ", place, place + _DIGITS)
        length = _decimal(path, at, data[place:space]) if space > 0 else 0
        keyword, equals, value = data[space + 1 : place + length].partition(b"=")
        if not keyword or not equals or not value.endswith(b"\n") or place + length > len(data):
            raise _damaged(path, at, f"no record of a pax header: {data[place : place + 40]!r}")
        yield keyword, value[:-1]
        place += length


def _decimal(path: Path, at: int, digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > _DIGITS:
        raise _damaged(path, at, f"{digits[:40]!r} where a number is needed")
    return int(digits)


def _number(path: Path, at: int, field: bytes) -> int:
    """Read a number: octal digits, or GNU's base 256 with the first bit set."""
    if field[0] in (0o200, 0o377):
        number = int.from_bytes(field[1:], "big")
        return number if field[0] == 0o200 else number - 256 ** (len(field) - 1)
    digits = field.split(b"\0")[0].strip(b" ")
    if not set(digits) <= set(b"01234567"):
        raise _damaged(path, at, f"{field!r} where a number is needed")
    return int(digits or b"0", 8)


def _damaged(path: Path, at: int, what: str) -> ShardError:
    return ShardError(f"{path}: has a damaged header at byte {at} ({what}); {AGAIN}")
