"""A training of a few steps through the command line, shared by the end-to-end tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from emu_edit.cli.main import main

# smoke is the recipe a user tries first; here it is cut to a few steps
SHORT = (
    "--config=smoke",
    "--trainer.max_epochs=2",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.accelerator=cpu",
    "--score_pairs=1",
    "--data.pairs=32",
    "--data.global_batch=4",
    "--data.steps_per_epoch=2",
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The workplace of a finished `fit`: `world/` and `runs/smoke-…/`; it is the current folder."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", *SHORT]) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def run(trained: Path) -> Path:
    """The run's folder."""
    (found,) = (trained / "runs").iterdir()
    return found
