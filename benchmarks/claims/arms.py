"""What the claims compare: trainings that differ in one thing, each an ordinary `emu-edit fit`.

An arm is trained once for all claims that look at it, and what is there is not trained again.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from emu_edit.errors import InputError
from emu_edit.tasks import SIXTEEN, TASKS, Family

MARKS = ("detect", "segment")
MAPS = ("sketch", "depth", "normal", "pose", "segmap")
EDITS = tuple(task.name for task in TASKS if task.family is not Family.vision)
SIDE, BATCH, EPOCHS = 32, 16, 4
# the tiny recipe at 32 px in patches of 4 px, two levels: 94 samples/s of one AVX2 core, not 28
COMMON = (
    *("--config", "tiny", "--no_predictor", "--score_pairs=0", "--trainer.max_time=null"),
    *(f"--data.image_size={SIDE}", "--data.folder=world/32px", f"--data.global_batch={BATCH}"),
    *("--model.denoiser.channels=[32,64]", "--model.denoiser.attention=[true,true]"),
    *("--model.codec.patch=4", "--model.denoiser.latent_channels=48"),
    "--model.denoiser.sample_size=8",
    *(f"--model.editor.image_size={SIDE}", f"--trainer.max_epochs={EPOCHS}"),
    *(f"--trainer.check_val_every_n_epoch={EPOCHS}", "--model.optimizer.warmup_steps=50"),
)
# a text-to-picture model's objective, with the paper's schedule, sampled in many steps
NOISY = (
    *("--model.timestep_shift=1", "--model.balance=0", "--model.editor.num_steps=10"),
    "--model.weighting=uniform",
    *("--model.dropout.text=0.05", "--model.dropout.image=0.05", "--model.dropout.both=0.05"),
)


@dataclass(frozen=True)
class Arm:
    """A training.

    Attributes:
        flags: what differs from `COMMON`.
        without: tasks that are left out.
        share: of the steps of the others.
    """

    flags: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    share: float = 1.0

    @property
    def weights(self) -> dict[str, float]:
        """How often each task is drawn: all equally."""
        return {name: 1.0 for name in SIXTEEN.names if name not in self.without}


def _left_out(*names: str) -> dict[str, Arm]:
    """Two arms without some tasks: as many samples in all, and as many of each task left."""
    fewer = 1 - len(names) / len(SIXTEEN)
    return {"same steps": Arm((), names), "same samples a task": Arm((), names, fewer)}


ALL, UNTOLD = "all tasks", "never told the task"
V, V_PLAIN, EPS_PLAIN, CHANGE = "v", "v, plain schedule", "eps, plain schedule", "change"
# What a model that begins with noise learns in so few samples; many targets are dark, or nearly
# white.
REPAINTED = ("background", "global", "style", "segment", "color", "sketch", "depth", "pose")
OTHERS = tuple(name for name in SIXTEEN.names if name not in REPAINTED)
PLAIN = "--model.zero_terminal_snr=false"
ARMS: dict[str, Arm] = {
    ALL: Arm(),
    UNTOLD: Arm(("--model.dropout.task=1",)),
    **{f"no marks, {how}": arm for how, arm in _left_out(*MARKS).items()},
    **{f"no maps, {how}": arm for how, arm in _left_out(*MAPS).items()},
    V: Arm((*NOISY, "--model.prediction=v"), OTHERS),
    V_PLAIN: Arm((*NOISY, "--model.prediction=v", PLAIN), OTHERS),
    EPS_PLAIN: Arm((*NOISY, "--model.prediction=eps", PLAIN), OTHERS),
    CHANGE: Arm((), OTHERS),
}


@dataclass(frozen=True)
class Study:
    """Where everything is kept, and how much is done.

    Attributes:
        folder: of trainings and results.
        steps: of an arm with a share of 1, `BATCH` samples each.
        seeds: how many trainings of each arm, or sets of sessions.
        pairs: scored of each task, or sessions.
        model: that is measured where nothing is trained.
        flags: more flags of every training.
    """

    folder: Path
    steps: int = 1600
    seeds: int = 3
    pairs: int = 25
    model: str = "released"
    flags: tuple[str, ...] = field(default=())

    def run_of(self, name: str, seed: int) -> Path:
        """Return the folder of a training; its name has the budget."""
        letters = "".join(c if c.isalnum() else "-" for c in name)
        return self.folder / f"{letters}-{self.steps}-{seed}"

    def train(self, name: str, seed: int) -> Path:
        """Train an arm with a seed unless that is done; return the folder of the training.

        Raises:
            InputError: if it fails; `log.txt` says why.
        """
        arm, run = ARMS[name], self.run_of(name, seed)
        if (run / "results.json").is_file():
            return run
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = (
            *("fit", *COMMON, "--run", run.name, "--resume", "auto", *arm.flags, *self.flags),
            *(f"--data.weights={json.dumps(arm.weights)}",),
            *(f"--seed_everything={seed}", f"--model.seed={seed}", f"--data.seed={seed}"),
            f"--data.steps_per_epoch={max(1, round(self.steps * arm.share / EPOCHS))}",
        )
        environment = {"WANDB_MODE": "offline", **os.environ, "PYTHONPATH": str(Path.cwd())}
        with (self.folder / "log.txt").open("a") as log:
            status = subprocess.run(
                [sys.executable, "-m", "emu_edit", *arguments],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                check=False,
            ).returncode
        if status != 0:
            raise InputError(f"the training {run} failed (status {status}); see {log.name}")
        return run
