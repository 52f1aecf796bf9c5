import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks import EarlyStopping

from callbacks.ema import Ema
from datamodules.edit import EditDataModule
from datamodules.fewshot_data import FewShotData
from emu_edit.cli.main import main
from emu_edit.diffusion.flow import DynamicShift, FlowSchedule
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.errors import InputError
from emu_edit.models.given import Given, GivenFrames
from emu_edit.runs.options import (
    BASE,
    RETIRED,
    config_arguments,
    configs_folder,
    find_config,
    recipe_names,
)
from emu_edit.runs.trainer_cli import UntrainedCLI, quiet
from emu_edit.training.checkpoint_io import DurableCheckpointIO
from emu_edit.training.inversion import InversionSettings
from emu_edit.training.inversion_module import InversionModule
from emu_edit.training.module import EditModule
from tests.models.tiny_flux3 import write_dev, write_flux3
from tests.models.tiny_published import (
    write_klein,
    write_kontext,
    write_longcat,
    write_qwen,
    write_sdxl,
)

RECIPES = sorted((configs_folder() / "train").glob("*.yaml"))
PARTS = sorted(set(configs_folder().rglob("*.yaml")) - set(RECIPES))
ON_A_CPU = (
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.precision=32",
)
NARROW = ("--model.denoiser.channels=[32, 32]", "--model.denoiser.attention=[false, true]")
SMALLER = {
    "tiny": NARROW,
    "long": NARROW,
    "photos": NARROW,
    "pairs": NARROW,
    "smoke": (),
    "text_to_image": NARROW,
}
VIDEOS = {
    "emu_video": GivenFrames(),
    "emu_video_high": GivenFrames(),
    "emu_video_motion": GivenFrames(),
    "emu_video_extend": GivenFrames(Given.past),
    "emu_video_interpolation": GivenFrames(Given.interleaved, 4, train_noise=250, noise=100),
}
WHOLE_NETWORK = "--model.denoiser.lora_rank=0"  # LoRA needs an extra
PUBLISHED = {
    "klein": (
        write_klein,
        (WHOLE_NETWORK, "--model.text_encoder.layers=[1, 2, 3]"),
        FlowSchedule(flux2=True),
    ),
    "sdxl": (write_sdxl, (), NoiseSchedule.scaled_linear(zero_terminal_snr=False)),
    "qwen": (
        write_qwen,
        (WHOLE_NETWORK,),
        FlowSchedule(dynamic=DynamicShift(0.5, 0.9, 256, 8192), shift_terminal=0.02),
    ),
    "kontext": (write_kontext, (WHOLE_NETWORK,), FlowSchedule(dynamic=DynamicShift())),
    "flux2dev": (
        write_dev,
        (WHOLE_NETWORK, "--model.text_encoder.layers=[1, 2, 3]"),
        FlowSchedule(flux2=True),
    ),
    "flux3": (
        write_flux3,
        (WHOLE_NETWORK, "--model.text_encoder.layers=[1, 2, 3]"),
        FlowSchedule(6.93),
    ),
    "longcat": (write_longcat, (WHOLE_NETWORK,), FlowSchedule(dynamic=DynamicShift())),
}
# a recipe that changes another one: its name begins with that one's
WHOLE = [path for path in RECIPES if path.stem not in VIDEOS or path.stem == "emu_video"]


def skip_without_accelerate(recipe: str) -> None:
    """Skip what loads a FLUX.3, which has weights of two precisions, where a package is missing."""
    if recipe == "flux3":
        pytest.importorskip("accelerate", reason="FLUX.3 needs the extra `lora`")


def build(recipe: str, folder: Path, *options: str) -> UntrainedCLI:
    with quiet():
        return UntrainedCLI([*config_arguments([find_config(recipe)]), *ON_A_CPU, *options], folder)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.mark.parametrize("recipe", sorted(SMALLER))
def test_a_recipe_builds_module_data_and_trainer(recipe: str, workplace: Path) -> None:
    built = build(recipe, workplace / "run", *SMALLER[recipe])
    assert isinstance(built.model, EditModule)
    assert isinstance(built.datamodule, EditDataModule)
    callbacks = built.trainer.callbacks  # type: ignore[attr-defined]
    assert any(isinstance(callback, Ema) for callback in callbacks)
    assert isinstance(built.trainer.strategy.checkpoint_io, DurableCheckpointIO)
    assert built.trainer.default_root_dir == str(workplace / "run")
    (csv, *_) = built.trainer.loggers
    assert csv.log_dir == str(workplace / "run" / "logs")


def test_the_production_recipe_builds_from_a_model_directory(
    workplace: Path, stable_diffusion: Path
) -> None:
    paths = (
        f"--model.{slot}.path={stable_diffusion}" for slot in ("denoiser", "text_encoder", "codec")
    )
    built = build("sd15", workplace / "run", *paths)
    assert isinstance(built.model, EditModule)
    assert built.model.networks.denoiser.latent_channels == 4


