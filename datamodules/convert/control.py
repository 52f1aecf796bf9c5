"""The layout of other trainers: `images/` (targets), `control/` (sources) of equal names, `.txt`.

FlyMyAI, ai-toolkit, SimpleTuner and diffusion-pipe read this layout; the text file lies beside the
target and holds the instruction. Names are compared without their extension, so images/cat.jpg
belongs to control/cat.png and images/cat.txt. Folders inside are searched, too. The layout has no
place for a task: it is one for all pairs.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from datamodules.convert.pair import Converter, RawPair, Reason, SkippedPair, is_safe_name
from datamodules.convert.picture import Picture
from emu_edit.errors import InputError
from emu_edit.pictures import EXTENSIONS

TARGETS, SOURCES = "images", "control"
# pictures in such folders that are refused by name; other files (notes, leftovers) are no pairs
_REFUSED = {".heic", ".jfif"}


def list_pairs(
    path: Path, *, sides: tuple[str, str] = (TARGETS, SOURCES)
) -> Iterator[RawPair | SkippedPair]:
    """Yield the pairs of the folder, sorted by name.

    Args:
        path: the folder.
        sides: the folders of targets and of sources.
    """
    for name in sides:
        if not (path / name).is_dir():
            wanted = f"needs {sides[0]}/ (targets and .txt) and {sides[1]}/ (sources)"
            raise InputError(f"{path / name}: no such folder; {wanted}")
    found = [_by_stem(path / name) for name in sides]
    for stem in sorted(found[0].keys() | found[1].keys()):
        yield _pair(path, stem, [of_side.get(stem, []) for of_side in found], sides)


CONVERTER = Converter("control", list_pairs)


def _by_stem(folder: Path) -> dict[str, list[str]]:
    """Return the extensions of each name: pictures, refused pictures, text."""
    found: dict[str, list[str]] = defaultdict(list)
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name).relative_to(folder)
            if not name.startswith(".") and path.suffix.lower() in {*EXTENSIONS, *_REFUSED, ".txt"}:
                found[path.with_suffix("").as_posix()].append(path.suffix)
    return found


def _pair(
    root: Path, stem: str, suffixes_of: list[list[str]], sides: tuple[str, str]
) -> RawPair | SkippedPair:
    (of_target, of_source), (target_side, source_side) = suffixes_of, sides
    name = f"{target_side}/{stem}"
    if not is_safe_name(stem):
        return SkippedPair(repr(name), Reason.unsafe_name, "a name needs printable characters")
    files = {}
    for side, suffixes, missing in (
        (target_side, of_target, Reason.missing_target),
        (source_side, of_source, Reason.missing_source),
    ):
        pictures = [suffix for suffix in suffixes if suffix.lower() in EXTENSIONS]
        refused = [suffix for suffix in suffixes if suffix.lower() in _REFUSED]
        if len(pictures) > 1:
            detail = f"{side}/{stem} exists as {' and '.join(pictures)}"
            return SkippedPair(name, Reason.ambiguous_name, detail)
        if not pictures and refused:
            detail = f"{side}/{stem}{refused[0]} needs to be one of {', '.join(EXTENSIONS)}"
            return SkippedPair(name, Reason.refused_format, detail)
        if not pictures:
            return SkippedPair(name, missing, f"{side}/{stem} has no picture")
        files[side] = root / side / f"{stem}{pictures[0]}"
    texts = [suffix for suffix in of_target if suffix.lower() == ".txt"] or [".txt"]
    return RawPair(
        name=name,
        identity=stem,
        source=Picture.at(files[source_side]),
        target=Picture.at(files[target_side]),
        instruction=root / target_side / f"{stem}{texts[0]}",
    )
