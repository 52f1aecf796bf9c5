"""The layout of other trainers: `images/` (targets), `control/` (sources) of equal names, `.txt`.

FlyMyAI, ai-toolkit, SimpleTuner and diffusion-pipe read this layout; the text file lies beside the
target and holds the instruction. Names are compared without their extension, so images/cat.jpg
belongs to control/cat.png and images/cat.txt. Folders inside are searched, too. The layout has no
place for a task: it is one for all pairs.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from datamodules.convert.pair import Converter, RawPair, Reason, SkippedPair, is_safe_name
from datamodules.convert.picture import Picture
from datamodules.listing import how_to_convert, list_entries
from emu_edit.errors import InputError
from emu_edit.pictures import EXTENSIONS

TARGETS, SOURCES = "images", "control"
# pictures in such folders that are refused by name; other files (notes, leftovers) are passed by
_REFUSED = {".heic", ".jfif"}
_READ = {*EXTENSIONS, *_REFUSED, ".txt"}


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
            raise InputError(f"{path / name}: no such folder; {wanted}{how_to_convert(path)}")
    found = [_by_stem(path / name) for name in sides]
    for stem in sorted(found[0].keys() | found[1].keys()):
        yield _pair(path, stem, [of_side.get(stem, []) for of_side in found], sides)


def _has_place(name: PurePosixPath) -> bool:
    return name.parts[0] in {TARGETS, SOURCES} and name.suffix.lower() in _READ


CONVERTER = Converter("control", list_pairs, has_place=_has_place)


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each name without its extension, in one form (`listing.same_form`)."""
    found: dict[str, list[Path]] = defaultdict(list)
    for entry in list_entries(folder):
        if entry.is_file and entry.path.suffix.lower() in _READ:
            found[str(PurePosixPath(entry.name).with_suffix(""))].append(entry.path)
    return found


def _pair(
    root: Path, stem: str, files_of: list[list[Path]], sides: tuple[str, str]
) -> RawPair | SkippedPair:
    of_target, target_side = files_of[0], sides[0]
    name = f"{target_side}/{stem}"
    if not is_safe_name(stem):
        return SkippedPair(repr(name), Reason.unsafe_name, "a name needs printable characters")
    chosen = []
    for side, files, missing in zip(
        sides, files_of, (Reason.missing_target, Reason.missing_source), strict=True
    ):
        pictures = [file for file in files if file.suffix.lower() in EXTENSIONS]
        refused = [file for file in files if file.suffix.lower() in _REFUSED]
        if len(pictures) > 1:
            suffixes = " and ".join(sorted(file.suffix for file in pictures))
            detail = f"{side}/{stem} exists as {suffixes}"
            return SkippedPair(name, Reason.ambiguous_name, detail)
        if not pictures and refused:
            detail = f"{side}/{stem}{refused[0].suffix} needs to be one of {', '.join(EXTENSIONS)}"
            return SkippedPair(name, Reason.refused_format, detail)
        if not pictures:
            return SkippedPair(name, missing, f"{side}/{stem} has no picture")
        chosen += pictures
    texts = [file for file in of_target if file.suffix.lower() == ".txt"]
    return RawPair(
        name=name,
        identity=stem,
        source=Picture.at(chosen[1]),
        target=Picture.at(chosen[0]),
        instruction=texts[0] if texts else root / target_side / f"{stem}.txt",
    )
