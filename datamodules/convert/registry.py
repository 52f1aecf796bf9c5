"""The list of converters: one for each layout of a user's own pairs and for each public set.

Only names and lines of help are here, so that `shards convert --help` need not import what reads
pictures. A new converter is a `Converter` (`datamodules.convert.pair`) in some module, and a line
in this table; for a set whose rows are pairs see `datamodules.convert.parquet_sets`.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from emu_edit.errors import InputError, closest

if TYPE_CHECKING:
    from datamodules.convert.cutting import Cutting
    from datamodules.convert.pair import Converter, FieldMap


@dataclass(frozen=True)
class Kind:
    """A converter: its module, its line of help, and its name in the module.

    One that `asks` is made by a function of that name: from a `FieldMap` ("fields") or a `Cutting`
    ("cutting"), None where none was given.
    """

    module: str
    summary: str
    name: str = "CONVERTER"
    asks: str = ""


KINDS = {
    "folder": Kind("folder", "your own: source/ and target/ of equal names, instructions.jsonl"),
    "jsonl": Kind(
        "folder", "as folder; SRC is the .jsonl file, whose lines name the pictures", "JSONL"
    ),
    "control": Kind(
        "control", "your own: images/ (targets), control/ (sources), one .txt per pair"
    ),
    "webdataset": Kind(
        "webdataset",
        "shards of others (.tar, .tar.gz, braces): --source jpg …",
        "made_for",
        "fields",
    ),
    "imagefolder": Kind(
        "imagefolder", "metadata.jsonl, .csv or .parquet: --source COLUMN …", "made_for", "fields"
    ),
    "clips": Kind(
        "videos",
        "your own videos with captions, or before and after an edit",
        "made_for",
        "cutting",
    ),
    "instruct-pix2pix": Kind("instruct_pix2pix", "InstructPix2Pix: parquet, or seeds.json folders"),
    "magicbrush": Kind(
        "magicbrush", "MagicBrush train and dev: parquet, or edit_turns.json folder"
    ),
    "ultraedit": Kind(
        "parquet_sets", "UltraEdit, free-form and region-based with masks: parquet", "ULTRAEDIT"
    ),
    "hq-edit": Kind(
        "parquet_sets", "HQ-Edit with its inverse edits (pairs are not aligned): parquet", "HQ_EDIT"
    ),
    "promptfix": Kind(
        "parquet_sets", "PromptFix, restoration (colour, haze, watermarks): parquet", "PROMPTFIX"
    ),
    "anyedit": Kind("anyedit", "AnyEdit, 25 edit types, whole or split by type: parquet"),
    "seed-data-edit": Kind(
        "seed_data_edit", "SEED-Data-Edit, three parts, sessions by turn: jsonl"
    ),
    "omniedit": Kind("parquet_sets", "OmniEdit, scores and several wordings: parquet", "OMNIEDIT"),
    "imgedit": Kind("imgedit", "ImgEdit, task in the table's name, masks: parquet, unpacked tars"),
}


_OPTIONS = {
    "fields": ("knows what its fields are", "--source and the like"),
    "cutting": ("makes no clips", "--frames and the like"),
}


def load_converter(
    kind: str, fields: "FieldMap | None" = None, cutting: "Cutting | None" = None
) -> "Converter":
    """Return the converter of that name.

    Raises:
        InputError: if there is none; the nearest is named. Or if it is told what it does not ask.
    """
    if kind not in KINDS:
        hint = closest(kind, [*KINDS])
        raise InputError(f"unknown kind {kind!r}; known kinds: {', '.join(KINDS)}.{hint}")
    known = KINDS[kind]
    given: dict[str, object] = {"fields": fields, "cutting": cutting}
    for name, value in given.items():
        if value is not None and name != known.asks:
            why, options = _OPTIONS[name]
            asking = " and ".join(other for other, each in KINDS.items() if each.asks == name)
            raise InputError(f"{kind} {why}; {options} are for {asking}")
    made = getattr(import_module(f"datamodules.convert.{known.module}"), known.name)
    return made(given[known.asks]) if known.asks else made
