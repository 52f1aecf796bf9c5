"""The page for raters: two sets of videos or pictures of the same captions, side by side and blind.

PAGE/index.html opens without a server and loads nothing but the files beside it, whose names tell
nothing; which set stands on which side is drawn for each item by a coin that depends on seed and
item, and is written into a key that lies beside the folder and not in it. Answers stay in the
rater's browser until they are downloaded.
"""

import base64
import hashlib
import json
import shutil
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from emu_edit.errors import InputError
from emu_edit.evaluation.raters import QUESTIONS, VERSION, Key
from emu_edit.files import read_regular, write_json, write_text
from emu_edit.randomness import keyed_generator

MOVING = (".mp4", ".webm")
SHOWN = (*MOVING, ".gif", ".webp", ".png", ".jpg", ".jpeg")  # what every browser shows
CAPTIONS = "captions.jsonl"  # as `emu-edit generate` writes it
FILES = "files"


def write_page(first: Path, second: Path, page: Path, *, seed: int = 0) -> Key:
    """Write the page, and its key as PAGE.key.json; return the key.

    Args:
        first: a folder of videos or pictures, with their captions in captions.jsonl (file_name,
            caption) or in NAME.txt.
        second: a folder with files of the same names, whatever their kind.
        page: a new folder.
        seed: of order and sides.

    Raises:
        InputError: if the folders have no item in common, a caption is missing or differs, or the
            page is there already.
    """
    place = key_of(page)
    if page.exists() or place.exists():
        taken = page if page.exists() else place
        raise InputError(f"{taken} exists already; give another name, its answers need their key")
    if not page.parent.is_dir():
        raise InputError(f"{page}: there is no folder {page.parent}; make it first")
    sets = _items(first), _items(second)
    names = sorted({*sets[0]} & {*sets[1]})
    if not names:
        raise InputError(
            f"{first} and {second} have no file name in common; give files equal names"
        )
    captions = {name: _caption_of(name, first, second) for name in names}
    order = keyed_generator(seed, "rate order", 0).permutation(len(names))
    names = [names[i] for i in order]
    coins = [int(keyed_generator(seed, "rate side", i).integers(2)) for i in range(len(names))]
    digest = hashlib.sha256(json.dumps([seed, names, captions, coins]).encode()).hexdigest()
    labels = _labels(first, second)
    key = Key(digest[:16], labels, tuple(zip(names, coins, strict=True)))
    (page / FILES).mkdir(parents=True)
    items = []
    for number, (name, left) in enumerate(key.items):
        shown = []
        for side, which in (("left", left), ("right", 1 - left)):
            source = sets[which][name]
            target = f"{FILES}/{number:04d}-{side}{source.suffix.lower()}"
            shutil.copyfile(source, page / target)
            shown.append(target)
        items.append({"caption": captions[name], "files": shown})
    write_json(place, {"version": VERSION, **asdict(key)})
    write_text(page / "index.html", _html(key, items))
    return key


def key_of(page: Path) -> Path:
    """Return where a page's key lies: beside its folder, so that it is not handed out with it."""
    return page.with_name(f"{page.name}.key.json")


def _labels(first: Path, second: Path) -> tuple[str, str]:
    if first.resolve().name != second.resolve().name:
        return first.resolve().name, second.resolve().name
    return str(first), str(second)


def _items(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that a browser shows, by their names without the ending."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give one of videos or pictures")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in SHOWN or not file.is_file() or file.stem == "sheet":
            continue
        if file.stem in found:
            raise InputError(f"{folder}: has {found[file.stem].name} and {file.name}; keep one")
        found[file.stem] = file
    if not found:
        raise InputError(f"{folder}: has no {', '.join(SHOWN)}; give a folder of such files")
    return found


def _caption_of(name: str, first: Path, second: Path) -> str:
    told = [text for folder in (first, second) if (text := _captions(folder).get(name))]
    if not told:
        raise InputError(
            f"{first} and {second} have no caption of {name}; put it into {CAPTIONS} (file_name, "
            f"caption) or {name}.txt"
        )
    if len({*told}) > 1:
        raise InputError(f"{name}: its captions differ: {told[0]!r} and {told[1]!r}")
    return told[0]


def _captions(folder: Path) -> dict[str, str]:
    found = {
        file.stem: read_regular(file).decode("utf-8", "replace").strip()
        for file in folder.glob("*.txt")
    }
    lines = folder / CAPTIONS
    if not lines.is_file():
        return found
    for number, line in enumerate(read_regular(lines).decode("utf-8", "replace").splitlines(), 1):
        try:
            row = json.loads(line)
            found[Path(row["file_name"]).stem] = str(row["caption"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{lines}:{number}: needs an object with file_name and caption"
            ) from error
    return found


def _html(key: Key, items: list[dict]) -> str:
    def part(name: str) -> str:
        return (files("emu_edit.evaluation") / name).read_text(encoding="utf-8")

    script = part("rater_page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = {
        "page": key.page,
        "items": items,
        "questions": [
            {"name": name, "asked": asked, "reasons": reasons}
            for name, (asked, reasons) in QUESTIONS.items()
        ],
        "moving": MOVING,
    }
    # a stranger's caption cannot end the block: no "<" stands in it
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        part("rater_page.html")
    )
    return template.render(data=text, script=script, digest=digest)
