"""TGVE and TGVE+: edits of real videos, with captions and no ground truth.

    LOVEU-TGVE-2023_Dataset.csv         Video name, Our GT caption, Style Change Caption, …
    DAVIS_480p/480p_videos/NAME.mp4     or DAVIS_480p/480p_frames/NAME/*.jpg
    youtube_480p/…, videvo_480p/…

The table has a row that names each section ("DAVIS Videos:") and empty rows between them; a video
is in the section whose row came last, wherever it stands. (The authors' script counts rows.) TGVE
asks with captions of the result only; what to do, in words, comes from a JSON of the user's, as
InsV2V published one: {NAME: {"edit_style": …, "edit_object": …, "edit_background": …,
"edit_multiple": …}}. TGVE+ is read from an export beside the folders of videos: metadata.jsonl or
.csv with video, task, instruction, input_caption and output_caption.
Source: Wu et al. 2023, arXiv:2310.16003; Singer et al. 2024, arXiv:2403.09334 (TGVE+).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datamodules.convert.pair import is_safe_name
from datamodules.evaluation_sets.items import as_unicode, check_keys, check_text, some
from datamodules.evaluation_sets.tables import METADATA
from datamodules.evaluation_sets.videos import TGVE, VideoBenchmark, VideoItem, video_sha256
from datamodules.listing import decode_text, find_file, read_table
from emu_edit.errors import InputError
from emu_edit.files import read_regular
from emu_edit.video.io import open_video

NAME, CAPTION = "Video name", "Our GT caption"
KINDS = {
    "style": "Style Change Caption",
    "object": "Object Change Caption",
    "background": "Background Change Caption",
    "multiple": "Multiple Changes Caption",
}
SECTIONS = {"davis": "DAVIS_480p", "youtube": "youtube_480p", "videvo": "videvo_480p"}
PLUS = ("video", "task", "instruction", "input_caption", "output_caption")


@dataclass(frozen=True)
class _Row:
    """One edit as a table has it; the section is "" where the table does not say it."""

    where: str
    section: str
    name: str
    kind: str
    instruction: str
    source_caption: str
    target_caption: str


def load_tgve(folder: Path, instructions: Path | None = None) -> VideoBenchmark:
    """Read the benchmark from where it was unpacked.

    Args:
        folder: with the table and the folders of videos.
        instructions: JSON of what to do, by video and kind; None leaves the instructions empty.

    Raises:
        InputError: if there is no table, a column or video is missing, or a row is malformed.
    """
    tables = sorted(folder.glob("LOVEU-TGVE-2023_Dataset.*"))
    exports = [folder / name for name in METADATA if (folder / name).is_file()]
    if not tables and not exports:
        raise InputError(
            f"{folder} has no LOVEU-TGVE-2023_Dataset.csv (TGVE) and no {METADATA[0]} or "
            f"{METADATA[1]} (TGVE+); give the folder it was unpacked to"
        )
    if tables and tables[0].suffix.lower() != ".csv":
        raise InputError(f"{tables[0]}: is no CSV; save the sheet as CSV (UTF-8) beside it")
    if exports:
        rows = list(_plus(exports[0]))
    else:
        rows = list(_sheet(tables[0], {} if instructions is None else _read_json(instructions)))
    videos = {(row.section, row.name): _find(folder, row) for row in rows}
    missing = [name for (_, name), path in videos.items() if path is None]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {len(videos)} videos are missing ({some(missing)}); "
            "unpack SECTION/480p_videos or SECTION/480p_frames of all three sections there"
        )
    hashes = {
        path: video_sha256(path) for path in dict.fromkeys(videos.values()) if path is not None
    }
    items = [_item(row, path, hashes) for row in rows if (path := videos[row.section, row.name])]
    check_keys(items, folder.name)
    return VideoBenchmark(
        TGVE,
        as_unicode(folder.resolve().name),
        "TGVE+" if exports else "TGVE",
        tuple(items),
        possible=len(items),
    )


def _item(row: _Row, path: Path, hashes: Mapping[Path, str]) -> VideoItem:
    section = path.parent.parent.name
    return VideoItem(
        key=f"{row.name}-{row.kind}",
        task=row.kind,
        session=row.name,
        instruction=row.instruction,
        source_caption=row.source_caption,
        target_caption=row.target_caption,
        source=partial(open_video, path),
        sha256=hashes[path],
        place=f"{section}/{row.name}/{row.kind}",
    )


def _sheet(table: Path, instructions: Mapping[str, object]) -> Iterator[_Row]:
    """Yield four edits of each video of the sheet."""
    section = ""
    for number, cells in read_table(table, table.name):
        where = f"{table.name}:{number}"
        missing = [name for name in (NAME, CAPTION, *KINDS.values()) if name not in cells]
        if missing:
            raise InputError(f"{where}: there is no column {', '.join(missing)}; export it again")
        name = str(cells[NAME]).strip()
        if name.casefold().endswith("videos:"):
            section = _section(name, where)
        elif name:
            if not section:
                raise InputError(f"{where}: {name!r} stands before any section (DAVIS Videos: …)")
            asked = instructions.get(name, {})
            for kind, column in KINDS.items():
                words = asked.get(f"edit_{kind}", "") if isinstance(asked, dict) else ""
                yield _row(where, section, name, kind, (words, cells[CAPTION], cells[column]))


def _section(name: str, where: str) -> str:
    found = SECTIONS.get(name.split()[0].casefold())
    if found is None:
        raise InputError(f"{where}: unknown section {name!r}; known: {', '.join(SECTIONS)}")
    return found


def _plus(table: Path) -> Iterator[_Row]:
    """Yield the edits of an export of TGVE+."""
    for number, cells in read_table(table, table.name):
        where = f"{table.name}:{number}"
        missing = [name for name in PLUS if name not in cells]
        if missing:
            raise InputError(
                f"{where}: there is no column {', '.join(missing)}; it has {', '.join(cells)}, "
                f"needs {', '.join(PLUS)}"
            )
        name, kind, *texts = (cells[column] for column in PLUS)
        yield _row(where, "", Path(str(name)).stem, str(kind), texts)


def _row(where: str, section: str, name: str, kind: str, texts: Iterator | tuple | list) -> _Row:
    if not is_safe_name(name) or not is_safe_name(kind) or "/" in name + kind:
        raise InputError(f"{where}: {name!r} of {kind!r} cannot name a file; correct it")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{where}: has {text!r}, needs text")
    words = [check_text(text.strip(), where) for text in texts]
    return _Row(where, section, name, kind, *words)


def _find(folder: Path, row: _Row) -> Path | None:
    """Find a video as file or as folder of frames."""
    for section in [row.section] if row.section else SECTIONS.values():
        for name in (f"480p_videos/{row.name}.mp4", f"480p_frames/{row.name}"):
            found = find_file(folder, f"{section}/{name}")
            if found is not None:
                return found
    return None


def _read_json(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise InputError(f"--instructions {path}: there is no such file")
    try:
        found = json.loads(decode_text(read_regular(path), str(path)))
    except ValueError as error:
        raise InputError(f"--instructions {path}: is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(
            f"--instructions {path}: needs an object of videos, each with edit_style, edit_object, "
            "edit_background and edit_multiple"
        )
    return found
