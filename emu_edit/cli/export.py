"""`emu-edit export CHECKPOINT -o DIR`: from a training checkpoint to a model directory."""

import sys
from pathlib import Path

from emu_edit.cli.arguments import ArgumentParser
from emu_edit.cli.run_folder import find_checkpoint


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit export",
        description="Turn a training checkpoint into a model directory (safetensors, diffusers "
        "layout) for `edit` and `evaluate`.",
    )
    made.add_argument("checkpoint", type=Path, help="a .ckpt file, or the folder of a run")
    made.add_argument("-o", "--output", type=Path, required=True, help="directory to write")
    made.add_argument(
        "--weights",
        choices=("ema", "raw"),
        default="ema",
        help="ema: averaged over training (default); raw: as of the last step",
    )
    return made


def run(arguments: list[str]) -> int:
    """Write the model directory.

    Raises:
        InputError: if the checkpoint cannot be used, or the directory is something else's.
    """
    options = parser().parse(arguments)
    checkpoint = find_checkpoint(options.checkpoint)
    from emu_edit.training.export import export_checkpoint

    export_checkpoint(checkpoint, options.output, ema=options.weights == "ema")
    sys.stdout.write(f"wrote {options.output} ({options.weights} weights of {checkpoint})\n")
    return 0
