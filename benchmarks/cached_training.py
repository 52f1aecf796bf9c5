"""How much faster training is from encoder outputs than from pictures: images/s of both.

The networks are random, of Stable Diffusion's proportions: an autoencoder of four levels (factor 8)
of 128/256/512/512 channels, a U-Net of 320/640/1280/1280 and a frozen text encoder of twelve
layers; `--width 1` is the real size, the default an eighth of all widths.
A step is everything: read and decode or load, collate, draw, move, forward, backward, AdamW. The
two paths take turns, so that whatever else the machine does hits both.

    python benchmarks/cached_training.py
    python benchmarks/cached_training.py --width 1 --size 256 --batch 16 --steps 40 --device cuda
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from datamodules.edit import EditDataModule
from datamodules.encoded.writer import EncodingSettings, write_cache
from datamodules.remote.folder import open_folder
from datamodules.world.write import write_world
from emu_edit.batch import EditBatch
from emu_edit.models.codec import KLCodec
from emu_edit.models.surgery import freeze
from emu_edit.models.tiny import TinyText
from emu_edit.models.unet import UNetDenoiser
from emu_edit.training.draws import Phase
from emu_edit.training.module import EditModule
from emu_edit.training.optim import OptimizerSettings, adamw

CODEC_CHANNELS = (128, 256, 512, 512)  # Stable Diffusion 1 to 2
UNET_CHANNELS = (320, 640, 1280, 1280)  # the last level does not attend
TEXT_DIM = 768  # CLIP ViT-L/14
ROUNDS = 4  # turns each path takes
WARM_UP = 2  # steps before the clock


def main() -> int:
    """Measure both paths and print a line and a JSON object."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    sys.stdout.write(
        f"pictures {results['pictures']:.1f} images/s, cache {results['cached']:.1f} images/s: "
        f"{results['ratio']:.2f} times\n{json.dumps(results)}\n"
    )
    return 0


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument("--width", type=float, default=1 / 8, help="of all networks (default 1/8)")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures (default 64)")
    parser.add_argument("--pairs", type=int, default=64, help="pairs of the world (default 64)")
    parser.add_argument("--batch", type=int, default=8, help="pairs per step (default 8)")
    parser.add_argument("--steps", type=int, default=8, help="of each path, after warm-up")
    parser.add_argument("--workers", type=int, default=0, help="loader processes (default 0)")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Return images/s of both paths, their ratio, and what writing the cache took."""
    pictures, cache = folder / "pictures", folder / "cache"
    write_world(pictures, options.pairs, seed=0, size=options.size)
    module = make_module(options.width, folder / "vae").to(options.device)
    start = time.perf_counter()
    settings = EncodingSettings(options.size, batch_size=options.batch)
    report = write_cache(open_folder(pictures), cache, module.networks, settings)
    seconds = time.perf_counter() - start
    folders = {"pictures": pictures, "cached": cache}
    paths = {name: TrainingPath(module, place, options) for name, place in folders.items()}
    for path in paths.values():
        path.run(WARM_UP)
        path.seconds = 0.0
    steps = max(options.steps // ROUNDS, 1)
    for _ in range(ROUNDS):
        for path in paths.values():
            path.run(steps)
    images = steps * ROUNDS * options.batch
    rates = {name: images / path.seconds for name, path in paths.items()}
    return {
        **rates,
        "ratio": rates["cached"] / rates["pictures"],
        "writing": options.pairs / seconds,
        "kib_per_pair": sum(e.bytes for e in report.manifest.entries) / options.pairs / 1024,
        "loss_difference": loss_difference(module, paths),
    }


class TrainingPath:
    """Training steps on one folder, and the seconds they took."""

    def __init__(self, module: EditModule, folder: Path, options: argparse.Namespace) -> None:
        self.module = module
        self.seconds = 0.0
        self.device = options.device
        self.data = EditDataModule(
            str(folder),
            image_size=options.size,
            global_batch=options.batch,
            steps_per_epoch=10**6,
            num_workers=options.workers,
        )
        self.data.setup("fit")
        self.batches: Iterator[EditBatch] = iter(self.data.train_dataloader())
        self.optimizer = adamw(module, OptimizerSettings(lr=1e-5))

    def run(self, steps: int) -> None:
        """Make some steps and add up their time."""
        start = time.perf_counter()
        for _ in range(steps):
            batch = self.module.drawn(next(self.batches), Phase.train).to(self.device)
            output = self.module.step(batch, dropout=self.module.dropout)
            self.optimizer.zero_grad()
            output["loss"].backward()
            self.optimizer.step()
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start


@torch.no_grad()
def loss_difference(module: EditModule, paths: dict[str, TrainingPath]) -> float:
    """Return how far apart the losses of the next batch of both paths are."""
    losses = []
    for path in paths.values():
        batch = module.drawn(next(path.batches), Phase.train).to(path.device)
        losses.append(module.step(batch, dropout=module.dropout)["loss"])
    return abs(float(losses[0] - losses[1]))


def make_module(width: float, folder: Path) -> EditModule:
    """Build the networks with random weights."""
    channels = [round(c * width) for c in CODEC_CHANNELS]
    vae = AutoencoderKL.from_config({
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": channels,
        "layers_per_block": 2,
        "norm_num_groups": min(32, channels[0] // 4),
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    })
    assert isinstance(vae, AutoencoderKL)
    vae.save_pretrained(folder)
    unet = [round(c * width / 8) * 8 for c in UNET_CHANNELS]
    text_dim = round(TEXT_DIM * width / 16) * 16
    return EditModule(
        denoiser=UNetDenoiser(
            4,
            unet,
            attention=[True, True, True, False],
            layers_per_block=2,
            text_dim=text_dim,
            task_dim=text_dim,
            head_dim=unet[0] // 8,
            norm_groups=8,
        ),
        text_encoder=freeze(TinyText(dim=text_dim, num_layers=12, num_heads=8)),
        codec=KLCodec(str(folder)),
    )


if __name__ == "__main__":
    sys.exit(main())
