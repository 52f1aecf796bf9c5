"""`evaluate --benchmark emu-edit|magicbrush`: from the command line to a folder of results.

Whatever can be wrong (protocol, data, networks, model, the output folder) is found out before the
first edit.
"""

import argparse
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from datamodules.evaluation_sets import load_benchmark
from datamodules.evaluation_sets.items import FINAL_TURNS, Benchmark, as_unicode
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import choose_device, find_model, model_name
from emu_edit.errors import InputError
from emu_edit.evaluation.compare import compare_table
from emu_edit.evaluation.edits import GIVEN, PREDICTED, EditRun, claim_folder
from emu_edit.evaluation.options import (
    OF_EDITING,
    are_pictures_meant,
    load_editor,
    refuse_allow_missing,
    refuse_idle,
)
from emu_edit.evaluation.outputs import (
    Inputs,
    Output,
    check_inputs,
    pictures_sha256,
    read_made,
)
from emu_edit.evaluation.page import write_page
from emu_edit.evaluation.results import SOME_FAILED, Evaluation, table_of, write_evaluation
from emu_edit.evaluation.score import Features, pictures_of, score
from emu_edit.files import sha256_of
from emu_edit.metrics.backbones import ClipBackbone, DinoBackbone, find_backbone
from emu_edit.metrics.protocols import INPUT, Protocol, is_left_out, protocol_for
from emu_edit.metrics.published import PACKAGED, PublishedRow, load_published
from emu_edit.terminal import step_bar
from emu_edit.training.export import model_directory

SEEDS = "first 4 bytes of SHA-256 of the key"


@dataclass(frozen=True)
class Work:
    """What is to be scored: the items of a benchmark, by a protocol.

    Attributes:
        protocol: how.
        benchmark: the items, those alone that count.
        possible: how many are scored without --limit.
        filtered: keys of those that the protocol leaves out.
    """

    protocol: Protocol
    benchmark: Benchmark
    possible: int
    filtered: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """Edited pictures and where they are from."""

    outputs: Mapping[str, Output]
    model: Mapping[str, str]
    settings: Mapping[str, object]


def run_benchmark(options: argparse.Namespace) -> tuple[str, Path, int]:
    """Edit, score and write; return the table, the folder written and the exit status.

    Raises:
        InputError: if data, protocol, networks, model, pictures or output folder cannot be used.
    """
    start = time.monotonic()
    check_model(options)
    published = () if options.compare is None else load_published(options.compare)
    work = load_work(options)
    features, backbones = load_backbones(work.protocol, options)
    with step_bar("checking", "edits") as on_step:
        inputs = check_inputs(work.benchmark, on_step)
    folder = output_folder(options, work.protocol)
    edit = read_pictures if are_pictures_meant(options) else edit_with_model
    made = edit(options, work, inputs, folder)
    with step_bar("scoring", "edits") as on_step:
        scores = score(work.benchmark, made.outputs, inputs, work.protocol, features, on_step)
    evaluation = Evaluation(
        benchmark=work.benchmark,
        possible=work.possible,
        filtered=work.filtered,
        protocol=work.protocol,
        backbones=backbones,
        inputs=inputs,
        model=made.model,
        settings=made.settings,
        outputs=made.outputs,
        scores=scores,
        device=choose_device(options.device),
        seconds=time.monotonic() - start,
    )
    table = write_all(folder, evaluation, published, options.compare)
    return table, folder, SOME_FAILED if evaluation.failed() else 0


def write_all(
    folder: Path,
    evaluation: Evaluation,
    published: Sequence[PublishedRow],
    compare: str | None,
) -> str:
    """Write numbers, table and page; return the table with the published rows below."""
    results, items = evaluation.to_dict(), evaluation.item_lines()
    table = table_of(results)
    if compare is not None:
        file = None if compare == PACKAGED else Path(compare)
        table = f"{table}\n\n{compare_table(results, file)}"
    write_evaluation(folder, results, items, table)
    pictures = pictures_of(evaluation.benchmark, evaluation.outputs)
    write_page(folder, results, items, pictures, published)
    return table


def check_model(options: argparse.Namespace) -> None:
    """Refuse, before anything is read, what is neither model nor pictures, and idle options.

    Raises:
        InputError: saying which.
    """
    if are_pictures_meant(options):
        refuse_idle(options, (*OF_EDITING, "size", "tasks"))
        return
    refuse_allow_missing(options)
    if options.model.is_dir() and not any(options.model.iterdir()):
        raise InputError(f"{options.model} is empty, needs a model or a picture per edit")
    if not options.model.is_file():
        find_model(options.model)


