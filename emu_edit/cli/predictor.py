"""`emu-edit predictor fit | evaluate`: train the task predictor of a model, and measure it."""

import sys
import time
from pathlib import Path

from emu_edit.cli.arguments import ArgumentParser, Command, positive_int, run_command, seed_int
from emu_edit.editing.find import PREDICTOR, RELEASED, RUNS, choose_device, find_model, newest_model
from emu_edit.errors import InputError
from emu_edit.runs.learned_tasks import predictor_directory, teach_again
from emu_edit.terminal import plural

PRETRAINED_LR = 1e-4  # fine-tuning; a frozen encoder's head learns at the default rate


def run(arguments: list[str]) -> int:
    """Run one of the two commands.

    Raises:
        InputError: for an unknown command, or what the command cannot use.
    """
    commands = {
        "fit": Command(run_fit, "train a predictor and put it into a model directory"),
        "evaluate": Command(run_evaluate, "measure a predictor: accuracy, confusions, calibration"),
    }
    about = "The task predictor reads an instruction and names the kind of edit it asks for."
    return run_command("predictor", commands, arguments, about=about)


def fit_parser() -> ArgumentParser:
    """Build the parser of `predictor fit`."""
    made = ArgumentParser(
        prog="emu-edit predictor fit",
        description="Train a task predictor and put it into a model directory, where `edit` finds "
        "it. Without --data it learns the sentences of the built-in world, without --encoder with "
        "a small text encoder of its own.",
        epilog="example:\n"
        "  emu-edit predictor fit MODEL --data shards/train --encoder google/flan-t5-base",
    )
    made.add_argument(
        "model", type=Path, nargs="?", help="model directory or run folder (default: newest run's)"
    )
    made.add_argument("--data", type=Path, metavar="DIR", help="shards to take instructions from")
    made.add_argument(
        "--encoder", metavar="PATH", help="pretrained text encoder: a directory or a hub name"
    )
    made.add_argument(
        "--freeze", action="store_true", help="train only the map from its features to the tasks"
    )
    made.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write the predictor here instead"
    )
    made.add_argument(
        "--steps", type=positive_int, default=400, help="optimizer steps (default 400)"
    )
    made.add_argument(
        "--batch", type=positive_int, default=64, help="instructions per step (default 64)"
    )
    made.add_argument("--lr", type=float, help="peak learning rate (default: by encoder)")
    made.add_argument("--seed", type=seed_int, default=0, help="same seed, same predictor on a CPU")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if --encoder)")
    return made


def run_fit(arguments: list[str]) -> int:
    """Train, save, and say how sure the predictor may be."""
    options = fit_parser().parse(arguments)
    if options.freeze and options.encoder is None:
        raise InputError("--freeze needs --encoder: a small encoder of our own has to be trained")
    output: Path | None = options.output
    model = model_to_extend(options.model, output)
    from emu_edit.editing.predictor import INDEX
    from emu_edit.models.directory import refuse_another_kind
    from emu_edit.models.task_files import read_base_tasks
    from emu_edit.runs.predictor import describe_training, gather, train_with_bar
    from emu_edit.tasks import SIXTEEN
    from emu_edit.training.predictor import (
        PredictorSettings,
        pretrained_predictor,
        tiny_predictor,
    )

    folder = output
    if folder is None:
        assert model is not None  # found above when there is no output
        folder = model / PREDICTOR
    refuse_another_kind(folder, INDEX, what="task predictor")
    tasks = SIXTEEN if model is None else read_base_tasks(model)
    is_tuned = options.encoder is not None and not options.freeze
    defaults = PredictorSettings()
    settings = PredictorSettings(
        steps=options.steps,
        batch_size=options.batch,
        lr=(PRETRAINED_LR if is_tuned else defaults.lr) if options.lr is None else options.lr,
        seed=options.seed,
        # a pretrained encoder is large enough for all cores
        threads=defaults.threads if options.encoder is None else None,
    )
    device = choose_device("cpu" if options.encoder is None else options.device)
    if options.encoder is None:
        predictor = tiny_predictor(tasks, seed=options.seed)
    else:
        predictor = pretrained_predictor(options.encoder, tasks, trainable=is_tuned)
    predictor.to(device)
    instructions = gather(options.data, tasks, seed=options.seed)
    start = time.monotonic()
    calibration = train_with_bar(predictor, instructions, settings)
    predictor.save_pretrained(folder)
    sys.stdout.write(
        f"{describe_training(calibration)}\n"
        f"wrote {folder} ({plural(len(instructions), 'instruction')}, "
        f"{time.monotonic() - start:.0f} s)\n"
        f"{teach_again(model) if model is not None and output is None else ''}"
    )
    return 0


def evaluate_parser() -> ArgumentParser:
    """Build the parser of `predictor evaluate`."""
    made = ArgumentParser(
        prog="emu-edit predictor evaluate",
        description="Ask a predictor for the task of instructions whose task is known; writes "
        "confusion.json and confusion.png.",
    )
    made.add_argument("model", type=Path, help="model directory, run folder or predictor directory")
    made.add_argument(
        "--split",
        choices=("heldout", "train"),
        default="heldout",
        help="of the built-in world; heldout: sentences that training never saw (default)",
    )
    made.add_argument("--data", type=Path, metavar="DIR", help="shards instead of the world")
    made.add_argument(
        "--texts", type=positive_int, default=1600, help="instructions of the world (default 1600)"
    )
    made.add_argument("--seed", type=seed_int, default=1, help="of the world (default 1)")
    made.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: beside MODEL")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    return made


def run_evaluate(arguments: list[str]) -> int:
    """Measure the predictor, print the table, write numbers and picture."""
    options = evaluate_parser().parse(arguments)
    directory = predictor_directory(options.model)
    from datamodules.world.predictor_texts import shard_instructions, world_instructions
    from emu_edit.editing.predictor import TaskPredictor
    from emu_edit.evaluation.predictor import format_score, score, write_score
    from emu_edit.terminal import step_bar

    predictor = TaskPredictor.from_pretrained(directory).to(choose_device(options.device))
    with step_bar("reading", "instructions") as on_step:
        if options.data is None:
            source = f"{options.split} world, seed {options.seed}"
            found = world_instructions(
                options.seed, options.texts, split=options.split, on_step=on_step
            )
        else:
            source = str(options.data)
            found = shard_instructions(options.data, on_step=on_step)
    result = score(predictor, found)
    path = options.model.absolute()
    name = options.split if options.data is None else options.data.absolute().name
    folder = options.output or path.with_name(f"{path.name}-predictor-{name}")
    write_score(folder, result, predictor=str(directory), source=source)
    sys.stdout.write(f"{format_score(result)}\n\nwrote {folder}\n")
    return 0


def model_to_extend(path: Path | None, output: Path | None) -> Path | None:
    """Return the model whose tasks are learnt, and which gets the predictor without an `output`.

    None if neither says one: the predictor then knows the sixteen tasks.

    Raises:
        InputError: if there is no model, or it is the released one, which is not to be changed.
    """
    if path is None:
        return newest_model(RUNS) if output is None else None
    model = find_model(path)
    if model == RELEASED and output is None:
        raise InputError(
            "the released model belongs to the installation and has a predictor; give -o DIR"
        )
    return model
