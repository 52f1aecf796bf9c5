"""`emu-edit fit`, `validate`, `test`: the short help, and the way to Lightning's command line.

Only this module is imported for `--help`; `trainer_cli.py` does the work.
"""

import sys

from emu_edit.cli.recipes import recipe_names

HELP = {
    "fit": """\
usage: emu-edit fit [--config RECIPE] [OPTIONS]

Train an editor. Without arguments: the tiny one, on a built-in world that is written first.
Everything lands in one new folder, runs/RECIPE-DATE-TIME.

  --config RECIPE           a recipe ({recipes}) or a YAML file;
                            more --config files change what the first one says
  --run DIR                 the run's folder, instead of a new one under ./runs
  --resume auto             go on in the run's own folder (--run, else the newest of the recipe)
                            from its newest checkpoint that is whole; begin if there is none;
                            with strict, stop at a broken checkpoint instead of taking another
  --ckpt_path PATH          a new run from a checkpoint (a file, or the folder of a run)
  --start_from PATH         begin a new training with the weights of a model, run or checkpoint
  --score_pairs N           pairs of each task in the table at the end (8; 0 for no table)
  --no_predictor            do not train a task predictor at the end; edit then needs --task
  --seed_everything N       seed of the first weights
  --model.seed N            seed of noise, timesteps and dropout
  --trainer.max_epochs N    how long; an epoch is data.steps_per_epoch steps
  --trainer.accelerator X   cpu, gpu, auto …
  --trainer.devices N       how many
  --data.train DIR          your own shards (with --config pairs)
  --data.photos DIR         photographs as backgrounds of the world (with --config tiny)
  --data.global_batch N     pictures per optimizer step, over all devices
  --model.optimizer.lr X    peak learning rate
""",
    "validate": """\
usage: emu-edit validate --ckpt_path PATH [OPTIONS]

Measure the loss of a checkpoint on the validation pairs of the run it comes from.

  --ckpt_path PATH          a checkpoint file, or the folder of a run
  --config FILE             another config than the run's own config.yaml
""",
    "test": """\
usage: emu-edit test --ckpt_path PATH [OPTIONS]

Measure the loss of a checkpoint on the test pairs of the run it comes from.

  --ckpt_path PATH          a checkpoint file, or the folder of a run
  --config FILE             another config than the run's own config.yaml
""",
}
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
        sys.stdout.write(HELP[verb].replace("{recipes}", ", ".join(recipe_names())) + MORE)
        return 0
    from emu_edit.cli.trainer_cli import run_trainer

    return run_trainer(verb, ["--help" if a == "--help-all" else a for a in arguments])
