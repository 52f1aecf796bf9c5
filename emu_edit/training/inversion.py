"""Task inversion: a new task from a few pairs, as one vector for a model that stays as it is.

    min over v of E [w(t) |predict(z_t, t, source, instruction, v) - target|²]

with the base's own error, weighting and noise levels. The vector enters where the base's task
vectors do, through the base's frozen maps. Where there are enough pairs, some are held out: the
vector that fits them best is kept, and learning ends when they get no better.
Source: Sheynin et al. 2023, arXiv:2311.10089, section 4.3; early stopping, averaging and the
choice of a beginning are ours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from emu_edit.batch import EditBatch
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.models.learned_task import BEST
from emu_edit.training.draws import DrawnBatch, Phase
from emu_edit.training.few_shot import FewShotPair, batch_at, check_batches, names_of, split, views
from emu_edit.training.new_task import NewTask, beginning, frozen
from emu_edit.training.objective import Objective
from emu_edit.training.optim import (
    OptimizerSettings,
    adamw,
    copy_of,
    decay_at,
    update,
    warmup_cosine_schedule,
)

OnStep = Callable[[int, int], None]  # called with (steps done, steps in all)
BETAS = (0.9, 0.99)
WARMUP_STEPS = 10


@dataclass(frozen=True)
class InversionSettings:
    """How a vector is learnt; the defaults were found on the tiny model.

    Attributes:
        steps: optimizer steps at most.
        batch_size: noises a step averages over; pairs come up again when there are fewer.
        lr: peak learning rate, per number of the vector: those of trained ones are about 1.
        init: where to begin: "mean" of the base's tasks, "nearest" (the task the predictor takes
            the instructions for), "none" (the zero vector), "best" (whichever of the tasks, their
            mean and none has the lowest error), or a task's name.
        held_out: share of the pairs, from `ENOUGH` on, that the vector is judged by; 0 for none.
        check_every: steps between two judgements.
        patience: judgements without improvement after which learning ends.
        flip: also learn from mirrored pairs; wrong where instructions name left or right, or where
            pictures hold text.
        ema: decay of the average that is kept instead of the last vector.
        seed: of split, order, noise and noise levels: same seed, same vector on a CPU.
    """

    steps: int = 300
    batch_size: int = 8
    lr: float = 0.3
    init: str = BEST
    held_out: float = 0.2
    check_every: int = 25
    patience: int = 4
    flip: bool = False
    ema: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that learn nothing.

        Raises:
            InputError: naming the value.
        """
        for name in ("steps", "batch_size", "check_every", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of an inversion must be at least 1")
        if not self.lr > 0:
            raise InputError(f"lr of an inversion must be above 0, got {self.lr!r}")
        for name in ("held_out", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} of an inversion must be in [0, 1)")


@dataclass(frozen=True)
class Check:
    """The loss at a step on the training pairs and, if any, on those held out; always one noise."""

    step: int
    train: float
    held_out: float | None


@dataclass(frozen=True)
class Inverted:
    """A learned vector and how it came about.

    Attributes:
        vector: v_task of the new task, on the CPU.
        began_at: what the vector it began with is called.
        history: the checks, the first one at step 0.
        best_step: the step the vector is of.
        stopped_early: whether the held-out pairs ended it.
        trained_on: names of the pairs that were learnt from.
        held_out: names of those that were not.
    """

    vector: Float[Tensor, " k"]
    began_at: str
    history: tuple[Check, ...]
    best_step: int
    stopped_early: bool
    trained_on: tuple[str, ...]
    held_out: tuple[str, ...]


def invert(
    editor: Editor,
    pairs: Sequence[FewShotPair],
    settings: InversionSettings,
    on_step: OnStep | None = None,
) -> Inverted:
    """Learn the vector of a new task; the editor and its networks are unchanged afterwards.

    Args:
        editor: the base, on the device to learn on.
        pairs: at least one, of one size.
        settings: how.
        on_step: called after every step, and when learning ends early.

    Raises:
        InputError: if there are no pairs, sizes differ, `init` names no task, or the error is not
            finite.
    """
    train, held_out = split(pairs, settings.held_out, seed=settings.seed)
    with frozen(editor.networks):
        learner = _Learner(editor, train, held_out, settings)
        learner.run(on_step)
    return Inverted(
        learner.best.cpu(),
        learner.began_at,
        history=tuple(learner.history),
        best_step=learner.best_step,
        stopped_early=learner.history[-1].step < settings.steps,
        trained_on=names_of(train),
        held_out=names_of(held_out),
    )


class _Learner:
    """The state of an inversion: the vector, its optimizer and average, and the best one so far."""

    def __init__(
        self,
        editor: Editor,
        train: Sequence[FewShotPair],
        held_out: Sequence[FewShotPair],
        settings: InversionSettings,
    ) -> None:
        self.settings = settings
        self.task = NewTask(editor, Objective.of_editor(editor))
        self.samples = views(train, flip=settings.flip)
        self.train_checks = self._drawn(check_batches(self.samples), Phase.validate)
        self.held_out_checks = self._drawn(check_batches(views(held_out)), Phase.validate)
        start = beginning(self.task, settings.init, self.train_checks)
        self.task.begin(start.vector)
        self.began_at = start.name
        self.optimizer = adamw(self.task, optimizer_settings(settings.lr))
        self.schedule = warmup_cosine_schedule(
            self.optimizer, warmup_steps=WARMUP_STEPS, total_steps=settings.steps
        )
        self.average = copy_of(self.task)
        self.best = self.average["vector"].clone()
        self.best_step = 0
        self.history: list[Check] = []

    def run(self, on_step: OnStep | None) -> None:
        """Make the steps; check now and then, and end when the held-out pairs get no better."""
        steps, every = self.settings.steps, self.settings.check_every
        self._check(0)
        for step in range(steps):
            self._step(step)
            if (step + 1) % every == 0 or step + 1 == steps:
                self._check(step + 1)
            is_over = step + 1 - self.best_step >= every * self.settings.patience
            if on_step is not None:
                on_step(step + 1, step + 1 if is_over else steps)
            if is_over:
                return

    def _step(self, step: int) -> None:
        size, seed = self.settings.batch_size, self.settings.seed
        (batch,) = self._drawn([batch_at(self.samples, step, size, seed=seed)], Phase.train)
        self.optimizer.zero_grad()
        self.task.step(batch)["loss"].backward()
        self.optimizer.step()
        self.schedule.step()
        update(self.average, self.task, decay_at(step, self.settings.ema))

    def _check(self, step: int) -> None:
        """Measure the averaged vector; keep it when it is the best, or nothing was held out."""
        vector = self.average["vector"]
        train = self.task.loss(self.train_checks, vector)
        held_out = self.task.loss(self.held_out_checks, vector) if self.held_out_checks else None
        if not math.isfinite(train):
            raise InputError(
                f"the error of the new task is not finite at step {step}; lower its learning rate"
            )
        before = [check.held_out for check in self.history if check.held_out is not None]
        if held_out is None or not before or held_out < min(before):
            self.best, self.best_step = vector.clone(), step
        self.history.append(Check(step, train, held_out))

    def _drawn(self, batches: Sequence[EditBatch], phase: Phase) -> list[DrawnBatch]:
        device, seed = self.task.vector.device, self.settings.seed
        return [self.task.drawn(b, seed=seed, phase=phase).to(device) for b in batches]


def optimizer_settings(lr: float) -> OptimizerSettings:
    """Return how a vector is learnt: without decay, for which nothing speaks."""
    return OptimizerSettings(lr=lr, weight_decay=0.0, betas=BETAS, warmup_steps=WARMUP_STEPS)
