"""Where `edit` reads and writes: which pictures are meant, and which file each result becomes.

Everything that can go wrong with names is found here, before a model is loaded: what is missing,
what is no folder, what may not be written, what would overwrite a source, another result or a
longer session. Looks at names only and imports nothing heavy.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from emu_edit.errors import InputError

WRITTEN = (".png", ".jpg", ".jpeg", ".webp")  # as `emu_edit.images` writes
READ = (*WRITTEN, ".gif", ".tif", ".tiff", ".bmp", ".avif")  # as `emu_edit.pictures` reads
STREAM = "-"
MAX_PICTURES = 100_000


@dataclass(frozen=True)
class Source:
    """A picture to edit; without a path it comes from standard input."""

    path: Path | None

    def __str__(self) -> str:
        return "standard input" if self.path is None else str(self.path)


@dataclass(frozen=True)
class Place:
    """Where the results of one picture go.

    Attributes:
        folder: the folder of a whole session, or None.
        picture: the file of the final picture; None with a folder, or for standard output.
        has_sheet: whether a sheet is written beside `picture`; a folder always has one.
        has_manifest: whether a manifest is written beside `picture`; a folder always has one.
    """

    folder: Path | None = None
    picture: Path | None = None
    has_sheet: bool = False
    has_manifest: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether the picture goes to standard output."""
        return self.folder is None and self.picture is None

    def __str__(self) -> str:
        return "standard output" if self.is_stream else str(self.folder or self.picture)

    @property
    def original(self) -> Path | None:
        """The file of the original, as the model saw it: in a session's folder only."""
        return None if self.folder is None else self.folder / "original.png"

    @property
    def sheet(self) -> Path | None:
        """The file of the side-by-side sheet, if one is written."""
        return self._beside("sheet.png", is_wanted=self.has_sheet)

    @property
    def manifest(self) -> Path | None:
        """The file of the manifest, if one is written."""
        return self._beside("manifest.json", is_wanted=self.has_manifest)

    def turn(self, number: int, count: int) -> Path | None:
        """The file of a turn's result (from 1); None when it is not kept."""
        if self.folder is not None:
            return self.folder / f"turn-{number:02d}.png"
        return self.picture if number == count else None

    def _beside(self, name: str, *, is_wanted: bool) -> Path | None:
        if self.folder is not None:
            return self.folder / name
        if self.picture is None or not is_wanted:
            return None
        return self.picture.with_name(f"{self.picture.stem}.{name}")


def find_sources(image: str) -> tuple[list[Source], list[str]]:
    """Find the pictures meant by a file, a folder, a glob or `-`, and the names passed over.

    Of a folder the pictures directly in it are taken, by suffix, and the rest is told; of a glob
    every file it matches. A single file is not looked at here: reading it tells more.

    Raises:
        InputError: if a folder has no picture, a glob matches nothing, or there are too many.
    """
    path = Path(image)
    if image == STREAM:
        return [Source(None)], []
    if path.is_dir():
        from datamodules.listing import list_entries  # a single picture needs no data

        found = sorted(list_entries(path, deep=False), key=lambda entry: entry.path)
        pictures = [e.path for e in found if e.is_file and e.path.suffix.lower() in READ]
        passed_over = [
            f"{e.path.name} ({'hidden' if e.is_hidden else e.why or 'no picture by name'})"
            for e in found
            if not (e.is_file and e.path.suffix.lower() in READ)
        ]
        if not pictures:
            raise InputError(f"{image} is a folder without a picture ({', '.join(WRITTEN)})")
    elif is_glob(image):
        pictures = sorted(p for p in map(Path, glob(image, recursive=True)) if p.is_file())
        passed_over = []
        if not pictures:
            raise InputError(f"no file matches {image!r}; check the pattern and the folder")
    else:
        return [Source(path)], []
    if len(pictures) > MAX_PICTURES:
        raise InputError(f"{image} has {len(pictures)} pictures, at most {MAX_PICTURES} at a time")
    return [Source(p) for p in pictures], passed_over


