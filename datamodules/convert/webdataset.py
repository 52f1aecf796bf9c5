"""Shards that others wrote: tars of samples (WebDataset, img2dataset), whose fields the user names.

A sample is the adjacent members of one key, which ends at the first dot of the file's name; what
follows is the field: `0001.edited.jpg` is `edited.jpg` of `0001`. A text may stand in a field of
its own (`txt`) or in a column of one with JSON (`json:edit_prompt`). Read are one .tar, folders of
them, patterns with braces (`part-{0000..0099}.tar`), and tars compressed with gzip, which are read
from front to end each time. Source: the webdataset library's documentation; its keys and its order.
"""

import gzip
import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from datamodules.convert.pair import (
    MAX_TEXT_BYTES,
    Converter,
    FieldMap,
    RawPair,
    Reason,
    RefusedPairError,
    SkippedPair,
    white_mask,
)
from datamodules.convert.picture import Picture
from datamodules.listing import decode_text, list_files, parse_object, same_form
from datamodules.shards.evaluation_only import refuse_declared, refuse_name
from datamodules.shards.index import MAX_JSON_BYTES, MAX_MEMBER_BYTES, refuse_missing_end
from datamodules.shards.tar_headers import AGAIN, Member, read_members
from emu_edit.errors import BadImageError, InputError, ShardError
from emu_edit.files import open_stream

_TAR = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_MOST_SHARDS = 100_000
_GZIP = b"\x1f\x8b"
_OTHER_COMPRESSION = {b"BZh": "bzip2", b"\xfd7z": "xz", b"\x28\xb5\x2f": "zstandard"}
_NAMED = 12  # fields in a message


@dataclass
class _Sample:
    """The members of one key: how to read each field, and how large it is."""

    where: str
    fields: dict[str, tuple[Callable[[], bytes], int]] = field(default_factory=dict)
    doubled: str = ""  # a field that is there twice

    def picture(self, name: str, missing: Reason) -> Picture:
        """Return a picture, not yet read."""
        found = self._named(name, missing)
        read, size = self.fields[found]
        if size > MAX_MEMBER_BYTES:
            detail = f"{self.where}: {found} has {size} bytes, at most {MAX_MEMBER_BYTES} are read"
            raise RefusedPairError(Reason.unreadable_picture, detail)
        return Picture(f"{self.where}: {found}", read)

    def has(self, name: str) -> bool:
        """Tell whether the field is there; of several names, with commas, any."""
        return any(file in self.fields for file in _files(name))

    def text(self, name: str, missing: Reason) -> str:
        """Return a field's text, or that of a column of it, as in `json:caption`."""
        column, found = name.partition(":")[2], self._named(name, missing)
        read, size = self.fields[found]
        where, limit = f"{self.where}: {found}", MAX_JSON_BYTES if column else MAX_TEXT_BYTES
        if size > limit:
            detail = f"{where} has {size} bytes, at most {limit} are read"
            raise RefusedPairError(Reason.bad_instruction, detail)
        try:
            if not column:
                return decode_text(read(), where)
            columns = parse_object(read(), where)
        except InputError as error:
            raise RefusedPairError(Reason.bad_line, str(error)) from error
        refuse_declared(columns, where)
        value = columns.get(column)
        if not isinstance(value, str):
            names = ", ".join(sorted(columns)[:_NAMED])
            raise RefusedPairError(missing, f"{where} has no text {column!r}; it has {names}")
        return value

    def _named(self, name: str, missing: Reason) -> str:
        found = next((file for file in _files(name) if file in self.fields), None)
        if found is None:
            detail = f"{self.where}: has no {name}; it has {', '.join(sorted(self.fields))}"
            raise RefusedPairError(missing, detail)
        return found


def _files(name: str) -> list[str]:
    """Return the extensions a field may have: "jpg" and "png" of "jpg,png", "json" of "json:a"."""
    return name.partition(":")[0].lower().split(",")


def made_for(fields: FieldMap | None) -> Converter:
    """Return the converter of samples with these fields."""
    return Converter(
        "webdataset",
        partial(list_pairs, fields=fields),
        has_place=lambda name: _TAR.search(name.name) is not None,
        takes_patterns=True,
    )


