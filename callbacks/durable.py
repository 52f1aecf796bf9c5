"""When checkpoints are written, and which ones are kept; nothing good is deleted for something new.

`{run}/checkpoints` holds the newest few `step-00001200.ckpt`, each with its sidecar, and
`last.ckpt`, a link to the newest. How a file is written is the plugin's matter
(`emu_edit/training/checkpoint_io.py`); here a file is read back before an older one goes, and all
ranks agree on what happened before they go on.
"""

# the arguments of hooks are Lightning's, used or not
# ruff: noqa: ARG002

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from emu_edit.errors import InputError, StorageError
from emu_edit.files import sync_folder
from emu_edit.training.checkpoint_io import (
    DurableCheckpointIO,
    in_words,
    sweep,
    verify,
)

LAST = "last.ckpt"
NAME = re.compile(r"^step-(?P<step>\d{8,})\.ckpt$")
FAILURES = 3  # in a row, then training stops
SPARE = 2  # checkpoints that should still fit on the disk

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Write a checkpoint every few epochs or optimizer steps, and at the end of training.

    Only between optimizer steps, because a window of accumulated gradients cannot be stored. A
    failed one is reported and the previous one stays; training goes on, and stops after three in
    a row.

    Args:
        folder: where they go; `{run}` stands for the run's folder.
        every_epochs: epochs between two checkpoints, at least 1.
        every_steps: optimizer steps between two more; None writes none within epochs.
        keep: how many stay, at least 2.

    Raises:
        InputError: if a number is too small.
    """

    def __init__(
        self, folder: str, every_epochs: int = 1, every_steps: int | None = None, keep: int = 2
    ) -> None:
        if every_epochs < 1 or (every_steps is not None and every_steps < 1):
            raise InputError(
                "Checkpoints needs every_epochs and every_steps of at least 1, got "
                f"{every_epochs} and {every_steps}"
            )
        if keep < 2:
            raise InputError(
                f"Checkpoints needs keep of at least 2, got {keep}: the newest may turn out broken"
            )
        self.folder = Path(folder)
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.keep = keep
        self.latest: Path | None = None  # the newest file that was read back
        self._saved_step: int | None = None
        self._tried_step: int | None = None
        self._num_failed = 0
        self._is_trial = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out now whether the folder can be written, and clear what killed writers left.

        Raises:
            StorageError: on all ranks, if it cannot.
        """
        self._is_trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if stage != "fit" or self._is_trial:
            return
        failure = _prepared(self.folder) if trainer.is_global_zero else None
        if (words := _agreed(trainer, failure)) is not None:
            raise StorageError(words)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know the checkpoint training goes on from; one of another run does not count."""
        restored = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).resolve()
        if restored is not None and restored.parent == self.folder.resolve():
            self.latest = self.folder / restored.name

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know its step, which has been restored by now."""
        if self.latest is not None:
            self._saved_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save every so many optimizer steps, and where training is about to end in an epoch.

        Not after an epoch's last step: what Lightning 2.6 counts there makes the run after the next
        train an epoch too many. The end of the epoch follows at once.
        """
        if is_accumulating(trainer) or is_epoch_done(trainer):
            return
        is_ending = trainer.should_stop or trainer.global_step == trainer.max_steps
        if is_ending or self._is_due(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save every so many epochs; Lightning also calls this for one that was left early."""
        is_due = (trainer.current_epoch + 1) % self.every_epochs == 0 or self._is_due(trainer)
        if is_epoch_done(trainer) and is_due:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state, unless that was tried; at the end of an epoch only, as above."""
        if is_epoch_done(trainer) and trainer.global_step != self._tried_step:
            self.save(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        return self.every_steps is not None and trainer.global_step % self.every_steps == 0

    def save(self, trainer: Trainer) -> Path | None:
        """Write a checkpoint of this step; on all ranks, between optimizer steps.

        Returns the file, read back and found good, also when this step has one already; None if it
        could not be written, which has been reported.

        Raises:
            StorageError: if it is the third failure in a row.
        """
        if self._is_trial or trainer.global_step == self._saved_step:
            return self.latest
        if is_accumulating(trainer):
            raise RuntimeError("a checkpoint inside an accumulation window would lose gradients")
        self._tried_step = trainer.global_step
        path = self.folder / f"step-{trainer.global_step:08}.ckpt"
        failure = _written(trainer, path)
        if failure is None and trainer.is_global_zero:
            failure = self._kept(path)
        words = _agreed(trainer, failure)
        if words is not None:
            self._count_failure(trainer, words)
            return None
        self._num_failed = 0
        self._saved_step = trainer.global_step
        self.latest = path
        return path

    def _kept(self, path: Path) -> StorageError | None:
        """Read a new file back; only then let `last.ckpt` point to it, and older ones go."""
        files = DurableCheckpointIO()
        try:
            verify(path)
        except StorageError as error:
            files.remove_checkpoint(path)
            return StorageError(
                f"checkpoint {path.name} was not stored as written and is deleted, the previous "
                f"one is kept: {error}"
            )
        try:
            point_last_to(path)
            for old in _older(path)[self.keep - 1 :]:
                files.remove_checkpoint(old)
        except OSError as error:
            log.warning("in %s an old checkpoint cannot be tidied up: %s", path.parent, error)
        free, size = shutil.disk_usage(path.parent).free, path.stat().st_size
        if free < SPARE * size:
            log.warning(
                "only %s free in %s, a checkpoint takes %s: free some space before the next",
                *(in_words(free), path.parent, in_words(size)),
            )
        return None

    def _count_failure(self, trainer: Trainer, words: str) -> None:
        self._num_failed += 1
        if self._num_failed == FAILURES:
            raise StorageError(f"training stops after {FAILURES} failed checkpoints: {words}")
        if trainer.is_global_zero:
            log.warning("%s (failure %d of %d)", words, self._num_failed, FAILURES)


def is_accumulating(trainer: Trainer) -> bool:
    """Whether gradients are accumulated for a step to come; no checkpoint can hold them."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    is_inside = progress.current.ready % trainer.accumulate_grad_batches != 0
    # Lightning makes a step at the end of an epoch whatever has accumulated
    return is_inside and not is_epoch_done(trainer)


