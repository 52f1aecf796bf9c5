"""`emu-edit predictor fit | evaluate`: train the task predictor of a model, and measure it."""

import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emu_edit.cli.arguments import ArgumentParser, Command, positive_int, run_command, seed_int
from emu_edit.editing.find import PREDICTOR, RELEASED, RUNS, choose_device, find_model, newest_model
from emu_edit.errors import InputError
from emu_edit.runs.learned_tasks import predictor_directory, teach_again
from emu_edit.terminal import plural

if TYPE_CHECKING:
    from emu_edit.editing.predictor import TaskPredictor
    from emu_edit.evaluation.predictor import Asked
    from emu_edit.tasks import TaskTable

# of a pretrained encoder: optimizer steps, texts per step, and the rate of a head alone
PRETRAINED_STEPS, PRETRAINED_BATCH, HEAD_LR = 700, 32, 3e-3
# of one that is tuned: the rate, how many times that of its head, the share of texts reworded
TUNING_LR, HEAD_BOOST, REWORDED = 3e-4, 30.0, 0.5


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
        "it. Without --data it learns everyday sentences and those of the built-in world, without "
        "--encoder with a bag of n-grams of its own.",
        epilog="example:\n"
        "  emu-edit predictor fit MODEL --data shards/train --encoder google/flan-t5-base",
    )
    made.add_argument(
        "model", type=Path, nargs="?", help="model directory or run folder (default: newest run's)"
    )
    made.add_argument("--data", type=Path, metavar="DIR", help="shards to take instructions from")
    made.add_argument(
        "--encoder",
        metavar="PATH",
        help="pretrained text encoder: a directory, a hub name, or all-MiniLM-L6-v2 "
        "where the extra 'sentences' is installed",
    )
    made.add_argument(
        "--freeze", action="store_true", help="train only the map from its features to the tasks"
    )
    made.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write the predictor here instead"
    )
    made.add_argument("--steps", type=positive_int, help="optimizer steps (default: by encoder)")
    made.add_argument("--batch", type=positive_int, help="texts per step (default: by encoder)")
    made.add_argument("--lr", type=float, help="peak learning rate (default: by encoder)")
    made.add_argument("--seed", type=seed_int, default=0, help="same seed, same predictor on a CPU")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if --encoder)")
    return made


def run_fit(arguments: list[str]) -> int:
    """Train, save, and say how sure the predictor may be."""
    options = fit_parser().parse(arguments)
    if options.freeze and options.encoder is None:
        raise InputError("--freeze needs --encoder: the n-grams of our own have to be trained")
    output: Path | None = options.output
    model = model_to_extend(options.model, output)
    from emu_edit.editing.predictor import INDEX
    from emu_edit.models.directory import refuse_another_kind
    from emu_edit.models.task_files import read_base_tasks
    from emu_edit.runs.predictor import describe_training, gather, gather_unseen, train_with_bar
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
    if options.encoder is not None:
        # it is large enough for all cores
        defaults = PredictorSettings(PRETRAINED_STEPS, PRETRAINED_BATCH, HEAD_LR, threads=None)
    if is_tuned:
        defaults = replace(defaults, lr=TUNING_LR, head_boost=HEAD_BOOST, reworded=REWORDED)
    settings = replace(
        defaults,
        steps=options.steps or defaults.steps,
        batch_size=options.batch or defaults.batch_size,
        lr=defaults.lr if options.lr is None else options.lr,
        seed=options.seed,
    )
    device = choose_device("cpu" if options.encoder is None else options.device)
    if options.encoder is None:
        predictor = tiny_predictor(tasks, seed=options.seed)
    else:
        predictor = pretrained_predictor(options.encoder, tasks, trainable=is_tuned)
    predictor.to(device)
    instructions = gather(options.data, tasks, seed=options.seed)
    unseen = gather_unseen(options.data, tasks, seed=options.seed)
    start = time.monotonic()
    calibration = train_with_bar(predictor, instructions, settings, unseen=unseen)
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
        description="Ask predictors for the task of instructions whose task is known; writes "
        "confusion.json, confusion.png and calibration.png for each.",
        epilog="example:\n"
        "  emu-edit predictor evaluate released predictor --sentences sentences.jsonl",
    )
    made.add_argument(
        "models",
        metavar="model",
        type=Path,
        nargs="+",
        help="model directory, run folder or predictor directory; several are shown side by side",
    )
    made.add_argument(
        "--split",
        choices=("heldout", "train"),
        default="heldout",
        help="of the built-in world; heldout: sentences that training never saw (default)",
    )
    made.add_argument("--data", type=Path, metavar="DIR", help="shards instead of the world")
    made.add_argument(
        "--sentences",
        type=Path,
        metavar="FILE",
        help='JSON lines with "text" and "tasks", any of which is right; or plain lines in a .txt, '
        "for which it is printed what the predictors say",
    )
    made.add_argument(
        "--texts", type=positive_int, default=1600, help="instructions of the world (default 1600)"
    )
    made.add_argument("--seed", type=seed_int, default=1, help="of the world (default 1)")
    made.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: beside each MODEL")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    return made


