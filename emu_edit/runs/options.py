"""The options of fit, validate and test that are ours, and the files and the run folder they mean.

They are taken out before Lightning sees the command line, because a run's folder, its recipe and
its checkpoint must be known before anything is built. All others are left to Lightning.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from emu_edit.editing.find import CONFIG
from emu_edit.errors import InputError, closest
from emu_edit.runs.folder import new_run_folder, recipe_of, resumed_run_folder, run_of

SCORE_PAIRS = 8  # of each task: half a minute on two cores
ASKING = {"--help", "--print_config"}  # answered without training anything
DEFAULT_RECIPE = "tiny"
BASE = "base.yaml"  # in the folder above the recipes
# the recipes the released model was once trained by, now commands with flags
RETIRED = (
    "sharpen",
    "noops",
    "words",
    "shapes",
    "together",
    "settle",
    "roles",
    "replace",
    "finish",
    "polish",
)


@dataclass(frozen=True)
class TrainOptions:
    """The command line after the verb.

    Attributes:
        configs: the files after --config, in order; a later one changes an earlier one.
        checkpoint: the file to go on from, or to measure.
        start: the checkpoint or model directory whose weights a new training begins with.
        resume: how to go on with a run in its own folder; None begins another run.
        run: the folder the user wants.
        score_pairs: pairs of each task in the table that ends a training on the world; 0 for none.
        predictor: whether the model gets a task predictor, trained on its instructions.
        plan: whether only to count the memory that the training would take.
        rest: everything else, for Lightning.
    """

    configs: tuple[Path, ...]
    checkpoint: Path | None
    start: Path | None
    resume: Literal["auto", "strict"] | None
    run: str | None
    score_pairs: int
    predictor: bool
    plan: bool
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
        checkpoint = [] if self.checkpoint is None else ["--ckpt_path", str(self.checkpoint)]
        return [*config_arguments(self.configs), *self.rest, *checkpoint]


def config_arguments(configs: Iterable[Path]) -> list[str]:
    """Return the `--config` options for Lightning; before a recipe comes what it changes.

    That is what all recipes share, and of `a_b` the recipe `a`, if there is one.
    """
    found = []
    for config in configs:
        folder = config.absolute().parent
        if folder.name == "train" and (shared := folder.parent / BASE).is_file():
            recipes = sorted(folder.glob("*.yaml"))
            changed = [path for path in recipes if config.stem.startswith(f"{path.stem}_")]
            found += [part for path in (shared, *changed) for part in ("--config", str(path))]
        found += ["--config", str(config)]
    return found


def configs_folder() -> Path:
    """Return the folder of packaged configs.

    It lies beside the package `emu_edit` both in a checkout and where pip installs it; it is not
    looked up by its name, which a folder `configs` of the user would take over.
    """
    return Path(str(files("emu_edit"))).parent / "configs"


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(path.stem for path in (configs_folder() / "train").glob("*.yaml"))


def find_config(name: str) -> Path:
    """Return the file meant by `--config name`: a path, or the name or path of a packaged recipe.

    Raises:
        InputError: if there is neither such a file nor such a recipe.
    """
    packaged = configs_folder()
    candidates = (
        Path(name),
        packaged / "train" / f"{name}.yaml",
        packaged.parent / name,  # the path a recipe has in a checkout, e.g. configs/train/tiny.yaml
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    hint = closest(Path(name).stem, recipe_names())
    if Path(name).stem in RETIRED:
        hint = " It trained the released model; docs/released_model.md has it as a command."
    raise InputError(
        f"there is no config {name!r}; give a file or one of the recipes "
        f"{', '.join(recipe_names())}.{hint}"
    )


def training_run(options: TrainOptions) -> tuple[TrainOptions, Path]:
    """Return the options with a config, and the folder a training writes into.

    A run that goes on in its folder has its own config unless others are named.

    Raises:
        InputError: if the folder is that of a run which is not to go on, or cannot be agreed on.
    """
    if options.resume is None:
        source = None if options.checkpoint is None else run_of(options.checkpoint)
        named = options.with_default_config(_config_of(source))
        recipe = recipe_of(named.configs[0])
        return named, new_run_folder(recipe, named.run, is_taken=not options.only_asks)
    named = options.with_default_config(find_config(DEFAULT_RECIPE))
    folder = resumed_run_folder(recipe_of(named.configs[0]), options.run)
    return options.with_default_config(_config_of(folder)), folder


def planned(options: TrainOptions) -> TrainOptions:
    """Return the options with a config, as `training_run` does, but take no folder."""
    run = None if options.run is None else Path(options.run)
    source = run if options.checkpoint is None else run_of(options.checkpoint)
    return replace(options.with_default_config(_config_of(source)), checkpoint=None)


def measured_run(verb: str, options: TrainOptions) -> tuple[TrainOptions, Path]:
    """Return the options with the config of the run a checkpoint belongs to, and its folder.

    Raises:
        InputError: if no checkpoint is given, or nothing says how it was trained.
    """
    if options.only_asks:
        return options, Path()
    checkpoint = options.checkpoint
    if checkpoint is None:
        raise InputError(f"{verb} needs a checkpoint; give --ckpt_path FILE or a run's folder")
    folder = run_of(checkpoint)
    if folder is not None:
        return options.with_default_config(folder / CONFIG), folder
    if not options.configs:
        raise InputError(
            f"{checkpoint} lies in no run folder, so its config is unknown; give --config FILE"
        )
    return options, checkpoint.parent


def _config_of(folder: Path | None) -> Path:
    if folder is None or not (folder / CONFIG).is_file():
        return find_config(DEFAULT_RECIPE)
    return folder / CONFIG
