"""One cell of the few-shot study: a task, a method, so many pairs and a seed, learnt and scored.

A cell is a JSON file. It says what it was made under, so that a study can be gone on with later,
and cells of another model or other pairs are never mixed in. All methods of a lesson (task, pairs,
seed) begin at the same vector, which is looked for once.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.inversion.methods import (
    EXPERT,
    INVERSION,
    LEARNING_RATES,
    Lesson,
    MethodResult,
    OnStep,
    beginning_of,
    teach,
)
from datamodules.world.new_tasks import count_dots, make_new_pair
from datamodules.world.pair import WorldPair, make_pair
from datamodules.world.photographs import Photos
from emu_edit.batch import EditSample
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.metrics.world import EditScore, Truth, score
from emu_edit.models.fingerprints import model_hash
from emu_edit.tasks import SIXTEEN
from emu_edit.training.few_shot import FewShotPair
from emu_edit.training.inversion import InversionSettings

BASE = "base"  # the method of the reference cells: nothing is learnt
TRAIN_SEED = 100  # of the pairs to learn from, plus the cell's seed; 0 and 1 are other worlds'
TEST_SEED = 1
AT_ONCE = 32
EXPERT_CHECKS = 20


@dataclass(frozen=True)
class Cell:
    """What is learnt and how; `pairs` is 0 for the base, and the stream's length for the expert."""

    task: str
    method: str
    pairs: int
    seed: int

    @property
    def file(self) -> str:
        """Its name in the folder of the study."""
        return f"{self.task}-{self.method}-{self.pairs}-{self.seed}.json"

    @property
    def lesson(self) -> str:
        """What cells have in common that learn from the same pairs; the base learns from none."""
        return f"{self.task}-{self.pairs}-{self.seed}"


@dataclass(frozen=True)
class Study:
    """What all cells share.

    Attributes:
        steps: of every method but the expert.
        test_pairs: pairs of a new task to score on; another seed's, with phrasings and colour/shape
            pairs that no training has.
        old_pairs: pairs of each of the sixteen tasks to tell forgetting by.
        photos: photographs for the pairs of the new tasks; a third of them is for the test pairs
            alone.
    """

    model: Path
    device: str = "cpu"
    steps: int = 300
    expert_steps: int = 1250
    batch_size: int = 8
    test_pairs: int = 48
    old_pairs: int = 4
    photos: Photos | None = None

    def __post_init__(self) -> None:
        """Refuse photographs that cannot be split, before long work."""
        if self.photos is not None:
            self.photos.split()

    @cached_property
    def base(self) -> str:
        """The hash of the base."""
        return model_hash(self.editor().networks)

    def editor(self) -> Editor:
        """Return the base, loaded anew: a method may do with it what it wants."""
        return Editor.from_pretrained(self.model, self.device)

    @cached_property
    def photo_parts(self) -> tuple[Photos | None, Photos | None]:
        """The photographs to learn from, and those to test on."""
        return (None, None) if self.photos is None else self.photos.split()

    def clock(self) -> float:
        """Return seconds: of the processor where it learns, so that other programs do not count."""
        return time.process_time() if self.device == "cpu" else time.monotonic()

    def budget(self, cell: Cell) -> int:
        """Return how many steps a cell may take."""
        return {BASE: 0, EXPERT: self.expert_steps}.get(cell.method, self.steps)

    def describe(self) -> dict[str, object]:
        """Return what the numbers depend on, besides the cell, as JSON-ready values."""
        names = ("steps", "expert_steps", "batch_size", "test_pairs", "old_pairs")
        values = {name: getattr(self, name) for name in names}
        photos = None if self.photos is None else self.photos.description
        rates = {INVERSION: InversionSettings().lr, **LEARNING_RATES}
        return {"base": self.base, **values, "learning_rates": rates, "photos": photos}


