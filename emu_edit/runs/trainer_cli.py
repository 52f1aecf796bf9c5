"""LightningCLI with run folders and errors in one line; what `fit`, `validate` and `test` do.

Module, data and trainer are built from a config; what a training leaves behind is made in
`report.py`. Two habits of LightningCLI are changed: `--ckpt_path` must not overrule the config with
what the checkpoint stores, and checkpoints are only read with `weights_only=True`.
"""

import logging
import sys
import tempfile
import time
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from callbacks.preemption import Stop, stopped
from callbacks.progress import time_limit
from emu_edit.editing.find import CONFIG, MODEL
from emu_edit.errors import InputError, StorageError
from emu_edit.files import write_text
from emu_edit.models.task_files import refuse_to_lose
from emu_edit.randomness import check_seed
from emu_edit.runs.failures import (
    check_accelerator,
    closing_connections,
    is_about_the_trainer,
    lost_rank,
    one_line,
    out_of_memory,
    precision_here,
    refusals_of_constructors,
    wrong_trainer,
)
from emu_edit.runs.folder import CHECKPOINTS, LAST, filled
from emu_edit.runs.lock import RunLock
from emu_edit.runs.options import (
    TrainOptions,
    config_arguments,
    find_config,
    measured_run,
    training_run,
)
from emu_edit.runs.report import write_report
from emu_edit.runs.resume import begin
from emu_edit.runs.status import StatusWriter
from emu_edit.training.based import ClipModule
from emu_edit.training.export import start_from
from emu_edit.training.loggers import WandbLogger, ending_wandb_run, redact
from emu_edit.training.module import EditModule

# warnings of Lightning that every run would show, and those about other libraries
NOISE = (
    r".*The dirpath has changed.*",  # a resumed run has a folder of its own
    r".*is smaller than the logging interval.*",
    r".*in eval mode at the start of training.*",
    r".*overridden `transfer_batch_to_device`.*",
    r".*does not have many workers.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r"The `local_dir_use_symlinks` argument.*",  # which diffusers gives
    r".*`?lr_scheduler.step\(\)`? before.*",
    r".*add the following callbacks: \['?\"?ModelCheckpoint.*",  # of before callbacks.durable
)
LONGEST = 200  # characters of what a library says
NO_TRAINER = (  # where only the module of a config is wanted
    *("--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.devices=1"),
    *("--trainer.num_nodes=1", "--trainer.strategy=auto", "--trainer.precision=32-true"),
)


