"""What guidance costs: one guided forward of three branches against three bare forward passes.

    python benchmarks/guidance_cost.py [MODEL]

The promise is a ratio of at most 1.05: stacking the branches and combining them must be nearly
free. The two are measured in turn, so that a machine that is busy for a while slows both, and the
ratio is taken within each turn.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance, guided
from emu_edit.diffusion.prediction import with_source
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import find_model
from emu_edit.models.conditioning import branches
from emu_edit.models.interfaces import Conditioning
from emu_edit.terminal import step_bar

PROMISE = 1.05
WARM_UP = 3


Run = Callable[[], object]  # what is timed


def main() -> int:
    """Measure, print the ratio and its spread; exit status 1 if the median breaks the promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="default: the newest in ./runs")
    parser.add_argument("--size", type=int, help="side in pixels (default: as trained)")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once (default 1)")
    parser.add_argument("--repeats", type=int, default=50, help="turns (default 50)")
    parser.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    options = parser.parse_args()
    editor = Editor.from_pretrained(find_model(options.model), device=options.device)
    size = editor.settings.image_size if options.size is None else options.size
    of_guided, bare = make_forwards(editor, size=size, batch=options.batch)
    with torch.no_grad(), step_bar("timing", "turns") as on_step:
        times = measure(of_guided, bare, editor.device, options.repeats, on_step)
    ratios = [first / second for first, second in times]
    low, *_, high = quantiles(ratios, n=20)
    guided_ms, bare_ms = (1000 * median(column) for column in zip(*times, strict=True))
    sys.stdout.write(
        f"guided forward of three branches {guided_ms:.1f} ms, three bare forward passes "
        f"{bare_ms:.1f} ms\n"
        f"ratio {median(ratios):.3f} (5th to 95th percentile {low:.3f} to {high:.3f}, "
        f"{options.repeats} turns), promised at most {PROMISE}\n"
        f"batch {options.batch}, {size} px, {editor.device}, {torch.get_num_threads()} threads\n"
    )
    return 0 if median(ratios) <= PROMISE else 1


def make_forwards(editor: Editor, *, size: int, batch: int) -> tuple[Run, Run]:
    """Return a guided forward and three bare ones over the same noise and condition."""
    networks = editor.networks
    side = -(-size // editor.multiple)
    shape, generator = (batch, networks.codec.latent_channels, side, side), torch.Generator()
    z_t, z_source = (torch.randn(shape, generator=generator).to(editor.device) for _ in range(2))
    t = torch.full((batch,), 500, device=editor.device)
    with torch.no_grad():
        text, null_text = networks.encode_text(["make the red circle blue"] * batch)
        v_task = networks.task_vectors([networks.tasks.names[0]] * batch)
    cond = Conditioning(text=text, z_source=z_source, v_task=v_task)

    def predict(condition: Conditioning) -> Callable[[Tensor, Tensor], Tensor]:
        denoiser = partial(networks.denoiser, cond=condition)
        return with_source(denoiser, condition.z_source, editor.prediction)

    three, one = guided(predict(branches(cond, null_text)), Guidance()), predict(cond)
    return partial(three, z_t, t), lambda: [one(z_t, t) for _ in range(3)]


def measure(
    first: Run,
    second: Run,
    device: torch.device,
    repeats: int,
    on_step: Callable[[int, int], None],
) -> list[tuple[float, float]]:
    """Return the seconds of both in each turn, after a warm-up; which goes first alternates."""
    times = []
    for turn in range(-WARM_UP, repeats):
        if turn % 2:
            of_second, of_first = seconds(second, device), seconds(first, device)
        else:
            of_first, of_second = seconds(first, device), seconds(second, device)
        if turn >= 0:
            times.append((of_first, of_second))
            on_step(turn + 1, repeats)
    return times


def seconds(run: Run, device: torch.device) -> float:
    """Return how long a call takes, work of the device included."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
