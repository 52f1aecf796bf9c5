"""MagicBrush's train and dev sets: sessions of turns by people, each with a free-form mask.

Parquet, as on the hub (`osunlp/MagicBrush`): `img_id, turn_index, source_img, mask_img,
instruction, target_img`; an older revision has `input_img` and `output_img` and no mask. And the
downloaded folder:

    edit_sessions.json      {session: [{"input", "mask", "output", "instruction"}, ...]}
    edit_turns.json         the same turns in one list
    images/SESSION/SESSION-input.png, SESSION-mask1.png, SESSION-output1.png, ...

Of a folder with train and dev tables, those of train are read; dev is converted by giving its file.
Tasks are not named. A turn's source is the target of the turn before: turns whose files say
otherwise are left out. The test set is refused. Source: Zhang et al. 2023, arXiv:2306.10012, and
the data set's card.

The mask is the region that is white or transparent in `mask_img`, which may be a plain drawing or
the source with that region blanked. In the second form, white things of the photograph are no
region: of its white pixels those count that lie in the rectangle of pixels that were blanked.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from datamodules.convert.pair import (
    Converter,
    Mask,
    RawPair,
    Reason,
    RefusedPairError,
    SkippedPair,
    is_safe_name,
)
from datamodules.convert.picture import MissingPictureError, Picture
from datamodules.convert.rows import (
    Row,
    Table,
    finite,
    held_out_tables,
    left_out,
    pairs_of,
    read_json,
    read_rows,
)
from datamodules.shards.evaluation_only import refusal_of_magicbrush
from emu_edit.errors import InputError
from emu_edit.images import decode_rgb
from emu_edit.pictures import BLACK

SESSIONS, TURNS, IMAGES = "edit_sessions.json", "edit_turns.json", "images"
TABLE = Table(
    "MagicBrush",
    source=("source_img", "input_img"),
    target=("target_img", "output_img"),
    instruction=("instruction",),
    needs=(("img_id",), ("turn_index",)),
    pictures=("mask_img",),
)
_FIELDS = ("input", "output", "instruction")
_WHITE = 250  # of 255: what was blanked
_BLANKED = 24  # levels a blanked pixel has to differ from the source, more than JPEG does


def list_pairs(path: Path) -> Iterator[RawPair | SkippedPair]:
    """Yield the turns of either layout; the test set is refused."""
    if path.name == "test" or path.stem.startswith("test-"):
        raise refusal_of_magicbrush(str(path))
    if (path / SESSIONS).is_file():
        for session, turns in read_json(path / SESSIONS, dict, "dict").items():
            yield from _of_session(path, session, turns)
    elif (path / TURNS).is_file():
        for index, turn in enumerate(read_json(path / TURNS, list, "list")):
            yield _of_turn(path, f"{TURNS}, turn {index}", turn)
    else:
        if splits := sorted(sessions.parent.name for sessions in path.glob(f"*/{SESSIONS}")):
            raise InputError(f"{path}: holds {', '.join(splits)}; give one of these folders")
        held_out = held_out_tables(path, TABLE.what)
        yield from left_out(held_out)
        rows = read_rows(path, TABLE, is_wanted=lambda file: _is_wanted(file, held_out))
        yield from pairs_of(rows, _of_row)


CONVERTER = Converter("magicbrush", list_pairs, tasks={})


def region_of(picture: Picture, source: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "_ _"]:
    """Return the region of a mask picture in any of its forms.

    Raises:
        MissingPictureError: if there is no such picture.
        BadImageError: if it cannot be read.
    """
    data = picture.fetch()
    on_white, on_black = (
        decode_rgb(data, background=background, where=picture.where).permute(1, 2, 0).numpy()
        for background in ((255, 255, 255), BLACK)
    )
    transparent = (on_white != on_black).any(axis=2)
    if transparent.any():
        return transparent
    white = np.asarray((on_white >= _WHITE).all(axis=2))
    is_drawing = (white | (on_white <= 255 - _WHITE).all(axis=2)).all()
    if is_drawing or on_white.shape != source.shape:
        return white
    difference = np.abs(on_white.astype(np.int16) - source).max(axis=2)
    blanked = white & (difference > _BLANKED)
    return white & np.outer(_span(blanked.any(axis=1)), _span(blanked.any(axis=0)))


def _region_in_cell(
    picture: Picture, source: UInt8[np.ndarray, "h w 3"]
) -> Bool[np.ndarray, "_ _"] | None:
    """Return the region of a turn of a table, where an empty cell says that it has none."""
    try:
        return region_of(picture, source)
    except MissingPictureError:
        return None


def _span(line: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Return the line with everything between its first and its last True."""
    return np.logical_or.accumulate(line) & np.logical_or.accumulate(line[::-1])[::-1]


