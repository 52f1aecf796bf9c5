"""`emu-edit export CHECKPOINT -o DIR`: from training checkpoints to a model directory.

A run's task predictor comes along: it belongs to the instructions, not to a step of the training.
With `--task NAME --merge` the directory does one task and is a plain pipeline of diffusers.
"""

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from emu_edit.cli.arguments import ArgumentParser
from emu_edit.editing.find import INDEX, MODEL, PREDICTOR
from emu_edit.errors import InputError
from emu_edit.runs.folder import find_checkpoint, run_of


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit export",
        description="Turn a training checkpoint into a model directory (safetensors, diffusers "
        "layout) for `edit` and `evaluate`.",
    )
    made.add_argument(
        "checkpoints",
        type=Path,
        nargs="+",
        metavar="CHECKPOINT",
        help="a .ckpt file, or the folder of a run; of several, stages of one training say, the "
        "mean of the weights is written; with --merge also a model directory",
    )
    made.add_argument("-o", "--output", type=Path, required=True, help="directory to write")
    made.add_argument(
        "--weights",
        choices=("ema", "raw"),
        default="ema",
        help="ema: averaged over training (default); raw: as of the last step",
    )
    made.add_argument(
        "--half",
        action="store_true",
        help="store the network's weights, or its adapters, in 16 bits: half the size, results "
        "differ by a grey level",
    )
    made.add_argument(
        "--merge",
        action="store_true",
        help="fold the vector of --task into the U-Net of Stable Diffusion (or XL) that was "
        "trained: a pipeline for diffusers' StableDiffusionInstructPix2PixPipeline (or "
        "StableDiffusionXLInstructPix2PixPipeline), which needs no emu_edit",
    )
    made.add_argument(
        "--task", help="the task to --merge: a name, also a learned one, or a mix, A+B:0.3"
    )
    return made


def run(arguments: list[str]) -> int:
    """Write the model directory.

    Raises:
        InputError: if the checkpoint cannot be used, or the directory is something else's.
    """
    options = parser().parse(arguments)
    if options.merge != (options.task is not None):
        raise InputError(
            "--merge makes a model of one task, named by --task; give both, or neither"
        )
    if options.merge:
        return _merge(options)
    checkpoint, *others = map(find_checkpoint, options.checkpoints)
    from emu_edit.training.export import export_checkpoint

    export_checkpoint(checkpoint, options.output, ema=options.weights == "ema", others=others)
    if options.half:
        halve_network(options.output)
    keep_what_its_run_says(checkpoint, options.output)
    told = copy_predictor(checkpoint, options.output)
    weights = f"{options.weights} weights of {', '.join(map(str, (checkpoint, *others)))}"
    sys.stdout.write(f"wrote {options.output} ({weights}; {told})\n")
    return 0


def _merge(options: argparse.Namespace) -> int:
    """Write the pipeline of one task."""
    model, *others = options.checkpoints
    with TemporaryDirectory() as folder:
        if others or not (model / INDEX).is_file():
            model, *others = map(find_checkpoint, options.checkpoints)
            whole = Path(folder, "model")
            from emu_edit.training.export import export_checkpoint

            export_checkpoint(model, whole, ema=options.weights == "ema", others=others)
            model = whole
        from emu_edit.editing.task_mix import parse_task
        from emu_edit.training.merge import export_merged

        merged = export_merged(model, options.output, parse_task(options.task))
    if options.half:
        halve_network(options.output)
    settings, guidance = merged.settings, merged.settings.guidance
    sys.stdout.write(
        f"wrote {options.output}: task {options.task} for {merged.pipeline} "
        f"(num_inference_steps={settings.num_steps}, guidance_scale={guidance.text:g}, "
        f"image_guidance_scale={guidance.image:g}); the output of its U-Net is "
        f"{merged.deviation:.2%} off the model's own\n"
    )
    return 0


def halve_network(model: Path) -> None:
    """Round the network of a model directory, or its adapters, to float16.

    Loading makes float32 of it again. What has 16 bits already, a network in bfloat16, stays.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    places = (model / "unet", model / "transformer", model)
    for file in (file for place in places for file in place.glob("*.safetensors")):
        with safe_open(file, "pt") as whole:
            about = whole.metadata()  # of adapters, their alpha
        halves = {
            # cloned: what was read may lie in the file that is written
            name: tensor.to(torch.float16) if tensor.dtype == torch.float32 else tensor.clone()
            for name, tensor in load_file(file).items()
        }
        save_file(halves, file, metadata=about)


def keep_what_its_run_says(checkpoint: Path, model: Path) -> None:
    """Say in a model directory what the run's own says it has seen, and whose photographs."""
    from datamodules.world.write import PHOTOGRAPHS
    from emu_edit.files import write_json
    from emu_edit.models.directory import read_index

    run_folder = run_of(checkpoint)
    own = None if run_folder is None else run_folder / MODEL
    if own is None or not (own / INDEX).is_file():
        return
    seen = read_index(own)["_emu_edit"].get("trained_on")
    index = read_index(model)
    if seen is not None:
        index["_emu_edit"]["trained_on"] = seen
        write_json(model / INDEX, index)
    if (own / PHOTOGRAPHS).is_file():
        shutil.copyfile(own / PHOTOGRAPHS, model / PHOTOGRAPHS)


def copy_predictor(checkpoint: Path, model: Path) -> str:
    """Give a model directory the task predictor of the run a checkpoint lies in; say what was done.

    Raises:
        InputError: if the run's predictor cannot be read.
    """
    from emu_edit.editing.predictor import TaskPredictor

    run_folder = run_of(checkpoint)
    source = None if run_folder is None else run_folder / MODEL / PREDICTOR
    if source is None or not source.is_dir():
        return f"no task predictor; train one with 'emu-edit predictor fit {model}'"
    TaskPredictor.from_pretrained(source).save_pretrained(model / PREDICTOR)
    return "with the task predictor of its run"