def is_many(image: str) -> bool:
    """Whether `image` means a set of pictures, even if only one of them is there."""
    return image != STREAM and (Path(image).is_dir() or is_glob(image))


def is_glob(image: str) -> bool:
    """Whether `image` is a pattern; a file that exists under this very name is a file."""
    return any(mark in image for mark in "*?[") and not Path(image).exists()


def place_for_one(output: str, source: Source, *, sheet: bool, manifest: bool) -> Place:
    """Decide where the results of a single picture go, and refuse what cannot be written.

    Raises:
        InputError: if the output is no picture and no folder, cannot be written, or is the source.
    """
    if output == STREAM:
        if sheet or manifest:
            raise InputError("--sheet and --manifest need a file: give -o OUT.png or a folder")
        return Place()
    path = Path(output)
    if path.is_dir() or not path.suffix:
        check_folder(path)
        return Place(folder=path)
    place = Place(picture=path, has_sheet=sheet, has_manifest=manifest)
    if path.suffix.lower() not in WRITTEN:
        raise InputError(f"{path}: cannot write {path.suffix!r}, needs one of {', '.join(WRITTEN)}")
    for file in (path, place.sheet, place.manifest):
        if file is not None:
            check_file(file, [source])
    return place


def places_for_many(
    output: str, sources: Sequence[Source], *, turns: int, sheet: bool, manifest: bool
) -> list[Place]:
    """Decide where the results of each of many pictures go: NAME.png, or a session's folder NAME.

    Raises:
        InputError: if the output is no folder, or results would overwrite each other or a source.
    """
    folder = Path(output)
    if output == STREAM or folder.is_file() or (folder.suffix and not folder.is_dir()):
        raise InputError(f"many pictures need a folder for an output, got {output}; give -o FOLDER")
    check_folder(folder)
    names: dict[str, Source] = {}
    places = []
    for source in sources:
        stem = "stdin" if source.path is None else source.path.stem
        # folded: on Windows and macOS A.png and a.png are one file
        if (other := names.setdefault(stem.casefold(), source)) is not source:
            raise InputError(
                f"{other} and {source} would both be written to {folder / stem}; rename one"
            )
        if turns > 1:
            places.append(Place(folder=folder / stem))
            check_session_folder(folder / stem, turns)
        else:
            path = folder / f"{stem}.png"
            places.append(Place(picture=path, has_sheet=sheet, has_manifest=manifest))
            check_file(path, sources, is_folder_made=True)
    return places


def check_file(path: Path, sources: Iterable[Source], *, is_folder_made: bool = False) -> None:
    """Refuse, before any work is done, a file that could not be written, or is a source."""
    folder = path.parent
    if not folder.is_dir() and not is_folder_made:
        raise InputError(f"{path} cannot be written: there is no folder {folder}; create it first")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} cannot be written: it is no regular file; choose another output")
    place = path if path.exists() else folder
    if place.exists() and not os.access(place, os.W_OK):
        raise InputError(f"{path} cannot be written: no permission; choose another output")
    for source in sources:
        if source.path is not None and path.resolve() == source.path.resolve():
            raise InputError(f"{path} would overwrite the picture itself; choose another output")


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not be made or written."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, the output needs a picture's suffix or a folder")
    if not folder.parent.is_dir():
        raise InputError(
            f"{folder} cannot be made: there is no folder {folder.parent}; create it first"
        )
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise InputError(f"{folder} cannot be written: no permission; choose another output")


def check_session_folder(folder: Path, turns: int) -> None:
    """Refuse a folder in which pictures of a longer session would stay among the new ones."""
    ours = {f"turn-{number:02d}.png" for number in range(1, turns + 1)}
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file where a folder is needed; choose another output")
    if left := sorted(p.name for p in folder.glob("turn-*.png") if p.name not in ours):
        raise InputError(
            f"{folder} holds {left[0]} of a longer session; remove it or choose another folder"
        )
