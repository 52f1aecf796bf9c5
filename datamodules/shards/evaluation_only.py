"""Data sets that are for evaluation: no converter and no writer makes training data of them.

They are known by name, because a folder is usually called after what was downloaded, by what they
hold, because it may have been renamed, and by what a sample says of itself, because rows are copied
with their fields. Whether a picture of theirs hides in another set is a question about pixels and
is not answered here (`datamodules.checks.leaks` does). What is refused raises an InputError.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from emu_edit.errors import InputError
from emu_edit.files import read_regular

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
    # items.jsonl and edits.jsonl of `emu-edit evaluate --benchmark`
    ("the result of a benchmark", frozenset({"key", "source_sha256", "output_sha256", "status"})),
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
    "geditbenchv2": "GEditBench v2",
    "msebench": "MSE-Bench",
    "compbench": "CompBench",
    "anyedittest": "AnyEdit-Test",
    "edivalbench": "EdiVal-Bench",
    "paintbench": "PaintBench",
    "krisbench": "KRIS-Bench",
    "risebench": "RISEBench",
    "unicbench": "UnicBench",
    "giebench": "GIE-Bench",
}
# what `emu-edit evaluate` writes beside the pictures of a benchmark, and fields it alone has
_EXPORTS = {
    "benchmark.json": {"benchmark", "pairs_sha256"},
    "results.json": {"benchmark", "protocol"},
}
_MOST_BYTES = 64 * 2**20  # of such a file
# fields in which a sample or a manifest says where it comes from, and how a row inherits them: a
# record has instruction and task of its own, and its source is the picture of any benchmark
_ORIGINS = ("dataset", "origin", "source", "path", "repo")
_INHERENT = {"instruction", "task", "image", "input_image"}


def refuse_kind(kind: str) -> None:
    """Refuse what stands for an evaluation set where a converter is asked for."""
    _refuse(kind, _kind(kind))


def refuse_path(path: Path) -> None:
    """Refuse a data set for evaluation, or what a benchmark made of one, by its names and files."""
    refuse_name(path)
    for folder in (path, path / "test"):
        for name, known in _FILES.items():
            if (folder / name).is_file():
                _refuse(str(folder), known)
    for folder in (path, path.parent):  # the pictures of a benchmark's results lie in images/
        _refuse(str(folder), _export(folder))


def refuse_name(path: Path) -> None:
    """Refuse a file or folder by its names, and by those a link leads to."""
    for place in (path.absolute(), path.resolve()):
        _refuse(str(path), _named("/".join(place.parts[1:])))


def refuse_output(folder: Path) -> None:
    """Refuse to write shards into a folder called after a data set for evaluation.

    Its name and that of the folder around it count, not those further up: one may work there.
    """
    _refuse(str(folder), _named("/".join(folder.absolute().parts[-2:])))


def refuse_declared(fields: Mapping[str, object], where: str) -> None:
    """Refuse what says of itself that it is for evaluation: a sample's fields, or a manifest's.

    Raises:
        InputError: if a field names a benchmark, or together they are a benchmark's columns.
    """
    refuse_columns(fields.keys() | _INHERENT, where)
    benchmark = fields.get("benchmark")
    if isinstance(benchmark, str) and benchmark:
        raise _refusal(where, f"of the benchmark {benchmark!r:.60}")
    for name in _ORIGINS:
        text = fields.get(name)
        if not isinstance(text, str):
            continue
        known = _named(text) or (_kind(text) if name == "dataset" else None)
        if known is None and fields.get("split") == "test":
            known = _named(f"{text}-test")  # "osunlp/MagicBrush", of which only the test is refused
        _refuse(where, known)


def refuse_columns(columns: Collection[str], where: str) -> None:
    """Refuse the table of a data set for evaluation by its columns."""
    if _EMU_EDIT_COLUMNS.issubset(columns) and not _EMU_EDIT_PICTURES.isdisjoint(columns):
        raise _refusal(where, EMU_EDIT)
    for known, needed in _COLUMNS:
        if needed.issubset(columns):
            raise _refusal(where, known)


def refusal_of_magicbrush(where: str) -> InputError:
    """Return the error for what is MagicBrush's test set."""
    return _refusal(where, MAGICBRUSH)


def _kind(name: str) -> str | None:
    return (_NAMES | {"emuedit": EMU_EDIT}).get(_squash(name))


def _named(path: str) -> str | None:
    """Return the evaluation set that a part of a path is called after."""
    # the hub's cache writes owner/name as datasets--owner--name; "a.parquet, row 3" is a place
    for part in re.split(r"[/\\]|--|, ", path):
        for name in (part, part.partition(".")[0]):
            if (known := _NAMES.get(_squash(name))) is not None:
                return known
    return None


def _export(folder: Path) -> str | None:
    """Return which benchmark's inputs or results `emu-edit evaluate` wrote into a folder."""
    for name, needed in _EXPORTS.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            continue
        try:
            content = json.loads(read_regular(file, _MOST_BYTES))
        except (OSError, ValueError, RecursionError):  # somebody else's file
            continue
        if isinstance(content, dict) and needed <= content.keys():
            return f"of the benchmark {content['benchmark']!r:.60} ({name})"
    return None


def _squash(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _refuse(where: str, what: str | None) -> None:
    if what is not None:
        raise _refusal(where, what)


def _refusal(where: str, what: str) -> InputError:
    measured = what in {EMU_EDIT, MAGICBRUSH}
    hint = "; measure with it: emu-edit evaluate --benchmark" if measured else ""
    return InputError(
        f"{where}: is {what}, which is for evaluation only and never becomes training data{hint}"
    )
