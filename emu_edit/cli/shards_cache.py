"""`emu-edit shards cache FOLDER -o OUT`: run the frozen networks over training data once."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import ArgumentParser, positive_int, positive_or_zero
from emu_edit.errors import InputError

if TYPE_CHECKING:
    from emu_edit.models.networks import EditNetworks

DTYPES = ("float32", "bfloat16", "float16")
# of a recipe only the networks are wanted, whatever it trains on
NO_TRAINER = (
    "--trainer.logger=false",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
)


def parser() -> ArgumentParser:
    """Build the parser of `shards cache`."""
    made = ArgumentParser(
        prog="emu-edit shards cache",
        description="Write shards of latents (the posterior's mean and deviation, so that its "
        "sampling stays fresh) and, where the text encoder is frozen, of text features. Train on "
        "them with --data.train OUT: order, dropout and noise are those of the pictures, and in "
        "float32 the loss is the same to 1e-5. Started again, it completes what was interrupted.",
        epilog="What is kept of a picture is its centre square, not mirrored: random crops of wide "
        "pictures\nand data.flip need the pictures. Validate (--data.val) on pictures.",
    )
    made.add_argument("folder", metavar="FOLDER", help="shards of pictures: a folder or an address")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    whose = made.add_mutually_exclusive_group(required=True)
    whose.add_argument("--model", type=Path, metavar="DIR", help="the networks of a model or run")
    whose.add_argument("--config", metavar="RECIPE", help="the networks a recipe starts from")
    made.add_argument(
        "--image-size",
        type=positive_int,
        metavar="N",
        help="side of the pictures, as data.image_size (default: the model's editor.image_size)",
    )
    made.add_argument(
        "--dtype", default="float32", choices=DTYPES, help="precision on disk (default float32)"
    )
    made.add_argument("--batch", type=positive_int, default=16, help="pairs at a time (default 16)")
    made.add_argument(
        "--workers", type=positive_or_zero, default=0, help="processes that decode (default 0)"
    )
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    return made


def run_cache(arguments: list[str]) -> int:
    """Write a cache.

    Raises:
        InputError: if folder, output, networks or sizes do not go together.
    """
    options = parser().parse(arguments)
    from datamodules.cached_write import EncodingSettings, write_cache
    from datamodules.remote import open_folder
    from emu_edit.cli.devices import choose_device
    from emu_edit.progress import step_bar

    device = choose_device(options.device)
    folder = open_folder(options.folder)
    networks, usual_size = _networks(options)
    settings = EncodingSettings(
        options.image_size or usual_size,
        dtype=options.dtype,
        batch_size=options.batch,
        num_workers=options.workers,
    )
    with step_bar("caching", "pairs") as on_step:
        report = write_cache(folder, options.output, networks.eval().to(device), settings, on_step)
    sys.stdout.write(f"{report.summary()}\ntrain on it with --data.train {options.output}\n")
    return 0


def _networks(options: argparse.Namespace) -> "tuple[EditNetworks, int]":
    """Return the networks and the size of the pictures they are usually trained on."""
    if options.model is not None:
        from emu_edit.cli.find_model import find_model
        from emu_edit.editing.editor import Editor

        editor = Editor.from_pretrained(find_model(options.model))
        return editor.networks, editor.settings.image_size
    from emu_edit.cli.recipes import find_config
    from emu_edit.cli.trainer_cli import TrainerCLI, quiet
    from emu_edit.training.module import EditModule

    class Built(TrainerCLI):
        """Everything is parsed and built, as `fit` does it; nothing runs."""

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    with tempfile.TemporaryDirectory() as run, quiet():
        config = ["--config", str(find_config(options.config)), *NO_TRAINER]
        module = Built("fit", config, Path(run), begin=lambda _: None).model
    if not isinstance(module, EditModule):
        raise InputError(f"{options.config} trains no EditModule; give the config of one")
    return module.networks, module.editor_settings.image_size
