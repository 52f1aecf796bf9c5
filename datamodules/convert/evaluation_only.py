"""Data sets that are for evaluation: no converter makes training data of them.

They are known by name, because a folder is usually called after what was downloaded, and by what
they hold, because it may have been renamed. Whether a picture of theirs hides in another set is a
question about pixels and is not answered here.
"""

from collections.abc import Collection
from pathlib import Path

from emu_edit.errors import InputError

EMU_EDIT, MAGICBRUSH = "the Emu Edit test set", "MagicBrush's test set"
# the columns of facebook/emu_edit_test_set and of its published generations, and those that hold
# the picture on the hub and in an export
_EMU_EDIT_COLUMNS = {"instruction", "task", "split", "idx", "input_caption", "output_caption"}
_EMU_EDIT_PICTURES = {"image", "file_name"}
# columns by which other benchmarks are known; image_field.md §4.4, §4.5 and their cards
_COLUMNS: tuple[tuple[str, frozenset[str]], ...] = (
    ("GEdit-Bench", frozenset({"task_type", "instruction_language", "input_image"})),
    ("MSE-Bench", frozenset({"context", "description_source", "description_target", "operation"})),
    (
        "CompBench",
        frozenset({"task", "image_path", "input_image", "edited_image", "caption", "mask"}),
    ),
    ("ImagenHub's benchmark", frozenset({"img_id", "turn_index", "target_local_caption"})),
)
# files by which a folder is known: with descriptions MagicBrush is the test set (train and dev have
# none); the others are the lists of ImgEdit-Bench, §4.3
_FILES = {
    "local_descriptions.json": MAGICBRUSH,
    "global_descriptions.json": MAGICBRUSH,
    "basic_edit.json": "ImgEdit-Bench",
    "UGE_edit.json": "ImgEdit-Bench",
}
_NAMES = {
    "emuedittestset": EMU_EDIT,
    "emuedittestsetgenerations": EMU_EDIT,
    "magicbrushtest": MAGICBRUSH,
    "geditbench": "GEdit-Bench",
    "imgeditbench": "ImgEdit-Bench",
    "msebench": "MSE-Bench",
    "compbench": "CompBench",
    "anyedittest": "AnyEdit-Test",
}


def refuse_kind(kind: str) -> None:
    """Refuse what stands for an evaluation set where a converter is asked for.

    Raises:
        InputError: if it does.
    """
    known = (_NAMES | {"emuedit": EMU_EDIT}).get(_squash(kind))
    if known is not None:
        raise InputError(_refusal(kind, known))


def refuse_path(path: Path) -> None:
    """Refuse a file or folder by its names and by the files in it.

    Raises:
        InputError: if it is a data set for evaluation.
    """
    # the hub's cache writes owner/name as datasets--owner--name
    names = [name for part in path.resolve().parts[1:] for name in (part, *part.split("--"))]
    for name in names:
        if (known := _NAMES.get(_squash(name))) is not None:
            raise InputError(_refusal(str(path), known))
    for folder in (path, path / "test"):
        for name, known in _FILES.items():
            if (folder / name).is_file():
                raise InputError(_refusal(str(folder), known))


def refuse_columns(columns: Collection[str], where: str) -> None:
    """Refuse a table by its columns.

    Raises:
        InputError: if they are those of a data set for evaluation.
    """
    if _EMU_EDIT_COLUMNS.issubset(columns) and not _EMU_EDIT_PICTURES.isdisjoint(columns):
        raise InputError(_refusal(where, EMU_EDIT))
    for known, needed in _COLUMNS:
        if needed.issubset(columns):
            raise InputError(_refusal(where, known))


def refusal_of_magicbrush(where: str) -> InputError:
    """Return the error for what is MagicBrush's test set."""
    return InputError(_refusal(where, MAGICBRUSH))


def _squash(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _refusal(where: str, what: str) -> str:
    measured = what in {EMU_EDIT, MAGICBRUSH}
    hint = "; measure with it: emu-edit evaluate --benchmark" if measured else ""
    return f"{where}: is {what}, which is for evaluation only and never becomes training data{hint}"
