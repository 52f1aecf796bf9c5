"""`emu-edit evaluate MODEL --drift`: what ten turns do to a picture, with and without threshold.

Every session of the world is edited twice, with the same instructions and seeds, once taking each
result as it comes and once through `keep_unchanged` after every turn, the first included. Through
`EditSession`, so that what is measured is what people use.

The table of a drift benchmark, for a terminal and for Markdown.

The pictures of a drift benchmark: curves over the turns, and some sessions to look at.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.world.backgrounds import Photos
from datamodules.world.palette import Split
from datamodules.world.sessions import TASKS, WorldSession, make_session
from datamodules.world.studio import WorldPair
from emu_edit.editing.editor import Editor
from emu_edit.editing.session import EditSession, TurnSettings
from emu_edit.editing.sheets import new_figure
from emu_edit.editing.threshold import ALPHA
from emu_edit.errors import InputError
from emu_edit.metrics.bootstrap import bootstrap_ratio
from emu_edit.metrics.drift import (
    DriftPoint,
    TurnScore,
    TurnTruth,
    drift_curve,
    score_session,
    success_share,
)
from emu_edit.terminal import markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS, TABLE, CURVES, SESSIONS = "drift.json", "drift.md", "drift.png", "sessions.png"
SHOWN = 2  # sessions in the picture

Kind = Literal["without", "with"]
ALPHAS: dict[Kind, float | None] = {"without": None, "with": ALPHA}


@dataclass(frozen=True)
class DriftBenchmark:
    """Which sessions a model is put through.

    Attributes:
        sessions: how many.
        turns: of each session; the odd ones edit, the even ones ask for nothing.
        split: of the phrasings.
        seed: of sessions and noise.
        size: side of the pictures in pixels; None means the model's training size.
        photos: photographs for the backgrounds.
    """

    sessions: int = 20
    turns: int = 10
    split: Split = "heldout"
    seed: int = 1  # 0 is the training world's
    size: int | None = None
    photos: Photos | None = None

    def describe(self) -> dict[str, object]:
        """Return what the numbers depend on, besides the model, as JSON-able values."""
        return {
            "benchmark": "drift",
            "sessions": self.sessions,
            "turns": self.turns,
            "split": self.split,
            "seed": self.seed,
            "size": self.size,
            "photos": None if self.photos is None else str(self.photos.folder),
            "alpha": ALPHA,
        }


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
        """Return summary, curves and instructions as JSON-able values."""
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
    sessions = [
        make_session(
            benchmark.seed,
            index,
            turns=benchmark.turns,
            size=editor.settings.image_size if benchmark.size is None else benchmark.size,
            split=benchmark.split,
            photos=benchmark.photos,
        )
        for index in range(benchmark.sessions)
    ]
    drifts: dict[Kind, Drift] = {kind: Drift([], []) for kind in ALPHAS}
    total, done = len(ALPHAS) * benchmark.sessions * benchmark.turns, 0
    for i, session in enumerate(sessions):
        truths = [truth_of(turn) for turn in session.turns]
        for kind, alpha in ALPHAS.items():
            edited = EditSession.start(editor, truths[0].before, seed=benchmark.seed + i)
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
    """Return a turn of the world as the metrics take it."""
    before, target = (
        torch.from_numpy(picture).permute(2, 0, 1).contiguous()
        for picture in (turn.source, turn.target)
    )
    return TurnTruth(before, target, torch.from_numpy(turn.mask))


def write_drift(folder: Path, result: DriftResult, *, title: str, about: dict[str, object]) -> None:
    """Write drift.json, drift.md, drift.png (curves) and sessions.png (pictures).

    Args:
        folder: made when missing.
        result: what to write.
        title: heading of table and plot.
        about: what else goes into drift.json: model, benchmark, time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, **result.to_dict()}, indent=2) + "\n"
    (folder / RESULTS).write_text(text, encoding="utf-8")
    (folder / TABLE).write_text(f"# {title}\n\n{table_of(result)}\n", encoding="utf-8")
    draw_curves(*curves_of(result), folder / CURVES, title=title)
    shown = zip(result.drifts["without"].shown, result.drifts["with"].shown, strict=True)
    draw_sessions(result.sessions[:SHOWN], list(shown), folder / SESSIONS)