def load_work(options: argparse.Namespace) -> Work:
    """Read the benchmark and choose the items that the protocol is about.

    Raises:
        InputError: if protocol and benchmark do not fit, or the data cannot be used.
    """
    protocol = protocol_for(options.benchmark, options.protocol)
    if options.data is None:
        raise InputError(
            f"--benchmark {options.benchmark} needs --data DIR, the folder it was downloaded to"
        )
    whole = load_benchmark(
        options.benchmark, options.data, split=options.split, captions=protocol.captions
    )
    # what an edit of our own result would be compared with is not said by Emu Edit
    if protocol.reference == INPUT and FINAL_TURNS in whole.blocks:
        whole = whole.without(FINAL_TURNS)
    out = {
        item.key
        for item in whole.items
        if is_left_out(protocol, (item.source_caption, item.target_caption))
    }
    kept = whole.keep(lambda item: item.key not in out)
    benchmark = kept.limited(options.limit)
    if not benchmark.scored():
        raise InputError(f"{options.data} has no edits that {protocol.name} scores")
    return Work(protocol, benchmark, len(kept.scored()), tuple(sorted(out)))


def load_backbones(
    protocol: Protocol, options: argparse.Namespace
) -> tuple[Features, dict[str, str]]:
    """Load the protocol's networks; return them and the hashes of their weights.

    Raises:
        InputError: if one is missing.
    """
    device, dtype = choose_device(options.device), getattr(torch, protocol.dtype)
    clip, dino = (find_backbone(name, options.backbones) for name in (protocol.clip, protocol.dino))
    clip_network = ClipBackbone.load(clip, protocol.clip_preprocess, dtype=dtype, device=device)
    dino_network = DinoBackbone.load(dino, protocol.dino_preprocess, dtype=dtype, device=device)
    hashes = {protocol.clip: clip_network.sha256, protocol.dino: dino_network.sha256}
    return Features(clip_network, dino_network), hashes


def read_pictures(options: argparse.Namespace, work: Work, inputs: Inputs, folder: Path) -> Made:
    """Pair the pictures of a folder with the items.

    Raises:
        InputError: if they do not pair up, or OUT is another run's.
    """
    name = as_unicode(options.model.resolve().name)
    outputs = read_made(
        options.model,
        work.benchmark,
        inputs.source,
        allow_missing=options.allow_missing is not None,
    )
    claim_folder(folder, {**about(options, work), "model": name, "kind": "pictures"})
    model = {"name": name, "kind": "pictures", "sha256": pictures_sha256(outputs)}
    return Made(outputs, model, settings={})


def edit_with_model(options: argparse.Namespace, work: Work, inputs: Inputs, folder: Path) -> Made:
    """Edit what is not yet done.

    Raises:
        InputError: if the model cannot be loaded or cannot edit these items, or OUT is another
            run's.
    """
    with model_directory(options.model) as directory:
        sha256 = folder_sha256(directory)
    editor = load_editor(options)
    tasks = asked_tasks(options.tasks, editor, work.benchmark)
    size = editor.settings.image_size if options.size is None else options.size
    model = {"name": as_unicode(model_name(options.model)), "kind": "model", "sha256": sha256}
    settings = {
        **editor.settings.to_dict(),
        "size": size,
        "tasks": tasks,
        "seeds": SEEDS,
        "device": editor.device.type,
    }
    claim_folder(
        folder,
        {**about(options, work), "model": model["name"], "sha256": sha256, **settings},
    )
    with step_bar("editing", "edits") as on_step:
        outputs = EditRun(editor, folder, size, tasks).run(work.benchmark, inputs.source, on_step)
    return Made(outputs, model, settings)


def asked_tasks(asked: str | None, editor: Editor, benchmark: Benchmark) -> str:
    """Return where the task of an edit comes from: the model's predictor, or the benchmark.

    Raises:
        InputError: if it cannot come from there.
    """
    has_predictor = editor.predictor is not None
    tasks = asked or (PREDICTED if has_predictor else GIVEN)
    if tasks == PREDICTED and not has_predictor:
        raise InputError(
            "--tasks predicted needs a model with a task predictor; train one with "
            "'emu-edit predictor fit MODEL', or give --tasks given"
        )
    if tasks == GIVEN and not any(item.task for item in benchmark.items):
        raise InputError(
            f"{benchmark.name} does not say the tasks of its edits, so the model needs a task "
            "predictor; train one with 'emu-edit predictor fit MODEL'"
        )
    return tasks


def about(options: argparse.Namespace, work: Work) -> dict[str, object]:
    """Return what of the command line a folder of results depends on."""
    return {
        "benchmark": options.benchmark,
        "split": work.benchmark.split,
        "protocol": work.protocol.name,
    }


def output_folder(options: argparse.Namespace, protocol: Protocol) -> Path:
    """Return where to write: as asked, else beside the model or the pictures."""
    path = options.model.absolute()
    suffix = f"{options.benchmark}-{protocol.name}"
    return options.output or path.with_name(f"{path.name}-{suffix}")


def folder_sha256(folder: Path) -> str:
    """Return the hash of all files of a model directory and their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