def is_epoch_done(trainer: Trainer) -> bool:
    """Whether all batches of the epoch have been trained on."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready >= trainer.num_training_batches


def point_last_to(path: Path) -> None:
    """Let `last.ckpt` beside a checkpoint be a link to it; at no time is there none."""
    link = path.with_name(LAST)
    temporary = path.with_name(f".{LAST}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path.name)
    temporary.replace(link)
    # a file of an older version had a sidecar of this name
    link.with_name(LAST + ".json").unlink(missing_ok=True)
    sync_folder(path.parent)


def step_in(name: str) -> int | None:
    """Return the optimizer step in the name of a checkpoint of ours, None for other files."""
    match = NAME.match(name)
    return None if match is None else int(match["step"])


def _older(path: Path) -> list[Path]:
    """Return the checkpoints before `path`, newest first."""
    now = step_in(path.name)
    steps = {file: step_in(file.name) for file in path.parent.iterdir()}
    older = {file: s for file, s in steps.items() if s is not None and now is not None and s < now}
    return sorted(older, key=lambda file: older[file], reverse=True)


def _prepared(folder: Path) -> StorageError | None:
    """Make the folder, sweep it and write a byte into it; return what is wrong."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        return StorageError(
            f"checkpoints cannot be written into {folder} ({error.strerror}); free space or set "
            "trainer.default_root_dir to a folder you may write"
        )
    return None


def _written(trainer: Trainer, path: Path) -> StorageError | None:
    """Have the trainer write a checkpoint; return what went wrong on this rank."""
    try:
        trainer.save_checkpoint(path, weights_only=False)
    except StorageError as error:
        # it is raised by the rank that writes; the others are waiting at the end of save_checkpoint
        trainer.strategy.barrier("Trainer.save_checkpoint")
        return error
    return None


def _agreed(trainer: Trainer, failure: StorageError | None) -> str | None:
    """Return what went wrong on rank 0 on every rank, None if nothing; one reduction."""
    if trainer.strategy.reduce_boolean_decision(failure is None, all=True):
        return None
    return trainer.strategy.broadcast("" if failure is None else str(failure))
