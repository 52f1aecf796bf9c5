"""Every `fit` that README, docs and the recipes themselves show is run as written, two steps."""

import re
import shlex
from pathlib import Path

import pytest

from emu_edit.cli.main import main
from emu_edit.runs.options import configs_folder, recipe_names
from emu_edit.runs.status import RunStatus
from tests.datamodules.toy_shards import make_folder
from tests.runs.test_runs_configs import ON_A_CPU, SMALLER

ROOT = configs_folder().parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "configs" / "train").glob("*.yaml")),
]
FIT = re.compile(r"emu[-_]edit fit((?: +[^\s#&`]+)*)")
ELSEWHERE = {"released_model.md"}  # tests/runs/test_runs_configs.py reads these
VARIABLES = {"$RUN": "runs/of-a-job", "$SLURM_NNODES": "1"}
FOLDERS = {"my_shards", "my_val_shards", "shards/train", "shards/val", "my_pictures"}
FEW = (
    *ON_A_CPU,
    "--trainer.num_nodes=1",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--data.steps_per_epoch=2",
    "--no_predictor",
)
FEW_PAIRS = ("--data.global_batch=2", "--data.image_size=16", "--score_pairs=0")
FEW_OF_THE_WORLD = (*FEW_PAIRS, "--data.pairs=32")


def shown() -> list[str]:
    """Return the command lines that name a packaged recipe, each once."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in FIT.findall(text) if page.name not in ELSEWHERE else []:
            words = shlex.split(line.strip())
            recipe = words[words.index("--config") + 1] if "--config" in words else "tiny"
            if recipe in recipe_names() and "--print_config" not in words:
                found[shlex.join(words)] = page.name
    return sorted(found)


def few_steps(recipe: str, folder: Path) -> tuple[str, ...]:
    """Return what makes a recipe one of two steps on a small model."""
    if recipe == "inversion":
        return (*FEW, "--data.image_size=16", "--data.batch_size=2")
    if recipe == "sd15":
        slots = [f"--model.{slot}.path={folder}" for slot in ("denoiser", "text_encoder", "codec")]
        return (*FEW, *FEW_PAIRS, *slots, "--data.micro_batch=2", "--data.num_workers=0")
    pairs = FEW_PAIRS if recipe == "pairs" else FEW_OF_THE_WORLD
    return (*FEW, *pairs, *SMALLER[recipe])


@pytest.fixture
def shop(
    workplace: Path,
    model: Path,
    photo: Path,
    tiny_pairs_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with all that the commands name."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in FOLDERS:
        make_folder(workplace / name, {"local": 4, "style": 3}, size=16)
    (workplace / "DIR").mkdir()
    photo.rename(workplace / "DIR" / photo.name)
    (workplace / "MODEL_DIR").symlink_to(model)
    lines = tiny_pairs_folder / "instructions.jsonl"
    lines.write_text(re.sub(r', "task": "\w+"', "", lines.read_text()))
    (workplace / "MY_PAIRS").symlink_to(tiny_pairs_folder)
    return workplace


def test_the_pages_show_every_recipe() -> None:
    named = {word for line in shown() for word in shlex.split(line)}
    assert set(recipe_names()) <= named | {"tiny"}


@pytest.mark.slow
@pytest.mark.parametrize("line", shown())
def test_a_command_that_is_shown_trains(line: str, shop: Path, stable_diffusion: Path) -> None:
    words = [VARIABLES.get(word, word) for word in shlex.split(line)]
    recipe = words[words.index("--config") + 1] if "--config" in words else "tiny"
    if "my_cache" in words:
        pytest.skip("tests/datamodules/encoded trains from caches")
    assert main(["fit", *words, *few_steps(recipe, stable_diffusion)]) == 0
    (run,) = (shop / "runs").iterdir()
    status = RunStatus.read(run)
    assert status is not None
    assert (status.status, status.step) == ("done", 2)
