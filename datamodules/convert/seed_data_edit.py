"""SEED-Data-Edit, all three parts: JSON lines in `annotations*/`, pictures unpacked beside them.

    Part 1, automatic, and Part 2, real requests: source_image, target_image, instruction
    Part 3, sessions of up to five turns: source_image, edit_image_1, instruction_1,
        inverse_instruction_1, edit_image_2, ...

A session gives one pair for each turn; a turn whose picture or words are missing, and the turn
after a missing picture, are left out and never bridged. `annotations_GPT4V` holds other words for
some pairs of Part 1: these become pairs of their own. The archives come in pieces and have to be
joined and unpacked first. No task is named. Source: the data sets' cards; Ge et al. 2024,
arXiv:2405.04007; the session's fields as its users read them.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from datamodules.convert.pair import (
    Converter,
    RawPair,
    Reason,
    RefusedPairError,
    SkippedPair,
    check_name,
)
from datamodules.convert.picture import MissingPictureError, Picture
from datamodules.convert.rows import Row, Table, pairs_of, read_rows
from datamodules.listing import find_file

TABLE = Table(
    "SEED-Data-Edit",
    source=("source_image",),
    target=("target_image", "edit_image_1"),
    instruction=("instruction", "instruction_1"),
)
# where the archives unpack to, seen from the folder of the annotations or the one above it
_PLACES = (
    "",
    "images",
    "images/data",
    "data",
    "source_images",
    "target_images",
    "unsplash_images",
    "images/source_images",
    "images/target_images",
)
_OTHERS_FOLDER = {"source": "target_images", "target": "source_images"}  # the other kind's
# sessions 208 to 212 of one delivery hold broken pictures (image_field.md §5)
_BAD = re.compile(r"(^|/)20240330_315P_1323turns/Data/(208|209|210|211|212)(/|_|$)", re.IGNORECASE)
_TURN = re.compile(r"(edit_image|instruction)_([1-9]\d?)")


def list_pairs(path: Path) -> Iterator[RawPair | SkippedPair]:
    """Yield the pairs of a .jsonl file or a folder."""
    pictures = _Pictures(path if path.is_dir() else path.parent)
    yield from pairs_of(read_rows(path, TABLE), partial(_pairs, pictures))


class _Pictures:
    """The files that rows name, looked for first in the folder that held the last ones.

    Sources and targets may have equal names in folders of their own, so each kind is looked for in
    the other's folders last.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._last = {"source": "", "target": ""}

    def at(self, row: Row, column: str) -> Picture:
        """Return the picture that a row names; it is looked for when it is fetched."""
        name = row.text(column)
        kind = "source" if column == "source_image" else "target"
        if not name:
            missing = Reason.missing_source if kind == "source" else Reason.missing_target
            raise RefusedPairError(missing, f"{row.where}: there is no {column}")
        check_name(name, f"{row.where}: {column}")
        if _BAD.search(name):
            detail = f"{row.where}: {name} is one of the set's broken folders"
            raise RefusedPairError(Reason.listed_bad, detail)
        return Picture(name, partial(self._fetch, row.file.parent, name, kind))

    def _fetch(self, folder: Path, name: str, kind: str) -> bytes:
        last, others = self._last[kind], _OTHERS_FOLDER[kind]
        for place in sorted((last, *_PLACES), key=lambda place: place.endswith(others)):
            for base in dict.fromkeys((folder, folder.parent, self._root)):
                file = find_file(base / place, name)
                if file is not None and file.is_file():
                    self._last[kind] = place
                    return Picture.at(file).fetch()
        raise MissingPictureError(
            f"{name}: no such file beside {folder}; join the archive's pieces and unpack them to "
            f"{folder.parent}/images: cat X.tar.gz.part-* > X.tar.gz && tar xzf X.tar.gz"
        )


def _pairs(pictures: _Pictures, row: Row) -> Iterator[RawPair | SkippedPair]:
    if row.has("target_image") or not _turns(row):
        yield _single(pictures, row)
    else:
        yield from _session(pictures, row)


def _turns(row: Row) -> int:
    """Return the number of the last turn that has anything: tables fill short sessions up."""
    found = [match for match in map(_TURN.fullmatch, row.fields) if match is not None]
    return max((int(match[2]) for match in found if row.has(match[0])), default=0)


def _single(pictures: _Pictures, row: Row) -> RawPair:
    source = pictures.at(row, "source_image")
    return RawPair(
        name=row.where,
        identity=row.place,
        source=source,
        target=pictures.at(row, "target_image"),
        instruction=row.text("instruction"),
        group=source.where,
    )


def _session(pictures: _Pictures, row: Row) -> Iterator[RawPair | SkippedPair]:
    turns = _turns(row)
    columns = ["source_image", *(f"edit_image_{turn}" for turn in range(1, turns + 1))]
    for turn in range(1, turns + 1):
        name = f"{row.where}, turn {turn}"
        try:
            source, target = (pictures.at(row, columns[turn - 1 + step]) for step in (0, 1))
            yield RawPair(
                name=name,
                identity=f"{row.place} {turn}",
                source=source,
                target=target,
                instruction=row.text(f"instruction_{turn}"),
                group=row.place,
                extra=_of_turn(row, turn),
            )
        except RefusedPairError as error:
            yield SkippedPair(name, error.reason, str(error))


def _of_turn(row: Row, turn: int) -> dict[str, object]:
    inverse = row.text(f"inverse_instruction_{turn}")
    about: dict[str, object] = {"session": row.place, "turn": turn}
    return about | ({"inverse_instruction": inverse} if inverse else {})


CONVERTER = Converter("seed-data-edit", list_pairs, {})
