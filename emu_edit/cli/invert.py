"""`emu-edit invert --task NAME --data DIR`: teach a finished model a new task from a few pairs.

Everything a user can get wrong is found before the first step.
"""

import sys
import time
from pathlib import Path

from emu_edit.cli.arguments import ArgumentParser, positive_int, seed_int
from emu_edit.editing.find import find_model
from emu_edit.errors import InputError
from emu_edit.runs.learned_tasks import model_to_change

EPILOG = """\
DATA is a folder of shards (see 'emu-edit shards'), a folder with source/, target/ and
instructions.jsonl, a .jsonl file, a folder with images/, control/ and .txt, or one with source/ and
target/ of equal names, for which --instruction says what is asked for. All pairs have to be usable.

From 5 pairs on, a fifth is held out: the vector that does best on them is kept, and learning ends
when it gets no better. Beside the file, a picture shows what became of them (of the pairs learnt
from, when none are held out).

The model stays as it is: what is learnt is one vector, a file of a few kB for this model and no
other. For batch jobs with logging and checkpoints: emu-edit fit --config inversion.

examples:
  emu-edit invert --task contour --data my_pairs --instruction "draw the contours"
  emu-edit edit photo.png "draw the contours" --task contour.safetensors -o drawn.png
"""


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit invert",
        description="Teach a model a new task from 1 to 100 pairs, without changing it.",
        epilog=EPILOG,
    )
    made.add_argument("--task", required=True, metavar="NAME", help="what to call the new task")
    made.add_argument("--data", required=True, type=Path, help="the pairs, see below")
    made.add_argument(
        "--model", type=Path, help="model directory or run folder (default: newest in ./runs)"
    )
    made.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: NAME.safetensors, here"
    )
    made.add_argument("--description", default="", metavar="TEXT", help="what it does, in a line")
    made.add_argument(
        "--instruction", default="", metavar="TEXT", help="for pairs that say nothing themselves"
    )
    _add_learning(made)
    made.add_argument("--install", action="store_true", help="also put it into the model directory")
    made.add_argument(
        "--predictor",
        action="store_true",
        help="let the model's task predictor know it by the pairs' instructions, too",
    )
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    return made


def _add_learning(made: ArgumentParser) -> None:
    made.add_argument(
        "--init",
        default="best",
        help="where to begin: best (whichever task has the lowest error, default), mean (of all), "
        "nearest (what the predictor takes the instructions for), none (the zero vector), or a "
        "task's name",
    )
    made.add_argument(
        "--steps", type=positive_int, default=300, help="optimizer steps at most (default 300)"
    )
    made.add_argument("--batch", type=positive_int, default=8, help="samples per step (default 8)")
    made.add_argument("--lr", type=float, default=0.3, help="peak learning rate (default 0.3)")
    made.add_argument(
        "--pairs", type=positive_int, metavar="N", help="take N of the pairs, drawn by the seed"
    )
    made.add_argument(
        "--max-pairs", type=positive_int, default=100, help="refuse more, without --pairs"
    )
    made.add_argument(
        "--flip",
        action="store_true",
        help="learn from mirrored pairs, too; wrong where left, right or words matter",
    )
    made.add_argument("--seed", type=seed_int, default=0, help="same seed, same vector on a CPU")


def run(arguments: list[str]) -> int:
    """Learn the task, write its file and picture, and print what to do next.

    Raises:
        InputError: if name, output, model, pairs or options cannot be used.
    """
    options = parser().parse(arguments)
    model = find_model(options.model)
    output = checked_output(options.output, options.task, model, description=options.description)
    if options.install:
        model_to_change(model)
    from datamodules.fewshot import FewShotSource, read_few_shot
    from emu_edit.editing.editor import Editor
    from emu_edit.editing.settings import EditorSettings
    from emu_edit.models.directory import read_index
    from emu_edit.runs.inversion import Inversion, write_new_task
    from emu_edit.terminal import step_bar
    from emu_edit.training.inversion import InversionSettings, invert
    from emu_edit.training.new_task import check_init

    settings = InversionSettings(
        steps=options.steps,
        batch_size=options.batch,
        lr=options.lr,
        init=options.init,
        flip=options.flip,
        seed=options.seed,
    )
    source = FewShotSource(
        options.data,
        options.task,
        options.instruction,
        pairs=options.pairs,
        max_pairs=options.max_pairs,
        seed=options.seed,
    )
    # the size is in the index: what is wrong with the pairs is found before weights are loaded
    size = EditorSettings.from_dict(read_index(model)["_emu_edit"], where=f"{model}").image_size
    pairs = read_few_shot(source, image_size=size)
    editor = Editor.from_pretrained(model, options.device)
    check_init(options.init, editor)
    if options.predictor and editor.predictor is None:
        raise InputError(
            "this model has no task predictor that could know the task; leave --predictor out"
        )
    start = time.monotonic()
    with step_bar(f"learning {options.task}") as on_step:
        result = invert(editor, pairs, settings, on_step)
    seconds = time.monotonic() - start
    inversion = Inversion(
        options.task, options.description, pairs, result, seed=options.seed, seconds=seconds
    )
    report = write_new_task(
        inversion,
        editor,
        model,
        output=output,
        install=options.install,
        with_predictor=options.predictor,
    )
    sys.stdout.write(report.to_json() if options.json else report.to_words())
    return 0


def checked_output(path: Path | None, task: str, model: Path, *, description: str) -> Path:
    """Return the file to write; refuse what would only be found wrong after learning.

    Raises:
        InputError: if the name is odd or taken, the description is no text, or the file is
            something else.
    """
    from emu_edit.models.learned_task import SUFFIX, LearnedTask, check_task_path
    from emu_edit.models.task_files import check_free
    from emu_edit.text_rules import clean_instruction

    check_free(model, task)
    if description:
        clean_instruction(description, what="description")
    output = check_task_path(Path(f"{task}{SUFFIX}") if path is None else path)
    if output.exists():
        LearnedTask.load(output)  # refuses to replace anything else
    return output
