"""The pairs of a new task, 1 to 100 of them, for task inversion: of a folder or of shards.

All are read at once, and every one has to be right: among ten pairs, one left out in silence is a
tenth of what there is to learn from. Folders have the layouts of `shards convert`, or just source/
and target/ with equal names when one instruction stands for all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.convert import control, folder
from datamodules.convert.pair import (
    RawPair,
    Reason,
    RefusedPairError,
    SkippedPair,
    read_pair,
)
from datamodules.convert.report import passed_by
from datamodules.listing import how_to_convert
from datamodules.shards.manifest import MANIFEST, read_manifest
from datamodules.stream.reader import OpenShard, decode_pair
from datamodules.stream.transforms import Crop
from emu_edit.errors import InputError, closest
from emu_edit.randomness import check_seed, keyed_generator
from emu_edit.text_rules import clean_instruction
from emu_edit.training.few_shot import FewShotPair

MAX_PAIRS = 100
CROPS = 3
SAME = "source and target have the same pixels"
LAYOUTS = (
    "a folder of shards, one with source/, target/ and instructions.jsonl, a .jsonl file, one with "
    "images/ and control/, or one with source/ and target/"
)


@dataclass(frozen=True)
class FewShotSource:
    """Where the pairs of a new task come from, and how many of them.

    Attributes:
        path: a folder of shards or of pairs, or a .jsonl file.
        task: name of the new task; where the data are of several tasks, its own are taken.
        instruction: what asks for it, for pairs that say nothing themselves.
        pairs: take so many, drawn by the seed; None takes all.
        max_pairs: more than so many are refused, unless `pairs` says how many.
        seed: of the draw.

    Raises:
        InputError: if the instruction is empty, too long or no text, or a number below 1.
    """

    path: Path
    task: str
    instruction: str = ""
    pairs: int | None = None
    max_pairs: int = MAX_PAIRS
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.instruction:
            clean_instruction(self.instruction)
        check_seed(self.seed, "the seed of a new task")
        for name, value in (("pairs", self.pairs), ("max_pairs", self.max_pairs)):
            if value is not None and value < 1:
                raise InputError(f"{name} of a new task must be at least 1, got {value}")

    def chosen(self, count: int) -> list[int]:
        """Return which of `count` pairs to take, in their order.

        Raises:
            InputError: if there are none, fewer than asked for, or too many.
        """
        if count == 0:
            raise InputError(f"{self.path} has no pairs; it needs at least one")
        if self.pairs is None:
            if count > self.max_pairs:
                raise InputError(
                    f"{self.path} has {count} pairs, a new task takes at most {self.max_pairs}; "
                    "say how many to take (--pairs N) or raise --max-pairs"
                )
            return list(range(count))
        if self.pairs > count:
            raise InputError(
                f"{self.path} has {count} pairs, fewer than the {self.pairs} asked for"
            )
        order = keyed_generator(self.seed, "few-shot pairs", 0).permutation(count)
        return sorted(int(index) for index in order[: self.pairs])


@dataclass(frozen=True)
class _FoundPair:
    """A pair as it was found, of any size."""

    name: str
    source: UInt8[Tensor, "3 H W"]
    target: UInt8[Tensor, "3 H W"]
    instruction: str


def read_few_shot(
    source: FewShotSource, *, image_size: int, crops: int = CROPS
) -> list[FewShotPair]:
    """Read the pairs, cut to squares and resampled as training does.

    Args:
        source: where they are.
        image_size: side of the squares: what the model is trained for.
        crops: squares of a picture that is none itself, the middle one first; those of one pair
            share its name.

    Raises:
        InputError: if there is nothing of the kind, there are too many, one cannot be used, or in
            none of them anything changes; it names the first.
        ShardError: if a shard is damaged.
    """
    if crops < 1:
        raise InputError(f"crops of a new task must be at least 1, got {crops}")
    is_shards = (source.path / MANIFEST).is_file()
    found = list(_of_shards(source) if is_shards else _of_folder(source))
    pairs = [item for item in found if isinstance(item, _FoundPair)]
    skipped = [item for item in found if isinstance(item, SkippedPair)]
    if skipped:
        raise _refusal(source, skipped, len(found))
    if all(torch.equal(pair.source, pair.target) for pair in pairs):
        raise InputError(f"{source.path}: nothing changes in any pair; there is nothing to learn")
    crop = Crop(image_size)
    return [view for pair in pairs for view in _squares(pair, crop, crops)]


def usual_instruction(pairs: Sequence[FewShotPair]) -> str:
    """Return the instruction of all pairs when it is one, else ""."""
    texts = {pair.instruction for pair in pairs}
    return texts.pop() if len(texts) == 1 else ""


def _squares(pair: _FoundPair, crop: Crop, crops: int) -> Iterator[FewShotPair]:
    is_square = pair.source.shape[1] == pair.source.shape[2]
    places = [0.5] if is_square or crops == 1 else np.linspace(0, 1, crops).tolist()
    for place in sorted(places, key=lambda place: abs(place - 0.5)):
        source, target, _ = crop.at(pair.source, pair.target, None, place=place)
        yield FewShotPair(source, target, pair.instruction, pair.name)


def _of_shards(source: FewShotSource) -> Iterator[_FoundPair | SkippedPair]:
    manifest = read_manifest(source.path)
    entries = manifest.of_task(_task_to_take(source, manifest.tasks))
    places = [(entry, sample) for entry in entries for sample in range(entry.samples)]
    for index in source.chosen(len(places)):
        entry, sample = places[index]
        shard = OpenShard(source.path / entry.file, entry)
        before, after, mask = decode_pair(shard, sample)
        # an empty mask says that nothing may change: such a pair is meant
        if torch.equal(before, after) and (mask is None or bool(mask.any())):
            yield SkippedPair(shard.key(sample), Reason.identical_pair, SAME)
        else:
            text = shard.text(sample)["instruction"]
            yield _FoundPair(shard.key(sample), before, after, text)


def _task_to_take(source: FewShotSource, tasks: Sequence[str]) -> str:
    """Return the task whose pairs are meant: the new one's own, or the only one there is."""
    if source.task in tasks:
        return source.task
    if len(tasks) > 1:
        raise InputError(
            f"{source.path} has pairs of {', '.join(tasks)}, none of {source.task!r}; give pairs "
            f"of one task, or one of these names.{closest(source.task, list(tasks))}"
        )
    return tasks[0]


