import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from emu_edit.cli.main import VERBS, main

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    [],
    ["--help"],
    ["--version"],
    *([verb, "--help"] for verb in VERBS),
    ["shards"],
    *(["shards", command, "--help"] for command in ("world", "convert", "check")),
    ["predictor"],
    *(["predictor", command, "--help"] for command in ("fit", "evaluate")),
]
LIGHT = """
import sys
from emu_edit.cli.main import main
for page in {pages!r}:
    try:
        status = main(page)
    except SystemExit as stop:
        status = stop.code
    assert status == 0, (page, status)
    heavy = {{"torch", "lightning", "numpy", "PIL", "transformers", "rich"}} & set(sys.modules)
    assert not heavy, (page, heavy)
"""


def test_no_help_page_imports_anything_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(pages=PAGES)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: emu-edit") >= len(PAGES) - 1


def test_python_m_and_main_are_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "emu_edit", "fitt"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "emu-edit: error: unknown command 'fitt'; known: fit, validate, test, edit, video, "
        "generate, interpolate, shards, evaluate, rate, predictor, invert, tune, tasks, app, "
        "export. "
        "Did you mean 'fit'?\n"
    )


def test_the_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    page = capsys.readouterr().out
    assert all(f"  {verb} " in page for verb in VERBS)


def test_the_help_of_fit_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help"]) == 0
    page = capsys.readouterr().out
    for recipe in (REPOSITORY / "configs" / "train").glob("*.yaml"):
        assert recipe.stem in page


def test_the_help_of_edit_explains_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["edit", "--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    assert "segmap" in page
    assert "image to segmentation map" in page


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_of_few_characters_gets_all_help_pages(encoding, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    for verb in VERBS:
        with contextlib.suppress(SystemExit):
            main([verb, "--help"])
    shown.write("0.98 ± 0.01 · 中…\n")
    shown.flush()
    text = shown.buffer.getvalue().decode(encoding)  # pyright: ignore[reportAttributeAccessIssue]
    assert "accelerator X" in text
    assert text.endswith("?...\n") or encoding == "cp1252"