class SaveConfig(SaveConfigCallback):
    """Write the config into the run's folder and the loggers, secrets replaced.

    `{run}` stays a placeholder, so that the file can be used again.
    """

    def __init__(self, *args: Any, folder: Path, **kwargs: Any) -> None:
        super().__init__(*args, save_to_log_dir=False, **kwargs)
        self.folder = folder

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Write the file; called on rank 0 only."""
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        values = {name: redact(section, name) for name, section in dumped.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / CONFIG, yaml.safe_dump(values, sort_keys=False))
        for logger in trainer.loggers:
            logger.log_hyperparams(values)


class TrainerCLI(LightningCLI):
    """LightningCLI whose run folder is known before anything is built."""

    def __init__(
        self,
        verb: str,
        arguments: list[str],
        folder: Path,
        *,
        begin: Callable[[Trainer], Path | None],
        start: Path | None = None,
    ) -> None:
        """Parse `arguments` and run `verb`.

        Args:
            verb: fit, validate or test.
            arguments: the command line after the verb.
            folder: the run's folder; `{run}` in a config's `trainer` stands for it.
            begin: called before training; returns the checkpoint to go on from, if there is one.
            start: a checkpoint or model directory whose weights the training begins with.
        """
        self.folder = folder
        self.start = start
        self.verb = verb
        self._begin = begin
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveConfig if verb == "fit" else None,
            save_config_kwargs={"folder": folder} if verb == "fit" else None,
            parser_kwargs={
                verb: {"exit_on_error": False, "description": f"emu-edit {verb}"},
                **{"exit_on_error": False, "prog": "emu-edit", "allow_abbrev": False},
            },
            args=[verb, *arguments],
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static in the parent
        """Name the verb alone: parsers of the others take half a second and are never asked."""
        return {self.verb: super().subcommands()[self.verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our own options; the value of `--run` was taken before parsing."""
        parser.add_argument("--run", type=str | None, default=None, help="folder of the run")
        parser.add_class_arguments(WandbLogger, "wandb", skip={"save_dir"}, instantiate=False)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; what jsonargparse complains about becomes one line.

        Raises:
            InputError: for an unknown or malformed option, or a seed out of range.
        """
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            known = [action.dest for action in self._parser(args[0])._actions]
            raise InputError(one_line(str(error), known)) from error
        seed = self.config[args[0]].seed_everything
        if type(seed) is int:  # true asks for a random one
            check_seed(seed, "--seed_everything", bits=32)

    def _parse_ckpt_path(self) -> None:
        """Do not let the configuration stored in a checkpoint overrule the user's."""

    def instantiate_classes(self) -> None:
        """Build module, data and trainer from the config with `{run}` filled in.

        Raises:
            InputError: if this machine cannot do what the trainer is asked for.
        """
        # before networks are loaded, which takes long
        check_accelerator(str(self.config[self.config.subcommand].trainer.accelerator))
        # as the parent does, but self.config keeps its placeholders: it is what will be saved
        config = self._for_this_run(self.config.clone())
        with refusals_of_constructors():
            self.config_init = self.parser.instantiate_classes(config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        if self.verb == "fit":  # hours before the export would
            layers = isinstance(self.model, ClipModule)
            refuse_to_lose(self.folder / MODEL, writes_layers=layers)
        if self.start is not None:
            if not isinstance(self.model, EditModule):
                raise InputError("--start_from is for weights; a new task begins at model.init")
            start_from(self.model, self.start)
        try:
            self.trainer = self.instantiate_trainer()
        except Exception as error:
            # callbacks, loggers and plugins are built by now: it is what Lightning says of options,
            # the machine or the launcher's variables
            usual = isinstance(error, ImportError | RuntimeError | ValueError)
            if not usual and not is_about_the_trainer(error):
                raise
            raise wrong_trainer(error) from error
        if self.trainer.is_global_zero and self.verb == "fit":
            self._say_how_it_begins(str(config.fit.trainer.precision))

    def _say_how_it_begins(self, precision: str) -> None:
        if self.start is not None:
            sys.stderr.write(f"starts with the weights of {self.start}\n")
        if (asked := str(self.config.fit.trainer.precision)) != precision:
            sys.stderr.write(f"{precision} in place of {asked}: this CPU has no bfloat16\n")

    def _for_this_run(self, config: Namespace) -> Namespace:
        section = config[self.config.subcommand]
        section.trainer = filled(section.trainer, str(self.folder))
        if section.trainer.default_root_dir is None:
            section.trainer.default_root_dir = str(self.folder)
        section.trainer.precision = precision_here(
            section.trainer.precision, str(section.trainer.accelerator)
        )
        if self.config.subcommand != "fit":
            section.trainer.logger = False
        elif chosen := {name: value for name, value in vars(section.wandb).items() if value}:
            section.trainer.logger = _with_wandb(section.trainer.logger, chosen, str(self.folder))
        if not section.trainer.logger:  # Lightning refuses it where nothing is logged
            given = section.trainer.callbacks or []
            section.trainer.callbacks = [
                each for each in given if not each.class_path.endswith(".LearningRateMonitor")
            ]
        return config

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb.

        Raises:
            OutOfMemoryError, LostRankError: if memory, or another process of the training, is gone.
            InputError: if the trainer's options do not fit together.
            StorageError: if a checkpoint holds something else than this training can go on with.
        """
        try:
            super()._run_subcommand(subcommand)
        except InputError:
            raise
        except Exception as error:
            raise self._worded(error, subcommand) from error

    def _worded(self, error: Exception, subcommand: str) -> Exception:
        """Return an error for a user in place of one of libraries, the same if it is a defect."""
        if is_about_the_trainer(error):
            return wrong_trainer(error)
        # Lightning 2.6 keeps the file's content as long as it restores from it
        if self.trainer._checkpoint_connector._loaded_checkpoint:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]
            return StorageError(
                f"{self.trainer.ckpt_path}: training cannot go on with what this checkpoint holds "
                f"({what}); take another one, or begin with its "
                "weights alone: --start_from"
            )
        if isinstance(error, RuntimeError | MemoryError):
            data = self.config[subcommand].data.init_args
            sizes = {name: data.get(name) for name in ("global_batch", "batch_size", "image_size")}
            can_plan = subcommand == "fit" and type(self.model) is EditModule
            no_memory = out_of_memory(error, self.trainer, **sizes, can_plan=can_plan)
            return no_memory or lost_rank(error, self.trainer) or error
        return error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        options = {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}
        resumed = self._begin(self.trainer) if subcommand == "fit" else None
        return options if resumed is None else {**options, "ckpt_path": str(resumed)}


def _with_wandb(loggers: Any, chosen: dict[str, Any], folder: str) -> list[Namespace]:
    """Give the config of W&B's logger what `--wandb.` chose, and add it where it is missing."""
    kept = loggers if isinstance(loggers, list) else [loggers] if loggers else []
    path = f"{WandbLogger.__module__}.{WandbLogger.__name__}"
    ours = [logger for logger in kept if logger.class_path == path]
    if not ours:
        ours = [Namespace(class_path=path, init_args=Namespace(save_dir=folder))]
        kept = [*kept, *ours]
    for logger in ours:
        logger.init_args.update(Namespace(**chosen))
    return kept


class UntrainedCLI(TrainerCLI):
    """Module, data and trainer of a config, built as `fit` does it; nothing runs."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        super().__init__("fit", arguments, folder, begin=lambda _: None)

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def untrained_module(config: str, *flags: str) -> EditModule:
    """Build the module a recipe or config file trains, changed by flags, with its first weights.

    Raises:
        InputError: if there is no such config, or it is not one of an EditModule.
    """
    arguments = [*config_arguments([find_config(config)]), *NO_TRAINER, *flags]
    with tempfile.TemporaryDirectory() as folder, quiet():
        module = UntrainedCLI(arguments, Path(folder)).model
    if not isinstance(module, EditModule):
        raise InputError(f"{config} trains no EditModule; give the config of one")
    return module


def run_trainer(verb: str, options: TrainOptions) -> int:
    """Run fit, validate or test; return the exit status.

    Args:
        verb: fit, validate or test.
        options: the command line after it.

    Raises:
        InputError: for anything wrong in options, config, data or checkpoint.
        KeyboardInterrupt: when the user stops the program.
    """
    start = time.monotonic()
    if verb == "fit":
        options, folder = training_run(options)
    else:
        options, folder = measured_run(verb, options)
    status = StatusWriter(folder)
    with (
        _leaving_nothing_empty(folder if options.run is None else None),
        closing_connections(),  # last of all: their end is what other ranks notice
        quiet(),
        ending_wandb_run(),
        RunLock(folder) as lock,
        status.noting_errors(),
    ):

        def begin_run(trainer: Trainer) -> Path | None:
            resumed = begin(trainer, lock, options.resume)
            status.follow(trainer)
            return resumed

        with _keyboard_interrupt(folder):
            arguments = options.to_arguments()
            cli = TrainerCLI(verb, arguments, folder, begin=begin_run, start=options.start)
        stop = stopped(cli.trainer)
        is_trial = cli.trainer.fast_dev_run  # type: ignore[attr-defined]  it writes nothing
        if cli.trainer.is_global_zero and stop is not Stop.no:
            _say_how_to_go_on(folder)
        elif cli.trainer.is_global_zero and verb == "fit" and not is_trial:
            write_report(cli.trainer, folder, options, time.monotonic() - start)
            if (ended := time_limit(cli.trainer)) is not None:
                _say_how_to_go_on(folder, ended, " --trainer.max_time DD:HH:MM:SS, more than now")
        return status.ended(stop)


@contextmanager
def _leaving_nothing_empty(folder: Path | None) -> Iterator[None]:
    """Take a folder that was made for this run away again when nothing has come to be in it."""
    try:
        yield
    finally:
        if folder is not None:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def quiet() -> Iterator[None]:
    """Show what our data modules log, and of Lightning only warnings."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    ours = logging.getLogger("datamodules")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            # Lightning calls jsonargparse and torch by old names; no user can change that
            warnings.simplefilter("ignore", DeprecationWarning)
            for message in NOISE:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        ours.removeHandler(handler)


@contextmanager
def _keyboard_interrupt(folder: Path) -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning, after its clean-up, calls sys.exit(1)."""
    try:
        yield
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        if (folder / CHECKPOINTS / LAST).is_file():
            _say_how_to_go_on(folder)
        raise KeyboardInterrupt from stop


def _say_how_to_go_on(folder: Path, ended: str = "stopped", more: str = "") -> None:
    sys.stderr.write(f"{ended}; go on with: emu-edit fit --resume auto --run {folder}{more}\n")
