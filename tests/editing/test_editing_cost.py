"""What an edit takes is counted before it starts: refused without memory, announced when long."""

import logging
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from emu_edit.cli.main import main
from emu_edit.diffusion.guidance import Guidance
from emu_edit.editing import cost
from emu_edit.editing.cost import GIBI, Cost, Forecast, measure
from emu_edit.editing.large import WHOLE
from emu_edit.editing.session import EditSession, TurnSettings
from emu_edit.editing.settings import EditorSettings, Sampling
from emu_edit.errors import InputError
from emu_edit.web.guard import Limits
from emu_edit.web.state import open_picture, summary
from tests.editing.conftest import SETTINGS, make_editor, picture

LOCAL = TurnSettings("local")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Every edit is counted, takes 2 minutes a step and 3 GiB; what was asked for."""
    asked = []

    def measured(
        _networks: object, height: int, width: int, *, rows: int, tile: int | None = None
    ) -> Cost:
        assert tile is None
        asked.append((height, width, rows))
        return Cost(once=0.0, step=120.0, bytes=3 * GIBI)

    monkeypatch.setattr(cost, "SMALL", 0)
    monkeypatch.setattr(cost, "measure", measured)
    return asked


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu_edit.editing.cost.free_memory", lambda _device: 2 * GIBI)


TOO_MUCH = (
    r"an edit of 24x20 takes about 3\.0 GiB of memory, here 2\.0 GiB are free; edit a smaller "
    r"copy: --size 16"
)
LONG = "an edit of 24x20 takes about 4 minutes and 3.0 GiB of memory; a smaller copy is quicker"


@pytest.mark.usefixtures("counted", "little_memory")
def test_an_edit_that_memory_would_not_hold_is_refused_by_editor_and_session() -> None:
    editor = make_editor()
    with pytest.raises(InputError, match=TOO_MUCH):
        editor.edit(picture(20, 24), "make it red", task="local")
    with pytest.raises(InputError, match=TOO_MUCH):
        EditSession.start(editor, picture(20, 24))


@pytest.mark.usefixtures("little_memory")
def test_small_pictures_are_neither_counted_nor_refused() -> None:
    editor = make_editor()
    assert editor.forecast((16, 16), editor.settings) is None
    assert editor.edit(picture(), "make it red", task="local").shape == (3, 16, 16)


def test_a_long_edit_is_announced_before_it_starts(counted, caplog) -> None:
    editor = make_editor()
    with caplog.at_level(logging.WARNING):
        editor.edit(picture(20, 24), "make it red", task="local")
        assert LONG in caplog.text
        caplog.clear()
        session = EditSession.start(editor, picture(20, 24))
        assert not caplog.text  # nothing has begun
        session.edit("make it red", LOCAL)
        assert LONG in caplog.text
    assert counted == [(10, 12, 3)]  # once for a size


def test_what_is_counted_is_what_the_call_asks_for(counted) -> None:
    editor = make_editor()
    asked = Sampling(num_steps=5, guidance_text=1.0, guidance_image=1.0).applied(SETTINGS)
    told = editor.forecast((15, 17), asked)
    assert told == Forecast(seconds=600.0, bytes=3 * GIBI)
    assert counted == [(8, 9, 1)]


@pytest.mark.usefixtures("counted", "little_memory")
def test_the_command_line_refuses_in_one_line_whatever_the_size_option(
    model: Path, photo: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["edit", str(photo), "blur", "--task", "color", "--model", str(model)]
    assert main([*arguments, "--size", "20", "-o", "out.png", "--device", "cpu"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "an edit of 25x20 takes about 3.0 GiB of memory, here 2.0 GiB are free" in shown
    assert not (workplace / "out.png").exists()


@pytest.mark.usefixtures("counted", "workplace")
def test_the_command_line_says_how_long_a_long_edit_takes(
    model: Path, photo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["edit", str(photo), "blur", "--task", "color", "--model", str(model)]
    assert main([*arguments, "-o", "out.png", "--device", "cpu"]) == 0
    assert "an edit of 20x16 takes about 2 minutes and 3.0 GiB of memory" in caplog.text


@pytest.mark.usefixtures("counted")
def test_the_page_says_it_when_the_picture_is_opened(monkeypatch, photo: Path) -> None:
    editor = make_editor()
    opened = open_picture(editor, photo.read_bytes(), is_resized=False, limits=Limits())
    assert "An edit of it takes about 4 minutes and 3.0 GiB of memory here" in summary(opened)
    monkeypatch.setattr("emu_edit.editing.cost.free_memory", lambda _device: GIBI)
    with pytest.raises(InputError, match=r"here 1\.0 GiB are free; tick 'Resize' below"):
        open_picture(editor, photo.read_bytes(), is_resized=False, limits=Limits())


def test_operations_are_counted_with_attention_and_memory_as_it_lives() -> None:
    q, weight = torch.zeros(1, 2, 64, 8), torch.zeros(8, 8)

    def run() -> None:
        out = functional.scaled_dot_product_attention(q, q, q)
        for _ in range(3):
            out = out @ weight  # the one before is given up

    operations, most = cost._count(run)
    attention, products = 2 * 2 * 2 * 64 * 64 * 8, 3 * 2 * 2 * 64 * 8 * 8
    assert operations == attention + products
    assert 2 * q.nbytes <= most < 4 * q.nbytes


def test_work_and_memory_grow_with_the_picture_and_nothing_is_changed() -> None:
    editor = make_editor()
    before = torch.random.get_rng_state()
    weights = [p.clone() for p in editor.networks.parameters()]
    small = measure(editor.networks, 8, 8, rows=1)
    large = measure(editor.networks, 32, 32, rows=3)
    assert large.bytes > 20 * small.bytes
    assert large.step > 0 < small.step
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(map(torch.equal, weights, editor.networks.parameters()))


def test_the_words_of_a_forecast() -> None:
    assert str(Forecast(61.0, GIBI)) == "about 1 minute and 1.0 GiB of memory"
    assert str(Forecast(660.0, GIBI // 2)) == "about 11 minutes and 0.5 GiB of memory"
    assert str(Forecast(9000.0, GIBI)) == "about 2.5 hours and 1.0 GiB of memory"
    assert not Forecast(59.0, GIBI).is_long


def test_free_memory_is_the_least_of_machine_and_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert cost._left_in_machine(tmp_path / "meminfo") == 2 * 2**20
    assert cost._left_in_machine(tmp_path / "nothing") is None
    group = tmp_path / "job_7"
    group.mkdir()
    (tmp_path / "cgroup").write_text("0::/job_7\n")
    for name, text in (("max", "1000"), ("current", "700"), ("stat", "inactive_file 100")):
        (group / f"memory.{name}").write_text(f"{text}\n")
    assert cost._left_in_group(tmp_path / "cgroup", tmp_path) == 400
    (group / "memory.max").write_text("max\n")
    assert cost._left_in_group(tmp_path / "cgroup", tmp_path) is None
    assert cost.free_memory(torch.device("meta")) is None


def test_a_size_that_the_model_never_saw_is_refused_before_anything_is_counted(counted) -> None:
    editor = make_editor(settings=EditorSettings(image_size=1, guidance=Guidance(1.0, 1.0)))
    with pytest.raises(InputError, match=r"24x20, more than 16 times the 1 px"):
        EditSession.start(editor, picture(20, 24), large=WHOLE)
    assert counted == []
