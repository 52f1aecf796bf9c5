"""What edits began with and what came of them: the pictures of a benchmark and their results.

Results are made by a model of ours (`emu_edit.evaluation.edits`), or lie in somebody's folder: a
picture per item, named by its key, or (the Emu Edit test set) the tables in which Emu Edit's own
results are published. A result that is missing where that is allowed, or that cannot be read,
counts as not edited: its item keeps the picture it began with, and is listed. The benchmark's own
pictures are checked and hashed first; one that is damaged has no score, not even that of copying
it, so there the benchmark is refused as a whole.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from datamodules.convert.picture import MissingPictureError
from datamodules.evaluation_sets import EMU_EDIT
from datamodules.evaluation_sets.generations import holds_generations, load_generations
from datamodules.evaluation_sets.items import Benchmark, BenchmarkItem, Picture, as_unicode, some
from datamodules.listing import list_entries, same_form
from emu_edit.errors import BadImageError, InputError
from emu_edit.images import decode_rgb
from emu_edit.pictures import EXTENSIONS
from emu_edit.video.clip import Video

OK, FAILED = "ok", "failed"
MISSING = "there is no picture of it"
LONGEST_REASON = 300  # characters; some errors of torch go on for pages

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Output:
    """What came of one item.

    Attributes:
        key: of the item.
        source_sha256: of the picture that was edited.
        sha256: of the result's file, or, where the item failed, of what stands for it.
        picture: the result, None where the item failed.
        reason: why it failed.
        seed: of the noise, None where we did not draw it.
    """

    key: str
    source_sha256: str
    sha256: str
    picture: Picture | None
    reason: str | None = None
    seed: int | None = None

    @property
    def status(self) -> str:
        """Say "ok" or "failed"."""
        return OK if self.reason is None else FAILED

    @property
    def failure(self) -> dict[str, str | None]:
        """Its entry in a list of what failed."""
        return {"key": self.key, "reason": self.reason}


@dataclass(frozen=True)
class ItemPictures:
    """The pictures of one item: what was given, if anything was, the result, the ground truth."""

    source: UInt8[Tensor, "3 _ _"] | None
    output: UInt8[Tensor, "3 _ _"]
    target: UInt8[Tensor, "3 _ _"] | None


@dataclass(frozen=True)
class ItemVideos:
    """The videos of one item, likewise."""

    source: Video | None
    output: Video
    target: Video | None


def failed(key: str, source_sha256: str, reason: str, seed: int | None = None) -> Output:
    """Make the output of an item that failed: its source as it was."""
    line = as_unicode(" ".join(reason.split())[:LONGEST_REASON])
    return Output(key, source_sha256, source_sha256, None, line, seed)


def output_picture(
    items: Mapping[str, BenchmarkItem], outputs: Mapping[str, Output], key: str
) -> UInt8[Tensor, "3 h w"]:
    """Decode an item's result; where it failed, what it would have been made from."""
    picture, item = outputs[key].picture, items[key]
    if picture is not None:
        return picture.decode()
    if item.follows is not None:
        return output_picture(items, outputs, item.follows)
    return item.source.decode()


def pictures_sha256(outputs: Mapping[str, Output]) -> str:
    """Hash all results and their keys; an item that failed has no hash."""
    digest = hashlib.sha256()
    for key, output in outputs.items():
        digest.update(f"{key} {'-' if output.picture is None else output.sha256}\n".encode())
    return digest.hexdigest()


def has_pictures(folder: Path) -> bool:
    """Say whether there is a picture in the folder or below it."""
    return folder.is_dir() and any(
        entry.is_file and entry.path.suffix.lower() in EXTENSIONS for entry in list_entries(folder)
    )


def is_generations(folder: Path, benchmark: str) -> bool:
    """Say whether a folder holds published results as tables, not as files named by keys."""
    return benchmark == EMU_EDIT and holds_generations(folder)


