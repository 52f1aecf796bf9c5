"""The run of a conversion: list, check, judge, stream into shards of each task, report.

The data are listed twice, once to count and to refuse task names that nobody knows before anything
is written, and once to convert. Memory holds one pair, the page of the table its pictures came in,
and a table of 32 to 64 bytes for each pair, to find doubles.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from datamodules.convert.cutting import Cutting
from datamodules.convert.gates import Duplicates, Gates, digest
from datamodules.convert.naming import Namer, Survey, TaskNaming, survey
from datamodules.convert.pair import (
    Converter,
    FieldMap,
    RawItem,
    Reason,
    RefusedPairError,
    SkippedPair,
)
from datamodules.convert.registry import load_converter
from datamodules.convert.report import QUARANTINE, ConvertReport, Tally, counted, passed_by
from datamodules.shards.clips import MOTION
from datamodules.shards.evaluation_only import refuse_kind, refuse_output, refuse_path
from datamodules.shards.manifest import NEW_TASK, ShardEntry, write_manifest
from datamodules.shards.writer import Guard, PairRecord, ShardWriter
from emu_edit.errors import BadDataError, InputError
from emu_edit.tasks import CAPTION

_LISTING_STEP = 1000  # entries between two signs of life
CLIPS = "clips"  # the kind whose records move


TRAIN, HELD_OUT = "train", "heldout"


@dataclass(frozen=True)
class Part:
    """One part of a data set, "train" or "heldout"; no source picture is in both.

    A pair's group (its session, prompt or, where the data name none, its source picture) is mapped
    to a number by SHA-256, so the same pairs fall into the same part on every machine, in any
    order. `held_out` is the share of the groups that is held out, above 0 and below 1.
    """

    name: str
    held_out: float

    def __post_init__(self) -> None:
        """Refuse what is no part."""
        if self.name not in {TRAIN, HELD_OUT}:
            raise InputError(f"part {self.name!r} must be {TRAIN} or {HELD_OUT}")
        if not 0 < self.held_out < 1:
            raise InputError(f"held out {self.held_out:g} must be a share above 0 and below 1")

    def has(self, group: bytes) -> bool:
        """Tell whether what has this group is in this part."""
        number = int.from_bytes(hashlib.sha256(group).digest()[:8], "big") / 2**64
        return (number < self.held_out) == (self.name == HELD_OUT)


@dataclass(frozen=True)
class ConvertSettings:
    """How to convert.

    Attributes:
        naming: which task a pair teaches.
        gates: which pairs are good enough.
        part: take one part of the data only.
        per_group: take at most so many pairs of one group (session, prompt, picture), None all.
        guard: says why a pair must not be trained on, None if it may: for pictures of evaluation
            sets.
        pairs_per_shard: how many pairs a shard holds at most; None leaves it to the kind.
        by_shape: pairs whose pictures have another shape go into shards of their own.
        fields: what is what in samples and tables of others, for the kinds that ask for it.
        cutting: how clips are cut out of videos, for the kind that does.
    """

    naming: TaskNaming = field(default_factory=TaskNaming)
    gates: Gates = field(default_factory=Gates)
    part: Part | None = None
    per_group: int | None = None
    guard: Guard | None = None
    pairs_per_shard: int | None = None
    by_shape: bool = False
    fields: FieldMap | None = None
    cutting: Cutting | None = None


def convert(
    kind: str,
    source: Path,
    out: Path,
    settings: ConvertSettings | None = None,
    *,
    on_listed: Callable[[int], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ConvertReport:
    """Turn the pairs in `source` into shards in `out`.

    Args:
        kind: one of `registry.KINDS`.
        source: a folder or file of the kind's layout.
        out: a new folder, or one without shards.
        settings: tasks, gates and parts; None takes the defaults.
        on_listed: called with the entries counted so far, before the first is converted.
        on_progress: called as (entries done, entries in all).

    Raises:
        InputError: if the layout is not there, the data are an evaluation set, a task is unknown or
            missing, no pair has a group or score that the settings count on, or `out` has shards
            already.
        BadDataError: if no pair is left. A broken pair raises nothing: it is counted and listed in
            `out`/quarantine.jsonl.
    """
    settings = settings or ConvertSettings()
    refuse_kind(kind)
    if settings.gates.min_motion is not None and kind != CLIPS:
        raise InputError(f"{kind} has pictures, which do not move; leave --min-motion out")
    converter = load_converter(kind, settings.fields, settings.cutting)
    if not source.exists() and not converter.takes_patterns:
        raise InputError(f"{source}: no such file or folder")
    refuse_path(source)
    _check_out(out, source)
    namer = Namer(settings.naming, converter)
    try:
        listing = _counted(_listing(converter, source), on_listed)
        found = survey(listing, namer, settings.naming.known, source)
        _check_settings(settings, found, source)
        out.mkdir(parents=True, exist_ok=True)
        with (out / QUARANTINE).open("w", buffering=1, encoding="utf-8") as file:
            tally = Tally(file, found.listed, on_progress)
            entries = _write(converter, source, out, Judge(settings, namer, tally))
        made_by = _made_by(converter, source, settings)
        return _finish(entries, tally, out, made_by, converter.unit)
    except OSError as error:
        raise InputError(
            f"{error.filename or out}: {error.strerror}; nothing usable was written"
        ) from error


@dataclass
class Judge:
    """The decision which pairs are written; the others are counted and listed."""

    settings: ConvertSettings
    namer: Namer
    tally: Tally
    duplicates: Duplicates = field(default_factory=Duplicates)
    taken: Counter[int] = field(default_factory=Counter)  # of each group, by its digest

    def accept(self, item: RawItem | SkippedPair, dataset: str) -> Iterator[PairRecord]:
        """Yield what to write of an entry; what is left out is counted and listed."""
        self.tally.step()
        if isinstance(item, SkippedPair):
            self.tally.skip(item)
            return
        try:
            for record in self._read(item):
                self.tally.written[record.task] += 1
                if item.raw_task:
                    self.tally.raw_tasks[item.raw_task] += 1
                origin = {"dataset": dataset, **_provenance(item)}
                yield replace(record, extra={**origin, **record.extra})
        except RefusedPairError as error:
            self.tally.skip(SkippedPair(item.name, error.reason, str(error)))

    def _read(self, item: RawItem) -> Iterator[PairRecord]:
        gates, part = self.settings.gates, self.settings.part
        task = self.namer.task_of(item)
        gates.check_listed(item)
        self._group_of(item)
        if part is not None and item.group and not part.has(_bytes(item.group)):
            self.tally.other_part += 1
            return
        for record in item.read(task, resize_above=gates.resize):
            if isinstance(record, SkippedPair):
                self.tally.skip(record)
                continue
            if isinstance(motion := record.extra.get(MOTION), float):
                self.tally.motion.append(motion)
            if part is not None and not item.group and not part.has(record.source.tobytes()):
                self.tally.other_part += 1
            elif self._is_good(record, item):
                yield record

    def _is_good(self, record: PairRecord, item: RawItem) -> bool:
        """Tell whether a record passes the gates; one that does not is counted and listed."""
        group = self._group_of(item)
        place = str(record.extra["origin"])
        try:
            self.settings.gates.check_record(record, item)
            self.duplicates.check(record, with_content=self.settings.gates.duplicates)
            self._refuse_leak(record, place)
        except RefusedPairError as error:
            self.tally.skip(SkippedPair(place, error.reason, str(error)))
            return False
        if group is not None:
            self.taken[group] += 1
        return True

    def _refuse_leak(self, record: PairRecord, place: str) -> None:
        why = None if self.settings.guard is None else self.settings.guard(record)
        if why is not None:
            raise RefusedPairError(Reason.evaluation_leak, f"{place}: {why}")

    def _group_of(self, pair: RawItem) -> int | None:
        """Return the group to count, None for none; refuse a pair of one that has enough."""
        limit = self.settings.per_group
        if limit is None or not pair.group:
            return None
        group = digest(_bytes(pair.group))
        if self.taken[group] >= limit:
            detail = f"{pair.name}: {limit} of {pair.group!r} were taken before"
            raise RefusedPairError(Reason.group_full, detail)
        return group


def _bytes(group: str) -> bytes:
    return group.encode("utf-8", "surrogatepass")  # json may hold half a character


def _provenance(pair: RawItem) -> dict[str, object]:
    """Return what is known of a pair's origin and worth keeping."""
    known = {"raw_task": pair.raw_task, "group": pair.group, "scores": dict(pair.scores)}
    return {name: value for name, value in known.items() if value}


