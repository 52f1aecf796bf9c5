"""Videos of your own: each with its caption, or before and after an edit.

    a.mp4, a.txt, ...                          the caption beside the video, in folders of any depth
    metadata.jsonl                             {"file": "a.mp4", "caption": "a dog runs"}
    source/ target/ instructions.jsonl         {"file": "a.mp4", "instruction": "make it night"}

The second is Hugging Face's videofolder, so `file_name` and `text` are taken as well; the third is
that of pictures (`datamodules.convert.folder`), and what `shards world --clips N --plain` writes.
A line may name `cuts`, the first frame of each shot but the first, which then are not looked for. A
list of any name is read when it is given itself.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from datamodules.convert.cutting import Cutting, RawClip
from datamodules.convert.pair import (
    Converter,
    Reason,
    SkippedPair,
    is_safe_name,
    unsafe_name,
)
from datamodules.convert.report import unnamed_in
from datamodules.listing import find_file, list_entries, parse_object, same_form, text_lines
from datamodules.shards.evaluation_only import refuse_columns
from emu_edit.errors import InputError
from emu_edit.tasks import CAPTION

EDITS, CAPTIONS = "instructions.jsonl", "metadata.jsonl"
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts"),
    *(".wmv", ".flv", ".ogv", ".3gp"),
)
CLIPS_PER_SHARD = 250
_TEXTS = (
    *("file", "file_name", "source", "target", "caption", "text", "instruction"),
    *("task", "source_caption", "target_caption"),
)
_KINDS = f"a folder with {EDITS}, {CAPTIONS} or a NAME.txt beside each video, or a .jsonl file"


def made_for(cutting: Cutting | None) -> Converter:
    """Return the converter that cuts so."""
    listing = partial(list_clips, cutting=Cutting() if cutting is None else cutting)
    return Converter("clips", listing, has_place=_has_place, unit="clip", per_shard=CLIPS_PER_SHARD)


def list_clips(path: Path, *, cutting: Cutting) -> Iterator[RawClip | SkippedPair]:
    """Yield the videos of a folder or list, in the order of the lines, or of their names.

    Raises:
        InputError: if there is neither, or a folder has two lists.
    """
    if path.is_file() and path.suffix.lower() != ".jsonl":
        raise InputError(f"{path}: is a file of another kind; give {_KINDS}")
    lists = [path / name for name in (EDITS, CAPTIONS) if (path / name).is_file()]
    if len(lists) > 1:
        raise InputError(f"{path}: has {EDITS} and {CAPTIONS}; give the one that is meant itself")
    if not lists and path.is_dir():
        yield from _beside(path, cutting)
        return
    lines = lists[0] if lists else path
    named: set[int] = set()
    for number, line in text_lines(lines):
        if line.strip():
            yield _of_line(lines.parent, f"{lines.name}:{number}", line, cutting, named)
    if path.is_dir():
        yield from unnamed_in(path, named, VIDEOS)


def _has_place(name: PurePosixPath) -> bool:
    return str(name) in {EDITS, CAPTIONS} or name.suffix.lower() in {*VIDEOS, ".txt"}


def _of_line(
    root: Path, name: str, line: bytes, cutting: Cutting, named: set[int]
) -> RawClip | SkippedPair:
    """Return the video of a line, and remember which files it names."""
    try:
        record = parse_object(line, name)
    except InputError as error:
        return SkippedPair(name, Reason.bad_line, str(error))
    refuse_columns(record, name)
    cuts = record.get("cuts")
    for field in _TEXTS:
        if not isinstance(record.get(field) or "", str):
            detail = f"{field!r} is {type(record[field]).__name__}, needs text"
            return SkippedPair(name, Reason.bad_line, detail)
    if cuts is not None and not (isinstance(cuts, list) and all(type(c) is int for c in cuts)):
        return SkippedPair(name, Reason.bad_line, f"{name}: 'cuts' needs numbers of frames")
    texts = {field: str(record[field]) for field in _TEXTS if record.get(field)}
    file = texts.get("file", texts.get("file_name", ""))
    is_edit = "instruction" in texts
    sides = {side: texts.get(side, file) for side in ("source", "target")[not is_edit :]}
    if not all(sides.values()):
        detail = f"names no videos, needs 'file', or 'source' and 'target'; it has {sorted(record)}"
        return SkippedPair(name, Reason.bad_line, detail)
    for side, value in sides.items():
        if not is_safe_name(value):
            return SkippedPair(name, Reason.unsafe_name, unsafe_name(value, side))
    places = {side: _find(root, side, value) for side, value in sides.items()}
    named.update(hash(same_form(str(place))) for place in places.values())
    caption = texts.get("caption", texts.get("text", ""))
    return RawClip(
        name=name,
        identity=f"{name} {sides['target']}",
        instruction=texts["instruction"] if is_edit else caption,
        raw_task=texts.get("task", "") if is_edit else "",
        task=None if is_edit else CAPTION,
        source_caption=texts.get("source_caption", ""),
        target_caption=texts.get("target_caption", ""),
        group=sides.get("source", sides["target"]),
        source=places.get("source"),
        target=places["target"],
        cuts=None if cuts is None else tuple(cuts),
        cutting=cutting,
    )


def _find(root: Path, side: str, name: str) -> Path:
    return find_file(root / side, name) or find_file(root, name) or root / side / name


def _beside(path: Path, cutting: Cutting) -> Iterator[RawClip | SkippedPair]:
    """Yield the videos of a folder that have their captions beside them, by name."""
    found: dict[str, list[Path]] = defaultdict(list)
    for entry in list_entries(path):
        if entry.is_file and entry.path.suffix.lower() in {*VIDEOS, ".txt"}:
            found[str(PurePosixPath(entry.name).with_suffix(""))].append(entry.path)
    if not any(file.suffix.lower() in VIDEOS for files in found.values() for file in files):
        raise InputError(f"{path}: has no video ({', '.join(VIDEOS)}); give {_KINDS}")
    for stem in sorted(found):
        videos = [file for file in found[stem] if file.suffix.lower() != ".txt"]
        texts = [file for file in found[stem] if file.suffix.lower() == ".txt"]
        name = f"{stem}{videos[0].suffix if videos else '.txt'}"
        if not is_safe_name(stem):
            yield SkippedPair(repr(name), Reason.unsafe_name, unsafe_name(stem, "the name"))
        elif not videos:
            yield SkippedPair(name, Reason.missing_video, f"{name}: no video of this name")
        elif len(videos) > 1:
            suffixes = " and ".join(sorted(file.suffix for file in videos))
            yield SkippedPair(name, Reason.ambiguous_name, f"{stem} exists as {suffixes}")
        elif not texts:
            yield SkippedPair(name, Reason.missing_caption, f"{stem}.txt: no such file")
        else:
            yield RawClip(
                name=name,
                identity=stem,
                instruction=texts[0],
                task=CAPTION,
                group=stem,
                target=videos[0],
                cutting=cutting,
            )