def read_pictures(
    folder: Path, benchmark: Benchmark, sources: Mapping[str, str], *, allow_missing: bool
) -> dict[str, Output]:
    """Pair the pictures of a folder with the items of a benchmark.

    Args:
        folder: KEY.png, .jpg or .webp, in it or in folders in it; or tables of generations.
        benchmark: what was to be edited.
        sources: hash of what each item was made from.
        allow_missing: let missing pictures count as failed.

    Raises:
        InputError: if pictures and items do not pair up.
    """
    find = load_generations if is_generations(folder, benchmark.name) else _find_pictures
    found = find(folder, benchmark)
    missing = [item.key for item in benchmark.scored() if item.key not in found]
    if missing and not allow_missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of {len(benchmark.scored())} pictures "
            f"({some(missing)}); add them (KEY.png), or score them as not edited with "
            "--allow-missing"
        )
    outputs: dict[str, Output] = {}
    for item in benchmark.items:  # a turn in between may be missing, it is in no table
        source = sources[item.key] if item.follows is None else outputs[item.follows].sha256
        outputs[item.key] = _read_output(item.key, source, found.get(item.key))
    if all(output.picture is None for output in outputs.values()):
        raise InputError(
            f"{folder}: no picture can be scored; {next(iter(outputs.values())).reason}"
        )
    return outputs


def _read_output(key: str, source: str, picture: Picture | None) -> Output:
    if picture is None:
        return failed(key, source, MISSING)
    try:
        data = picture.fetch()
        decode_rgb(data, where=picture.where)
    except MissingPictureError:
        raise  # an empty cell is a damaged table, not a failed edit
    except BadImageError as error:
        return failed(key, source, str(error))
    return Output(key, source, hashlib.sha256(data).hexdigest(), picture)


def _find_pictures(folder: Path, benchmark: Benchmark) -> dict[str, Picture]:
    """Find pictures by their keys; refuse pictures of no item, and two of one."""
    found: dict[str, Path] = {}
    extra: list[str] = []
    keys = {same_form(key): key for key in benchmark.known}
    for entry in list_entries(folder):
        path = entry.path
        if entry.why:
            raise InputError(f"{path}: {entry.why}; take it away, or put what it stands for there")
        if entry.is_hidden or path.suffix.lower() not in EXTENSIONS:
            continue
        key = keys.get(same_form(path.stem))
        if key is None:
            extra.append(entry.name)
        elif key in found:
            raise InputError(
                f"{folder} has two pictures of {key} ({found[key].name}, {path.name}); keep one"
            )
        else:
            found[key] = path
    if extra:
        raise InputError(
            f"{folder} has {len(extra)} pictures of no item of {benchmark.name} ({some(extra)}); "
            f"needs one per item, named by its key, e.g. {min(benchmark.known)}.png"
        )
    return {key: Picture.at(path) for key, path in found.items()}


@dataclass(frozen=True)
class Inputs:
    """The hashes of every picture of a benchmark, by item.

    Attributes:
        source: of the picture that is edited; with `follows`, of the one its session began with.
        target: of the ground truth, None where there is none.
        sha256: of all of it, texts included.
    """

    source: dict[str, str]
    target: dict[str, str | None]
    sha256: str

    def lines(self) -> list[str]:
        """Write "KEY SOURCE TARGET" for each item, "-" where there is no ground truth."""
        return [f"{key} {self.source[key]} {self.target[key] or '-'}" for key in self.source]


def check_inputs(benchmark: Benchmark, on_step: OnStep) -> Inputs:
    """Decode and hash the pictures of all items, each once, and hash what is said of them.

    Raises:
        InputError: if one cannot be decoded.
    """
    known: dict[str, str] = {}  # hash by place: turns of a session share pictures
    source: dict[str, str] = {}
    target: dict[str, str | None] = {}
    digest = hashlib.sha256()  # of one JSON line per item: what an edit is made from and scored by
    for number, item in enumerate(benchmark.items, 1):
        source[item.key] = _check_input(item, item.source, known)
        target[item.key] = None if item.target is None else _check_input(item, item.target, known)
        texts = [item.task, item.instruction, item.source_caption, item.target_caption]
        line = [item.key, source[item.key], target[item.key], *texts]
        digest.update(json.dumps(line).encode() + b"\n")
        on_step(number, len(benchmark.items))
    return Inputs(source, target, digest.hexdigest())


def _check_input(item: BenchmarkItem, picture: Picture, known: dict[str, str]) -> str:
    if picture.where not in known:
        data = picture.fetch()
        try:
            decode_rgb(data, where=picture.where)
        except BadImageError as error:
            raise InputError(
                f"{error}; it is the benchmark's own (item {item.key}): download it again"
            ) from error
        known[picture.where] = hashlib.sha256(data).hexdigest()
    return known[picture.where]
