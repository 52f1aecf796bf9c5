"""Small benchmarks on disk, in the layouts of the real ones."""

import io
import json
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

EMU_ROWS = [
    ("test", 0, "add", "add a hat to the cat", "a cat on grass", "a cat with a hat on grass"),
    ("test", 0, "global", "make it night", "a city in the day", "a city at night"),
    ("test", 2, "add", "add a dog", "a train station in city", "a dog"),
    ("test", 5, "remove", "remove the dog", "the dog", "the dog"),
    ("validation", 0, "style", "make it a drawing", "a cat", "a drawing of a cat"),
]
EMU_KEYS = [f"{split}-{task}-{idx}" for split, idx, task, *_ in EMU_ROWS]
SESSIONS = {
    "1001": ["make the cat red", "add a dog", "make it night"],
    "1002": ["add a hat"],
    "2001": ["remove the train", "add the blue dog"],
}


def picture(seed: int, size: tuple[int, int] = (24, 32)) -> Image.Image:
    """Return a picture of coloured blocks, different for each seed."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    height, width = size
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR)


def png(image: Image.Image) -> bytes:
    """Return the picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def emu_fields(index: int) -> dict[str, object]:
    """Return a row of the Emu Edit test set without its picture."""
    split, idx, task, instruction, before, after = EMU_ROWS[index]
    return {
        "instruction": instruction,
        "task": task,
        "split": split,
        "idx": idx,
        "hash": f"{index:08x}",
        "input_caption": before,
        "output_caption": after,
    }


def write_emu_edit(folder: Path) -> Path:
    """Write the test set as an export with metadata.jsonl; return the folder."""
    folder.mkdir(parents=True)
    lines = []
    for index in range(len(EMU_ROWS)):
        name = f"{index}.png"
        picture(index).save(folder / name)
        lines.append(json.dumps({"file_name": name, **emu_fields(index)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_magicbrush(folder: Path, size: tuple[int, int] = (24, 32)) -> Path:
    """Write sessions of three, one and two turns; return the folder."""
    root = folder / "test"
    sessions, local, whole = {}, {}, {}
    for number, (session, instructions) in enumerate(SESSIONS.items()):
        place = root / "images" / session
        place.mkdir(parents=True)
        names = [f"{session}-input.png"]
        names += [f"{session}-output{turn}.png" for turn in range(1, len(instructions) + 1)]
        for turn, name in enumerate(names):
            picture(100 * number + turn, size).save(place / name)
        sessions[session] = [
            {
                "input": names[turn],
                "mask": f"{session}-mask{turn + 1}.png",
                "output": names[turn + 1],
                "instruction": text,
            }
            for turn, text in enumerate(instructions)
        ]
        local[session] = {
            name: f"the {'cat' if turn % 2 else 'red dog'}"
            for turn, name in enumerate(names)
            if turn
        }
        whole[session] = {
            name: f"a {'cat on grass' if turn % 2 else 'city in the day'}"
            for turn, name in enumerate(names)
        }
    for name, values in (
        ("edit_sessions", sessions),
        ("local_descriptions", local),
        ("global_descriptions", whole),
    ):
        (root / f"{name}.json").write_text(json.dumps(values))
    return folder


def parquet_rows(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    """Write rows as a parquet file in row groups of two; return its path."""
    pyarrow, parquet = (import_module(module) for module in ("pyarrow", "pyarrow.parquet"))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


def struct(seed: int) -> dict[str, object]:
    """Return a picture as the hub's parquet files hold it."""
    return {"bytes": png(picture(seed)), "path": None}


def generation(index: int) -> dict[str, object]:
    """Return a row of emu_edit_test_set_generations without its pictures; splits are swapped."""
    fields = emu_fields(index)
    swapped = {"test": "validation", "validation": "test"}[str(fields["split"])]
    return {**fields, "split": swapped, "model": "emu_edit"}


def write_generations(folder: Path) -> Path:
    """Write published results of all edits, in another order, as parquet; return the folder."""
    for split, indexes in (("validation", [3, 0, 2, 1]), ("test", [4])):
        rows = [
            {**generation(i), "image": struct(i), "edited_image": struct(50 + i)} for i in indexes
        ]
        parquet_rows(folder, f"{split}/0000.parquet", rows)
    return folder


def write_exported_generations(folder: Path) -> Path:
    """Write the same as an export with metadata.jsonl; return the folder."""
    folder.mkdir(parents=True)
    lines = []
    for index in (3, 0, 2, 1, 4):
        name = f"edited-{index}.png"
        picture(50 + index).save(folder / name)
        lines.append(json.dumps({**generation(index), "edited_image": name}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
