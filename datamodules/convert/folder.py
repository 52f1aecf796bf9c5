"""The layout `source/ target/ [mask/] instructions.jsonl`: one JSON object per line and pair.

A line is {"file": "a.png", "instruction": "make it red"}, or names both sides: {"source": "a.png",
"target": "b.png", "instruction": ...}; optional are "mask", "task", "source_caption" and
"target_caption". A name is looked up in its side's folder first and beside the .jsonl second. With
"file", mask/<file> is taken when it exists (any of the known extensions); white means "may change".
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from datamodules.convert.pair import (
    Converter,
    RawPair,
    Reason,
    SkippedPair,
    is_safe_name,
    unsafe_name,
    white_mask,
)
from datamodules.convert.picture import Picture
from datamodules.convert.report import unnamed_in
from datamodules.listing import find_file, how_to_convert, parse_object, same_form, text_lines
from datamodules.shards.evaluation_only import refuse_columns
from emu_edit.errors import InputError
from emu_edit.pictures import EXTENSIONS

LINES = "instructions.jsonl"
_TEXTS = (
    *("instruction", "file", "source", "target"),
    *("mask", "task", "source_caption", "target_caption"),
)


def list_pairs(path: Path) -> Iterator[RawPair | SkippedPair]:
    """Yield the pairs of a folder, or of a .jsonl file, in the order of the lines."""
    lines = path / LINES if path.is_dir() else path
    if not lines.is_file():
        wanted = f"needs a folder with source/, target/ and {LINES}, or a .jsonl file"
        if (path / "images").is_dir() and (path / "control").is_dir():
            wanted += "; it has images/ and control/: convert it as 'control'"
        raise InputError(f"{lines}: no such file; {wanted}{how_to_convert(path)}")
    named: set[int] = set()
    for number, line in text_lines(lines):
        if line.strip():
            name = f"{lines.name}:{number}"
            fields = _fields(line, name)
            if isinstance(fields, str):
                yield SkippedPair(name, Reason.bad_line, fields)
            else:
                yield _pair(lines.parent, name, fields, named)
    if path.is_dir():
        yield from unnamed_in(path, named)


def _has_place(name: PurePosixPath) -> bool:
    return str(name) == LINES or name.suffix.lower() in EXTENSIONS


CONVERTER = Converter("folder", list_pairs, has_place=_has_place)
JSONL = Converter("jsonl", list_pairs)  # the same layout, given as its .jsonl file


def _fields(line: bytes, where: str) -> dict[str, str] | str:
    """Return the known fields of a line, or what is wrong with it."""
    try:
        record = parse_object(line, where)
    except InputError as error:
        return str(error)
    refuse_columns(record, where)
    fields: dict[str, str] = {}
    for name in _TEXTS:
        value = record.get(name)
        if value is not None and not isinstance(value, str):
            return f"{name!r} is {type(value).__name__}, needs text"
        if value is not None:
            fields[name] = value
    if "file" not in fields and not {"source", "target"} <= fields.keys():
        return f"names no pictures, needs 'file' or 'source' and 'target'; it has {sorted(record)}"
    return fields


def _pair(root: Path, name: str, fields: dict[str, str], named: set[int]) -> RawPair | SkippedPair:
    """Return the pair of a line, and remember which pictures it names."""
    names = {side: fields.get(side, fields.get("file", "")) for side in ("source", "target")}
    if "mask" in fields:
        names["mask"] = fields["mask"]
    for side, value in names.items():
        if not is_safe_name(value):
            return SkippedPair(name, Reason.unsafe_name, unsafe_name(value, side))
    places = {side: _find(root, side, value) for side, value in names.items()}
    if "mask" not in places and (mask := _mask_beside(root, fields)) is not None:
        places["mask"] = mask
    named.update(hash(same_form(str(place))) for place in places.values())
    return RawPair(
        name=name,
        identity=f"{name} {names['source']} {names['target']}",
        raw_task=fields.get("task", ""),
        source=Picture.at(places["source"]),
        target=Picture.at(places["target"]),
        mask=white_mask(Picture.at(places["mask"])) if "mask" in places else None,
        instruction=fields.get("instruction", ""),
        source_caption=fields.get("source_caption", ""),
        target_caption=fields.get("target_caption", ""),
    )


def _find(root: Path, side: str, name: str) -> Path:
    return find_file(root / side, name) or find_file(root, name) or root / side / name


def _mask_beside(root: Path, fields: dict[str, str]) -> Path | None:
    if "file" not in fields:
        return None
    name = PurePosixPath(fields["file"])
    spellings = (name, *(name.with_suffix(extension) for extension in EXTENSIONS))
    found = (find_file(root / "mask", str(spelling)) for spelling in spellings)
    return next(filter(None, found), None)
