"""Edit a benchmark's items with a model, so that it can be stopped and goes on where it was.

OUT/images/KEY.png   the results
OUT/edits.jsonl      a line per item, appended when it is done; the last line of a key counts
OUT/run.json         what the results depend on; another run may not continue them

The noise of an item is drawn from a seed that its key alone decides. A finished item is taken over
when its source, its instruction, its seed and its result's bytes are those of its line; one that
failed is tried again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.evaluation_sets.items import Benchmark, BenchmarkItem, Item, Picture
from emu_edit.editing.editor import Editor
from emu_edit.editing.large import WHOLE
from emu_edit.errors import InputError
from emu_edit.evaluation.outputs import OK, OnStep, Output, failed, output_picture
from emu_edit.files import read_regular, sha256_of, write_json
from emu_edit.images import resize, save_png, with_shorter_side

IMAGES, EDITS, RUN = "images", "edits.jsonl", "run.json"
PREDICTED, GIVEN = "predicted", "given"


def seed_of(key: str) -> int:
    """Derive the seed of an item's noise: the first four bytes of its key's SHA-256, big-endian."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class EditRun:
    """A model at work on a benchmark.

    Attributes:
        editor: the model, set up.
        folder: OUT.
        size: what the shorter side of a picture becomes before it is edited.
        tasks: "predicted" asks the model's predictor, "given" takes the benchmark's.
    """

    editor: Editor
    folder: Path
    size: int
    tasks: str

    def run(
        self, benchmark: Benchmark, sources: Mapping[str, str], on_step: OnStep
    ) -> dict[str, Output]:
        """Edit what is not yet done; return the outputs of all items.

        Args:
            benchmark: the items.
            sources: hash of each item's source.
            on_step: called with (items done, items in all).

        Raises:
            InputError: if every item fails, or the disk does.
        """
        (self.folder / IMAGES).mkdir(parents=True, exist_ok=True)
        items = {item.key: item for item in benchmark.items}
        lines = read_lines(self.folder / EDITS)
        outputs: dict[str, Output] = {}
        with (self.folder / EDITS).open("a", encoding="utf-8") as log:
            for item in benchmark.items:
                source = sources[item.key] if item.follows is None else outputs[item.follows].sha256
                output = self._finished(item, source, lines.get(item.key))
                if output is None:
                    output = self._edit(item, source, items, outputs)
                    log.write(json.dumps(item_line(item, output)) + "\n")
                    log.flush()
                outputs[item.key] = output
                on_step(len(outputs), len(items))
        if all(output.picture is None for output in outputs.values()):
            first = next(iter(outputs.values()))
            raise InputError(f"not one item could be edited; {first.key}: {first.reason}")
        return outputs

    def _path(self, item: BenchmarkItem) -> Path:
        return self.folder / IMAGES / f"{item.key}.png"

    def _finished(
        self, item: BenchmarkItem, source: str, line: Mapping[str, Any] | None
    ) -> Output | None:
        """Take over the output of an earlier call, None unless its line still holds."""
        path = self._path(item)
        if line is None or line.get("status") != OK or not path.is_file():
            return None
        seed = seed_of(item.key)
        output = Output(item.key, source, sha256_of(path), Picture.at(path), seed=seed)
        is_same = all(line.get(name) == value for name, value in item_line(item, output).items())
        return output if is_same else None

    def _edit(
        self,
        item: BenchmarkItem,
        source: str,
        items: Mapping[str, BenchmarkItem],
        outputs: Mapping[str, Output],
    ) -> Output:
        seed, follows, path = seed_of(item.key), item.follows, self._path(item)
        before = (
            item.source.decode() if follows is None else output_picture(items, outputs, follows)
        )
        height, width = before.shape[-2:]
        fitting = resize(before, with_shorter_side(self.size, height=height, width=width))
        try:
            edited = self.editor.edit(
                fitting,
                item.instruction,
                task=None if self.tasks == PREDICTED else item.task,
                seed=seed,
                large=WHOLE,
            )
        # InputError and NaN are ValueErrors, torch's complaints (memory!) are RuntimeErrors
        except (ValueError, RuntimeError) as error:
            path.unlink(missing_ok=True)  # of an earlier try
            return failed(item.key, source, str(error) or type(error).__name__, seed)
        save_png(path, edited)
        return Output(item.key, source, sha256_of(path), Picture.at(path), seed=seed)


def item_line(item: Item, output: Output) -> dict[str, object]:
    """Describe an item as edits.jsonl does; items.jsonl says more."""
    return {
        "key": item.key,
        "session": item.session,
        "turn": item.turn,
        "task": item.task,
        "instruction": item.instruction,
        "source_caption": item.source_caption,
        "target_caption": item.target_caption,
        "source_sha256": output.source_sha256,
        "output_sha256": output.sha256,
        "status": output.status,
        "reason": output.reason,
        "seed": output.seed,
    }


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Read the last line of each key; a line cut short by a crash is cut off, and not counted."""
    data = read_regular(path) if path.is_file() else b""
    if data and not data.endswith(b"\n"):
        data = data[: data.rfind(b"\n") + 1]
        path.write_bytes(data)  # else the next line would be appended to half a line
    lines: dict[str, dict[str, Any]] = {}
    for text in data.split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("key"), str):
            lines[line["key"]] = line
    return lines


def claim_folder(folder: Path, about: Mapping[str, object]) -> None:
    """Make OUT the folder of this run, or make sure that it is.

    Args:
        folder: OUT.
        about: what the files in it depend on, as JSON values.

    Raises:
        InputError: if it is another run's, or no run's but not empty.
    """
    path, wanted = folder / RUN, json.loads(json.dumps(about))
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder} already holds something that is no run of a benchmark; give another -o"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
        return
    try:
        found = json.loads(read_regular(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); give another -o") from error
    if found == wanted:
        return
    known = found if isinstance(found, dict) else {}
    name = next(key for key in [*wanted, *known] if wanted.get(key) != known.get(key))
    raise InputError(
        f"{folder} was begun with {name} {known.get(name)!r}, now it is {wanted.get(name)!r}; run "
        "it again as before, or give another -o"
    )
