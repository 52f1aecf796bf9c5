"""NEW."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.editing.editor import Editor
from emu_edit.editing.find import CONFIG, INDEX, MODEL, choose_device
from emu_edit.errors import InputError
from emu_edit.evaluation.outputs import has_pictures, is_generations
from emu_edit.training.export import model_directory

if TYPE_CHECKING:
    pass


WORLD, HELDOUT = "world", "heldout"


# what an option says only to some of the benchmarks
OF_DRIFT = ("turns", "sessions")


OF_WORLD = ("pairs", "seed", "photos", "write_inputs", *OF_DRIFT)


OF_OTHERS = ("protocol", "backbones", "compare", "limit", "tasks")


# what of the world's options is about single edits of a model or somebody's pictures
OF_SCORING = (
    *("steps", "guidance_text", "guidance_image", "sampler"),
    *("output", "device", "data", "allow_missing"),
)


# None: whatever its files have
SPLITS = {WORLD: (HELDOUT, "train", "sentences", "pairs"), "emu-edit": None, "magicbrush": ()}


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that the chosen benchmark would not use.

    Raises:
        InputError: with the option and what it belongs to.
    """
    check_inputs_options(options)
    is_world = options.benchmark == WORLD
    for name in OF_OTHERS if is_world else OF_WORLD:
        if getattr(options, name) is not None:
            where = "emu-edit or magicbrush" if is_world else WORLD
            raise InputError(
                f"--{name.replace('_', '-')} belongs to --benchmark {where}; leave it out"
            )
    if options.drift and not is_world:
        raise InputError("--drift belongs to --benchmark world; leave it out")
    if options.drift and options.pairs is not None:
        raise InputError("--pairs counts pairs of single edits; with --drift give --sessions")
    for name in OF_DRIFT:
        if not options.drift and getattr(options, name) is not None:
            raise InputError(f"--{name} belongs to --drift; add --drift or leave it out")
    splits = SPLITS[options.benchmark]
    if options.split is not None and splits is not None and options.split not in splits:
        known = f"has {', '.join(splits)}" if splits else "has no splits; leave it out"
        raise InputError(f"--split {options.split}: {options.benchmark} {known}")
    if options.drift and options.split in {"sentences", "pairs"}:
        raise InputError(f"--split {options.split} is of single edits; --drift has heldout, train")


def check_inputs_options(options: argparse.Namespace) -> None:
    """Refuse a call without a model, unless it is --write-inputs, and what that would not use.

    Raises:
        InputError: saying what is missing or too much.
    """
    if options.write_inputs is None:
        if options.model is None:
            raise InputError(
                "evaluate needs a model or a folder of pictures; see emu-edit evaluate --help"
            )
        return
    if options.model is not None:
        raise InputError(
            f"--write-inputs writes what is to be edited and scores nothing; leave {options.model} "
            "out"
        )
    for name in OF_SCORING:
        if getattr(options, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} belongs to scoring; with --write-inputs leave it out"
            )
    if options.drift:
        raise InputError("--drift belongs to scoring; with --write-inputs leave it out")


def load_editor(options: argparse.Namespace) -> "Editor":
    """Load the model, its settings overridden by what the command line says.

    Raises:
        InputError: if there is no model, or a number is out of range.
    """
    from emu_edit.editing.editor import Editor

    with model_directory(options.model) as directory:
        editor = Editor.from_pretrained(directory, device=choose_device(options.device))
    editor.settings = options.sampling.applied(editor.settings)
    return editor


OF_EDITING = ("steps", "guidance_text", "guidance_image", "sampler")  # options about how we edit


def refuse_idle(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse options that pictures someone else made have no use for.

    Raises:
        InputError: with the first that was given.
    """
    for name in names:
        if getattr(options, name) is not None:
            raise InputError(
                f"{options.model} is a folder of pictures, which are scored as they are; leave "
                f"--{name.replace('_', '-')} out"
            )


def refuse_allow_missing(options: argparse.Namespace) -> None:
    """Refuse to let pictures be missing where a model makes them.

    Raises:
        InputError: if --allow-missing was given.
    """
    if options.allow_missing is not None:
        raise InputError(
            f"--allow-missing belongs to a folder of pictures, and {options.model} has none; leave "
            "it out"
        )


def are_pictures_meant(options: argparse.Namespace) -> bool:
    """Say whether somebody's pictures are to be scored, not a model.

    Raises:
        InputError: if a table in the folder cannot be read.
    """
    path: Path = options.model
    is_model = any((place / INDEX).is_file() for place in (path, path / MODEL))
    is_model |= (path / CONFIG).is_file()  # a run without a model yet: its pictures are grids
    return not is_model and (is_generations(path, options.benchmark) or has_pictures(path))
