"""The list of converters: one for each layout of a user's own pairs and for each public set.

Only names and lines of help are here, so that `shards convert --help` need not import what reads
pictures. A new converter is a module with a `CONVERTER` (`datamodules.convert.pair`), and a
line in this table.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from emu_edit.errors import InputError, closest

if TYPE_CHECKING:
    from datamodules.convert.pair import Converter


@dataclass(frozen=True)
class Kind:
    """Where a converter is, its line of help, and its name in the module."""

    module: str
    summary: str
    name: str = "CONVERTER"


KINDS = {
    "folder": Kind("folder", "your own: source/ and target/ of equal names, instructions.jsonl"),
    "jsonl": Kind(
        "folder", "as folder; SRC is the .jsonl file, whose lines name the pictures", "JSONL"
    ),
    "control": Kind(
        "control", "your own: images/ (targets), control/ (sources), one .txt per pair"
    ),
    "instruct-pix2pix": Kind("instruct_pix2pix", "InstructPix2Pix: parquet, or seeds.json folders"),
    "magicbrush": Kind(
        "magicbrush", "MagicBrush train and dev: parquet, or edit_turns.json folder"
    ),
    "ultraedit": Kind("ultraedit", "UltraEdit, free-form and region-based with masks: parquet"),
    "hq-edit": Kind("hq_edit", "HQ-Edit with its inverse edits (pairs are not aligned): parquet"),
    "promptfix": Kind("promptfix", "PromptFix, restoration (colour, haze, watermarks): parquet"),
    "anyedit": Kind("anyedit", "AnyEdit, 25 edit types, whole or split by type: parquet"),
    "seed-data-edit": Kind(
        "seed_data_edit", "SEED-Data-Edit, three parts, sessions by turn: jsonl"
    ),
    "omniedit": Kind("omniedit", "OmniEdit, scores and several wordings: parquet"),
    "imgedit": Kind("imgedit", "ImgEdit, task in the table's name, masks: parquet, unpacked tars"),
}


def load_converter(kind: str) -> "Converter":
    """Return the converter of that name.

    Raises:
        InputError: if there is none; the nearest is named.
    """
    if kind not in KINDS:
        hint = closest(kind, [*KINDS])
        raise InputError(f"unknown kind {kind!r}; known kinds: {', '.join(KINDS)}.{hint}")
    known = KINDS[kind]
    return getattr(import_module(f"datamodules.convert.{known.module}"), known.name)
