"""Damaged shards through index, check and reader: refused or read right, never mixed up.

    python -m benchmarks.loader_fuzz [--cases 10000] [--json FILE]

Every case damages a shard of six samples in one way (`benchmarks.loader_damage`). As found, the
shard is indexed anew, checked and read, as if its writer had made it so; as known, the damage comes
behind the manifest's back, as on a failing disk; and the index or the manifest is damaged beside a
sound shard. Every sample carries a checksum over its key, text and decoded pictures. What must
not happen: an exception that is no InputError, more than the time limit, a sample whose members
belong to different samples, one that is gone without a word, a fault that `shards check` does not
see and training meets, and, behind a manifest, any change at all. Case N is the same everywhere;
`--first N --cases 1` repeats it.
"""

import argparse
import hashlib
import io
import json
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
from PIL import Image

from benchmarks.loader_damage import DAMAGES, FORGERIES, cut, flip, insert, zero
from datamodules.checks.folders import check_folder
from datamodules.shards.folder import LocalFolder
from datamodules.shards.index import add_index, index_path
from datamodules.shards.manifest import MANIFEST, ShardEntry, read_manifest, write_manifest
from datamodules.stream.mixing import DataSet, lanes_of
from datamodules.stream.reader import InOrder, OpenShard, PictureDecoder, ShardDataset
from datamodules.stream.transforms import Crop
from emu_edit.batch import EditSample
from emu_edit.errors import InputError
from emu_edit.randomness import keyed_generator
from emu_edit.tasks import SIXTEEN
from emu_edit.terminal import aligned, step_bar

SIDE = 16  # pixels; a picture of training size is not cut or resampled
SAMPLES = 6
KINDS = ("PNG", "JPEG", "WEBP")
SIDECARS = {f"{kind} {damage.__name__}": damage for kind in ("index", "manifest")
            for damage in (flip, cut, zero, insert)}  # fmt: skip
WAYS = [*DAMAGES, *FORGERIES, *SIDECARS]
# a header of right checksum and wrong size can swallow the next sample whole; only a manifest
# can tell, which knows how many there were
LOSING = {"drop", "wrong_size"}
FAILURES = ("crash", "hang", "mixed up", "lost", "missed", "changed unseen")


class TooSlowError(BaseException):
    """A case took longer than it may; no handler for ordinary errors catches this."""


@dataclass(frozen=True)
class Original:
    """The sound shard, its files, and which sample each part of it belongs to."""

    folder: Path
    tar: bytes
    entry: ShardEntry
    owner: dict[str, str]