def _of_folder(source: FewShotSource) -> Iterator[_FoundPair | SkippedPair]:
    listed = list(_listing(source))
    skipped = [item for item in listed if isinstance(item, SkippedPair)]
    if skipped:
        raise _refusal(source, skipped, len(listed))
    files = [item for item in listed if isinstance(item, RawPair)]
    if files:
        task = _task_to_take(source, list(dict.fromkeys(_task(item, source) for item in files)))
        files = [item for item in files if _task(item, source) == task]
    for index in source.chosen(len(files)):
        pair = _with_instruction(files[index], source.instruction)
        try:
            record = read_pair(pair, _task(pair, source))
        except RefusedPairError as error:
            yield SkippedPair(pair.name, error.reason, str(error))
        else:
            before, after = _pixels(record.source), _pixels(record.target)
            yield _FoundPair(pair.name, before, after, record.instruction)


def _task(pair: RawPair, source: FewShotSource) -> str:
    return pair.raw_task or source.task


def _listing(source: FewShotSource) -> Iterator[RawPair | SkippedPair]:
    """List the pairs of whichever layout is there."""
    path = source.path
    yield from _of_layout(path)
    others = passed_by(path, lambda _: True)
    yield from (item for item in others if item.reason is Reason.not_followed)


def _of_layout(path: Path) -> Iterator[RawPair | SkippedPair]:
    if path.suffix == ".jsonl" or (path / folder.LINES).is_file():
        return folder.list_pairs(path)
    for sides in ((control.TARGETS, control.SOURCES), ("target", "source")):
        if all((path / side).is_dir() for side in sides):
            return control.list_pairs(path, sides=sides)
    what = "has no pairs of a known layout" if path.exists() else "no such file or folder"
    raise InputError(f"{path}: {what}; give {LAYOUTS}{how_to_convert(path)}")


def _with_instruction(pair: RawPair, instruction: str) -> RawPair:
    """Return the pair with the instruction of all where it has none of its own."""
    own = pair.instruction
    has_own = own.is_file() if isinstance(own, Path) else bool(own.strip())
    return pair if has_own or not instruction else replace(pair, instruction=instruction)


def _pixels(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous()


def _refusal(source: FewShotSource, skipped: Sequence[SkippedPair], count: int) -> InputError:
    """Word what is wrong with the first of the pairs that cannot be used."""
    first = skipped[0]
    advice = "mend or remove them"
    if first.reason in {Reason.empty_instruction, Reason.missing_instruction}:
        advice = "add it, or give one for all (--instruction TEXT)"
    return InputError(
        f"{source.path}: {len(skipped)} of {count} pairs cannot be used, the first is "
        f"{first.name}: {first.detail}; {advice}"
    )
