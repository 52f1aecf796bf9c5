"""The pictures a benchmark gives: checked and hashed before anything is edited or scored.

An item whose own picture is damaged has no score, not even that of copying it, so a benchmark with
such a picture is refused as a whole; a damaged result is another matter (`benchmark_run`).
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from datamodules.benchmarks.items import Benchmark, BenchmarkItem, Picture
from emu_edit.errors import BadImageError, InputError
from emu_edit.images import decode_rgb

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Inputs:
    """The hashes of every picture of a benchmark, by item.

    Attributes:
        source: of the picture that is edited; with `follows`, of the one its session began with.
        target: of the ground truth, None where there is none.
        sha256: of all of it, texts included.
    """

    source: dict[str, str]
    target: dict[str, str | None]
    sha256: str

    def lines(self) -> list[str]:
        """Return "KEY SOURCE TARGET" for each item, "-" where there is no ground truth."""
        return [f"{key} {self.source[key]} {self.target[key] or '-'}" for key in self.source]


def check_inputs(benchmark: Benchmark, on_step: OnStep) -> Inputs:
    """Decode and hash the pictures of all items, each once.

    Raises:
        InputError: if one cannot be decoded.
    """
    known: dict[str, str] = {}  # hash by place: turns of a session share pictures
    source: dict[str, str] = {}
    target: dict[str, str | None] = {}
    for number, item in enumerate(benchmark.items, 1):
        source[item.key] = _checked(item, item.source, known)
        target[item.key] = None if item.target is None else _checked(item, item.target, known)
        on_step(number, len(benchmark.items))
    return Inputs(source, target, _manifest(benchmark, source, target))


def _checked(item: BenchmarkItem, picture: Picture, known: dict[str, str]) -> str:
    if picture.where not in known:
        data = picture.fetch()
        try:
            decode_rgb(data, where=picture.where)
        except BadImageError as error:
            raise InputError(
                f"{error}; it is the benchmark's own (item {item.key}): download it again"
            ) from error
        known[picture.where] = hashlib.sha256(data).hexdigest()
    return known[picture.where]


def _manifest(benchmark: Benchmark, source: dict[str, str], target: dict[str, str | None]) -> str:
    """Return the hash of one JSON line per item: what an edit is made from and judged by."""
    digest = hashlib.sha256()
    for item in benchmark.items:
        texts = [item.task, item.instruction, item.source_caption, item.target_caption]
        line = [item.key, source[item.key], target[item.key], *texts]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()
