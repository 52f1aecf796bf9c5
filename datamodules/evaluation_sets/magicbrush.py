"""The MagicBrush test set: sessions of turns on one picture, each turn with a ground truth.

    test/edit_sessions.json        {session: [{"input", "output", "instruction", …}, …]}
    test/images/SESSION/SESSION-input.png, SESSION-output1.png, SESSION-output2.png, …
    test/local_descriptions.json   {session: {output file: what was edited}}
    test/global_descriptions.json  {session: {file: the whole picture}}

A turn is edited twice: from the ground truth before it (`SESSION_1`, `SESSION_inde_2`, …) and, from
the second on, from our own result before it (`SESSION_iter_2`, …). "All turns" is about the first
kind, "final turns" about the last result of each session's chain. File names are never sorted: the
authors' script orders them by the digits in them, and takes every name with `_1` for a first turn.
Source: Zhang et al. 2023, arXiv:2306.10012, and its evaluation script.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.evaluation_sets.items import (
    ALL_TURNS,
    FINAL_TURNS,
    Benchmark,
    BenchmarkItem,
    Picture,
    as_unicode,
    check_files,
    check_keys,
    check_text,
)
from emu_edit.errors import InputError
from emu_edit.files import read_regular

NAME = "magicbrush"
SESSIONS, IMAGES = "edit_sessions.json", "images"
TURN = ("input", "output", "instruction")


@dataclass(frozen=True)
class Turn:
    """One turn as the file has it, with its captions."""

    source: Path
    target: Path
    instruction: str
    source_caption: str
    target_caption: str


def load_magicbrush(folder: Path, *, captions: str) -> Benchmark:
    """Read the test set.

    Raises:
        InputError: if files or fields are missing or malformed, or pictures are missing.
    """
    root = _root(folder)
    sessions = _json(root / SESSIONS)
    described = _json(root / f"{captions}_descriptions.json")
    items: list[BenchmarkItem] = []
    all_turns: list[str] = []
    final_turns: list[str] = []
    paths: list[Path] = []
    for name, entries in sessions.items():
        session, turns = _turns(root, name, entries, described)
        independent, chained = _items(session, turns)
        items += [*independent, *chained]
        all_turns += [item.key for item in independent]
        final_turns.append([*independent[:1], *chained][-1].key)
        paths += [path for turn in turns for path in (turn.source, turn.target)]
    check_keys(items, SESSIONS)
    check_files(paths, folder.name)
    return Benchmark(
        name=NAME,
        folder=as_unicode(folder.resolve().name),
        split="",
        items=tuple(items),
        blocks={ALL_TURNS: tuple(all_turns), FINAL_TURNS: tuple(final_turns)},
        known=frozenset(item.key for item in items),
    )


def _root(folder: Path) -> Path:
    for root in (folder, folder / "test"):
        if (root / SESSIONS).is_file() and (root / IMAGES).is_dir():
            return root
    raise InputError(
        f"{folder} has no {SESSIONS} beside a folder {IMAGES}; needs MagicBrush's test set, "
        "unpacked (its authors give it as a zip with a password)"
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"there is no {path.name} in {path.parent.name}, which this protocol needs; unpack "
            "MagicBrush's test set again"
        )
    try:
        values = json.loads(read_regular(path), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not JSON ({error}); unpack the test set again") from error
    if not isinstance(values, dict) or not values:
        raise InputError(
            f"{path.name} holds {type(values).__name__}, needs an object with a field per session"
        )
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Collect an object's fields; JSON readers keep the last of a name and drop the others."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return fields


def _turns(
    root: Path, name: str, entries: object, described: dict[str, Any]
) -> tuple[str, list[Turn]]:
    """Read a session's name, as its files have it, and its turns."""
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{SESSIONS}, session {name}: needs a list of turns, got {entries!r:.60}")
    files = [
        _fields(entry, f"{SESSIONS}, session {name}, turn {i}")
        for i, entry in enumerate(entries, 1)
    ]
    session = files[0]["input"].rpartition("-")[0] or name
    texts = next((described[key] for key in (session, name) if key in described), {})
    if not isinstance(texts, dict):
        raise InputError(f"the captions of session {name} are {texts!r:.60}, needs one per file")
    place = root / IMAGES / session
    return session, [
        Turn(
            source=place / fields["input"],
            target=place / fields["output"],
            instruction=fields["instruction"],
            source_caption=_caption(texts, fields["input"]),
            target_caption=_caption(texts, fields["output"]),
        )
        for fields in files
    ]


def _caption(texts: dict[str, Any], file: str) -> str:
    """Read the caption of a picture, "" where it has none."""
    caption = texts.get(file, "")
    if not isinstance(caption, str):
        raise InputError(f"the caption of {file} is {caption!r:.60}, needs text; unpack it again")
    return check_text(caption, f"the caption of {file}")


def _fields(entry: object, where: str) -> dict[str, str]:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: needs an object, got {type(entry).__name__}")
    for field in TURN:
        if not isinstance(entry.get(field), str):
            raise InputError(
                f"{where}: there is no text {field!r}; it has {', '.join(map(str, entry))}, "
                "MagicBrush has other fields"
            )
        check_text(entry[field], f"{where}: {field}")
    for field in TURN[:2]:
        if Path(entry[field]).name != entry[field]:
            raise InputError(f"{where}: {field} is {entry[field]!r}, needs the name of a file")
    return entry


def _items(session: str, turns: list[Turn]) -> tuple[list[BenchmarkItem], list[BenchmarkItem]]:
    """Make an item of every turn from the truth before it, and of all but the first from ours."""

    def item(number: int, key: str, source: Path, follows: str | None = None) -> BenchmarkItem:
        turn = turns[number - 1]
        return BenchmarkItem(
            key=key,
            task="",
            session=session,
            turn=number,
            instruction=turn.instruction,
            source=Picture.at(source),
            source_caption=turn.source_caption,
            target_caption=turn.target_caption,
            target=Picture.at(turn.target),
            follows=follows,
        )

    first, numbers = f"{session}_1", range(2, len(turns) + 1)
    independent = [item(1, first, turns[0].source)]
    independent += [item(i, f"{session}_inde_{i}", turns[i - 1].source) for i in numbers]
    keys = [first, *(f"{session}_iter_{i}" for i in numbers)]
    chained = [item(i, keys[i - 1], turns[0].source, follows=keys[i - 2]) for i in numbers]
    return independent, chained
