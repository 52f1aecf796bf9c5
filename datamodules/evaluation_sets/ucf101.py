"""UCF-101 as its users unpack it: what is asked for in zero-shot generation, and the real videos.

    DIR/CLASS/v_CLASS_gNN_cNN.avi            or DIR/UCF-101/CLASS/…
    DIR/ucfTrainTestlist/classInd.txt        a line "1 ApplyEyeMakeup" per class
    DIR/ucfTrainTestlist/trainlist01.txt     a line "ApplyEyeMakeup/v_….avi 1" per video

Generators are measured by drawing 10 000 videos from a text per class, as often as the class comes
in the training list, and comparing them with real ones. Papers ask with sentences of their own,
one per class, which are not published with the set: here a class is asked for by its name in
words, unless a JSON {CLASS: sentence} says otherwise.

Source: Soomro et al. 2012, arXiv:1212.0402 (the set); Make-A-Video, arXiv:2209.14792, section 4
(the protocol).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datamodules.convert.pair import is_safe_name
from datamodules.evaluation_sets.items import as_unicode, check_text, some
from datamodules.listing import decode_text, find_file
from emu_edit.errors import InputError
from emu_edit.files import read_regular

UCF101 = "ucf101"
LISTS = "ucfTrainTestlist"
CLASSES, VIDEOS = f"{LISTS}/classInd.txt", f"{LISTS}/trainlist01.txt"
SAMPLES = 10_000  # videos that papers draw


@dataclass(frozen=True)
class UcfClass:
    """A class of actions.

    Attributes:
        name: as in the lists.
        prompt: what is asked for.
        videos: the real ones.
    """

    name: str
    prompt: str
    videos: tuple[Path, ...]


@dataclass(frozen=True)
class Ucf101:
    """What is asked for, and what it is compared with.

    Attributes:
        folder: name of the folder it was read from.
        classes: in the order of the list.
    """

    folder: str
    classes: tuple[UcfClass, ...]

    @property
    def videos(self) -> tuple[Path, ...]:
        """All real videos, class by class."""
        return tuple(path for one in self.classes for path in one.videos)

    @property
    def sha256(self) -> str:
        """Hash of the prompts, and of the videos' names and sizes (their bytes are many)."""
        digest = hashlib.sha256()
        for one in self.classes:
            digest.update(f"{one.name}\0{one.prompt}\n".encode())
            for path in one.videos:
                digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def counts(self, samples: int) -> tuple[int, ...]:
        """Part a number of samples among the classes, in the proportions of their videos.

        Each class has its share rounded down; what is left goes to those that lost most by it.
        """
        total = len(self.videos)
        parts = [divmod(samples * len(one.videos), total) for one in self.classes]
        counts = [whole for whole, _ in parts]
        most = sorted(range(len(parts)), key=lambda i: (-parts[i][1], i))
        for i in most[: samples - sum(counts)]:
            counts[i] += 1
        return tuple(counts)


def load_ucf101(folder: Path, prompts: Path | None = None) -> Ucf101:
    """Read the lists, and find every video of the first training list.

    Args:
        folder: where set and lists were unpacked to.
        prompts: JSON of what to ask for, by class; None asks by the names.

    Raises:
        InputError: if a list or a video is missing or a line malformed, or the prompts are not
            those of all classes.
    """
    names = [_cells(line, CLASSES, number)[1] for number, line in _lines(folder, CLASSES)]
    asked = {name: words_of(name) for name in names} if prompts is None else _prompts(prompts)
    lost = [name for name in names if name not in asked]
    if lost:
        raise InputError(f"--instructions {prompts} says nothing of {some(lost)}; add a sentence")
    places: dict[str, list[str]] = {name: [] for name in names}
    for number, line in _lines(folder, VIDEOS):
        place = _cells(line, VIDEOS, number)[0]
        name, _, file = place.partition("/")
        if name not in places or not is_safe_name(file):
            raise InputError(f"{VIDEOS}:{number}: {place!r} is no video of a class of {CLASSES}")
        places[name].append(place)
    found = {place: _find(folder, place) for some_ in places.values() for place in some_}
    missing = [place for place, path in found.items() if path is None]
    if missing or not found:
        raise InputError(
            f"{folder}: {len(missing)} of {len(found)} videos of {VIDEOS} are missing "
            f"({some(missing)}); unpack UCF101.rar there"
        )
    classes = [
        UcfClass(name, asked[name], tuple(path for one in places[name] if (path := found[one])))
        for name in names
    ]
    return Ucf101(as_unicode(folder.resolve().name), tuple(one for one in classes if one.videos))


def words_of(name: str) -> str:
    """Return a class's name in words: "ApplyEyeMakeup" is "apply eye makeup"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _lines(folder: Path, name: str) -> list[tuple[int, str]]:
    """Return the lines of a list that are not empty, with their numbers."""
    path = folder / name
    if not path.is_file():
        raise InputError(
            f"{folder} has no {name}; unpack UCF101TrainTestSplits-RecognitionTask.zip there"
        )
    lines = decode_text(read_regular(path), str(path)).splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _cells(line: str, name: str, number: int) -> tuple[str, str]:
    """Return the two words of a line, the names in them safe to open."""
    cells = line.split()
    if len(cells) != 2 or not all(is_safe_name(cell) for cell in cells) or "/" in cells[1]:
        raise InputError(f"{name}:{number}: {line[:40]!r} is not two names; get the lists again")
    return cells[0], cells[1]


def _find(folder: Path, place: str) -> Path | None:
    return find_file(folder, place) or find_file(folder, f"UCF-101/{place}")


def _prompts(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        raise InputError(f"--instructions {path}: there is no such file")
    try:
        found = json.loads(decode_text(read_regular(path), str(path)))
    except ValueError as error:
        raise InputError(f"--instructions {path}: is not JSON ({error})") from error
    is_text = isinstance(found, dict) and all(isinstance(text, str) for text in found.values())
    if not is_text:
        raise InputError(f"--instructions {path}: needs an object of a sentence by class")
    return {name: check_text(text.strip(), str(path)) for name, text in found.items()}
