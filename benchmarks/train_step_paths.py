"""The training loops that `benchmarks.train_step` compares, and how their time is counted."""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from lightning import Callback, Trainer
from torch import Tensor
from torch.nn import functional

from callbacks.ema import Ema
from callbacks.finite import Finite
from datamodules.edit import EditDataModule
from emu_edit.batch import EditBatch
from emu_edit.diffusion.prediction import Prediction, add_noise
from emu_edit.images import to_float
from emu_edit.models.conditioning import drop
from emu_edit.models.interfaces import Conditioning, TextFeatures
from emu_edit.models.networks import EditNetworks
from emu_edit.training.draws import DrawnBatch
from emu_edit.training.encoder import BatchEncoder
from emu_edit.training.module import EditModule

PARTS = ("data", "encode", "denoise", "optimizer", "EMA", "callbacks", "rest")
WARM_UP = 2  # steps of each turn before the clock
MAX_NORM = 1.0


class Split:
    """Processor seconds of each part; where one is inside another, the inner one has them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def timed(self, name: str, function: Callable) -> Callable:
        """Return the function, its time counted."""

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return counted

    def restart(self) -> None:
        """Forget what was counted."""
        self._count()
        self.seconds.clear()

    def _count(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1] if self._open else "rest"] += now - self._since
        self._since = now


class Clock(Callback):
    """The wall and processor seconds of a turn's steps, from the end of the last warm-up step."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.start, self.end = (0.0, 0.0), (0.0, 0.0)

    def on_train_batch_end(
        self,
        trainer: object,  # noqa: ARG002
        pl_module: object,  # noqa: ARG002
        outputs: object,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Begin to count after the warm-up."""
        self.end = (time.perf_counter(), time.process_time())
        if batch_idx == WARM_UP - 1:
            self.start = self.end
            self.split.restart()

    def seconds(self) -> tuple[float, float]:
        """Return the seconds by the clock, and of the processor."""
        wall, processor = (end - start for end, start in zip(self.end, self.start, strict=True))
        return wall, processor


class Ours:
    """Turns of an `EditModule` under a trainer."""

    def __init__(self, module: EditModule, folder: Path, options: argparse.Namespace) -> None:
        self.module, self.split, self.options = deepcopy(module), Split(), options
        self.data = data_of(folder, options)
        of, counted = self.module, self.split.timed
        of.encoder = TimedEncoder(of.networks, self.split)
        of.drawn = counted("data", of.drawn)
        of.training_step = counted("denoise", of.training_step)
        of.backward = counted("denoise", of.backward)
        of.optimizer_step = counted("optimizer", of.optimizer_step)

    def run(self, steps: int) -> tuple[float, float]:
        """Make some steps after the warm-up; return the seconds they took, see `Clock`."""
        gate, average, clock = Finite(), Ema(), Clock(self.split)
        gate.on_training_step = self.split.timed("callbacks", gate.on_training_step)
        before = gate.on_before_optimizer_step
        gate.on_before_optimizer_step = self.split.timed("callbacks", before)
        average.on_train_batch_end = self.split.timed("EMA", average.on_train_batch_end)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                accelerator="cpu",
                devices=1,
                precision=self.options.precision,
                max_epochs=1,
                limit_train_batches=WARM_UP + steps,
                gradient_clip_val=MAX_NORM,
                callbacks=[average, gate, clock],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                default_root_dir=folder,
            )
            loader = TimedLoader(self.data.train_dataloader(), self.split)
            trainer.fit(self.module, train_dataloaders=loader)
        return clock.seconds()


class TimedEncoder(BatchEncoder):
    """An encoder of batches whose time is counted."""

    def __init__(self, networks: EditNetworks, split: Split) -> None:
        super().__init__(networks)
        self.split = split

    def __call__(self, drawn: DrawnBatch) -> tuple[Tensor, Conditioning, TextFeatures]:
        """Encode, and count the time."""
        with self.split.part("encode"):
            return super().__call__(drawn)


class TimedLoader:
    """A loader whose time is counted as data."""

    def __init__(self, loader: Any, split: Split) -> None:
        self.loader, self.split = loader, split

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            with self.split.part("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class Reference:
    """Turns of a training loop as diffusers' InstructPix2Pix script has it."""

    def __init__(self, module: EditModule, folder: Path, options: argparse.Namespace) -> None:
        self.module, self.split, self.options = deepcopy(module), Split(), options
        for parameter in self.module.parameters():  # as they come from a file
            parameter.data = parameter.data.contiguous()
        self.weights = [p for p in self.module.parameters() if p.requires_grad]
        settings = self.module.optimizer_settings
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda _: 1.0)
        self.average = EMAModel(self.weights)
        self.batches = iter(data_of(folder, options).train_dataloader())
        self.generator = torch.Generator().manual_seed(0)
        self.loss = 0.0

    def run(self, steps: int) -> tuple[float, float]:
        """Make some steps after the warm-up; return the seconds they took, see `Clock`."""
        clock = Clock(self.split)
        for index in range(WARM_UP + steps):
            self.step()
            clock.on_train_batch_end(None, None, None, None, index)
        return clock.seconds()

    def step(self) -> None:
        """Make one step."""
        part = self.split.part
        with part("data"):
            batch = next(self.batches)
            assert isinstance(batch, EditBatch)
        mixed = self.options.precision == "bf16-mixed"
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            with part("encode"):
                z_0, cond = self.encode(batch)
            with part("denoise"):
                loss = self.denoising_loss(z_0, cond)
        with part("denoise"):
            loss.backward()
        with part("rest"):
            self.loss += loss.repeat(len(batch)).mean().item()
        with part("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.weights, MAX_NORM)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        with part("EMA"):
            self.average.step(self.weights)

    def encode(self, batch: EditBatch) -> tuple[Tensor, Conditioning]:
        """Encode target, source, instructions and "" by a call each; drop conditions."""
        networks = self.module.networks
        with torch.no_grad():
            mean, std = networks.codec.posterior(to_float(batch.target))
            z_source = networks.codec.encode_condition(to_float(batch.source))
        z_0 = mean + std * torch.randn(mean.shape, generator=self.generator)
        text = networks.text_encoder(list(batch.instruction))
        null = networks.text_encoder([""])
        missing = text.mask.shape[1] - null.mask.shape[1]
        null = TextFeatures(
            functional.pad(null.tokens, (0, 0, 0, missing)), functional.pad(null.mask, (0, missing))
        )
        cond = Conditioning(text, z_source.float(), networks.task_embedding(batch.task))
        u = torch.rand(len(batch), 2, generator=self.generator)
        return z_0.float(), drop(cond, null, self.module.dropout, u)

    def denoising_loss(self, z_0: Tensor, cond: Conditioning) -> Tensor:
        """Return the mean of squares of what the network is off by, at uniform timesteps."""
        schedule = self.module.schedule
        eps = torch.randn(z_0.shape, generator=self.generator)
        u = torch.rand(len(z_0), generator=self.generator)
        t = schedule.draw(u, tokens=z_0[0, 0].numel())
        level = schedule.at(t)
        output = self.module.networks.denoiser(add_noise(z_0, eps, level), t, cond)
        if self.module.prediction is Prediction.change:
            wanted = z_0 - cond.z_source
        else:
            wanted = level.alpha * eps - level.sigma * z_0  # v
        return functional.mse_loss(output.float(), wanted.float())


def data_of(folder: Path, options: argparse.Namespace) -> EditDataModule:
    """Return endless batches of a folder of pictures, or of a cache."""
    data = EditDataModule(
        str(folder), image_size=options.size, global_batch=options.batch, steps_per_epoch=10**6
    )
    data.setup("fit")
    return data
