from pathlib import Path

from PIL import Image

from emu_edit.runs.curves import draw_curves, read_curves

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