def list_pairs(path: Path, *, fields: FieldMap | None) -> Iterator[RawPair | SkippedPair]:
    """Yield the pairs of all shards, in the order of the shards.

    Raises:
        InputError: if there is no shard, or no sample has these fields: it says which there are.
        ShardError: if a tar is damaged or cut.
    """
    found: Counter[str] = Counter()
    pairs = 0
    shards = find_shards(path)
    root = Path(os.path.commonpath([shard.absolute().parent for shard in shards]))
    names = () if fields is None else (fields.source, fields.target, fields.instruction)
    more = () if fields is None else tuple(filter(None, (fields.mask, fields.task)))
    wanted = frozenset(chain.from_iterable(map(_files, (*names, *more))))
    for shard in shards:
        for item in _samples(shard, shard.absolute().relative_to(root).as_posix(), wanted):
            if isinstance(item, SkippedPair):
                yield item
                continue
            found.update(item.fields.keys())
            if fields is None:
                raise InputError(f"{item.where} has {', '.join(item.fields)}; {_ASK}")
            try:
                yield _pair(item, fields)
                pairs += 1
            except RefusedPairError as error:
                yield SkippedPair(item.where, error.reason, str(error))
    missing = [name for name in (*names, *more) if not any(file in found for file in _files(name))]
    if missing or not (pairs or found):
        counts = ", ".join(f"{name} ({count})" for name, count in found.most_common(_NAMED))
        lacks = f"no sample has {' and '.join(missing)}; " if missing else ""
        raise InputError(f"{path}: {lacks}there are the fields {counts or '(none)'}; {_ASK}")


def _pair(sample: _Sample, fields: FieldMap) -> RawPair:
    if sample.doubled:
        detail = f"{sample.where}: has two members {sample.doubled}"
        raise RefusedPairError(Reason.ambiguous_name, detail)
    has_mask = bool(fields.mask) and sample.has(fields.mask)
    has_task = bool(fields.task) and sample.has(fields.task)
    return RawPair(
        name=sample.where,
        identity=sample.where,
        source=sample.picture(fields.source, Reason.missing_source),
        target=sample.picture(fields.target, Reason.missing_target),
        instruction=sample.text(fields.instruction, Reason.missing_instruction),
        mask=white_mask(sample.picture(fields.mask, Reason.missing_mask)) if has_mask else None,
        raw_task=sample.text(fields.task, Reason.no_task).strip() if has_task else "",
    )


_ASK = "say which is what: --source jpg --target edited.jpg --instruction txt (or json:COLUMN)"


