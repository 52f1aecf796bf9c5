"""The run of a conversion: list, check, judge, stream into shards of each task, report.

The data are listed twice, once to count and to refuse task names that nobody knows before anything
is written, and once to convert. Memory holds one pair, the page of the table its pictures came in,
and a table of 32 to 64 bytes for each pair, to find doubles.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from datamodules.convert.gates import Duplicates, Gates, digest
from datamodules.convert.naming import Namer, Survey, TaskNaming, survey
from datamodules.convert.pair import (
    Converter,
    FieldMap,
    Part,
    RawPair,
    Reason,
    RefusedPairError,
    SkippedPair,
    read_pair,
)
from datamodules.convert.registry import load_converter
from datamodules.convert.report import QUARANTINE, ConvertReport, Tally, counted, passed_by
from datamodules.shards.evaluation_only import refuse_kind, refuse_output, refuse_path
from datamodules.shards.manifest import ShardEntry, write_manifest
from datamodules.shards.writer import Guard, PairRecord, ShardWriter
from emu_edit.errors import BadDataError, InputError

_LISTING_STEP = 1000  # entries between two signs of life


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
        pairs_per_shard: how many pairs a shard holds at most.
        fields: what is what in samples and tables of others, for the kinds that ask for it.
    """

    naming: TaskNaming = field(default_factory=TaskNaming)
    gates: Gates = field(default_factory=Gates)
    part: Part | None = None
    per_group: int | None = None
    guard: Guard | None = None
    pairs_per_shard: int = 1000
    fields: FieldMap | None = None


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
    converter = load_converter(kind, settings.fields)
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
        return _finish(entries, tally, out, _made_by(converter, source, settings))
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

    def accept(self, item: RawPair | SkippedPair, dataset: str) -> PairRecord | None:
        """Return the pair to write, None if it is left out."""
        self.tally.step()
        if isinstance(item, SkippedPair):
            self.tally.skip(item)
            return None
        try:
            record = self._read(item)
        except RefusedPairError as error:
            self.tally.skip(SkippedPair(item.name, error.reason, str(error)))
            return None
        if record is None:
            self.tally.other_part += 1
            return None
        self.tally.written[record.task] += 1
        if item.raw_task:
            self.tally.raw_tasks[item.raw_task] += 1
        return replace(record, extra={"dataset": dataset, **_provenance(item), **record.extra})

    def _read(self, pair: RawPair) -> PairRecord | None:
        gates, part, guard = self.settings.gates, self.settings.part, self.settings.guard
        task = self.namer.task_of(pair)
        gates.check_listed(pair)
        group = self._group_of(pair)
        record = read_pair(pair, task, resize_above=gates.resize)
        if part is not None and not part.has(pair, record):
            return None
        gates.check_record(record, pair)
        self.duplicates.check(record, with_content=gates.duplicates)
        why = None if guard is None else guard(record)
        if why is not None:
            raise RefusedPairError(Reason.evaluation_leak, f"{pair.name}: {why}")
        if group is not None:
            self.taken[group] += 1
        return record

    def _group_of(self, pair: RawPair) -> int | None:
        """Return the group to count, None for none; refuse a pair of one that has enough."""
        limit = self.settings.per_group
        if limit is None or not pair.group:
            return None
        group = digest(pair.group.encode("utf-8", "surrogatepass"))
        if self.taken[group] >= limit:
            detail = f"{pair.name}: {limit} of {pair.group!r} were taken before"
            raise RefusedPairError(Reason.group_full, detail)
        return group


def _provenance(pair: RawPair) -> dict[str, object]:
    """Return what is known of a pair's origin and worth keeping."""
    known = {"raw_task": pair.raw_task, "group": pair.group, "scores": dict(pair.scores)}
    return {name: value for name, value in known.items() if value}


def _listing(converter: Converter, source: Path) -> Iterator[RawPair | SkippedPair]:
    """List the pairs, and whatever else lies there."""
    yield from converter.list_pairs(source)
    yield from passed_by(source, converter.has_place)


def _counted(
    listing: Iterator[RawPair | SkippedPair], on_listed: Callable[[int], None] | None
) -> Iterator[RawPair | SkippedPair]:
    for number, item in enumerate(listing, 1):
        yield item
        if on_listed is not None and number % _LISTING_STEP == 0:
            on_listed(number)


def _write(converter: Converter, source: Path, out: Path, judge: Judge) -> list[ShardEntry]:
    settings = judge.settings
    with ShardWriter(out, pairs_per_shard=settings.pairs_per_shard) as writer:
        for item in _listing(converter, source):
            record = judge.accept(item, converter.name)
            if record is not None:
                writer.add(record)
    place = {name: index for index, name in enumerate(settings.naming.known.names)}
    return sorted(writer.entries, key=lambda entry: (place[entry.task], entry.file))


def _finish(
    entries: list[ShardEntry], tally: Tally, out: Path, made_by: dict[str, object]
) -> ConvertReport:
    skipped = dict(sorted(tally.skipped.items()))
    path = out / QUARANTINE if skipped else None
    if path is None:
        (out / QUARANTINE).unlink()
    if not entries:
        why = f"{counted(skipped)}; see {path}" if skipped else "nothing was listed"
        if tally.other_part:
            why = f"{tally.other_part} are of the other part; {why}"
        raise BadDataError(f"{made_by['source']}: no pair is left to write: {why}")
    written = {task: tally.written[task] for task in dict.fromkeys(e.task for e in entries)}
    counts = {
        "listed": tally.done,
        "written": written,
        "raw_tasks": dict(sorted(tally.raw_tasks.items())),
        "skipped": skipped,
    }
    write_manifest(out, entries, made_by={**made_by, **counts})
    return ConvertReport(tally.done, written, skipped, tally.examples, tally.other_part, path)


def _made_by(converter: Converter, source: Path, settings: ConvertSettings) -> dict[str, object]:
    gates = asdict(settings.gates)
    gates["excluded"] = len(settings.gates.excluded)
    part = None if settings.part is None else asdict(settings.part)
    return {"convert": converter.name, "source": source.name, "gates": gates, "part": part}


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
