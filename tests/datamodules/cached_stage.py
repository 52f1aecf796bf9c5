"""A stage for the tests of caches: small random networks, and the batches of both paths."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.edit import EditDataModule
from datamodules.encoded.writer import CacheReport, EncodingSettings, write_cache
from datamodules.remote.folder import open_folder
from emu_edit.batch import Batch
from emu_edit.models.codec import KLCodec, PatchCodec
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.interfaces import ImageCodec, TextEncoder
from emu_edit.models.surgery import freeze
from emu_edit.models.tiny import TinyText
from emu_edit.models.unet import UNetDenoiser
from emu_edit.training.draws import Phase
from emu_edit.training.module import EditModule, StepOutput
from tests.models.tiny_vae import tiny_vae

SIZE = 16
DROPOUT = DropoutRates(text=0.25, image=0.2, both=0.2, task=0.3)  # each happens in a few batches


def kl_codec(folder: Path, *, scale_condition: bool = False, seed: int = 0) -> KLCodec:
    """Write a random AutoencoderKL of factor 2 and load it."""
    path = folder / f"vae-{seed}"
    if not path.exists():
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(seed)
            tiny_vae().save_pretrained(path)
    return KLCodec(str(path), scale_condition=scale_condition)


def tiny_text(*, is_frozen: bool, seed: int = 0) -> TextEncoder:
    """Return a small T5 encoder with random weights."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        text = TinyText(dim=16, num_layers=1, num_heads=2)
    return freeze(text) if is_frozen else text


def make_module(codec: ImageCodec | None = None, text: TextEncoder | None = None) -> EditModule:
    """Build a model; by default of patches and a frozen text encoder."""
    codec = PatchCodec() if codec is None else codec
    text = tiny_text(is_frozen=True) if text is None else text
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        return EditModule(
            denoiser=UNetDenoiser(
                codec.latent_channels,
                [16, 16],
                attention=[False, True],
                text_dim=text.dim,
                task_dim=8,
                head_dim=8,
                norm_groups=4,
                sample_size=4,
            ),
            text_encoder=text,
            codec=codec,
            dropout=DROPOUT,
        )


def cache(module: EditModule, folder: Path, output: Path, **changes: Any) -> CacheReport:
    """Write the cache of a folder with the networks of a module."""
    settings = replace(EncodingSettings(SIZE, batch_size=3), **changes)
    return write_cache(open_folder(folder), output, module.networks, settings)


def batches(folder: Path | str, **options: Any) -> list[Batch]:
    """Return the first training batches of a folder, of pictures or of latents."""
    settings: dict[str, Any] = {"global_batch": 8, "steps_per_epoch": 3, "image_size": SIZE}
    data = EditDataModule(str(folder), **(settings | options))
    data.setup("fit")
    return list(data.train_dataloader())


@torch.no_grad()
def steps(module: EditModule, of: list[Batch]) -> list[StepOutput]:
    """Return what training steps say of batches; the weights stay."""
    return [module.step(module.drawn(b, Phase.train), dropout=module.dropout) for b in of]


def losses(module: EditModule, of: list[Batch]) -> Tensor:
    """Return the training loss of each batch."""
    return torch.stack([output["loss"] for output in steps(module, of)])