@dataclass
class Results:
    """Counts of outcomes by (way of damage, route), and what went wrong in which case."""

    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    failures: list[dict[str, object]] = field(default_factory=list)
    cases: int = 0
    seconds: float = 0.0

    def add(self, case: int, way: str, route: str, outcome: str, detail: str) -> None:
        """Count an outcome."""
        self.counts.setdefault((way, route), Counter())[outcome] += 1
        if outcome in FAILURES:
            place = {"case": case, "way": way, "route": route}
            self.failures.append({**place, "outcome": outcome, "detail": detail})

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table: a row for each way and route, a column for each outcome."""
        seen = {outcome for counts in self.counts.values() for outcome in counts}
        columns = [*sorted(seen - set(FAILURES)), *(f for f in FAILURES if f in seen)]
        body = [
            (*name, *(str(counts[column]) for column in columns))
            for name, counts in sorted(self.counts.items())
        ]
        total = sum(self.counts.values(), Counter())
        return [
            ("damage", "route", *columns),
            *body,
            ("all", "", *(str(total[column]) for column in columns)),
        ]

    def to_json(self) -> dict[str, object]:
        """Return everything as JSON can hold it."""
        counts = {f"{way} / {route}": dict(c) for (way, route), c in sorted(self.counts.items())}
        return {
            "cases": self.cases,
            "seconds": round(self.seconds, 1),
            "outcomes": dict(sum(self.counts.values(), Counter())),
            "counts": counts,
            "failures": self.failures,
        }


def digest(*parts: object) -> str:
    """Return a hash of arrays and texts."""
    sha = hashlib.sha256()
    for part in parts:
        data = np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else str(part)
        sha.update(data if isinstance(data, bytes) else data.encode())
        sha.update(b"\0")
    return sha.hexdigest()


def parts_of(sample: EditSample) -> dict[str, str]:
    """Return a hash of each thing a sample brings to training."""
    parts = {
        "source": digest(sample.source.numpy()),
        "target": digest(sample.target.numpy()),
        "instruction": digest(sample.instruction),
    }
    return parts if sample.mask is None else parts | {"mask": digest(sample.mask.numpy())}


def tie_of(sample: EditSample) -> str:
    """Return the checksum that ties the members of a sample together."""
    return digest(sample.key, *sorted(parts_of(sample).items()))


def make_original(folder: Path) -> Original:
    """Write the sound shard, with ties computed from what is read back."""
    _write_shard(folder, ties={})
    read = list(_samples(folder))
    _write_shard(folder, ties={sample.key: tie_of(sample) for sample in read})
    owner = {part: sample.key for sample in read for part in parts_of(sample).values()}
    entry = read_manifest(folder).entries[0]
    return Original(folder, (folder / entry.file).read_bytes(), entry, owner)


def _write_shard(folder: Path, ties: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / "local-000000.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(SAMPLES):
            for name, data in _members(i, ties).items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    _describe(folder, path)


def _members(i: int, ties: dict[str, str]) -> dict[str, bytes]:
    rng = keyed_generator(0, "fuzz/sample", i)
    kind, key = KINDS[i % len(KINDS)], f"k{i}"
    text = {"instruction": f"do number {i}", "task": "local", "tie": ties.get(key, "")}
    members = {f"{key}.json": json.dumps(text).encode()}
    for role in ("source", "target"):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        members[f"{key}.{role}.{kind.lower()}"] = _encoded(pixels, kind)
    if i % 2:
        mask = np.where(rng.random((SIDE, SIDE)) < 0.5, 255, 0).astype(np.uint8)
        members[f"{key}.mask.png"] = _encoded(mask, "PNG")
    return members


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _describe(folder: Path, path: Path) -> int:
    """Index a shard as it is and write a manifest that says the same."""
    entry = add_index(path, task="local")
    write_manifest(folder, [entry], made_by={"program": "fuzz"})
    return entry.samples


def _data_set(folder: Path) -> ShardDataset:
    lanes = lanes_of([DataSet("", LocalFolder(folder, read_manifest(folder)))])
    order = InOrder([lane.sizes for lane in lanes])
    return ShardDataset(lanes, order=order, tasks=SIXTEEN, decode=PictureDecoder(Crop(SIDE)))


def _samples(folder: Path) -> Iterator[EditSample]:
    data = _data_set(folder)
    for i in range(read_manifest(folder).num_samples):
        yield data[i]


@dataclass
class Reading:
    """What reading every sample of a folder gave."""

    whole: set[str] = field(default_factory=set)
    altered: int = 0
    mixed: int = 0
    refused: int = 0
    detail: str = ""


def read_all(folder: Path, original: Original) -> Reading:
    """Read every sample, each on its own, and judge it by its tie.

    Raises:
        InputError: if manifest or index cannot be used.
    """
    manifest = read_manifest(folder)
    data, entry, found = _data_set(folder), manifest.entries[0], Reading()
    shard = OpenShard(folder / entry.file, entry)
    for i in range(manifest.num_samples):
        try:
            sample, tie = data[i], shard.text(i).get("tie")
        except InputError as error:
            found.refused += 1
            found.detail = str(error)
            continue
        owners = {original.owner[p] for p in parts_of(sample).values() if p in original.owner}
        if tie == tie_of(sample):
            found.whole.add(sample.key)
        elif len(owners) > 1:
            found.mixed += 1
            found.detail = f"{sample.key} has members of {sorted(owners)}"
        else:
            found.altered += 1
            found.detail = f"{sample.key} is altered"
    return found


def as_found(tar: bytes, original: Original, folder: Path, way: str) -> tuple[str, str]:
    """Index, check and read a damaged shard that nobody has a description of."""
    path = folder / original.entry.file
    path.write_bytes(tar)
    try:
        num_samples = _describe(folder, path)
    except InputError as error:
        return "refused", str(error)
    report = check_folder(folder)
    found = read_all(folder, original)
    if found.mixed:
        return "mixed up", found.detail
    if num_samples < SAMPLES:
        return "fewer" if way in LOSING else "lost", f"{num_samples} of {SAMPLES} samples"
    if report.is_good and found.refused:
        return "missed", found.detail
    if not report.is_good:
        return "reported", report.errors[0].message
    return ("whole", "") if len(found.whole) == SAMPLES else ("other content", found.detail)


def as_known(tar: bytes, original: Original, folder: Path) -> tuple[str, str]:
    """Read a shard that was damaged after its index and manifest were written."""
    shutil.copytree(original.folder, folder, dirs_exist_ok=True)
    (folder / original.entry.file).write_bytes(tar)
    if tar != original.tar and check_folder(folder).is_good:
        return "missed", "check does not see other bytes"
    try:
        found = read_all(folder, original)
    except InputError as error:
        return "refused", str(error)
    if found.mixed:
        return "mixed up", found.detail
    if found.altered:
        return "changed unseen", found.detail
    if len(found.whole) + found.refused != SAMPLES:
        return "lost", f"{len(found.whole)} of {SAMPLES} samples"
    return ("refused", found.detail) if found.refused else ("whole", "")


def beside(way: str, original: Original, folder: Path, rng: np.random.Generator) -> tuple[str, str]:
    """Read a sound shard whose index or manifest is damaged."""
    shutil.copytree(original.folder, folder, dirs_exist_ok=True)
    shard = folder / original.entry.file
    path = index_path(shard) if way.startswith("index") else folder / MANIFEST
    before = path.read_bytes()
    after = SIDECARS[way](before, rng)
    path.write_bytes(after)
    try:
        is_good = check_folder(folder).is_good
        found = read_all(folder, original)
    except InputError as error:
        return "refused", str(error)
    if found.mixed:
        return "mixed up", found.detail
    if is_good and (found.refused or found.altered):
        return "missed", found.detail
    return ("reported", found.detail) if not is_good else ("whole", "")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TooSlowError in the block after so many seconds."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_case(case: int, original: Original, results: Results, *, limit: float) -> None:
    """Make the damage of a case and take it through its routes."""
    way = WAYS[case % len(WAYS)]
    rng = keyed_generator(0, "fuzz", case)
    routes = ["beside"] if way in SIDECARS else ["found", "known"]
    tar = b"" if way in SIDECARS else (DAMAGES | FORGERIES)[way](original.tar, rng)
    if way in FORGERIES:
        routes = ["known"]  # without an index a forged shard is a shard
    for route in routes:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            try:
                with within(limit):
                    if route == "beside":
                        outcome = beside(way, original, folder, rng)
                    elif route == "known":
                        outcome = as_known(tar, original, folder)
                    else:
                        outcome = as_found(tar, original, folder, way)
            except TooSlowError:
                outcome = "hang", f"more than {limit} s"
            except Exception as error:  # noqa: BLE001 - every other one is what we look for
                outcome = "crash", f"{type(error).__name__}: {error}"[:300]
        results.add(case, way, route, *outcome)


def fuzz(first: int, cases: int, *, limit: float = 20.0) -> Results:
    """Run cases `first` to `first + cases - 1`, each at most `limit` seconds a route."""
    results, start = Results(cases=cases), time.perf_counter()
    with tempfile.TemporaryDirectory() as made, step_bar("fuzzing", "shards") as on_step:
        original = make_original(Path(made) / "original")
        for done, case in enumerate(range(first, first + cases), 1):
            run_case(case, original, results, limit=limit)
            on_step(done, cases)
    results.seconds = time.perf_counter() - start
    return results


def main() -> int:
    """Run the cases, print the table; exit status 1 when something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="shards (default 10000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--json", type=Path, help="write the counts here")
    options = parser.parse_args()
    results = fuzz(options.first, options.cases)
    lines = aligned(results.rows())
    lines += [f"{failure}" for failure in results.failures[:20]]
    lines.append(
        f"{results.cases} shards in {results.seconds:.0f} s "
        f"({results.cases / results.seconds:.0f} per second), {len(results.failures)} failures"
    )
    sys.stdout.write("\n".join(lines) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
