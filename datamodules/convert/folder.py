"""The layout `source/ target/ [mask/] instructions.jsonl`: one JSON object per line and pair.

A line is {"file": "a.png", "instruction": "make it red"}, or names both sides: {"source": "a.png",
"target": "b.png", "instruction": ...}; optional are "mask", "task", "source_caption" and
"target_caption". A name is looked up in its side's folder first and beside the .jsonl second. With
"file", mask/<file> is taken when it exists (any of the known extensions); white means "may change".
"""

import json
from collections.abc import Iterator
from pathlib import Path

from datamodules.convert.pair import (
    Converter,
    RawPair,
    Reason,
    SkippedPair,
    is_safe_name,
    white_mask,
)
from datamodules.convert.picture import Picture
from datamodules.shards.evaluation_only import refuse_columns
from emu_edit.errors import InputError
from emu_edit.files import open_stream
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
        raise InputError(f"{lines}: no such file; {wanted}")
    with open_stream(lines) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                name = f"{lines.name}:{number}"
                fields = _fields(line, name)
                if isinstance(fields, str):
                    yield SkippedPair(name, Reason.bad_line, fields)
                else:
                    yield _pair(lines.parent, name, fields)


CONVERTER = Converter("folder", list_pairs)
JSONL = Converter("jsonl", list_pairs)  # the same layout, given as its .jsonl file


def _fields(line: bytes, where: str) -> dict[str, str] | str:
    """Return the known fields of a line, or what is wrong with it."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"not a line of JSON ({error})"
    if not isinstance(record, dict):
        return f"holds {type(record).__name__}, needs an object in {{}}"
    refuse_columns(record, where)
    fields = {name: record[name] for name in _TEXTS if record.get(name) is not None}
    for name, value in fields.items():
        if not isinstance(value, str):
            return f"{name!r} is {type(value).__name__}, needs text"
    if "file" not in fields and not {"source", "target"} <= fields.keys():
        return f"names no pictures, needs 'file' or 'source' and 'target'; it has {sorted(record)}"
    return fields


def _pair(root: Path, name: str, fields: dict[str, str]) -> RawPair | SkippedPair:
    names = {side: fields.get(side, fields.get("file", "")) for side in ("source", "target")}
    if "mask" in fields:
        names["mask"] = fields["mask"]
    for side, value in names.items():
        if not is_safe_name(value):
            detail = f"{side} {value!r} must be a relative name inside the folder, without '..'"
            return SkippedPair(name, Reason.unsafe_name, detail)
    mask = _find(root, "mask", names["mask"]) if "mask" in names else _mask_beside(root, fields)
    return RawPair(
        name=name,
        identity=f"{name} {names['source']} {names['target']}",
        raw_task=fields.get("task", ""),
        source=Picture.at(_find(root, "source", names["source"])),
        target=Picture.at(_find(root, "target", names["target"])),
        mask=None if mask is None else white_mask(Picture.at(mask)),
        instruction=fields.get("instruction", ""),
        source_caption=fields.get("source_caption", ""),
        target_caption=fields.get("target_caption", ""),
    )


def _find(root: Path, side: str, name: str) -> Path:
    inside, beside = root / side / name, root / name
    return beside if beside.exists() and not inside.exists() else inside


def _mask_beside(root: Path, fields: dict[str, str]) -> Path | None:
    if "file" not in fields:
        return None
    same = root / "mask" / fields["file"]
    others = (same.with_suffix(extension) for extension in EXTENSIONS)
    return next((path for path in (same, *others) if path.exists()), None)