def _listing(converter: Converter, source: Path) -> Iterator[RawItem | SkippedPair]:
    """List the pairs, and whatever else lies there."""
    yield from converter.list_pairs(source)
    yield from passed_by(source, converter.has_place)


def _counted(
    listing: Iterator[RawItem | SkippedPair], on_listed: Callable[[int], None] | None
) -> Iterator[RawItem | SkippedPair]:
    for number, item in enumerate(listing, 1):
        yield item
        if on_listed is not None and number % _LISTING_STEP == 0:
            on_listed(number)


def _write(converter: Converter, source: Path, out: Path, judge: Judge) -> list[ShardEntry]:
    settings = judge.settings
    given = settings.pairs_per_shard
    most = converter.per_shard if given is None else given
    with ShardWriter(out, pairs_per_shard=most, by_shape=settings.by_shape) as writer:
        for item in _listing(converter, source):
            for record in judge.accept(item, converter.name):
                writer.add(record)
    names = (*settings.naming.known.names, CAPTION)
    place = {name: index for index, name in enumerate(names)}
    return sorted(writer.entries, key=lambda entry: (place[entry.task], entry.file))


def _finish(
    entries: list[ShardEntry], tally: Tally, out: Path, made_by: dict[str, object], unit: str
) -> ConvertReport:
    skipped = dict(sorted(tally.skipped.items()))
    path = out / QUARANTINE if skipped else None
    if path is None:
        (out / QUARANTINE).unlink()
    if not entries:
        why = f"{counted(skipped)}; see {path}" if skipped else "nothing was listed"
        if tally.other_part:
            why = f"{tally.other_part} are of the other part; {why}"
        raise BadDataError(f"{made_by['source']}: no {unit} is left to write: {why}")
    written = {task: tally.written[task] for task in dict.fromkeys(e.task for e in entries)}
    listed = sum(written.values()) + sum(skipped.values()) + tally.other_part
    counts = {
        "listed": listed,
        "written": written,
        "raw_tasks": dict(sorted(tally.raw_tasks.items())),
        "skipped": skipped,
    }
    if CAPTION in written:
        counts[NEW_TASK] = CAPTION
    write_manifest(out, entries, made_by={**made_by, **counts})
    return ConvertReport(
        listed,
        written,
        skipped,
        tally.examples,
        tally.other_part,
        path,
        unit,
        tuple(sorted(tally.motion)),
    )


