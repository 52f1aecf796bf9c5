"""How soon a network learns one kind of edit when it is taught nothing else.

    python benchmarks/one_kind.py text add [--recipe tiny] [--start_from MODEL] [FLAGS OF FIT]

If a kind of edit stays bad in the whole mixture, is the network unable to do it, or did it see too
little of it? Here every sample is of that kind, drawn from as many pairs as asked for. Printed is
the error of z_0 relative to copying the source, mean over the last steps: 0 is perfect, 1 has
learnt nothing.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import torch

from datamodules.world.pair import WorldPair, make_pair
from emu_edit.batch import EditBatch, EditSample
from emu_edit.images import to_float
from emu_edit.runs.failures import precision_here
from emu_edit.runs.trainer_cli import untrained_module
from emu_edit.tasks import SIXTEEN
from emu_edit.terminal import step_bar
from emu_edit.training.draws import Phase
from emu_edit.training.export import start_from
from emu_edit.training.module import EditModule
from emu_edit.training.optim import OptimizerSettings, adamw

WARM_UP = 30
MAX_NORM = 1.0
SHOWN = 40  # steps a printed mean is over


@dataclass(frozen=True)
class Lesson:
    """What is taught: a task and the kind of edit in it, of so many pairs."""

    task: str
    kind: str
    pairs: int
    batch_size: int

    def batches(self, size: int) -> Iterator[EditBatch]:
        """Yield batches without end; after the last pair comes the first."""
        stream = (make_pair(9, index, task=self.task, size=size) for index in count())
        of_kind = (
            pair
            for pair in stream
            if pair.extra.get("kind", pair.extra.get("direction")) == self.kind
        )
        pairs = list(islice(of_kind, self.pairs))
        for first in count(0, self.batch_size):
            yield EditBatch.collate([
                as_sample(pairs[position % len(pairs)], position)
                for position in range(first, first + self.batch_size)
            ])


def main() -> int:
    """Teach one kind of edit and print how the error falls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=SIXTEEN.names)
    parser.add_argument("kind", help='"kind" of the world\'s pairs, e.g. add, swap, pattern')
    parser.add_argument("--recipe", default="tiny", help="the network's (default tiny)")
    parser.add_argument("--start_from", type=Path, help="a model directory or checkpoint")
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--pairs", type=int, default=1600)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=8e-4)
    options, flags = parser.parse_known_args()
    module = untrained_module(options.recipe, *flags)
    if options.start_from is not None:
        start_from(module, options.start_from)
    lesson = Lesson(options.task, options.kind, options.pairs, options.batch_size)
    with step_bar(f"teaching {options.task} {options.kind}") as progress:
        errors = teach(module, lesson, options.steps, options.lr, progress)
    for end in range(SHOWN, len(errors) + 1, SHOWN):
        mean = sum(errors[end - SHOWN : end]) / SHOWN
        sys.stdout.write(f"{end * options.batch_size:6d} samples  error/copy {mean:.3f}\n")
    return 0


def as_sample(pair: WorldPair, position: int) -> EditSample:
    """Return a pair of the world as training takes it."""
    source, target = (
        torch.from_numpy(picture).permute(2, 0, 1).contiguous()
        for picture in (pair.source, pair.target)
    )
    return EditSample(
        key=pair.key,
        source=source,
        target=target,
        instruction=pair.instruction,
        task=SIXTEEN.index(pair.task),
        position=position,
    )


def teach(
    module: EditModule,
    lesson: Lesson,
    steps: int,
    lr: float,
    on_step: Callable[[int, int], None],
) -> list[float]:
    """Train on the lesson alone, nothing dropped; return each step's error relative to copying."""
    optimizer = adamw(module, OptimizerSettings(lr=lr, betas=(0.9, 0.99)))
    has_bfloat16 = precision_here("bf16-mixed", "cpu") == "bf16-mixed"
    errors = []
    for step, batch in enumerate(islice(lesson.batches(module.editor_settings.image_size), steps)):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / WARM_UP)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16):
            output = module.step(module.drawn(batch, Phase.train), dropout=None)
        output["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        codec = module.networks.codec
        change = codec.encode(to_float(batch.target)) - codec.encode(to_float(batch.source))
        errors.append(float(output["error"].mean() / change.square().mean()))
        on_step(step + 1, steps)
    return errors


if __name__ == "__main__":
    sys.exit(main())
