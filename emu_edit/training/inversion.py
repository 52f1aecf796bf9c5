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

from emu_edit.batch import EditBatch, EditSample
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.models.learned_task import BEST
from emu_edit.randomness import check_seed
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
        """Refuse values that learn nothing."""
        for name in ("steps", "batch_size", "check_every", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of an inversion must be at least 1")
        check_seed(self.seed)
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
class InversionResult:
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


class Learner:
    """A new task's vector while it learns: where it began, how it is judged, and the best one yet.

    Who drives it makes the steps (`task.step`) and keeps the average of the vector that is judged:
    `invert`, or a Lightning trainer (`inversion_module.py`).

    Attributes:
        began_at: what the vector it began with is called; "" before it began.
        history: the checks so far.
        best: the vector with the lowest loss on the held-out pairs; None when none are held out,
            for then the last one counts.
        best_step: the step of `best`.
    """

    def __init__(self, editor: Editor, *, seed: int) -> None:
        self.task = NewTask(editor, Objective.of_editor(editor))
        self.seed = seed
        self.began_at = ""
        self.history: list[Check] = []
        self.best: Float[Tensor, " k"] | None = None
        self.best_step = 0
        self._train: list[DrawnBatch] = []
        self._held_out: list[DrawnBatch] = []

    def set_checks(self, train: Sequence[EditSample], held_out: Sequence[EditSample]) -> None:
        """Say by which samples vectors are judged, each with noise that is always the same."""
        self._train, self._held_out = (
            [self.drawn(batch, Phase.validate) for batch in check_batches(samples)]
            for samples in (train, held_out)
        )

    def begin(self, init: str) -> None:
        """Set the vector to where learning begins and check it.

        Raises:
            InputError: if `init` names no task.
        """
        start = beginning(self.task, init, self._train)
        self.task.begin(start.vector)
        self.began_at = start.name
        self.check(0, start.vector)

    def drawn(self, batch: EditBatch, phase: Phase) -> DrawnBatch:
        """Return a batch with its random numbers on the device of the vector."""
        return self.task.drawn(batch, seed=self.seed, phase=phase).to(self.task.vector.device)

    def check(self, step: int, vector: Float[Tensor, " k"], held_out: float | None = None) -> None:
        """Measure the vector of a step and keep it if it is the best.

        `held_out` is its loss on the held-out pairs, if that has been measured already.

        Raises:
            InputError: if its loss is not finite.
        """
        train = self.task.loss(self._train, vector)
        if not math.isfinite(train):
            raise InputError(
                f"the error of the new task is not finite at step {step}; lower its learning rate"
            )
        if self._held_out and held_out is None:
            held_out = self.task.loss(self._held_out, vector)
        before = [check.held_out for check in self.history if check.held_out is not None]
        if held_out is not None and held_out < min(before, default=math.inf):
            self.best, self.best_step = vector.detach().clone(), step
        self.history.append(Check(step, train, held_out))

    def result(
        self,
        last: Float[Tensor, " k"],
        pairs: tuple[Sequence[FewShotPair], Sequence[FewShotPair]],
        *,
        stopped_early: bool,
    ) -> InversionResult:
        """Return what was learnt: the best vector, or the last one when nothing is held out."""
        best, step = self.best, self.best_step
        if best is None:
            best, step = last, self.history[-1].step
        return InversionResult(
            best.detach().cpu(),
            self.began_at,
            history=tuple(self.history),
            best_step=step,
            stopped_early=stopped_early,
            trained_on=names_of(pairs[0]),
            held_out=names_of(pairs[1]),
        )


def invert(
    editor: Editor,
    pairs: Sequence[FewShotPair],
    settings: InversionSettings,
    on_step: OnStep | None = None,
) -> InversionResult:
    """Learn the vector of a new task; the editor and its networks are unchanged afterwards.

    The editor is on the device to learn on. `on_step` is called after every step; when learning
    ends early, the steps done are all.

    Raises:
        InputError: if there are no pairs, sizes differ, `init` names no task, or the error is not
            finite.
    """
    train, held_out = split(pairs, settings.held_out, seed=settings.seed)
    samples = views(train, flip=settings.flip)
    with frozen(editor.networks):
        learner = Learner(editor, seed=settings.seed)
        learner.set_checks(samples, views(held_out))
        learner.begin(settings.init)
        average = _learn(learner, samples, settings, on_step)
    stopped_early = learner.history[-1].step < settings.steps
    return learner.result(average, (train, held_out), stopped_early=stopped_early)


def _learn(
    learner: Learner,
    samples: Sequence[EditSample],
    settings: InversionSettings,
    on_step: OnStep | None,
) -> Float[Tensor, " k"]:
    """Make the steps until the held-out pairs get no better; return the averaged vector."""
    task, steps, every = learner.task, settings.steps, settings.check_every
    optimizer = adamw(task, optimizer_settings(settings.lr))
    schedule = warmup_cosine_schedule(optimizer, warmup_steps=WARMUP_STEPS, total_steps=steps)
    average = copy_of(task)
    for step in range(steps):
        batch = batch_at(samples, step, settings.batch_size, seed=settings.seed)
        optimizer.zero_grad()
        task.step(learner.drawn(batch, Phase.train))["loss"].backward()
        optimizer.step()
        schedule.step()
        update(average, task, decay_at(step, settings.ema))
        done = step + 1
        if done % every == 0 or done == steps:
            learner.check(done, average["vector"])
        is_over = learner.best is not None and done - learner.best_step >= every * settings.patience
        if on_step is not None:
            on_step(done, done if is_over else steps)
        if is_over:
            break
    return average["vector"]


def optimizer_settings(lr: float) -> OptimizerSettings:
    """Return how a vector is learnt: without decay, for which nothing speaks."""
    return OptimizerSettings(lr=lr, weight_decay=0.0, betas=BETAS, warmup_steps=WARMUP_STEPS)
