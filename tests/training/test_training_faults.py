"""Rows of the fault list about what surrounds training: power that goes, a server that is away."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from wandb.errors import AuthenticationError, CommError

from emu_edit.training.checkpoint_io import DurableCheckpointIO
from emu_edit.training.loggers import WandbLogger


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name_and_the_name_before_saving_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a loss of power leaves: the old file or the new one, as after kill -9."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")

    def noted_replace(path: Path, target: Path) -> Path:
        events.append(f"rename {path.name} to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    folder = tmp_path / "checkpoints"
    content = {"state_dict": {"w": torch.ones(9)}, "global_step": 7}
    DurableCheckpointIO().save_checkpoint(content, folder / "a.ckpt")
    parts = [f".{name}.{os.getpid()}.tmp" for name in ("a.ckpt", "a.ckpt.json")]
    assert events == [
        f"flush {parts[0]}",
        f"flush {parts[1]}",
        f"rename {parts[0]} to a.ckpt",
        f"rename {parts[1]} to a.ckpt.json",
        "flush checkpoints",
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CommError("context deadline exceeded\nwhile retrying"), "exceeded while retrying"),
        (CommError("https://me:hunter2@host/ is away"), "https://***@host/ is away"),
        (AuthenticationError("The API key is invalid"), "The API key is invalid"),
    ],
)
def test_a_server_of_wandb_that_is_away_is_said_and_the_run_is_kept_offline(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
):
    begin: Any = wandb.init
    asked: list[str] = []

    def away(**settings: Any) -> object:
        asked.append(settings["mode"])
        if settings["mode"] == "online":
            raise error
        # W&B's own offline run is in test_training_loggers; here nothing need be written
        return begin(**settings | {"mode": "disabled"})

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", away)
    logger = WandbLogger(save_dir=str(tmp_path / "run"))
    with caplog.at_level(logging.WARNING, logger="emu_edit.training.loggers"):
        for step in range(3):
            logger.log_metrics({"loss": 1.0}, step=step)
    wandb.finish()
    (told,) = caplog.messages
    assert told.startswith("Weights & Biases cannot be used (")
    assert f"{reason}); training goes on, offline: the run is kept in {tmp_path / 'run'}" in told
    assert told.endswith("/wandb, `wandb sync` sends it later")
    assert "\n" not in told
    assert asked == ["online", "offline"]