def run_evaluate(arguments: list[str]) -> int:
    """Measure the predictors, print the tables, write numbers and pictures."""
    options = evaluate_parser().parse(arguments)
    if options.data is not None and options.sentences is not None:
        raise InputError("--data and --sentences are two sources of instructions; give one")
    if options.output is not None and len(options.models) > 1:
        raise InputError("-o is the folder of one predictor; give one MODEL, or leave it out")
    directories = [predictor_directory(path) for path in options.models]
    from emu_edit.editing.predictor import TaskPredictor
    from emu_edit.evaluation.predictor import format_score, format_side_by_side, score, write_score

    device = choose_device(options.device)
    predictors = [TaskPredictor.from_pretrained(path).to(device) for path in directories]
    if options.sentences is not None and options.sentences.suffix == ".txt":
        return _say(options.sentences, predictors)
    name, source, asked = _instructions(options, predictors[0].tasks)
    results = {}
    for path, directory, predictor in zip(options.models, directories, predictors, strict=True):
        result = score(predictor, asked)
        beside = path.absolute()
        folder = options.output or beside.with_name(f"{beside.name}-predictor-{name}")
        write_score(folder, result, predictor=str(directory), source=source)
        results[beside.name] = result
        sys.stdout.write(f"{format_score(result)}\n\nwrote {folder}\n")
    if len(results) > 1:
        sys.stdout.write(f"\n{format_side_by_side(results)}\n")
    return 0


def _instructions(options: Namespace, tasks: "TaskTable") -> "tuple[str, str, list[Asked]]":
    """Return the instructions to ask for with their right answers, a short name and the source."""
    from datamodules.world.predictor_texts import shard_instructions, world_instructions
    from emu_edit.evaluation.predictor import read_sentences
    from emu_edit.terminal import step_bar

    if options.sentences is not None:
        file: Path = options.sentences
        return file.stem, file.name, read_sentences(file, tasks)
    with step_bar("reading", "instructions") as on_step:
        if options.data is not None:
            name, source = options.data.absolute().name, str(options.data)
            found = shard_instructions(options.data, on_step=on_step)
        else:
            name, source = options.split, f"{options.split} world, seed {options.seed}"
            found = world_instructions(
                options.seed, options.texts, split=options.split, on_step=on_step
            )
    return name, source, [(text, (task,)) for text, task in found]


def _say(file: Path, predictors: "list[TaskPredictor]") -> int:
    """Print what predictors say of the lines of a file, unsure ones with three answers."""
    from emu_edit.text_rules import clean_instruction

    lines = file.read_text(encoding="utf-8").splitlines()
    texts = [
        clean_instruction(line, f"{file}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    answers = [predictor.predict(texts) for predictor in predictors]
    for i, text in enumerate(texts):
        said = "\n".join(f"    {found[i].describe()}" for found in answers)
        sys.stdout.write(f"{text}\n{said}\n")
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