@dataclass(frozen=True)
class OldTasks:
    """What the base makes of pairs of the tasks it was trained for."""

    pairs: list[WorldPair]
    edited: list[UInt8[Tensor, "3 h w"]]
    scores: list[EditScore] = field(default_factory=list)

    @staticmethod
    def of(study: Study) -> "OldTasks":
        """Edit the pairs with the base."""
        editor = study.editor()
        pairs = [
            make_pair(TEST_SEED, i, task=task, size=editor.settings.image_size, split="heldout")
            for task in SIXTEEN.names
            if task in editor.networks.tasks.names
            for i in range(study.old_pairs)
        ]
        edited = edit_all(editor, pairs, [pair.task for pair in pairs])
        return OldTasks(pairs, edited, scores_of(pairs, edited))

    def forgetting(self, editor: Editor) -> dict[str, object]:
        """Return how another editor does on the pairs, and by how much that differs."""
        edited = edit_all(editor, self.pairs, [pair.task for pair in self.pairs])
        after, before = summary(scores_of(self.pairs, edited)), summary(self.scores)
        same = [torch.equal(a, b) for a, b in zip(edited, self.edited, strict=True)]
        return {
            **after,
            "success_change": after["success"] - before["success"],
            "error_change": after["error"] - before["error"],
            "identical": fmean(same),
        }


@dataclass(frozen=True)
class LessonStart:
    """Where a lesson begins, and how long it took to find it: each of its cells is charged that."""

    init: str
    seconds: float

    @staticmethod
    def of(cell: Cell, study: Study) -> "LessonStart":
        """Find the beginning of a cell's lesson; the base has none."""
        if cell.method == BASE:
            return LessonStart("", 0.0)
        editor, start = study.editor(), study.clock()
        init = beginning_of(editor, _lesson(cell, study, editor)).name
        return LessonStart(init, study.clock() - start)


def run_cell(
    cell: Cell, study: Study, old: OldTasks, begun: LessonStart, on_step: OnStep
) -> dict[str, object]:
    """Learn and score one cell."""
    editor = study.editor()
    start = study.clock()
    if cell.method == BASE:
        taught = MethodResult(editor, steps=0, best_step=0, weights=0)
    else:
        lesson = _lesson(cell, study, editor)
        given = replace(lesson, settings=replace(lesson.settings, init=begun.init))
        taught = teach(editor, cell.method, given, on_step)
    seconds = begun.seconds + study.clock() - start
    tests = [
        make_new_pair(
            TEST_SEED,
            i,
            task=cell.task,
            size=editor.settings.image_size,
            split="heldout",
            photos=study.photo_parts[1],
        )
        for i in range(study.test_pairs)
    ]
    names = [None if cell.method == BASE else cell.task] * len(tests)
    edited = edit_all(taught.editor, tests, names)
    return {
        "cell": asdict(cell),
        "study": study.describe(),
        "new": {**summary(scores_of(tests, edited)), **_measured(tests, edited)},
        "old": old.forgetting(taught.editor),
        "began_at": begun.init,
        "steps": taught.steps,
        "best_step": taught.best_step,
        "weights": taught.weights,
        "seconds": round(seconds, 2),
    }


def _lesson(cell: Cell, study: Study, editor: Editor) -> Lesson:
    new = len(editor.networks.tasks)
    return make_lesson(cell, study, editor.settings.image_size, new_index=new)


