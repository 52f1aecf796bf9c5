"""What each claim measures: for every row of its table and every seed a dictionary of numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.claims.arms import (
    ALL,
    ARMS,
    CHANGE,
    EDITS,
    EPS_PLAIN,
    REPAINTED,
    SIDE,
    UNTOLD,
    V_PLAIN,
    Study,
    V,
)
from datamodules.world.sessions import make_session
from datamodules.world.studio import WorldPair
from emu_edit.diffusion.guidance import Guidance
from emu_edit.editing.editor import Editor
from emu_edit.editing.session import turn_seed
from emu_edit.editing.sheets import GridRow, picture_grid
from emu_edit.editing.threshold import ALPHA, RADIUS, keep_unchanged
from emu_edit.evaluation.drift import truth_of as turn_truth
from emu_edit.evaluation.world import Scenes, WorldBenchmark, truth_of, world_pairs
from emu_edit.metrics.drift import score_session, success_share
from emu_edit.metrics.world import EditScore, score
from emu_edit.tasks import SIXTEEN
from emu_edit.terminal import step_bar

Numbers = dict[str, float]
Measured = tuple[str, int, Numbers]
"""The row of the table, the seed, and what was measured."""

AT_ONCE, TURNS = 64, 10
SHOWN = 6  # pairs in a picture
EVAL_SEED = 1  # of the held-out pairs: the same for every arm and seed
DARK, BRIGHT = 0.2, 0.7  # mean of a target's values in [0, 1]
SWEEP = (0.0, 0.01, 0.02, ALPHA, 0.06, 0.12)
RADII = (0, 1, 4)
TEXT, IMAGE = (1.0, 1.5, 3.0, 5.0, 7.5), (1.5, 2.5)


def task_embedding(study: Study) -> Iterator[Measured]:
    """Claim 1: told the task > predicting it > never told; and another task does another thing."""
    pairs = pairs_of(study.pairs, SIXTEEN.names)
    given = [pair.task for pair in pairs]
    predictor = Editor.from_pretrained(study.model).predictor
    assert predictor is not None
    predicted = [told.task for told in predictor.predict([pair.instruction for pair in pairs])]
    others = dict(zip(SIXTEEN.names, SIXTEEN.names[1:] + SIXTEEN.names[:1], strict=True))
    swapped = [others[task] for task in given]
    for seed in range(study.seeds):
        editor = editor_of(study, ALL, seed)
        for row, tasks in (("given", given), ("predicted", predicted), ("another's", swapped)):
            yield row, seed, means(edit_all(editor, pairs, tasks))
        yield "none", seed, means(edit_all(editor_of(study, UNTOLD, seed), pairs, given))
    swap_grid(study, editor_of(study, ALL, 0), pairs)


def vision_tasks(study: Study) -> Iterator[Measured]:
    """Claim 2: training on marks and maps makes the other tasks better."""
    pairs = pairs_of(study.pairs, EDITS)
    names = [name for name in ARMS if name == ALL or name.startswith("no ")]
    shown: dict[str, list[Edited]] = {}
    for seed in range(study.seeds):
        for name in names:
            edited = edit_all(editor_of(study, name, seed), pairs)
            shown.setdefault(name, edited)
            yield name, seed, means(edited)
    worst_grid(study, "vision-tasks", shown)


def thresholding(study: Study) -> Iterator[Measured]:
    """Claim 6: what alpha and the width of the blur are worth in sessions of ten turns."""
    editor = Editor.from_pretrained(study.model)
    rows = [(alpha, RADIUS) for alpha in SWEEP] + [(ALPHA, radius) for radius in RADII]
    for seed in range(study.seeds):
        for alpha, radius in rows:
            name = f"alpha {alpha:g}, {2 * radius + 1} px" if alpha else "none"
            yield name, seed, drift(editor, study.pairs, seed + 1, alpha, radius)


def terminal_snr(study: Study) -> Iterator[Measured]:
    """Claim 7: very dark and very bright targets need a schedule that ends in pure noise."""
    pairs = pairs_of(study.pairs, REPAINTED)
    levels = [pair.target.mean() / 255 for pair in pairs]
    sets = {
        "dark": [pair for pair, level in zip(pairs, levels, strict=True) if level < DARK],
        "bright": [pair for pair, level in zip(pairs, levels, strict=True) if level > BRIGHT],
    }
    shown: dict[str, list[Edited]] = {}
    for seed in range(study.seeds):
        for name in (V, V_PLAIN, EPS_PLAIN, CHANGE):
            editor = editor_of(study, name, seed)
            for targets, chosen in sets.items():
                edited = edit_all(editor, chosen)
                if seed == 0:
                    shown.setdefault(name, []).extend(edited)
                numbers = {"brightness off": brightness_error(edited), **means(edited)}
                yield f"{targets}: {name}", seed, numbers
    worst_grid(study, "terminal-snr", shown)


def guidance(study: Study) -> Iterator[Measured]:
    """Claim 8: guidance by the text against fidelity to the source."""
    pairs = pairs_of(study.pairs, ("background", "segment", "global", "style"))
    scales = [(text, 1.0) for text in TEXT] + [(3.0, image) for image in IMAGE]
    shown: dict[str, list[Edited]] = {}
    for seed in range(study.seeds):
        editor = editor_of(study, V, seed)
        for text, image in scales:
            settings = replace(editor.settings, guidance=Guidance(text, image))
            edited = edit_all(editor, pairs, settings=settings)
            shown.setdefault(row := f"text {text:g}, image {image:g}", edited)
            yield row, seed, means(edited)
    worst_grid(study, "guidance", shown)


CLAIMS: dict[str, Callable[[Study], Iterator[Measured]]] = {
    "task-embedding": task_embedding,
    "vision-tasks": vision_tasks,
    "thresholding": thresholding,
    "terminal-snr": terminal_snr,
    "guidance": guidance,
}


@cache
def pairs_of(count: int, tasks: tuple[str, ...]) -> list[WorldPair]:
    """Make the held-out pairs, so many of each task."""
    return world_pairs(WorldBenchmark(count, Scenes(seed=EVAL_SEED)), tasks, SIDE)


def editor_of(study: Study, name: str, seed: int) -> Editor:
    """Return what a training has learnt, after making it if it is missing."""
    return Editor.from_pretrained(study.train(name, seed))


Edited = tuple[WorldPair, torch.Tensor, EditScore]


def edit_all(
    editor: Editor, pairs: Sequence[WorldPair], tasks: Sequence[str] | None = None, **options
) -> list[Edited]:
    """Edit pairs by their own tasks, or by those given; score the results."""
    named = [pair.task for pair in pairs] if tasks is None else tasks
    found: list[Edited] = []
    with step_bar("editing", "pairs") as on_step:
        for start in range(0, len(pairs), AT_ONCE):
            part = pairs[start : start + AT_ONCE]
            truths = [truth_of(pair) for pair in part]
            pictures = editor.edit_batch(
                torch.stack([truth.source for truth in truths]),
                [pair.instruction for pair in part],
                named[start : start + AT_ONCE],
                list(range(start, start + len(part))),
                **options,
            )
            scored = zip(part, pictures, truths, strict=True)
            found += [(pair, picture, score(picture, truth)) for pair, picture, truth in scored]
            on_step(len(found), len(pairs))
    return found


def means(edited: Sequence[Edited]) -> Numbers:
    """Return the shares made and clean, error/copy as the benchmark has it, and change outside."""
    scores = [each for _, _, each in edited]
    outside = [each.outside_l1 for each in scores if each.outside_l1 is not None]
    inside, copied = (fmean(getattr(s, n) for s in scores) for n in ("inside_l1", "copy_l1"))
    return {
        "made": fmean(each.success for each in scores),
        "closer": fmean(each.is_closer for each in scores),
        "clean": fmean(each.clean for each in scores),
        "error/copy": inside / copied,
        **({"outside": fmean(outside)} if outside else {}),
    }


def brightness_error(edited: Sequence[Edited]) -> float:
    """Return how far the mean of all values in [0, 1] is from the target's, on average."""
    return fmean(
        abs(picture.double().mean().item() - pair.target.mean()) / 255
        for pair, picture, _ in edited
    )


