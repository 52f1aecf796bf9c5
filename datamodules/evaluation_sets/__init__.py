"""Editing benchmarks as their users download them, read into one list of items."""

from pathlib import Path

from datamodules.evaluation_sets.emu_edit import load_emu_edit
from datamodules.evaluation_sets.items import Benchmark
from datamodules.evaluation_sets.magicbrush import load_magicbrush
from emu_edit.errors import InputError

EMU_EDIT, MAGICBRUSH = "emu-edit", "magicbrush"


def load_benchmark(
    name: str, folder: Path | None, *, split: str | None, captions: str
) -> Benchmark:
    """Read the benchmark of that name from where its users put it.

    Args:
        name: "emu-edit" or "magicbrush".
        folder: the download.
        split: of the Emu Edit test set; None means "test" if there is one, else the only one.
        captions: which of MagicBrush's captions, "local" or "global".

    Raises:
        InputError: if the folder does not hold the benchmark in a layout that is known.
    """
    if folder is None:
        raise InputError(f"--benchmark {name} needs --data DIR, the folder it was downloaded to")
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}; give --data the folder the benchmark was downloaded to"
        )
    if name == MAGICBRUSH:
        return load_magicbrush(folder, captions=captions)
    return load_emu_edit(folder, split=split)