def table_of(result: DriftResult) -> str:
    """Return the table of both curves and its summary, for people."""
    return drift_table(*curves_of(result), result.summary)


def curves_of(result: DriftResult) -> tuple[list[DriftPoint], list[DriftPoint]]:
    """Return the curves without and with threshold."""
    return result.drifts["without"].curve, result.drifts["with"].curve


HEADER = ("turn", "L1 outside", "with", "PSNR", "with", "untouched", "with", "success", "with")


def drift_table(
    without: Sequence[DriftPoint], kept: Sequence[DriftPoint], summary: Mapping[str, float | None]
) -> str:
    """Return one row per turn, each number without and with threshold, and what it comes to.

    Args:
        without: the curve without threshold.
        kept: the curve with threshold.
        summary: `error_ratio` and its ends `error_ratio_low` and `_high`, `outside_l1_*` and
            `success_*` with * in "without", "with".
    """
    rows = [_row(a, b) for a, b in zip(without, kept, strict=True)]
    table = markdown_table(HEADER, rows, numbers=True)
    return "\n".join([table, "", *_conclusion(without[-1].turn, summary)])


def _row(without: DriftPoint, kept: DriftPoint) -> tuple[str, ...]:
    return (
        str(without.turn),
        *(f"{point.outside_l1:.4f}" for point in (without, kept)),
        *(_decibels(point.outside_psnr) for point in (without, kept)),
        *(f"{point.kept:.0%}" for point in (without, kept)),
        *(_percent(point.success) for point in (without, kept)),
    )


def _conclusion(turn: int, summary: Mapping[str, float | None]) -> list[str]:
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


Pictures = tuple[UInt8[Tensor, "3 h w"], ...]  # of a session: the original, then each turn's result
PANELS: tuple[tuple[str, Callable[[DriftPoint], float | None]], ...] = (
    ("L1 outside the edits", lambda point: point.outside_l1),
    ("PSNR outside the edits (dB)", lambda point: point.outside_psnr),
    ("success inside the edit", lambda point: point.success),
)
ROWS = ("right", "without", "with")


def draw_curves(
    without: Sequence[DriftPoint], kept: Sequence[DriftPoint], path: Path, *, title: str
) -> None:
    """Draw error, PSNR and success over the turns, without and with threshold."""
    figure = new_figure(12.0, 4.0)
    figure.suptitle(title)
    for number, (name, value) in enumerate(PANELS, start=1):
        axes = figure.add_subplot(1, len(PANELS), number)
        for curve, label, line in (
            (without, "without threshold", "-"),
            (kept, "with threshold", "--"),  # dashed: the two may lie on each other
        ):
            points = [(p.turn, v) for p in curve if (v := value(p)) is not None]
            turns, values = [turn for turn, _ in points], [v for _, v in points]
            axes.plot(turns, values, line, marker="o", markersize=4, label=label)
        axes.set_title(name)
        axes.set_xlabel("turn")
        axes.set_xlim(0.5, len(without) + 0.5)
        axes.grid(visible=True, alpha=0.3)
        if number != 2:  # an error and a share begin at zero, decibels do not
            axes.set_ylim(bottom=0)
    figure.axes[0].legend()
    figure.axes[2].set_ylim(0, 1.05)
    figure.savefig(path, dpi=100)


def draw_sessions(
    sessions: Sequence[WorldSession], pictures: Sequence[tuple[Pictures, Pictures]], path: Path
) -> None:
    """Draw sessions turn by turn: the right pictures, those without and those with threshold.

    Args:
        sessions: the truth.
        pictures: for each, the pictures without and those with threshold.
        path: PNG to write.
    """
    columns = len(sessions[0].turns) + 1
    figure = new_figure(1.5 * columns, 5.4 * len(sessions))
    grid = figure.subplots(len(ROWS) * len(sessions), columns, squeeze=False)
    for i, (session, (without, kept)) in enumerate(zip(sessions, pictures, strict=True)):
        right = [session.original, *(turn.target for turn in session.turns)]
        titles = ["original", *(turn.instruction for turn in session.turns)]
        rows = (right, *([p.permute(1, 2, 0).numpy() for p in row] for row in (without, kept)))
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