def find_shards(path: Path) -> list[Path]:
    """Return the tars of a file, a folder or a pattern with braces.

    Raises:
        InputError: if there are none, or one that the pattern names is missing.
    """
    if path.is_dir():
        found = [file for file in list_files(path) if _TAR.search(file.name)]
        if not found:
            raise InputError(
                f"{path}: has no .tar, .tar.gz or .tgz files; give shards, or another KIND"
            )
        return found
    found = [Path(name) for name in expand_braces(str(path))]
    if missing := [file for file in found if not file.is_file()]:
        of = f" ({len(missing)} of {len(found)} are missing)" if len(found) > 1 else ""
        raise InputError(f"{missing[0]}: no such file{of}; give a .tar, a folder or a pattern")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Return what a shell makes of `{00..09}` and `{a,b}`: leading zeros keep the width.

    Raises:
        InputError: if there are too many.
    """
    names, done = [pattern], False
    while not done:
        wider = list(chain.from_iterable(map(_expand_first, names)))
        done, names = wider == names, wider
        if len(names) > _MOST_SHARDS:
            raise _too_many(pattern)
    return names


def _expand_first(name: str) -> list[str]:
    found = _BRACES.search(name)
    if found is None:
        return [name]
    first, last, words = found.groups()
    if words is not None:
        choices = words.split(",")
    else:
        start, end = int(first), int(last)
        if abs(end - start) >= _MOST_SHARDS:
            raise _too_many(name)
        width = max(len(first), len(last)) if "0" in {first[0], last[0]} else 0
        step = 1 if end >= start else -1
        choices = [f"{number:0{width}d}" for number in range(start, end + step, step)]
    return [f"{name[: found.start()]}{choice}{name[found.end() :]}" for choice in choices]


def _too_many(pattern: str) -> InputError:
    return InputError(f"{pattern}: means more than {_MOST_SHARDS} shards; give fewer at a time")


def _samples(shard: Path, name: str, wanted: frozenset[str]) -> Iterator[_Sample | SkippedPair]:
    """Yield the samples of one tar, and the members that belong to none.

    Args:
        shard: the file.
        name: its name in the set.
        wanted: the fields that are asked for; of a compressed tar no others are kept.
    """
    refuse_name(shard)
    key, sample = "", None
    with _opened(shard) as (stream, length):
        end = 0
        for member in read_members(shard, stream):
            end = member.end
            if member.size < 0 or (length is not None and end > length):
                raise ShardError(f"{shard}: is cut inside a member ({member.name!r}); {AGAIN}")
            parted = _part(member, name)
            if isinstance(parted, SkippedPair):
                yield parted
            elif parted is not None:
                if sample is None or key != parted[0]:
                    if sample is not None:
                        yield sample
                    key, sample = parted[0], _Sample(f"{name}, sample {parted[0]}")
                extension = parted[1]
                sample.doubled = extension if extension in sample.fields else sample.doubled
                is_kept = length is None and extension in wanted
                read = _kept(stream, member) if is_kept else partial(_read_at, shard, member)
                sample.fields[extension] = read, member.size
        refuse_missing_end(shard, stream, end)
    if sample is not None:
        yield sample


def _part(member: Member, shard: str) -> tuple[str, str] | SkippedPair | None:
    """Return key and field of a member, why it is none, or None for a folder, which holds none."""
    if member.kind == "a folder":
        return None
    name, where = same_form(member.name), f"{shard}, {member.name!r}"
    if member.kind:
        return SkippedPair(where, Reason.not_followed, f"{where} is {member.kind}, not a file")
    if not name.isprintable():
        return SkippedPair(where, Reason.unsafe_name, "a name needs printable characters")
    parts = [part for part in PurePosixPath(name).parts if part != "."]
    if not parts or any(part.startswith(".") for part in parts):
        return SkippedPair(where, Reason.hidden_file, f"{where}: a hidden name")
    stem, _, extension = parts[-1].partition(".")
    if not extension:
        return SkippedPair(where, Reason.other_file, f"{where}: is no field of a sample")
    return "/".join((*parts[:-1], stem)), extension.lower()


def _kept(stream: BinaryIO, member: Member) -> Callable[[], bytes]:
    """Read a member now, for later; one that is too large is refused by its size."""
    if member.size > MAX_MEMBER_BYTES:
        return bytes
    stream.seek(member.start)
    data = stream.read(member.size)
    return lambda: data


def _read_at(shard: Path, member: Member) -> bytes:
    try:
        with open_stream(shard) as stream:
            stream.seek(member.start)
            return stream.read(member.size)
    except OSError as error:
        raise BadImageError(f"{shard}: cannot be read ({error.strerror})") from error


class _Unpacked(io.BufferedReader):
    """The bytes that gzip unpacks, as any other stream of a file."""

    @property
    def mode(self) -> str:
        """Return what gzip itself has a number for."""
        return "rb"


@contextmanager
def _opened(shard: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """Open a tar, plain or compressed with gzip; of a plain one with its length."""
    try:
        with open_stream(shard) as stream:
            head = stream.read(8)
            for magic, name in _OTHER_COMPRESSION.items():
                if head.startswith(magic):
                    raise InputError(
                        f"{shard}: is compressed with {name}; unpack it to a plain tar"
                    )
            if not head.startswith(_GZIP):
                yield stream, stream.seek(0, os.SEEK_END)
                return
            stream.seek(0)
            with gzip.GzipFile(fileobj=stream) as packed, _Unpacked(packed) as unpacked:
                yield unpacked, None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ShardError(f"{shard}: the gzip data are damaged ({error}); {AGAIN}") from error
    except OSError as error:
        raise ShardError(f"{shard}: cannot be read ({error.strerror or error})") from error
