"""Where the packaged configs are, and how a config is named on the command line."""

from importlib.resources import files
from pathlib import Path

from emu_edit.errors import InputError, closest

DEFAULT_RECIPE = "tiny"


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
    raise InputError(
        f"there is no config {name!r}; give a file or one of the recipes "
        f"{', '.join(recipe_names())}.{hint}"
    )