def _is_wanted(file: Path, held_out: list[Path]) -> bool:
    if file.stem.split("-")[0] == "test" or file.parent.name == "test":
        raise refusal_of_magicbrush(str(file))
    return file not in held_out


def _of_row(row: Row) -> Iterator[RawPair]:
    session, turn = row.text("img_id"), finite(row.fields.get("turn_index"))
    if not session or turn is None:
        detail = f"{row.where}: img_id is {session!r} and turn_index {turn}, needs both"
        raise RefusedPairError(Reason.bad_line, detail)
    yield replace(
        row.pair(TABLE),
        identity=f"{session}-{int(turn)}",
        mask=_mask(row),
        group=session,
        extra={"session": session, "turn": int(turn)},
    )


def _mask(row: Row) -> Mask | None:
    if not row.has("mask_img") or row.fields.get("mask_img") == "":
        return None
    read = _region_in_cell if "mask_img" in row.pictures else region_of
    return partial(read, row.picture("mask_img"))


def _of_session(root: Path, session: str, turns: object) -> Iterator[RawPair | SkippedPair]:
    where = f"{SESSIONS}, session {session}"
    if not isinstance(turns, list):
        yield SkippedPair(
            where, Reason.bad_line, f"{where}: needs a list of turns, got {turns!r:.60}"
        )
        return
    before = ""
    for number, turn in enumerate(turns, 1):
        place = f"{where}, turn {number}"
        pair = _of_turn(root, place, turn)
        if isinstance(pair, RawPair) and before and turn["input"] != before:
            detail = f"{place}: begins with {turn['input']}, the turn before ended with {before}"
            pair = SkippedPair(place, Reason.bad_line, detail)
        # a turn without words is no pair, but still what the next begins with
        output = turn.get("output") if isinstance(turn, dict) else None
        before = output if isinstance(output, str) else ""
        yield pair


def _of_turn(root: Path, where: str, turn: object) -> RawPair | SkippedPair:
    fields = defaultdict(str, turn) if isinstance(turn, dict) else defaultdict(str)
    wrong = [name for name in _FIELDS if not isinstance(fields.get(name), str)]
    if wrong:
        return SkippedPair(where, Reason.bad_line, f"{where}: has no text {', '.join(wrong)}")
    mask = fields["mask"] if isinstance(fields["mask"], str) else ""
    for name in filter(None, (fields["input"], fields["output"], mask)):
        if not is_safe_name(name) or "/" in name:
            detail = f"{where}: {name!r} must be the name of a file"
            return SkippedPair(where, Reason.unsafe_name, detail)
    session, _, last = Path(fields["output"]).stem.rpartition("-")
    number = last.removeprefix("output")
    if not session or not number.isdecimal():
        detail = f"{where}: output is {fields['output']!r}, needs SESSION-outputTURN.png"
        return SkippedPair(where, Reason.bad_line, detail)
    folder = root / IMAGES / session
    return RawPair(
        name=where,
        identity=f"{session}-{int(number)}",
        source=Picture.at(folder / fields["input"]),
        target=Picture.at(folder / fields["output"]),
        mask=partial(region_of, Picture.at(folder / mask)) if mask else None,
        instruction=fields["instruction"],
        group=session,
        extra={"session": session, "turn": int(number)},
    )