def _made_by(converter: Converter, source: Path, settings: ConvertSettings) -> dict[str, object]:
    gates = asdict(settings.gates)
    gates["excluded"] = len(settings.gates.excluded)
    part = None if settings.part is None else asdict(settings.part)
    made_by = {"convert": converter.name, "source": source.name, "gates": gates, "part": part}
    return made_by if settings.cutting is None else {**made_by, "clips": asdict(settings.cutting)}


def _check_out(out: Path, source: Path) -> None:
    refuse_output(out)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise InputError(
            f"{out}: lies inside {source}, where it would be read; give another folder"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, needs a folder for the shards")
    if any(out.glob("*.tar")) or (out / "manifest.json").exists():
        raise InputError(f"{out}: has shards already; give a new folder or delete this one first")


def _check_settings(settings: ConvertSettings, found: Survey, source: Path) -> None:
    unknown = sorted(set(settings.gates.scores) - found.scores)
    if unknown:
        known = ", ".join(sorted(found.scores)) or "none"
        raise InputError(f"{source}: no pair has a score {', '.join(unknown)}; there are: {known}")
    if settings.per_group is not None and not found.has_groups:
        raise InputError(
            f"{source}: no pair says which prompt, session or picture it is of, so at most "
            f"{settings.per_group} of each cannot be taken; leave --per-group out"
        )
