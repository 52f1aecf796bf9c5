"""`emu-edit fit`, `validate`, `test`: the short help, and our own options.

Nothing heavy is imported for `--help`; `emu_edit.runs.trainer_cli` does the work.
"""

import os
import sys
from pathlib import Path

from emu_edit.cli.arguments import ArgumentParser, positive_or_zero
from emu_edit.editing.find import INDEX, RELEASED_NAME, find_model
from emu_edit.errors import InputError
from emu_edit.runs.folder import find_checkpoint
from emu_edit.runs.options import SCORE_PAIRS, TrainOptions, find_config, recipe_names

FIT = """\
usage: emu-edit fit [--config RECIPE [FILE ...]] [OPTIONS]

Train an editor. Without arguments: the tiny one, on a built-in world that is written first.
Everything lands in one new folder, runs/RECIPE-DATE-TIME.

  --config RECIPE [FILE ..] a recipe ({recipes})
                            or a YAML file; of several, also given as --config A --config B, the
                            later ones win: --config tiny mine.yaml. Flags win over all of them.
                            What recipes share, the trainer, is configs/base.yaml, read before them
  --run DIR                 the run's folder, instead of a new one under ./runs
  --resume auto             go on in the run's own folder (--run, else the newest of the recipe)
                            from its newest checkpoint that is whole; begin if there is none;
                            with strict, stop at a broken checkpoint instead of taking another
  --ckpt_path PATH          a new run from a checkpoint (a file, or the folder of a run)
  --start_from PATH         begin a new training with the weights of a model, run or checkpoint
  --score_pairs N           pairs of each task in the table at the end (8; 0 for no table)
  --no_predictor            do not train a task predictor at the end; edit then needs --task
  --plan                    print the memory that each device would need, and stop: status 0 if it
                            fits, 71 if not. Nothing is loaded but configs, nothing is written
  --seed_everything N       seed of the first weights
  --model.seed N            seed of noise, timesteps and dropout
  --trainer.max_epochs N    how long; an epoch is data.steps_per_epoch steps
  --trainer.accelerator X   cpu, gpu, auto …
  --trainer.devices N       how many
  --data.train DIR          your own shards (with --config pairs)
  --data.photos DIR         photographs as backgrounds of the world (with --config tiny)
  --data.global_batch N     pictures per optimizer step, over all devices
  --model.optimizer.lr X    peak learning rate
  --wandb.project P         likewise name, group, tags, entity, id; --wandb.log_model true keeps the
                            model there. Adds Weights & Biases to a recipe without it
"""
MEASURE = """\
usage: emu-edit {verb} --ckpt_path PATH [OPTIONS]

Measure the loss of a checkpoint on the {pairs} pairs of the run it comes from.

  --ckpt_path PATH          a checkpoint file, or the folder of a run
  --config FILE             another config than the run's own config.yaml
"""
MORE = """
  --print_config            print the config with everything filled in, and stop
  --help-all                every option (many)
"""


def run_fit(arguments: list[str]) -> int:
    """Train, then export, draw and score what was trained."""
    return _run("fit", arguments)


def run_validate(arguments: list[str]) -> int:
    """Measure the validation loss of a checkpoint."""
    return _run("validate", arguments)


def run_test(arguments: list[str]) -> int:
    """Measure the test loss of a checkpoint."""
    return _run("test", arguments)


def _run(verb: str, arguments: list[str]) -> int:
    if {"--help", "-h"}.intersection(arguments):
        pairs = "validation" if verb == "validate" else "test"
        page = FIT if verb == "fit" else MEASURE.format(verb=verb, pairs=pairs)
        sys.stdout.write(page.replace("{recipes}", ", ".join(recipe_names())) + MORE)
        return 0
    options = parse(verb, ["--help" if a == "--help-all" else a for a in arguments])
    if options.plan and not options.only_asks:
        from emu_edit.runs.plan import run_plan

        return run_plan(options)
    from emu_edit.runs.trainer_cli import run_trainer

    return run_trainer(verb, options)


def parse(verb: str, arguments: list[str]) -> TrainOptions:
    """Split the command line after `verb`; variables of the environment come before it.

    Raises:
        InputError: if a config or checkpoint does not exist.
    """
    parser = ArgumentParser(prog=f"emu-edit {verb}", description="", add_help=False)
    parser.add_argument("-c", "--config", action="extend", nargs="+", default=[])
    parser.add_argument("--ckpt_path", type=Path)
    if verb == "fit":  # measuring begins with a checkpoint's weights anyway
        parser.add_argument("--start_from", type=Path)
        parser.add_argument("--resume", choices=["auto", "strict"])
        parser.add_argument("--plan", action="store_true")
    parser.set_defaults(start_from=None, resume=None, plan=False)
    parser.add_argument("--run")
    parser.add_argument("--score_pairs", type=positive_or_zero, default=SCORE_PAIRS)
    parser.add_argument("--no_predictor", action="store_true")
    known, rest = parser.parse_known_args([*_from_environment(verb), *arguments])
    if known.start_from is not None and known.ckpt_path is not None:
        raise InputError(
            "--ckpt_path goes on with a training, --start_from begins a new one from weights; "
            "give one of them"
        )
    if known.resume is not None and known.ckpt_path is not None:
        raise InputError(
            "--resume looks for the checkpoint of a run itself, --ckpt_path names one for a "
            "new run; give one of them"
        )
    return TrainOptions(
        configs=tuple(find_config(name) for name in known.config),
        checkpoint=None if known.ckpt_path is None else find_checkpoint(known.ckpt_path),
        start=None if known.start_from is None else _weights_at(known.start_from),
        resume=known.resume,
        run=known.run,
        score_pairs=known.score_pairs,
        predictor=not known.no_predictor,
        plan=known.plan,
        rest=tuple(rest),
    )


def _from_environment(verb: str) -> list[str]:
    """Return options given by variables, which Lightning's command line names so.

    Lightning itself would let configs win over them, and here a recipe is always one of those.
    """
    start = f"PL_{verb.upper()}__"
    given = [(name, value) for name, value in sorted(os.environ.items()) if name.startswith(start)]
    return [
        f"--{name.removeprefix(start).lower().replace('__', '.')}={value}" for name, value in given
    ]


def _weights_at(path: Path) -> Path:
    """Return the model directory, `released` among them, or the checkpoint file meant by `path`.

    Raises:
        InputError: if there is neither.
    """
    is_released = str(path) == RELEASED_NAME and not path.exists()
    return find_model(path) if is_released or (path / INDEX).is_file() else find_checkpoint(path)
