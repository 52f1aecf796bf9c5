"""InstructPix2Pix's set of 2022, in its two layouts. It names no tasks and has no masks.

Parquet, as on the hub (`timbrooks/instructpix2pix-clip-filtered`): `original_prompt,
original_image, edit_prompt, edited_prompt, edited_image`; small copies call the source
`input_image`. And the authors' own folders:

    seeds.json                          [[prompt folder, [seed, ...]], ...]
    PROMPT/prompt.json                  {"input", "edit", "output"}
    PROMPT/SEED_0.jpg, SEED_1.jpg       before and after
    PROMPT/metadata.jsonl               one line for each seed: its similarity scores

A prompt has several pairs: each is a sample, and the prompt is their group (`--per-group` takes
fewer of each). Source: Brooks et al. 2023, arXiv:2211.09800, and its `edit_dataset.py`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from datamodules.convert.pair import Converter, RawPair, Reason, SkippedPair, is_safe_name
from datamodules.convert.picture import Picture
from datamodules.convert.rows import Table, finite, list_rows, read_json
from datamodules.listing import decode_text
from emu_edit.files import read_regular

SEEDS, PROMPT, METADATA = "seeds.json", "prompt.json", "metadata.jsonl"
TABLE = Table(
    "InstructPix2Pix",
    source=("original_image", "input_image"),
    target=("edited_image",),
    instruction=("edit_prompt",),
    captions=("original_prompt", "edited_prompt"),
)
_SCORES = ("clip_sim_0", "clip_sim_1", "clip_sim_dir", "clip_sim_image")


def list_pairs(path: Path) -> Iterator[RawPair | SkippedPair]:
    """Yield the pairs of either layout."""
    if (path / SEEDS).is_file():
        entries = read_json(path / SEEDS, list, "[[folder, [seed, ...]]]")
        for index, entry in enumerate(entries):
            yield from _of_prompt(path, f"{SEEDS}, entry {index}", entry)
    else:
        yield from list_rows(TABLE, lambda row: [row.pair(TABLE)])(path)


CONVERTER = Converter("instruct-pix2pix", list_pairs, tasks={})


def _of_prompt(root: Path, where: str, entry: object) -> Iterator[RawPair | SkippedPair]:
    match entry:
        case [str(folder), list(seeds)] if all(str(seed).isdecimal() for seed in seeds):
            pass
        case _:
            yield SkippedPair(
                where, Reason.bad_line, f"is {entry!r:.60}, needs [folder, [seed, ...]]"
            )
            return
    if not is_safe_name(folder):
        yield SkippedPair(where, Reason.unsafe_name, f"{folder!r} must be a name inside the folder")
        return
    prompt = _prompt(root / folder / PROMPT)
    scores = _scores(root / folder / METADATA)
    for seed in seeds:
        name = f"{folder}/{seed}"
        if isinstance(prompt, str):
            yield SkippedPair(name, Reason.missing_instruction, f"{folder}/{PROMPT} {prompt}")
            continue
        yield RawPair(
            name=name,
            identity=name,
            source=Picture.at(root / folder / f"{seed}_0.jpg"),
            target=Picture.at(root / folder / f"{seed}_1.jpg"),
            instruction=prompt["edit"],
            source_caption=prompt.get("input", ""),
            target_caption=prompt.get("output", ""),
            scores=scores.get(str(seed), {}),
            group=folder,
        )


def _prompt(path: Path) -> dict[str, str] | str:
    """Return the texts of a prompt, or what is wrong with the file."""
    if not path.is_file():
        return "is missing"
    try:
        texts = json.loads(decode_text(read_regular(path), "it"))
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error})"
    if not isinstance(texts, dict) or not isinstance(texts.get("edit"), str):
        return "has no text 'edit'"
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _scores(path: Path) -> dict[str, dict[str, float | None]]:
    """Return the scores by seed; older copies have none, which is no reason to refuse a pair."""
    found: dict[str, dict[str, float | None]] = {}
    if path.is_file():
        for line in read_regular(path).splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None  # a torn line: its pair has no scores, and a gate on them refuses it
            if isinstance(row, dict):
                scores = {name: finite(row[name]) for name in _SCORES if name in row}
                found[str(row.get("seed"))] = scores
    return found
