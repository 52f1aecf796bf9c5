"""Where ImgEdit's pictures lie after unpacking.

A table names `results_remove_laion_part5/00094_00030_000304748/original.png`; the archive of that
table may unpack to the folder of that name, to `results/`, to none at all or to a long path of its
makers' machine. What is sure is the sample's folder, named after its LAION picture. But the same
picture was edited for several tasks, so a sample's name alone can be in several archives: then the
folder must carry the name that the table gives, or the table's own. And where the table's archive
was not unpacked, another task's may have a sample of that name: a folder called after another task
is never taken. What stays ambiguous is refused, as a wrong target is worse than none.
"""

import os
import re
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from datamodules.convert.pair import check_name
from datamodules.convert.picture import MissingPictureError, Picture
from datamodules.listing import find_file
from emu_edit.errors import InputError
from emu_edit.pictures import read_image_bytes

# a table is called PREFIX TASK ORIGIN PART, all but the task optional
_PREFIX, _PART = "results_", re.compile(r"(_laion)?(_part\d+.*)?$")
# tasks whose archives go by either name; else one name begins with the other, as style_transfer
_ALIASES = (
    {"adjust", "alter"},
    {"compose", "hybrid"},
    {"extract", "extract_ref", "reference_extract"},
)
_SAMPLE = re.compile(r"\d{5}_\d{5}_\d{9}")
_MOST = 1000  # a folder with more folders than this holds samples
_DEEPEST = 8  # below the folder given; archives of full paths are this deep


class Samples:
    """The unpacked archives below a folder, and where each archive's samples were found."""

    def __init__(self, root: Path, tasks: Collection[str]) -> None:
        self._root = root
        self._tasks = tasks  # names that make a folder that of a task
        self._found: dict[tuple[str, str], Path] = {}

    def of(self, name: str) -> str:
        """Return the name of a file's sample, the LAION picture it was made from."""
        return PurePosixPath(name).parent.name or name

    def picture(self, table: Path, name: str) -> Picture:
        """Return the picture that a table names; it is looked for when it is fetched."""
        check_name(name, f"{table.name}:")
        return Picture(name, lambda: read_image_bytes(self.find(table, name)))

    def find(self, table: Path, name: str) -> Path:
        """Return the file that a table names.

        Raises:
            MissingPictureError: if no archive has it.
            InputError: if several have, and nothing tells them apart.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        prefix, rest = "/".join(parts[:-2]), "/".join(parts[-2:])
        key = (table.stem, prefix)
        if key not in self._found or find_file(self._found[key], rest) is None:
            self._found[key] = self._search(table, prefix, rest)
        return find_file(self._found[key], rest) or self._found[key] / rest

    def recaps(self, name: str) -> Iterator[Path]:
        """Yield the files of that name in the folders of `ImgEdit_recap_mask`."""
        for folder in self._folders:
            if "jsons" in folder.parts and (folder / name).is_file():
                yield folder / name

    @cached_property
    def _folders(self) -> list[Path]:
        """The folders that may hold samples, not those of the samples themselves."""
        found = []
        for parent, folders, _ in os.walk(self._root):
            found.append(Path(parent))
            depth = len(Path(parent).relative_to(self._root).parts)
            folders[:] = sorted(
                name for name in folders if not (name.startswith(".") or _SAMPLE.fullmatch(name))
            )
            if depth >= _DEEPEST or len(folders) > _MOST:
                folders.clear()
        return found

    def _search(self, table: Path, prefix: str, rest: str) -> Path:
        holding = [folder for folder in self._folders if find_file(folder, rest) is not None]
        for name in (prefix, table.stem):
            named = [folder for folder in holding if name and _is_called(folder, name)]
            if len(named) == 1:
                return named[0]
        ours = {task_in(table.stem), task_in(PurePosixPath(prefix).name)}
        possible = [folder for folder in holding if not self._is_of_another(folder, ours)]
        if len(possible) == 1:
            return possible[0]
        if possible:
            places = ", ".join(str(folder) for folder in possible[:3])
            raise InputError(
                f"{table.name}: {rest} is in {len(possible)} folders ({places}), none of them "
                f"called {prefix or table.stem}; rename the one with this table's archive"
            )
        elsewhere = f" but that of another task, {holding[0]}" if holding else ""
        raise MissingPictureError(
            f"{prefix}/{rest}: no such file below {self._root}{elsewhere}; join the archive's "
            "pieces and unpack them there: cat X.tar.split.* > X.tar && tar xf X.tar"
        )

    def _is_of_another(self, folder: Path, ours: Collection[str]) -> bool:
        named = (task_in(part) for part in folder.relative_to(self._root).parts)
        found = {task for task in named if task in self._tasks}
        return any(not any(_is_same(task, mine) for mine in ours) for task in found)


def task_in(name: str) -> str:
    """Return the task in the name of a table or archive, "adjust_canny" of adjust_canny_part2."""
    return _PART.sub("", name.removeprefix(_PREFIX))


def _is_same(task: str, other: str) -> bool:
    if any({task, other} <= names for names in _ALIASES):
        return True
    return bool(task and other) and (task.startswith(other) or other.startswith(task))


def _is_called(folder: Path, name: str) -> bool:
    return f"/{folder.as_posix()}/".endswith(f"/{name}/") or name in folder.parts
