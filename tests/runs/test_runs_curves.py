import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from emu_edit.editing.sheets import new_figure
from emu_edit.runs.curves import Curve, draw_curves, draw_mixture, read_curves, smoothed

METRICS = """\
epoch,lr,step,throughput/samples_per_s,train/loss,val/loss,val/local
0,0.1,10,,2.5,,
0,,19,,,2.25,0.5
,,20,66.5,,,
"""


def test_every_metric_becomes_a_curve_of_steps_and_values(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS)
    assert read_curves(path) == {
        "lr": [(10, 0.1)],
        "train/loss": [(10, 2.5)],
        "val/loss": [(19, 2.25)],
        "val/local": [(19, 0.5)],
        "throughput/samples_per_s": [(20, 66.5)],
    }


def test_curves_are_drawn_in_as_many_rows_as_there_are_pairs_of_panels(tmp_path: Path) -> None:
    curves = {"train/loss": [(1, 2.0), (2, 1.0)], "val/local": [(2, 0.5)], "lr": [(1, 0.1)]}
    assert draw_curves(curves, tmp_path / "three.png")
    assert draw_curves({"lr": [(1, 0.1)]}, tmp_path / "one.png")
    with Image.open(tmp_path / "three.png") as three, Image.open(tmp_path / "one.png") as one:
        assert three.height == 2 * one.height


def test_nothing_is_drawn_when_there_is_nothing_to_show(tmp_path: Path) -> None:
    assert not draw_curves({"loss/local/t0-250": [(1, 2.0)]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_schedule_of_a_mixture_is_drawn_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mixture.png"
    assert not draw_mixture({"train/loss": [(1, 2.0)]}, path)
    assert not path.exists()
    figures: list[Figure] = []
    monkeypatch.setattr(
        "emu_edit.runs.curves.new_figure",
        lambda *size: figures.append(new_figure(*size)) or figures[0],
    )
    curves: dict[str, Curve] = {
        "mixture/share/local": [(0, 0.25), (20, 0.5), (40, 0.5)],
        "mixture/share/text:add": [(0, 0.75), (20, 0.375), (40, 0.5)],
        "mixture/error/text:add": [(20, 0.5), (40, 0.25)],
    }
    assert draw_mixture(curves, path)
    assert path.exists()
    left, right = figures[0].axes[:2]
    assert [label.get_text() for label in left.get_yticklabels()] == ["local", "text:add"]
    factors, errors = (np.ma.array(axes.images[0].get_array()) for axes in (left, right))
    assert factors[:, 1].tolist() == [1.0, -1.0]  # twice and half as often
    assert errors.tolist() == [[None, None], [0.5, 0.25]]  # None: not measured


def axes_of(curves: dict[str, Curve], path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """Draw the curves and return what was drawn."""
    figures: list[Figure] = []
    made = new_figure
    monkeypatch.setattr(
        "emu_edit.runs.curves.new_figure", lambda *size: figures.append(made(*size)) or figures[0]
    )
    assert draw_curves(curves, path)
    return figures[0].axes


STEPS = range(10, 810, 10)
RUN: dict[str, Curve] = {
    "train/loss": [(step, 2.0 + step % 20) for step in STEPS],
    "val/loss": [(400, 1.5), (800, 1.0)],
    "val/local": [(400, 0.5), (800, 0.25)],
    "lr/pg1": [(step, 1e-4) for step in STEPS],
    "lr/pg2": [(step, 1e-4) for step in STEPS],
}


def test_equal_learning_rates_are_one_line_and_other_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = axes_of(RUN, tmp_path / "equal.png", monkeypatch)[2]
    assert (axes.get_title(), len(axes.lines), axes.get_legend()) == ("learning rate", 1, None)
    other = {**RUN, "lr/pg2": [(step, 2e-4) for step in STEPS]}
    legend = axes_of(other, tmp_path / "other.png", monkeypatch)[2].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["lr/pg1", "lr/pg2"]


def test_three_panels_leave_no_quarter_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, tasks, rate = axes_of(RUN, tmp_path / "three.png", monkeypatch)
    assert rate.get_position().width > 1.9 * loss.get_position().width
    assert rate.get_position().x1 == pytest.approx(tasks.get_position().x1)


def test_a_loss_that_jumps_has_a_smooth_line_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, tasks, _ = axes_of(RUN, tmp_path / "smooth.png", monkeypatch)
    faint, smooth, validation = loss.lines
    assert (faint.get_alpha(), smooth.get_alpha()) == (0.35, None)
    assert faint.get_color() == smooth.get_color() != validation.get_color()
    legend = loss.get_legend()
    assert legend is not None
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["train/loss, smoothed", "val/loss"]
    assert len(tasks.lines) == 1  # what is measured rarely is shown as it is


def test_smoothing_averages_a_twentieth_and_leaves_out_what_is_not_finite() -> None:
    values = [*(float(i) for i in range(39)), 100.0]
    assert smoothed(values) == [0.0, *(i - 0.5 for i in range(1, 39)), 69.0]
    assert smoothed([1.0, math.nan, 3.0] * 14)[:4] == [1.0, 1.0, 2.0, 2.0]
    assert math.isnan(smoothed([math.inf, 1.0])[0])
