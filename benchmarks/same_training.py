"""Whether ways of training that should come to the same do: their losses, step by step.

    python -m benchmarks.same_training [--steps 100] [--models sd] [--ways cache ddp] [--json F]

Tiny networks with random weights, in the files that Stable Diffusion and FLUX.2 klein are published
in (klein with LoRA), train on shards of the world, with Lightning, the recipes' prediction, every
condition dropped now and then and gradients clipped. Each way differs from the plain training, in
float32 on one process, in one thing; it sees the same pairs and draws the same random numbers. The
loss of a step is the mean over all processes. Beside the promise, the table has the greatest and
the last difference, in units of the loss. Exit status 1 if a promise is broken.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from datamodules.edit import EditDataModule
from datamodules.encoded.writer import EncodingSettings, write_cache
from datamodules.remote.folder import open_folder
from datamodules.world.write import write_world
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.schedule import LogitNormal
from emu_edit.diffusion.weighting import Weighting
from emu_edit.models.chat_text import ChatText
from emu_edit.models.codec import KLCodec, PackedCodec
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.dit import DiTDenoiser
from emu_edit.models.text import TransformersText
from emu_edit.models.unet import PretrainedUNetDenoiser
from emu_edit.training.module import EditModule
from emu_edit.training.optim import OptimizerSettings
from tests.models.conftest import write_stable_diffusion
from tests.models.tiny_published import LAYERS, write_klein

SIZE, BATCH, PAIRS = 32, 4, 64
TASK_DIM = 8
WITHHELD = DropoutRates(text=0.1, image=0.1, both=0.1, task=0.1)


@dataclass(frozen=True)
class Way:
    """One way to train, and how near to the plain one it has to stay.

    Attributes:
        what: it is, for the table.
        promise: greatest difference of a step's loss.
        is_cached: whether it trains on encoder outputs.
        is_compiled: whether `compile: true`.
        precision: of the trainer.
        strategy: of the trainer.
        processes: how many train, each on its share of a batch.
    """

    what: str
    promise: float
    is_cached: bool = False
    is_compiled: bool = False
    precision: Any = "32-true"
    strategy: str = "auto"
    processes: int = 1


PLAIN = Way("plain", 0.0)
WAYS = {
    "again": Way("the same once more", 0.0),
    "cache": Way("from a cache of encoder outputs", 1e-5, is_cached=True),
    "compile": Way("`compile: true`", 1e-4, is_compiled=True),
    "bf16": Way("`bf16-mixed`", 5e-2, precision="bf16-mixed"),
    "ddp": Way("two processes, `ddp`", 1e-5, strategy="ddp", processes=2),
    "fsdp2": Way("two processes, `fsdp2`", 1e-5, strategy="fsdp2", processes=2),
}
WHOLE = {"fsdp2"}  # ways of networks that are trained whole, which klein's is not here


def make_sd(base: str) -> EditModule:
    """Train as the recipe `sd15` does."""
    return EditModule(
        PretrainedUNetDenoiser(base, TASK_DIM),
        TransformersText(base, max_tokens=77),
        KLCodec(base),
        prediction=Prediction.v,
        weighting=Weighting.one_plus_min_snr,
        dropout=WITHHELD,
        optimizer=OptimizerSettings(lr=1e-3, warmup_steps=10),
    )


def make_klein(base: str) -> EditModule:
    """Train as the recipe `klein` does."""
    return EditModule(
        DiTDenoiser(base, TASK_DIM, lora_rank=4),
        ChatText(base, list(LAYERS), max_tokens=128),
        PackedCodec(base),
        prediction=Prediction.flow,
        logit_normal=LogitNormal(0.0, 1.0),
        dropout=WITHHELD,
        optimizer=OptimizerSettings(lr=1e-3, warmup_steps=10),
    )


MODELS: dict[str, tuple[Callable[[Path], None], Callable[[str], EditModule]]] = {
    "sd": (write_stable_diffusion, make_sd),
    "klein": (write_klein, make_klein),
}


class Losses(Callback):
    """Keep the loss of each step, the mean over all processes."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Read the loss of a step."""
        del pl_module, batch, batch_idx
        loss = trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")
        self.found.append(float(loss))


def build(model: str, folder: Path, *, is_compiled: bool = False) -> EditModule:
    """Build a module with the same weights each time; its base is written once."""
    write, make = MODELS[model]
    base = folder / model / "base"
    if not base.is_dir():
        write(base)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        module = make(str(base))
    if is_compiled:
        module.networks.denoiser.compile()
    return module


