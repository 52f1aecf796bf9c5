import io
import re

import pytest
from lightning import Callback
from rich.console import Console

from callbacks.progress import Progress, showing, time_limit
from emu_edit.errors import InputError
from emu_edit.terminal import clock, step_bar
from tests.training.stage import TRAINER_WARNINGS, Squares, make_module, make_trainer

SHORT = "00:00:00:01"

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


def shown(bar: Progress, *others: Callback, is_terminal: bool, **settings) -> str:
    file = io.StringIO()
    bar.console = Console(file=file, force_terminal=is_terminal, width=200, highlight=False)
    folder = settings.pop("folder")
    trainer = make_trainer(folder, *others, bar, enable_progress_bar=True, **settings)
    trainer.fit(make_module(), datamodule=Squares(steps=2))
    return file.getvalue()


def test_without_a_terminal_there_are_lines_over_the_whole_run(tmp_path):
    text = shown(Progress(line_every=1e-6), is_terminal=False, folder=tmp_path, max_epochs=3)
    lines = [line for line in text.splitlines() if line.startswith("training")]
    assert [line.split(" · ")[0] for line in lines][:3] == [
        "training step 1/6 (17 %)",
        "training step 2/6 (33 %)",
        "training step 3/6 (50 %)",
    ]
    assert "100 %" in lines[-1]
    assert re.search(r"\d+:\d\d left · \d+\.\d samples/s · .*train/loss \d", lines[-1])
    between = [line for line in text.splitlines() if line.startswith("validating")]
    assert [line.split(" · ")[0] for line in between] == [
        "validating 1/2 (50 %)",
        "validating 2/2 (100 %)",
    ] * 3
    assert re.search(r"\d+:\d\d left · \d+\.\d batches/s$", between[-1])


def test_lines_are_rare_by_default_but_the_last_one_always_comes(tmp_path):
    text = shown(Progress(), is_terminal=False, folder=tmp_path, max_epochs=2)
    assert [line.split(" · ")[0] for line in text.splitlines()] == ["training step 4/4 (100 %)"]


def test_on_a_terminal_one_bar_covers_all_epochs(tmp_path):
    text = shown(Progress(), is_terminal=True, folder=tmp_path, max_epochs=2)
    assert "4/4" in text
    assert "samples/s" in text
    assert not re.search(r"training [^v]*2/2", text)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_other_work_is_shown_beside_the_steps_and_gone_afterwards(tmp_path, is_terminal):
    bar = Progress(line_every=1e-6)

    class Drawing(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # noqa: ARG002
            with showing(trainer, "drawing") as on_step:
                on_step(3, 4)
                assert is_terminal == (bar._bar is not None)
                if bar._bar is not None:
                    assert [task.description for task in bar._bar.tasks] == ["training", "drawing"]
            if bar._bar is not None:
                assert [task.description for task in bar._bar.tasks] == ["training"]

    text = shown(bar, Drawing(), is_terminal=is_terminal, folder=tmp_path)
    if not is_terminal:
        assert re.search(r"drawing 3/4 \(75 %\) · 0:00 left · \d+\.\d steps/s\n", text)


def test_a_log_file_gets_lines_of_long_work_and_none_of_short_work(capsys, monkeypatch):
    now = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr("emu_edit.terminal.time.monotonic", lambda: next(now))
    with step_bar("reading", "pairs") as on_step:
        for done, total in ((1, None), (31, 124), (40, 124), (62, None)):
            on_step(done, total)
    assert capsys.readouterr().err.splitlines() == [
        "reading 31/124 (25 %) · 1:33 left · 1.0 pairs/s",
        "reading 62 · 1.0 pairs/s",
    ]


def test_a_disabled_bar_shows_nothing(tmp_path):
    bar = Progress(line_every=1e-6)
    bar.console = Console(file=(file := io.StringIO()))
    trainer = make_trainer(tmp_path, bar, enable_progress_bar=True)
    bar.disable()
    trainer.fit(make_module(), datamodule=Squares(steps=2))
    bar.print("hello")
    assert file.getvalue() == ""


def test_validation_alone_has_a_bar_of_its_own(tmp_path):
    bar = Progress(line_every=1e-6)
    bar.console = Console(file=(file := io.StringIO()))
    trainer = make_trainer(tmp_path, bar, enable_progress_bar=True)
    trainer.validate(make_module(), datamodule=Squares(), verbose=False)
    assert "validating step 2/2 (100 %)" in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (61.0, "1:01"), (3599.6, "1:00:00"), (7325.0, "2:02:05")]
)
def test_durations_are_written_as_a_clock_shows_them(seconds, text):
    assert clock(seconds) == text


def test_a_period_of_nothing_is_refused():
    with pytest.raises(InputError, match="line_every must be above 0"):
        Progress(line_every=0.0)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_time_left_ends_at_the_time_limit(tmp_path, is_terminal):
    bar = Progress(line_every=1e-6)
    text = shown(bar, is_terminal=is_terminal, folder=tmp_path, max_epochs=10**6, max_time=SHORT)
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text)
    left = re.findall(r" (\d+:\d\d(?::\d\d)?)(?: left)? ", plain)
    assert left
    assert set(left) <= {"0:00", "0:01"}


def test_a_training_says_that_its_time_limit_ended_it(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=10**6, max_time=SHORT)
    trainer.fit(make_module(), datamodule=Squares(steps=2))
    assert re.fullmatch(
        rf"stopped at its time limit \(trainer.max_time\), {trainer.global_step} of \d+ steps",
        time_limit(trainer) or "",
    )
    trainer = make_trainer(tmp_path, max_epochs=1, max_time="00:01:00:00")
    trainer.fit(make_module(), datamodule=Squares(steps=2))
    assert time_limit(trainer) is None
