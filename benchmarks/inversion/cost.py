"""What task inversion costs, against the training of the whole model at the same batch.

Three promises: a task from 10 pairs in at most three minutes, a step in at most 0.75 of the time of
a full training step, and less memory at the peak. Steps of both kinds are made in turn, so that a
machine that is busy for a while slows both, and the ratio is taken within each turn. The memory is
that of processes of their own: one that has loaded the model, and one for each kind of step, whose
peak is counted from there (loading itself has a higher one).
"""

import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import nn

from benchmarks.guidance_cost import Run, measure
from benchmarks.inversion.cells import few_shot
from benchmarks.inversion.methods import MAX_NORM, Lesson, make_module
from datamodules.world.new_tasks import make_new_pair
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.terminal import step_bar
from emu_edit.training.draws import Phase
from emu_edit.training.few_shot import FewShotPair, batch_at, views
from emu_edit.training.inversion import InversionSettings, invert, optimizer_settings
from emu_edit.training.new_task import NewTask, frozen
from emu_edit.training.objective import Objective
from emu_edit.training.optim import OptimizerSettings, adamw, copy_of, update

TASK, PAIRS = "contour", 10
STEP_PROMISE, TIME_PROMISE = 0.75, 180.0
MEASURED_STEPS = 5  # of a process whose memory is measured
KINDS = ("load", "inversion", "full")
PEAK, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Step = Callable[[int], object]


def measure_cost(model: Path, device: str, *, batch_size: int, repeats: int) -> str:
    """Measure the three promises; return them in words."""
    ratios, of_inversion, of_full = step_times(model, device, batch_size, repeats)
    low, *_, high = quantiles(ratios, n=20)
    memory = {kind: peak_memory(kind, model, device, batch_size) for kind in KINDS}
    start = time.monotonic()
    editor = Editor.from_pretrained(model, device)
    with step_bar(f"{PAIRS} pairs") as on_step:
        inverted = invert(editor, _pairs(editor), InversionSettings(batch_size=batch_size), on_step)
    seconds = time.monotonic() - start
    return (
        f"step of inversion {1000 * of_inversion:.0f} ms, of full training {1000 * of_full:.0f} "
        f"ms; ratio {median(ratios):.3f} (5th to 95th percentile {low:.3f} to {high:.3f}, "
        f"{repeats} turns), promised at most {STEP_PROMISE}\n"
        f"peak memory: model loaded {memory['load']:.0f} MiB, inversion "
        f"+{memory['inversion'] - memory['load']:.0f} MiB, full training "
        f"+{memory['full'] - memory['load']:.0f} MiB\n"
        f"{PAIRS} pairs in {seconds:.0f} s ({inverted.history[-1].step} steps, the best at "
        f"{inverted.best_step}), promised at most {TIME_PROMISE:.0f} s\n"
        f"batch {batch_size}, {editor.settings.image_size} px, {device}, "
        f"{torch.get_num_threads()} threads\n"
    )


def step_times(
    model: Path, device: str, batch_size: int, repeats: int
) -> tuple[list[float], float, float]:
    """Return the ratio of each turn, and the median seconds of both kinds of step."""
    editor = Editor.from_pretrained(model, device)
    with frozen(editor.networks):
        steps = (
            inversion_step(editor, batch_size),
            full_step(Editor.from_pretrained(model, device), batch_size),
        )
        first, second = map(_counted, steps)
        with step_bar("timing", "turns") as on_step:
            times = measure(first, second, editor.device, repeats, on_step)
    ratios = [first / second for first, second in times]
    return ratios, median(t[0] for t in times), median(t[1] for t in times)


def inversion_step(editor: Editor, batch_size: int) -> Step:
    """Return what makes the n-th step of an inversion; the editor must be frozen."""
    task = NewTask(editor, Objective.of_editor(editor))
    task.begin(editor.networks.base_table().mean(dim=0))
    samples = views(_pairs(editor))
    optimizer, average = adamw(task, optimizer_settings(0.1)), copy_of(task)

    def step(number: int) -> None:
        batch = batch_at(samples, number, batch_size, seed=0)
        drawn = task.drawn(batch, seed=0, phase=Phase.train).to(editor.device)
        optimizer.zero_grad()
        task.step(drawn)["loss"].backward()
        optimizer.step()
        update(average, task, 0.9)

    return step


def full_step(editor: Editor, batch_size: int) -> Step:
    """Return what makes the n-th step of training everything that the base was trained on."""
    pairs = _pairs(editor)
    module = make_module(editor, Lesson(TASK, pairs, InversionSettings(init="mean")))
    samples = views(pairs)
    optimizer, average = adamw(module, OptimizerSettings()), copy_of(module)

    def step(number: int) -> None:
        batch = batch_at(samples, number, batch_size, seed=0)
        drawn = module.drawn(batch, Phase.train).to(editor.device)
        optimizer.zero_grad()
        module.step(drawn, dropout=module.dropout)["loss"].backward()
        nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
        optimizer.step()
        update(average, module, 0.999)

    return step


def peak_memory(kind: str, model: Path, device: str, batch_size: int) -> float:
    """Return the peak in MiB of a process that loads the model and makes some steps of a kind."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_here, kind, model, device, batch_size).result()


def _peak_here(kind: str, model: Path, device: str, batch_size: int) -> float:
    editor = Editor.from_pretrained(model, device)
    is_cuda = device.startswith("cuda")
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        PEAK_RESET.write_text("5")  # proc(5): the peak becomes what is used now
    if kind == "inversion":
        with frozen(editor.networks):
            _make(inversion_step(editor, batch_size))
    elif kind == "full":
        _make(full_step(editor, batch_size))
    if is_cuda:
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", PEAK.read_text(), re.MULTILINE)
    if peak is None:
        raise InputError(f"{PEAK} has no VmHWM line; memory on the CPU can be measured on Linux")
    return int(peak[1]) / 2**10


def _make(step: Step) -> None:
    for number in range(MEASURED_STEPS):
        step(number)


def _counted(step: Step) -> Run:
    """Return what makes one step after the other."""
    numbers = count()
    return lambda: step(next(numbers))


def _pairs(editor: Editor) -> list[FewShotPair]:
    size = editor.settings.image_size
    return [few_shot(make_new_pair(0, i, task=TASK, size=size)) for i in range(PAIRS)]