def prepare(model: str, folder: Path) -> None:
    """Write the world's shards, and a model's cache of them, where they are not there yet."""
    pictures, cache = folder / "pictures", folder / model / "cache"
    if not pictures.is_dir():
        write_world(pictures, PAIRS, seed=0, size=SIZE)
    if not cache.is_dir():
        networks = build(model, folder).networks
        write_cache(open_folder(pictures), cache, networks, EncodingSettings(SIZE))


def train(model: str, way: Way, folder: Path, steps: int) -> list[float]:
    """Train in this process (and those beside it, where a launcher began them): the losses."""
    quiet()
    losses = Losses()
    data = EditDataModule(
        str(folder / model / "cache" if way.is_cached else folder / "pictures"),
        image_size=SIZE,
        global_batch=BATCH,
        steps_per_epoch=steps,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=way.processes,
        strategy=way.strategy,
        precision=way.precision,
        max_epochs=1,
        gradient_clip_val=1.0,
        callbacks=[losses],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(build(model, folder, is_compiled=way.is_compiled), datamodule=data)
    return losses.found


def quiet() -> None:
    """Let Lightning say less: it cannot know what this is."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


def train_apart(model: str, name: str, folder: Path, steps: int) -> list[float]:
    """Train on the processes that torchrun starts; the first of them writes the losses."""
    launcher = ("-m", "torch.distributed.run", "--standalone")
    count = f"--nproc-per-node={WAYS[name].processes}"
    arguments = (
        "--models",
        model,
        "--ways",
        name,
        "--steps",
        str(steps),
        "--rank-of",
        str(folder.resolve()),
    )
    command = [sys.executable, *launcher, count, "-m", "benchmarks.same_training", *arguments]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{name}: exit status {done.returncode}\n{done.stderr[-3000:]}")
    return json.loads((folder / model / f"{name}.json").read_text())


def measure(model: str, names: list[str], folder: Path, steps: int) -> dict[str, Any]:
    """Train one model in the plain and in other ways; return losses and differences."""
    prepare(model, folder)
    plain = train(model, PLAIN, folder, steps)
    report: dict[str, Any] = {"losses": plain, "ways": {}}
    for name in names:
        way = WAYS[name]
        found = (
            train(model, way, folder, steps)
            if way.processes == 1
            else train_apart(model, name, folder, steps)
        )
        apart = [abs(one - other) for one, other in zip(found, plain, strict=True)]
        report["ways"][name] = {
            "losses": found,
            "greatest": max(apart),
            "last": apart[-1],
            "promise": way.promise,
            "is_kept": max(apart) <= way.promise,
        }
    return report


def ways_of(model: str, names: list[str]) -> list[str]:
    """Return which of some ways a model can be trained in."""
    return [name for name in names if model == "sd" or name not in WHOLE]


def table(report: dict[str, dict[str, Any]]) -> str:
    """Return what was found as a table."""
    lines = [
        "| model | loss, first to last ten steps | way | greatest difference | last | promise |",
        "|---|---|---|---|---|---|",
    ]
    for model, found in report.items():
        first, last = (
            sum(part) / len(part) for part in (found["losses"][:10], found["losses"][-10:])
        )
        for name, row in found["ways"].items():
            broken = "" if row["is_kept"] else " BROKEN"
            lines.append(
                f"| {model} | {first:.3f} to {last:.3f} | {WAYS[name].what} | "
                f"{row['greatest']:.1e} | {row['last']:.1e} | {row['promise']:g}{broken} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Measure, and print the table."""
    options = parse()
    if options.rank_of is not None:
        (model,), (name,) = options.models, options.ways
        losses = train(model, WAYS[name], options.rank_of, options.steps)
        if torch.distributed.get_rank() == 0:
            (options.rank_of / model / f"{name}.json").write_text(json.dumps(losses))
        torch.distributed.destroy_process_group()
        return 0
    with tempfile.TemporaryDirectory() as folder:
        report = {
            model: measure(model, ways_of(model, options.ways), Path(folder), options.steps)
            for model in options.models
        }
    sys.stdout.write(table(report) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    kept = [row["is_kept"] for found in report.values() for row in found["ways"].values()]
    return 0 if all(kept) else 1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=100, help="of each training (default 100)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path, help="write all losses to this file")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