@pytest.mark.parametrize("recipe", sorted(PUBLISHED))
def test_the_recipe_of_a_base_builds_from_its_published_layout(
    recipe: str, workplace: Path, tmp_path: Path
) -> None:
    skip_without_accelerate(recipe)
    write, small, schedule = PUBLISHED[recipe]
    write(tmp_path / "base")
    paths = (
        f"--model.{slot}.path={tmp_path / 'base'}" for slot in ("denoiser", "text_encoder", "codec")
    )
    built = build(recipe, workplace / "run", *paths, *small)
    assert isinstance(built.model, EditModule)
    assert built.model.schedule.to_config() == schedule.to_config()


def test_the_recipe_of_a_new_task_builds_from_a_model_directory(
    workplace: Path, model: Path
) -> None:
    built = build("inversion", workplace / "run", f"--model.model={model}")
    assert isinstance(built.model, InversionModule)
    assert isinstance(built.datamodule, FewShotData)
    trainer = built.trainer
    assert isinstance(trainer.strategy.checkpoint_io, DurableCheckpointIO)
    defaults = InversionSettings()
    assert built.datamodule.batch_size == defaults.batch_size
    assert built.datamodule.steps_per_epoch == defaults.check_every
    assert trainer.max_epochs * defaults.check_every == defaults.steps  # type: ignore[operator]
    (ema,) = [c for c in trainer.callbacks if isinstance(c, Ema)]  # type: ignore[attr-defined]
    (stopper,) = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
    assert (ema.decay, stopper.patience) == (defaults.ema, defaults.patience)
    assert built.model.optimizer_settings.lr == defaults.lr


def test_every_recipe_is_built_by_a_test() -> None:
    assert recipe_names() == sorted([
        *SMALLER,
        *VIDEOS,
        "edit_adapter",
        "eve",
        "sd15",
        *PUBLISHED,
        "inversion",
    ])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_and_what_to_expect(recipe: Path) -> None:
    opening = recipe.read_text().partition("\nmodel:")[0]
    assert all(line.startswith("#") for line in opening.splitlines())
    assert "emu-edit fit" in opening
    assert "expected:" in opening


def test_a_recipe_references_model_and_data_and_changes_only_the_trainer() -> None:
    for recipe in WHOLE:
        values = yaml.safe_load(recipe.read_text())
        assert sorted(values) == ["data", "model", "trainer"]
        for group in ("data", "model"):
            assert (recipe.parent / values[group]).is_file()


def test_recipes_share_one_trainer_and_say_only_what_differs() -> None:
    base = yaml.safe_load((configs_folder() / BASE).read_text())["trainer"]
    own = [yaml.safe_load(recipe.read_text())["trainer"] for recipe in WHOLE]
    for values in own:
        assert not [key for key in values if key in base and values[key] == base[key]]
    assert not (configs_folder() / "trainer").exists()


def test_no_two_configs_say_the_same() -> None:
    said = [yaml.safe_load(path.read_text()) for path in (*RECIPES, *PARTS)]
    assert all(first != second for first, second in combinations(said, 2))


def test_every_part_is_used() -> None:
    used = {
        (path.parent / reference).resolve()
        for path in (*RECIPES, *PARTS)
        for reference in re.findall(r"^[^#\n]* ([./\w]+\.yaml)$", path.read_text(), re.MULTILINE)
    }
    assert used == {part.resolve() for part in PARTS if part.name != BASE}


@pytest.mark.parametrize("name", ["tiny", "configs/train/tiny.yaml"])
@pytest.mark.usefixtures("workplace")
def test_a_recipe_is_found_by_name_and_path_from_any_folder(name: str) -> None:
    assert find_config(name) == configs_folder() / "train" / "tiny.yaml"


def test_a_config_of_the_user_comes_before_a_packaged_one(workplace: Path) -> None:
    (workplace / "tiny").write_text("seed_everything: 1\n")
    assert find_config("tiny") == Path("tiny")


@pytest.mark.usefixtures("workplace")
def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"no config 'tinny'; .*pairs.* Did you mean 'tiny'"):
        find_config("tinny")


@pytest.mark.parametrize("name", RETIRED)
@pytest.mark.usefixtures("workplace")
def test_a_recipe_of_the_released_model_is_refused_with_where_its_command_is(name: str) -> None:
    with pytest.raises(InputError, match=rf"no config '{name}'; .*docs/released_model\.md has it"):
        find_config(name)
    page = (configs_folder().parent / "docs" / "released_model.md").read_text()
    assert f"`{name}`" in page


OVER = """
trainer:
  max_epochs: 7
data:
  init_args:
    pairs: 55
"""


