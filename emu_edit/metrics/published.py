"""Published scores to read beside one's own, each with its source and the protocol it was made by.

The packaged file `published.json` is a list of objects:

    {"model": "Emu Edit", "benchmark": "emu-edit", "split": "test", "items": null,
     "protocol": "mixed/unknown", "values": {"clip_dir": 0.109, …}, "source": "…", "note": "…"}

`protocol` is the name of one of our protocols only where the source follows that one; any other
text says in words what is known. `split` is "" and `items` null where the source does not say.
"""

import json
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from emu_edit.errors import InputError
from emu_edit.files import read_regular

PACKAGED = "published"  # the word that stands for the packaged file
FILE = "published.json"
TEXTS = ("model", "benchmark", "protocol", "source")  # needed, and not empty
OPTIONAL = ("split", "note")
MOST_BYTES = 2**20


@dataclass(frozen=True)
class PublishedRow:
    """The scores of one model as its source prints them.

    Attributes:
        model: its name, as readers know it.
        benchmark: "emu-edit", "magicbrush", …
        protocol: one of our protocols' names, or words.
        values: score by metric, only what the source has.
        source: where the numbers stand.
        split: of the benchmark: "test", "all turns", …; "" where not known.
        items: how many edits were scored; None where not known.
        note: what a reader must know besides.
    """

    model: str
    benchmark: str
    protocol: str
    values: dict[str, float]
    source: str
    split: str = ""
    items: int | None = None
    note: str = ""


def load_published(choice: str | Path) -> tuple[PublishedRow, ...]:
    """Read the rows of a file, or of the packaged one for the word "published".

    Raises:
        InputError: if there is no such file, or it is not a list of rows as above.
    """
    if str(choice) == PACKAGED:
        return _parsed(files("emu_edit.metrics").joinpath(FILE).read_bytes(), FILE)
    path = Path(choice)
    if not path.is_file():
        raise InputError(
            f"there is no file {path} to compare with; give a JSON file of published rows, or the "
            f"word {PACKAGED!r} for the packaged one"
        )
    if path.stat().st_size > MOST_BYTES:
        raise InputError(
            f"{path} has more than {MOST_BYTES} bytes; published rows are a short list"
        )
    return _parsed(read_regular(path, MOST_BYTES), str(path))


def _parsed(data: bytes, name: str) -> tuple[PublishedRow, ...]:
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON ({error}); a list of published rows is") from error
    if not isinstance(rows, list):
        raise InputError(f"{name} holds a {type(rows).__name__}, needs a list of published rows")
    return tuple(_row(row, f"{name}, row {number}") for number, row in enumerate(rows, 1))


def _row(row: object, where: str) -> PublishedRow:
    """Check each field of a row; `where` names it in messages."""
    if not isinstance(row, dict):
        raise InputError(
            f"{where} is a {type(row).__name__}, needs an object with model, values, …"
        )
    for field in TEXTS:
        if not isinstance(row.get(field), str) or not row[field]:
            raise InputError(f"{where}: {field} is {row.get(field)!r}, needs a text")
    for field in OPTIONAL:
        if not isinstance(row.get(field, ""), str):
            raise InputError(f"{where}: {field} is {row[field]!r}, needs a text or nothing")
    unknown = sorted(row.keys() - {*TEXTS, *OPTIONAL, "values", "items"})
    if unknown:
        raise InputError(f"{where}: unknown field {unknown[0]!r}; take it out or correct its name")
    return PublishedRow(
        **{field: row[field] for field in TEXTS},
        **{field: row.get(field, "") for field in OPTIONAL},
        values=_values(row.get("values"), where),
        items=_items(row.get("items"), where),
    )


def _values(values: object, where: str) -> dict[str, float]:
    if not isinstance(values, dict) or not values:
        raise InputError(f"{where}: values is {values!r}, needs numbers by metric")
    for metric, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise InputError(
                f"{where}: {metric} is {value!r}, needs a number; leave out what is not known"
            )
    return {metric: float(value) for metric, value in values.items()}


def _items(items: object, where: str) -> int | None:
    if items is None:
        return None
    if not isinstance(items, int) or isinstance(items, bool) or items < 1:
        raise InputError(f"{where}: items is {items!r}, needs how many edits were scored, or null")
    return items
