"""Four ways to a new task, given the same pairs, steps, batches and judgement.

Inversion learns one vector. The baselines learn weights, and a row of the task table beside them
that begins where the inversion's vector does: full fine-tuning all that the base was trained on,
LoRA low-rank additions to every linear map and convolution of the U-Net, the expert everything
again, from a hundred times the data. All make small what the base was trained to make small, on the
same held-out pairs; with none held out, the last weights are taken. The expert alone makes all its
steps.

Learning rates: tried on contour, 10 pairs of a seed that no study has, 100 steps of 4, on the
released model; error relative to copying on 48 pairs, change of success on 32 edits of old tasks.
Inversion 0.1: 0.48, 0.3: 0.46, 1: 0.45 (30 pairs: 0.40, 0.40). Full 1e-4: 0.41, 3e-4: 0.32 (0
points), 1e-3: 0.21 (-3), 3e-3: 0.18 (-31). LoRA 2e-3: 0.33 (-3), 5e-3: 0.29 (-19), 1e-2: 0.27
(-25). The rates below are near the lowest error, higher ones gain little and forget more; the
expert's is not tried.
Source: the comparison is that of Sheynin et al. 2023, arXiv:2311.10089, figure 6; LoRA is Hu et al.
2021, arXiv:2106.09685, by peft.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec

import torch
from torch import nn

from emu_edit.batch import EditSample
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.learned_task import LearnedTask
from emu_edit.training.draws import DrawnBatch, Phase
from emu_edit.training.few_shot import FewShotPair, batch_at, check_batches, split, views
from emu_edit.training.inversion import WARMUP_STEPS, InversionSettings, invert
from emu_edit.training.module import EditModule
from emu_edit.training.new_task import Beginning, NewTask, beginning, frozen
from emu_edit.training.objective import Objective
from emu_edit.training.optim import (
    OptimizerSettings,
    adamw,
    copy_of,
    decay_at,
    update,
    warmup_cosine_schedule,
    with_weights,
)

OnStep = Callable[[int, int], None]

INVERSION, FULL, LORA, EXPERT = "inversion", "full", "lora", "expert"
METHODS = (INVERSION, FULL, LORA, EXPERT)
# peak learning rates of the baselines, see above; the inversion's is its own default
LEARNING_RATES = {FULL: 1e-3, LORA: 5e-3, EXPERT: 5e-4}
RANK = 8  # of LoRA
MAX_NORM = 1.0  # gradients are clipped as in the recipes


@dataclass(frozen=True)
class MethodResult:
    """What a method learnt.

    Attributes:
        editor: edits with the new task, too.
        steps: optimizer steps that were made.
        best_step: the one that was kept.
        weights: numbers that were learnt.
    """

    editor: Editor
    steps: int
    best_step: int
    weights: int


@dataclass(frozen=True)
class Lesson:
    """What a method learns from.

    Attributes:
        task: name of the new task.
        pairs: few enough to be in memory; the expert begins with them, too.
        settings: steps, batch size, judgement and seed; its learning rate is the inversion's.
        stream: what the expert learns from instead.
    """

    task: str
    pairs: Sequence[FewShotPair]
    settings: InversionSettings
    stream: Sequence[EditSample] = ()


def teach(
    editor: Editor, method: str, lesson: Lesson, on_step: OnStep | None = None
) -> MethodResult:
    """Teach a task by one of the methods; the editor is used up.

    Raises:
        InputError: for an unknown method, or LoRA without peft.
    """
    match method:
        case "inversion":
            return _invert(editor, lesson, on_step)
        case "full" | "expert":
            module = make_module(editor, lesson)
        case "lora":
            module = make_module(editor, lesson)
            add_lora(module)
        case _:
            raise InputError(f"unknown method {method!r}; give one of {', '.join(METHODS)}")
    return _Tuner(module, lesson, LEARNING_RATES[method]).run(on_step)


def _invert(editor: Editor, lesson: Lesson, on_step: OnStep | None) -> MethodResult:
    inverted = invert(editor, lesson.pairs, lesson.settings, on_step)
    learned = LearnedTask(
        lesson.task,
        description="",
        vector=inverted.vector,
        base=model_hash(editor.networks),
        pairs=len(lesson.pairs),
        steps=inverted.best_step,
        seed=lesson.settings.seed,
        created=datetime.now(UTC).date().isoformat(),
        instruction="",
    )
    editor.add_task(learned)
    steps = inverted.history[-1].step
    return MethodResult(editor, steps, inverted.best_step, weights=len(inverted.vector))


def make_module(editor: Editor, lesson: Lesson) -> EditModule:
    """Return the training module of an editor's networks, which knows one task more.

    The new row begins where the inversion's vector does.
    """
    networks, objective = editor.networks, Objective.of_editor(editor)
    module = EditModule(
        networks.denoiser,
        networks.text_encoder,
        networks.codec,
        tasks=[*networks.tasks.names, lesson.task],
        prediction=editor.prediction,
        weighting=objective.weighting,
        logit_normal=objective.logit_normal,
        timestep_shift=objective.timestep_shift,
        balance=objective.balance,
        huber_c=objective.huber_c,
        zero_terminal_snr=editor.schedule.has_zero_terminal_snr,
        editor=editor.settings,
        seed=lesson.settings.seed,
    ).to(editor.device)
    module.schedule = editor.schedule
    rows = [networks.task_embedding.table.detach(), beginning_of(editor, lesson).vector[None]]
    module.networks.task_embedding.table.data.copy_(torch.cat(rows))
    return module


def beginning_of(editor: Editor, lesson: Lesson) -> Beginning:
    """Return the vector at which a lesson begins; its name, as `init`, begins there again.

    Raises:
        InputError: if the lesson's `init` names no task.
    """
    train, _ = split(lesson.pairs, lesson.settings.held_out, seed=lesson.settings.seed)
    with frozen(editor.networks):
        task = NewTask(editor, Objective.of_editor(editor))
        batches = [
            task.drawn(batch, seed=lesson.settings.seed, phase=Phase.validate).to(editor.device)
            for batch in check_batches(views(train))
        ]
        return beginning(task, lesson.settings.init, batches)


def check_methods(methods: Sequence[str]) -> None:
    """Refuse methods that cannot be used here; call it before long work."""
    if LORA in methods and find_spec("peft") is None:
        raise InputError("LoRA needs peft; install it with: pip install peft, or the extra 'study'")


def add_lora(module: EditModule) -> None:
    """Freeze a module, and let low-rank additions and the task table learn.

    Every linear map and convolution of the denoiser gets one; they begin at zero, so nothing
    changes yet.
    """
    check_methods([LORA])
    from peft import LoraConfig, inject_adapter_in_model

    denoiser = module.networks.denoiser
    module.requires_grad_(False)
    layers = [
        name
        for name, part in denoiser.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d) and name.startswith("unet.")
    ]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers, bias="none")
    inject_adapter_in_model(config, denoiser)
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_("lora_" in name)
    module.networks.task_embedding.requires_grad_(True)


class _Tuner:
    """Weights that learn, judged and kept as the inversion's vector is."""

    def __init__(self, module: EditModule, lesson: Lesson, lr: float) -> None:
        self.module, self.settings = module, lesson.settings
        new = len(module.networks.tasks) - 1
        train, held_out = split(lesson.pairs, lesson.settings.held_out, seed=lesson.settings.seed)
        # the table's other rows get no gradient, as no sample is of their tasks
        self.samples: Sequence[EditSample] = [replace(s, task=new) for s in views(train)]
        if lesson.stream:
            self.samples = lesson.stream
        checked = [replace(s, task=new) for s in views(held_out)]
        self.checks = [self._drawn(batch, Phase.validate) for batch in check_batches(checked)]
        self.optimizer = adamw(
            module, OptimizerSettings(lr=lr, betas=(0.9, 0.99), warmup_steps=WARMUP_STEPS)
        )
        self.schedule = warmup_cosine_schedule(
            self.optimizer, warmup_steps=WARMUP_STEPS, total_steps=self.settings.steps
        )
        self.average = copy_of(module)
        self.best = copy_of(module)
        self.best_step, self.lowest = 0, math.inf

    def run(self, on_step: OnStep | None) -> MethodResult:
        """Make the steps; end when the held-out pairs get no better."""
        steps, every = self.settings.steps, self.settings.check_every
        self._check(0)
        done = 0
        while done < steps and done - self.best_step < every * self.settings.patience:
            self._step(done)
            done += 1
            if done % every == 0 or done == steps:
                self._check(done)
            if on_step is not None:
                on_step(done, steps)
        weights = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, value in self.best.items():
                weights[name].copy_(value)
        self.module.eval()
        count = sum(value.numel() for value in self.best.values())
        return MethodResult(self.module.make_editor(), done, self.best_step, weights=count)

    def _step(self, step: int) -> None:
        size, seed = self.settings.batch_size, self.settings.seed
        batch = self._drawn(batch_at(self.samples, step, size, seed=seed), Phase.train)
        self.optimizer.zero_grad()
        self.module.step(batch, dropout=None)["loss"].backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), MAX_NORM)
        self.optimizer.step()
        self.schedule.step()
        update(self.average, self.module, decay_at(step, self.settings.ema))

    @torch.no_grad()
    def _check(self, step: int) -> None:
        """Keep the averaged weights when they are the best, or nothing is held out."""
        loss = -math.inf
        if self.checks:
            with with_weights(self.module, self.average):
                losses = [self.module.step(batch, dropout=None)["loss"] for batch in self.checks]
            loss = float(torch.stack(losses).mean())
        if not self.checks or loss < self.lowest:
            self.best = {name: value.clone() for name, value in self.average.items()}
            self.best_step, self.lowest = step, loss

    def _drawn(self, batch, phase: Phase) -> DrawnBatch:
        device = next(self.module.parameters()).device
        return self.module.drawn(batch, phase).to(device)
