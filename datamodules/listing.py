"""What a user's folder and text files hold: one rule for all readers.

Every entry of a folder is told, also what is passed by, so that a reader can count it: hidden
entries, links to folders (they could lead in a circle), pipes, folders that cannot be listed. Links
to files are files. Names are compared in one Unicode form, NFC: "é" may be one character or two,
and systems differ in what they write. Texts are UTF-8, or say by their mark that they are UTF-16 or
UTF-32; any other encoding is refused with the remedy, never guessed.
"""

import codecs
import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from emu_edit.errors import InputError
from emu_edit.files import open_stream

_MARKS = (  # UTF-32's first: the mark of UTF-16 is how it begins
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD = 256  # bytes in which UTF-16 without a mark is noticed
_AS_UTF8 = "save it as UTF-8 (iconv -f {} -t UTF-8 FILE > NEW)"
_FOLDERS_KEPT = 16  # whose names are remembered while files in other spellings are looked for


@dataclass(frozen=True)
class Entry:
    """Something in a folder.

    Attributes:
        path: where it is.
        name: below the folder that was listed, with "/", in NFC.
        is_hidden: its name begins with a dot; a hidden folder is one entry.
        why: why it is not followed, "" for a file that can be read.
    """

    path: Path
    name: str
    is_hidden: bool = False
    why: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it is a file to look at: neither hidden nor of a kind that is not followed."""
        return not self.is_hidden and not self.why


def list_entries(folder: Path, *, deep: bool = True) -> Iterator[Entry]:
    """Yield everything in a folder, each folder's entries in the order of their names.

    Folders inside are searched, or, with `deep` false, entries that are not followed.
    """
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as opened:
                found = sorted(opened, key=lambda entry: entry.name)
        except OSError as error:
            yield Entry(here, _name(here, folder), why=f"cannot be listed ({error.strerror})")
            continue
        inside = []
        for entry in found:
            path = here / entry.name
            if deep and not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                inside.append(path)
            else:
                is_hidden = entry.name.startswith(".")
                why = "" if is_hidden else _why_not(entry)
                yield Entry(path, _name(path, folder), is_hidden, why)
        waiting += reversed(inside)


def list_files(folder: Path) -> list[Path]:
    """Return the files below a folder that are not hidden, by path."""
    return sorted(entry.path for entry in list_entries(folder) if entry.is_file)


def same_form(name: str) -> str:
    """Return a name in the form in which names are compared."""
    return unicodedata.normalize("NFC", name)


def find_file(folder: Path, name: str) -> Path | None:
    r"""Return what a text calls `name` in a folder, in the spelling it has on the disk.

    A name with "\" is also looked for with "/", as Windows means it. The caller has made sure that
    the name stays inside the folder.
    """
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        if (folder / spelling).exists():
            return folder / spelling
        found: Path | None = folder
        for part in PurePosixPath(spelling).parts:
            found = None if found is None else _respelt(found, part)
        if found is not None:
            return found
    return None


def decode_text(data: bytes, where: str) -> str:
    """Return a text of UTF-8, or of UTF-16 or UTF-32 with a mark; `where` begins the message.

    Raises:
        InputError: if it is something else; with the byte and the remedy.
    """
    try:
        return data.decode(_encoding_of(data[:_HEAD], where))
    except UnicodeDecodeError as error:
        raise _no_text(data, error, where) from error


def text_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line, in UTF-8 whatever form of Unicode the file has.

    A line is not decoded yet, so that a fault in it is a fault of the line.

    Raises:
        InputError: if the file as a whole is no text of Unicode.
    """
    with open_stream(path) as stream:
        encoding = _encoding_of(stream.read(_HEAD), str(path))
        stream.seek(0)
        if encoding == "utf-8-sig":
            yield from enumerate(stream, 1)
            return
        try:
            with io.TextIOWrapper(stream, encoding=encoding) as text:
                yield from ((number, line.encode()) for number, line in enumerate(text, 1))
        except UnicodeDecodeError as error:
            raise _no_text(b"", error, str(path)) from error


def parse_object(line: bytes, where: str) -> dict[str, object]:
    """Return the object of a line of JSON.

    Raises:
        InputError: if it is none, starting with `where`.
    """
    text = decode_text(line, where)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "write / or two \\ in paths" if "escape" in str(error) else "mend it or get it again"
        raise InputError(f"{where}: is not a line of JSON ({error}); {hint}") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: holds {type(record).__name__}, needs an object in {{}}")
    return record


def read_table(path: Path, name: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield number and fields of the rows of a .jsonl or .csv file; `name` is for messages.

    Raises:
        InputError: if a row cannot be read, or a row of a .csv has another length than its head:
            an instruction with a comma and no quotes, behind which each cell would stand for
            another column.
    """
    if path.suffix.lower() != ".csv":
        for number, line in text_lines(path):
            if line.strip():
                yield number, parse_object(line, f"{name}:{number}")
        return
    lines = (decode_text(line, f"{name}:{number}") for number, line in text_lines(path))
    reader = csv.reader(lines, strict=True)
    try:
        columns = next(reader, [])
        for cells in filter(None, reader):  # not the empty lines
            if len(cells) != len(columns):
                raise InputError(
                    f"{name}:{reader.line_num} has {len(cells)} cells, its head {len(columns)}; "
                    "put quotes around texts with commas"
                )
            yield reader.line_num, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{name} is not CSV ({error}); export it again") from error


def how_to_convert(path: Path) -> str:
    """Return the command that reads what others wrote there, as the end of a message; "" if none.

    For a reader of our own shards that met something else.
    """
    fields = "--source jpg --target edited.jpg --instruction txt"
    kind = ""
    if path.is_dir():
        names = {entry.name for entry in list_entries(path, deep=False) if entry.is_file}
        if {"metadata.jsonl", "metadata.csv", "metadata.parquet"} & names:
            kind, fields = "imagefolder", "--source COLUMN --target COLUMN --instruction COLUMN"
        elif "instructions.jsonl" in names:
            kind, fields = "folder", ""
        elif any(_TAR.search(name) for name in names):
            kind = "webdataset"
    elif _TAR.search(path.name):
        kind = "webdataset"
    command = f"emu-edit shards convert {kind} {path} OUT {fields}".rstrip()
    return f"; convert what others wrote: {command}" if kind else ""


_TAR = re.compile(r"\.(tar(\.\w+)?|tgz)$", re.IGNORECASE)


def _why_not(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_file():
            return ""
        if entry.is_dir():
            is_link = entry.is_symlink()
            return "is a link to a folder" if is_link else "is a folder inside, not searched here"
        is_there = Path(entry.path).exists()
    except OSError as error:  # links in a circle
        return f"cannot be read ({error.strerror})"
    return "is a pipe, a device or a socket" if is_there else "is a link to nothing"


def _name(path: Path, folder: Path) -> str:
    return same_form(path.relative_to(folder).as_posix())


def _respelt(folder: Path, part: str) -> Path | None:
    if (folder / part).exists():
        return folder / part
    if part.isascii():
        return None
    try:
        spelling = _spellings(folder, folder.stat().st_mtime_ns).get(same_form(part))
    except OSError:
        return None
    return None if spelling is None else folder / spelling


@lru_cache(maxsize=_FOLDERS_KEPT)
def _spellings(folder: Path, changed: int) -> dict[str, str]:
    """Return the names on the disk by their one form; `changed` makes an old answer useless."""
    del changed
    names = sorted(os.listdir(folder), reverse=True)
    return {same_form(name): name for name in names if not name.isascii()}


def _encoding_of(head: bytes, where: str) -> str:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        raise InputError(
            f"{where}: has NUL bytes, as UTF-16 without a mark has; {_AS_UTF8.format('UTF-16LE')}"
        )
    return "utf-8-sig"


def _no_text(data: bytes, error: UnicodeDecodeError, where: str) -> InputError:
    if error.encoding != "utf-8":
        return InputError(
            f"{where}: is damaged {error.encoding} ({error.reason}); save it as UTF-8"
        )
    byte = data[error.start]
    meant = bytes([byte]).decode("cp1252", "replace")
    return InputError(
        f"{where}: is not UTF-8 at byte {error.start} (0x{byte:02X}, in Windows-1252 {meant!r}); "
        f"{_AS_UTF8.format('WINDOWS-1252')}"
    )