def make_lesson(cell: Cell, study: Study, size: int, *, new_index: int) -> Lesson:
    """Return a cell's pairs and how long to learn from them.

    The pairs of a seed are nested: the first 10 of 30 are those of the cell with 10. The expert is
    judged by a few pairs beyond its stream, and not stopped early.
    """
    stream = _Stream(cell, study, size, new_index)
    is_expert = cell.method == EXPERT
    first = cell.pairs if is_expert else 0
    few = [stream.pair(first + i) for i in range(100 if is_expert else cell.pairs)]
    settings = InversionSettings(steps=study.steps, batch_size=study.batch_size, seed=cell.seed)
    if is_expert:
        steps, checks = study.expert_steps, EXPERT_CHECKS
        settings = replace(
            settings, steps=steps, check_every=max(steps // checks, 1), patience=steps
        )
    return Lesson(cell.task, few, settings, stream if is_expert else ())


class _Stream(Sequence[EditSample]):
    """The pairs of a seed, made when they are asked for."""

    def __init__(self, cell: Cell, study: Study, size: int, new_index: int) -> None:
        self._cell, self._size, self._new = cell, size, new_index
        self._photos, _ = study.photo_parts

    def __len__(self) -> int:
        return self._cell.pairs

    def __iter__(self) -> Iterator[EditSample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> EditSample:  # type: ignore[override]
        pair = self.pair(int(index))
        return EditSample(
            key=pair.name,
            source=pair.source,
            target=pair.target,
            instruction=pair.instruction,
            task=self._new,
        )

    def pair(self, index: int) -> FewShotPair:
        """Return one pair, also beyond the stream's end."""
        seed = TRAIN_SEED + self._cell.seed
        return few_shot(
            make_new_pair(seed, index, task=self._cell.task, size=self._size, photos=self._photos)
        )


def few_shot(pair: WorldPair) -> FewShotPair:
    """Return a pair of the world as inversion takes it."""
    return FewShotPair(pixels(pair.source), pixels(pair.target), pair.instruction, pair.key)


def edit_all(
    editor: Editor, pairs: Sequence[WorldPair], tasks: Sequence[str | None]
) -> list[UInt8[Tensor, "3 h w"]]:
    """Edit pairs, each from its own noise."""
    edited: list[Tensor] = []
    for start in range(0, len(pairs), AT_ONCE):
        part = pairs[start : start + AT_ONCE]
        edited += editor.edit_batch(
            torch.stack([pixels(pair.source) for pair in part]),
            [pair.instruction for pair in part],
            tasks[start : start + AT_ONCE],
            list(range(start, start + len(part))),
        )
    return edited


def scores_of(
    pairs: Sequence[WorldPair], edited: Sequence[UInt8[Tensor, "3 h w"]]
) -> list[EditScore]:
    """Score edits; a box is looked for wherever one was asked for."""
    scores = []
    for pair, picture in zip(pairs, edited, strict=True):
        truth = Truth.from_arrays(
            pair.key,
            "detect" if "box" in pair.extra else pair.task,
            source=pair.source,
            target=pair.target,
            mask=pair.mask,
            extra=pair.extra,
        )
        scores.append(score(picture, truth))
    return scores


def summary(scores: Sequence[EditScore]) -> dict[str, float]:
    """Return the share of edits that succeeded, and the error relative to copying."""
    inside, copy = (fmean(getattr(s, name) for s in scores) for name in ("inside_l1", "copy_l1"))
    return {
        "edits": len(scores),
        "success": fmean(s.success for s in scores),
        "closer": fmean(s.is_closer for s in scores),
        "error": inside / copy,
    }


def _measured(
    pairs: Sequence[WorldPair], edited: Sequence[UInt8[Tensor, "3 h w"]]
) -> dict[str, float]:
    """Return what a task is known by: boxes that are where they belong, counts that are right."""
    boxes = [s.detection_iou for s in scores_of(pairs, edited) if s.detection_iou is not None]
    counts = [
        count_dots(picture.permute(1, 2, 0).numpy()) == pair.extra["count"]
        for pair, picture in zip(pairs, edited, strict=True)
        if "count" in pair.extra
    ]
    measured = {"box_iou": boxes, "count_right": counts}
    return {name: fmean(values) for name, values in measured.items() if values}


def pixels(picture) -> UInt8[Tensor, "3 h w"]:
    """Return a picture of the world as a tensor."""
    return torch.tensor(picture).permute(2, 0, 1).contiguous()  # a copy: PIL's are read-only


def read_cell(path: Path, study: Study) -> dict[str, object] | None:
    """Return a cell that is done, or None.

    Raises:
        InputError: if the file is of another study.
    """
    if not path.is_file():
        return None
    cell = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(study.describe()))
    for name, value in wanted.items():
        if cell["study"].get(name) != value:
            raise InputError(
                f"{path} was made with {name}={cell['study'].get(name)!r}, this study has "
                f"{value!r}; give another -o"
            )
    return cell
