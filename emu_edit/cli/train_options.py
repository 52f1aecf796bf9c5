"""The options of fit, validate and test that are ours; all others are left to Lightning.

They are taken out before Lightning sees the command line, because a run's folder, its recipe and
its checkpoint must be known before anything is built.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from emu_edit.cli.arguments import ArgumentParser, positive_or_zero
from emu_edit.cli.find_model import INDEX
from emu_edit.cli.recipes import find_config
from emu_edit.cli.run_folder import find_checkpoint
from emu_edit.errors import InputError

SCORE_PAIRS = 8  # of each task: half a minute on two cores
ASKING = {"--help", "--print_config"}  # answered without training anything


@dataclass(frozen=True)
class TrainOptions:
    """What the command line says.

    Attributes:
        configs: the files after --config, in order; a later one changes an earlier one.
        checkpoint: the file to go on from, or to measure.
        start: the checkpoint or model directory whose weights a new training begins with.
        resume: how to go on with a run in its own folder; None begins another run.
        run: the folder the user wants.
        score_pairs: pairs of each task in the table that ends a training on the world; 0 for none.
        predictor: whether the model gets a task predictor, trained on its instructions.
        rest: everything else, for Lightning.
    """

    configs: tuple[Path, ...]
    checkpoint: Path | None
    start: Path | None
    resume: Literal["auto", "strict"] | None
    run: str | None
    score_pairs: int
    predictor: bool
    rest: tuple[str, ...]

    @staticmethod
    def parse(verb: str, arguments: list[str]) -> "TrainOptions":
        """Split the command line after `verb`.

        Raises:
            InputError: if a config or checkpoint does not exist.
        """
        parser = ArgumentParser(prog=f"emu-edit {verb}", description="", add_help=False)
        parser.add_argument("-c", "--config", action="append", default=[])
        parser.add_argument("--ckpt_path", type=Path)
        if verb == "fit":  # measuring begins with a checkpoint's weights anyway
            parser.add_argument("--start_from", type=Path)
            parser.add_argument("--resume", choices=["auto", "strict"])
        parser.set_defaults(start_from=None, resume=None)
        parser.add_argument("--run")
        parser.add_argument("--score_pairs", type=positive_or_zero, default=SCORE_PAIRS)
        parser.add_argument("--no_predictor", action="store_true")
        known, rest = parser.parse_known_args(arguments)
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
            rest=tuple(rest),
        )

    @property
    def only_asks(self) -> bool:
        """Whether the user wants to read, not to run."""
        return any(argument.partition("=")[0] in ASKING for argument in self.rest)

    def with_default_config(self, config: Path) -> "TrainOptions":
        """Return the options with `config` if they name none."""
        return self if self.configs else replace(self, configs=(config,))

    def to_arguments(self) -> list[str]:
        """Return the command line for Lightning; flags come last and so win over configs."""
        configs = [part for config in self.configs for part in ("--config", str(config))]
        checkpoint = [] if self.checkpoint is None else ["--ckpt_path", str(self.checkpoint)]
        return [*configs, *self.rest, *checkpoint]


def _weights_at(path: Path) -> Path:
    """Return the model directory or the checkpoint file meant by `path`.

    Raises:
        InputError: if there is neither.
    """
    return path if (path / INDEX).is_file() else find_checkpoint(path)
