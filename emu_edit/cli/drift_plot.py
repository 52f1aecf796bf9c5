"""The pictures of a drift benchmark: curves over the turns, and some sessions to look at."""

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from jaxtyping import UInt8
from torch import Tensor

from datamodules.world.sessions import WorldSession
from emu_edit.metrics.drift import DriftPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    figure = _figure(12.0, 4.0)
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
    figure = _figure(1.5 * columns, 5.4 * len(sessions))
    grid = figure.subplots(len(ROWS) * len(sessions), columns, squeeze=False)
    for i, (session, (without, kept)) in enumerate(zip(sessions, pictures, strict=True)):
        right = [session.original, *(turn.pair.target for turn in session.turns)]
        titles = ["original", *(turn.pair.instruction for turn in session.turns)]
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


def _figure(width: float, height: float) -> "Figure":
    # the object interface: nothing global, no display needed
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
