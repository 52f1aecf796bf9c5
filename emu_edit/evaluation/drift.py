"""`evaluate --drift`: what ten turns do to a picture, with and without threshold.

Every session of the world is edited twice, with the same instructions and seeds, once taking each
result as it comes and once through `keep_unchanged` after every turn, the first included. Through
`EditSession`, so that what is measured is what people use. Written as numbers, a table, curves over
the turns, and some sessions to look at.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.evaluation_sets.items import as_unicode
from datamodules.world.palette import Split
from datamodules.world.sessions import TASKS, WorldSession, make_session
from datamodules.world.studio import WorldPair
from emu_edit.editing.editor import Editor
from emu_edit.editing.large import WHOLE
from emu_edit.editing.session import EditSession, TurnSettings
from emu_edit.editing.sheets import new_figure
from emu_edit.editing.threshold import ALPHA
from emu_edit.errors import InputError
from emu_edit.evaluation.candidate import Candidate, Outcome
from emu_edit.evaluation.world import Scenes
from emu_edit.files import write_json, write_text
from emu_edit.metrics.drift import (
    DriftPoint,
    TurnScore,
    TurnTruth,
    drift_curve,
    score_session,
    success_share,
)
from emu_edit.metrics.intervals import bootstrap_ratio
from emu_edit.terminal import markdown_table, plural, step_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS, TABLE, CURVES, SESSIONS = "drift.json", "drift.md", "drift.png", "sessions.png"
SHOWN = 2  # sessions in the picture
HEADER = ("turn", "outside", "with", "PSNR", "with", "kept", "with", "success", "with")
ROWS = ("right", "without", "with")  # of a session in the picture
SPLITS: dict[str, Split] = {"heldout": "heldout", "train": "train"}

Kind = Literal["without", "with"]
ALPHAS: dict[Kind, float | None] = {"without": None, "with": ALPHA}


@dataclass(frozen=True)
class DriftBenchmark:
    """Which sessions a model is put through.

    Attributes:
        sessions: how many.
        turns: of each session; the odd ones edit, the even ones ask for nothing.
        scenes: that they begin with, and the split of the phrasings.
    """

    sessions: int = 20
    turns: int = 10
    scenes: Scenes = field(default_factory=Scenes)

    def __post_init__(self) -> None:
        """Refuse splits that hold back only phrasings or only pairs."""
        if self.scenes.split not in SPLITS:
            raise InputError(
                f"--split {self.scenes.split} is of single edits; --drift has {', '.join(SPLITS)}"
            )

    def to_dict(self) -> dict[str, object]:
        """Describe what the numbers depend on, besides the model, as JSON values."""
        counts = {"sessions": self.sessions, "turns": self.turns}
        return {"benchmark": "drift", **counts, **self.scenes.to_dict(), "alpha": ALPHA}


@dataclass(frozen=True)
class DriftOptions:
    """What `evaluate --drift` scores, and in which sessions."""

    candidate: Candidate
    benchmark: DriftBenchmark = field(default_factory=DriftBenchmark)

    def __post_init__(self) -> None:
        """Refuse pictures: only a model can go on from its own results."""
        if self.candidate.are_pictures:
            raise InputError(
                f"--drift needs a model, and {self.candidate.path} is a folder of pictures"
            )


@dataclass(frozen=True)
class Drift:
    """Scores of all sessions under one of the two conditions.

    Attributes:
        scores: of each session, turn by turn.
        shown: all pictures of the first sessions, original first.
    """

    scores: list[list[TurnScore]]
    shown: list[tuple[UInt8[Tensor, "3 h w"], ...]]

    @property
    def curve(self) -> list[DriftPoint]:
        """The means over sessions, turn by turn."""
        return drift_curve(self.scores)


@dataclass(frozen=True)
class DriftResult:
    """Both conditions, and the sessions themselves."""

    drifts: dict[Kind, Drift]
    sessions: list[WorldSession]

    @property
    def summary(self) -> dict[str, float | None]:
        """The numbers of the last turn, and of all edits.

        `error_ratio` is the error outside without over that with threshold, `error_ratio_low` and
        `error_ratio_high` the ends of its 95 % interval over sessions; None where there is nothing
        to divide by.
        """
        without, kept = (self.drifts[kind].curve[-1].outside_l1 for kind in ALPHAS)
        last = {k: [scores[-1].outside_l1 for scores in self.drifts[k].scores] for k in ALPHAS}
        ends = (math.inf, math.inf)
        if kept > 0:
            ends = bootstrap_ratio(last["without"], last["with"])
        low, high = (end if math.isfinite(end) else None for end in ends)
        return {
            "outside_l1_without": without,
            "outside_l1_with": kept,
            "error_ratio": without / kept if kept > 0 else None,
            "error_ratio_low": low,
            "error_ratio_high": high,
            **{f"success_{kind}": success_share(self.drifts[kind].scores) for kind in ALPHAS},
        }

    def to_dict(self) -> dict[str, object]:
        """Describe summary, curves and instructions as JSON values."""
        return {
            "summary": self.summary,
            "curves": {kind: [asdict(p) for p in self.drifts[kind].curve] for kind in ALPHAS},
            "by_session": [self._session(i) for i in range(len(self.sessions))],
        }

    def _session(self, i: int) -> dict[str, object]:
        turns = [
            {
                "task": turn.task,
                "instruction": turn.instruction,
                "asks_for_nothing": turn.is_noop,
                **{kind: asdict(self.drifts[kind].scores[i][k]) for kind in ALPHAS},
            }
            for k, turn in enumerate(self.sessions[i].turns)
        ]
        return {"key": self.sessions[i].key, "turns": turns}


def run_drift(options: DriftOptions) -> Outcome:
    """Score sessions of several turns; write drift.json, drift.md, drift.png and sessions.png.

    Raises:
        InputError: if the model cannot be used.
    """
    candidate, benchmark = options.candidate, options.benchmark
    editor = candidate.load()
    start = time.monotonic()
    with step_bar("drifting", "edits") as on_step:
        result = evaluate_drift(editor, benchmark, on_step)
    name = as_unicode(str(candidate.path))
    about = {
        "model": name,
        **benchmark.to_dict(),
        "editor": editor.settings.to_dict(),
        "seconds": round(time.monotonic() - start, 1),
    }
    folder = candidate.results_folder("drift")
    folder.mkdir(parents=True, exist_ok=True)
    table = drift_table(result)
    turns, sessions = plural(benchmark.turns, "turn"), plural(benchmark.sessions, "session")
    title = f"{name}, drift over {turns}, {sessions}"
    write_json(folder / RESULTS, {**about, **result.to_dict()})
    write_text(folder / TABLE, f"# {title}\n\n{table}")
    draw_curves(result, folder / CURVES, title=title)
    draw_sessions(result, folder / SESSIONS)
    return Outcome(table, folder)


def evaluate_drift(
    editor: Editor,
    benchmark: DriftBenchmark,
    on_step: Callable[[int, int], None] | None = None,
) -> DriftResult:
    """Put the model through all sessions under both conditions; `on_step` counts edits.

    Raises:
        InputError: if the model lacks a task of the sessions.
    """
    missing = [task for task in TASKS if task not in editor.networks.tasks.names]
    if missing:
        raise InputError(
            f"the model does not know the task {', '.join(missing)}; drift is measured with "
            f"{', '.join(TASKS)}"
        )
    scenes = benchmark.scenes
    sessions = [
        make_session(
            scenes.seed,
            index,
            turns=benchmark.turns,
            size=scenes.side(editor.settings.image_size),
            split=SPLITS[scenes.split],
            photos=scenes.photos,
        )
        for index in range(benchmark.sessions)
    ]
    drifts: dict[Kind, Drift] = {kind: Drift([], []) for kind in ALPHAS}
    total, done = len(ALPHAS) * benchmark.sessions * benchmark.turns, 0
    for i, session in enumerate(sessions):
        truths = [truth_of(turn) for turn in session.turns]
        for kind, alpha in ALPHAS.items():
            before = truths[0].before
            edited = EditSession.start(editor, before, seed=scenes.seed + i, large=WHOLE)
            for turn in session.turns:
                settings = TurnSettings(turn.task, threshold=alpha)
                edited = edited.edit(turn.instruction, settings)
                done += 1
                if on_step is not None:
                    on_step(done, total)
            drifts[kind].scores.append(score_session(edited.images, truths))
            drifts[kind].shown.extend([edited.images] if i < SHOWN else [])
    return DriftResult(drifts, sessions)


def truth_of(turn: WorldPair) -> TurnTruth:
    """Turn a turn of the world into what the metrics take."""
    before, target = (
        torch.from_numpy(picture).permute(2, 0, 1).contiguous()
        for picture in (turn.source, turn.target)
    )
    return TurnTruth(before, target, torch.from_numpy(turn.mask))


def drift_table(result: DriftResult) -> str:
    """Write a row per turn, each number without and with threshold, and what it comes to."""
    without, kept = (result.drifts[kind].curve for kind in ALPHAS)
    rows = [_row(a, b) for a, b in zip(without, kept, strict=True)]
    table = markdown_table(HEADER, rows, numbers=True)
    return "\n".join([table, "", *_conclusion(len(rows), result.summary)])


def _row(without: DriftPoint, kept: DriftPoint) -> tuple[str, ...]:
    return (
        str(without.turn),
        *(f"{point.outside_l1:.4f}" for point in (without, kept)),
        *(_decibels(point.outside_psnr) for point in (without, kept)),
        *(f"{point.kept:.0%}" for point in (without, kept)),
        *(_percent(point.success) for point in (without, kept)),
    )


def _conclusion(turn: int, summary: dict[str, float | None]) -> list[str]:
    ratio = summary["error_ratio"]
    low, high = (summary[f"error_ratio_{end}"] for end in ("low", "high"))
    times = "no error is left" if ratio is None else f"{ratio:.1f} times less"
    if low is not None:
        above = "or more" if high is None else f"to {high:.1f}"
        times += f", 95 % interval over sessions: {low:.1f} {above}"
    return [
        f"error outside the edits after turn {turn}: {summary['outside_l1_without']:.4f} without, "
        f"{summary['outside_l1_with']:.4f} with threshold ({times})",
        f"success inside, all edits: {_percent(summary['success_without'])} without, "
        f"{_percent(summary['success_with'])} with threshold",
    ]


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


PANELS: tuple[tuple[str, Callable[[DriftPoint], float | None]], ...] = (
    ("L1 outside the edits", lambda point: point.outside_l1),
    ("PSNR outside the edits (dB)", lambda point: point.outside_psnr),
    ("success inside the edit", lambda point: point.success),
)


def draw_curves(result: DriftResult, path: Path, *, title: str) -> None:
    """Draw error, PSNR and success over the turns, without and with threshold."""
    figure = new_figure(12.0, 4.0)
    figure.suptitle(title)
    for number, (name, value) in enumerate(PANELS, start=1):
        axes = figure.add_subplot(1, len(PANELS), number)
        for kind, line in zip(ALPHAS, ("-", "--"), strict=True):  # they may lie on each other
            curve = result.drifts[kind].curve
            points = [(p.turn, v) for p in curve if (v := value(p)) is not None]
            turns, values = [turn for turn, _ in points], [v for _, v in points]
            label = f"{kind} threshold"
            axes.plot(turns, values, line, marker="o", markersize=4, label=label)
        axes.set_title(name)
        axes.set_xlabel("turn")
        axes.set_xlim(0.5, len(result.sessions[0].turns) + 0.5)
        axes.grid(visible=True, alpha=0.3)
        if number != 2:  # an error and a share begin at zero, decibels do not
            axes.set_ylim(bottom=0)
    figure.axes[0].legend()
    figure.axes[2].set_ylim(0, 1.05)
    figure.savefig(path, dpi=100)


def draw_sessions(result: DriftResult, path: Path) -> None:
    """Draw sessions turn by turn: the right pictures, those without and those with threshold."""
    sessions = result.sessions[:SHOWN]
    columns = len(sessions[0].turns) + 1
    figure = new_figure(1.5 * columns, 5.4 * len(sessions))
    grid = figure.subplots(len(ROWS) * len(sessions), columns, squeeze=False)
    for i, session in enumerate(sessions):
        right = [session.original, *(turn.target for turn in session.turns)]
        titles = ["original", *(turn.instruction for turn in session.turns)]
        edited = (result.drifts[kind].shown[i] for kind in ALPHAS)
        rows = (right, *([p.permute(1, 2, 0).numpy() for p in row] for row in edited))
        for j, (name, row) in enumerate(zip(ROWS, rows, strict=True)):
            for axes, picture in zip(grid[len(ROWS) * i + j], row, strict=True):
                _show(axes, picture)
            grid[len(ROWS) * i + j][0].set_ylabel(name)
        for axes, text in zip(grid[len(ROWS) * i], titles, strict=True):
            axes.set_title(fill(text, 18), fontsize=7)
    figure.savefig(path, dpi=100)


def _show(axes: "Axes", picture: object) -> None:
    axes.imshow(picture, interpolation="nearest")  # pyright: ignore[reportArgumentType]
    axes.set_xticks([])
    axes.set_yticks([])
