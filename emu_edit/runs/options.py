"""The options of fit, validate and test that are ours; all others are left to Lightning.

They are taken out before Lightning sees the command line, because a run's folder, its recipe and
its checkpoint must be known before anything is built.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

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