def drift(editor: Editor, sessions: int, seed: int, alpha: float, radius: int) -> Numbers:
    """Edit sessions turn by turn, all at once, and keep what hardly changed after every turn."""
    side = editor.settings.image_size
    drawn = [
        make_session(seed, index, turns=TURNS, size=side, split="heldout")
        for index in range(sessions)
    ]
    truths = [[turn_truth(turn) for turn in session.turns] for session in drawn]
    images = [[each[0].before] for each in truths]
    with step_bar(f"drifting, alpha {alpha:g}", "turns") as on_step:
        for number in range(TURNS):
            turns = [session.turns[number] for session in drawn]
            before = [each[-1] for each in images]
            after = editor.edit_batch(
                torch.stack(before),
                [turn.instruction for turn in turns],
                [turn.task for turn in turns],
                [turn_seed(seed + index, number + 1) for index in range(sessions)],
            )
            for each, old, new in zip(images, before, after, strict=True):
                each.append(keep_unchanged(old, new, alpha=alpha, radius=radius) if alpha else new)
            on_step(number + 1, TURNS)
    scores = [score_session(*both) for both in zip(images, truths, strict=True)]
    outside = fmean(each[-1].outside_l1 for each in scores)
    return {"outside": outside, "made": success_share(scores) or 0.0}


def worst_grid(study: Study, name: str, edited: Mapping[str, Sequence[Edited]]) -> None:
    """Draw the pairs that the first row does worst, by every row: numbers need their pictures."""
    first = next(iter(edited.values()))
    worst = sorted(range(len(first)), key=lambda i: first[i][2].inside_l1, reverse=True)[:SHOWN]
    rows = []
    for i in worst:
        truth = truth_of(first[i][0])
        for row, each in edited.items():
            text = first[i][0].instruction
            rows.append(GridRow(truth.source, each[i][1], truth.target, text, row))
    title = f"the {len(worst)} worst of {len(first)} pairs, first seed"
    picture_grid(rows, title).save(Path(study.folder, f"{name}-worst.png"))


def swap_grid(study: Study, editor: Editor, pairs: Sequence[WorldPair]) -> None:
    """Draw what one instruction gives with its own task and with others'."""
    rows = []
    firsts = [next(pair for pair in pairs if pair.task == task) for task in SIXTEEN.names]
    for task in ("segment", "depth", "style"):
        own, swapped = edit_all(editor, firsts), edit_all(editor, firsts, [task] * len(firsts))
        for (pair, mine, _), (_, other, _) in zip(own[:6], swapped[:6], strict=True):
            source = truth_of(pair).source
            rows.append(GridRow(source, mine, other, pair.instruction, f"{pair.task} / {task}"))
    title = "source, its own task (edited), another task (target column)"
    picture_grid(rows, title).save(Path(study.folder, "task-embedding-grid.png"))