@pytest.mark.parametrize(
    "asked",
    [
        ["--config", "smoke", "over.yaml"],
        ["--config", "smoke", "--config", "over.yaml"],
        ["--config=smoke", "-c", "over.yaml"],
        ["--config", str(configs_folder() / "train" / "smoke.yaml"), "over.yaml"],
    ],
)
def test_the_later_of_several_configs_wins_and_a_flag_over_all(
    asked: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "over.yaml").write_text(OVER)
    values = printed(capsys, *asked, "--data.image_size=16")
    assert values["trainer"]["max_epochs"] == 7
    assert values["trainer"]["check_val_every_n_epoch"] == 2
    assert values["data"]["init_args"]["pairs"] == 55
    assert values["data"]["init_args"]["image_size"] == 16


@pytest.mark.usefixtures("workplace")
def test_a_recipe_after_a_file_wins_over_it(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "over.yaml").write_text(OVER)
    values = printed(capsys, "--config", "smoke", "over.yaml", "tiny")
    assert values["trainer"]["max_epochs"] == 4
    assert values["data"]["init_args"]["pairs"] == 20000


def test_a_config_of_the_user_gets_no_trainer_of_ours(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke = configs_folder() / "model" / "smoke.yaml"
    (workplace / "mine.yaml").write_text(
        f"model: {smoke}\ndata: {smoke.parents[1]}/data/smoke.yaml\n"
    )
    assert printed(capsys, "--config", "mine.yaml")["trainer"]["callbacks"] is None


def test_lightning_reads_a_recipe_after_the_base_alone() -> None:
    recipe = configs_folder() / "train" / "tiny.yaml"
    base = str(configs_folder() / BASE)
    assert config_arguments([recipe]) == ["--config", base, "--config", str(recipe)]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return what fit would train, as `--print_config` says it."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["fit", "--config=smoke", *arguments]) == 78
    printed = capsys.readouterr()
    assert printed.err.startswith("emu-edit: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.predicton=v", "model: .*'predicton' is not accepted.*Did you mean 'prediction'"),
        ("--trainer.max_epoch=2", "trainer.max_epoch"),
        ("--datta.pairs=2", "unrecognized arguments: --datta.pairs=2"),
        ("--trainer.max_epochs=many", "trainer.max_epochs: .*many"),
        ("--model.prediction=vv", "vv"),
        ("--model.denoiser=NoSuchNetwork", "model.denoiser: .*NoSuchNetwork"),
        ("--trainer.accelerator=tpu", "trainer: .*(TPU|torch_xla)"),
        ("--data.photos=missing", "photos='missing' is not a folder"),
        ("--model.optimizer.lr=-1", "optimizer.lr must be above 0, got -1"),
        ("--model.prediction=eps", "cannot be used with a zero-terminal-SNR schedule"),
        ("--ckpt_path=missing.ckpt", "there is no checkpoint at missing.ckpt"),
        ("--start_from=missing", "there is no checkpoint at missing"),
        ("--config=missing.yaml", "there is no config 'missing.yaml'"),
        ("--score_pairs=x", "--score_pairs: needs a whole number of at least 0, got 'x'"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_a_wrong_option_is_refused_in_one_line(
    option: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(words, refused(capsys, option))


@pytest.mark.usefixtures("workplace")
def test_going_on_and_starting_from_weights_exclude_each_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = "--ckpt_path goes on with a training, --start_from begins a new one"
    assert reason in refused(capsys, "--ckpt_path=a.ckpt", "--start_from=b.ckpt")


def test_a_wrong_key_in_a_config_file_is_refused_with_the_nearest_key(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, nearest, text in (
        ("max_epoch", "max_epochs", "trainer:\n  max_epoch: 3\n"),
        (
            "warmup_step",
            "warmup_steps",
            "model:\n  init_args:\n    optimizer:\n      warmup_step: 3\n",
        ),
        ("modle", "model", "modle: 3\n"),
    ):
        (workplace / "over.yaml").write_text(text)
        error = refused(capsys, "--config=over.yaml")
        assert key in error
        assert f"Did you mean '{nearest}'" in error


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_measuring_needs_a_checkpoint_and_its_config(
    verb: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb]) == 78
    assert f"{verb} needs a checkpoint; give --ckpt_path" in capsys.readouterr().err
    (workplace / "stray.ckpt").write_bytes(b"")
    assert main([verb, "--ckpt_path=stray.ckpt"]) == 78
    assert "lies in no run folder, so its config is unknown" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
def test_the_config_can_be_printed_without_training(capsys: pytest.CaptureFixture[str]) -> None:
    values = printed(capsys, "--config=smoke", "--data.pairs=77")
    assert values["data"]["init_args"]["pairs"] == 77
    assert not Path("runs").exists()
