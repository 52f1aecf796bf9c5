"""`evaluate --benchmark emu-edit|magicbrush`: edits of photographs, scored by a pinned protocol.

Whatever can be wrong (protocol, data, networks, model, the output folder) is found out before the
first edit.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from datamodules.evaluation_sets import MAGICBRUSH, load_benchmark
from datamodules.evaluation_sets.items import FINAL_TURNS, Benchmark
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import choose_device, find_model
from emu_edit.errors import InputError
from emu_edit.evaluation.candidate import Candidate, Outcome
from emu_edit.evaluation.compare import compare_table
from emu_edit.evaluation.edits import GIVEN, PREDICTED, EditRun, claim_folder
from emu_edit.evaluation.outputs import (
    Inputs,
    check_inputs,
    pictures_sha256,
    read_pictures,
)
from emu_edit.evaluation.page import write_page
from emu_edit.evaluation.results import Evaluation, Submission, Work, table_of, write_evaluation
from emu_edit.evaluation.score import Features, pictures_of, score
from emu_edit.files import sha256_of
from emu_edit.metrics.backbones import ClipBackbone, DinoBackbone, find_backbone
from emu_edit.metrics.protocols import INPUT, MENDED, Protocol, is_left_out, protocol_for
from emu_edit.metrics.published import PACKAGED, load_published
from emu_edit.terminal import step_bar
from emu_edit.training.export import model_directory

SEEDS = "first 4 bytes of SHA-256 of the key"


@dataclass(frozen=True)
class PhotographOptions:
    """What `evaluate --benchmark emu-edit|magicbrush` scores, and how.

    Attributes:
        candidate: a model or pictures.
        benchmark: "emu-edit" or "magicbrush".
        data: the folder it was downloaded to, as `load_benchmark` needs it.
        split: of the Emu Edit test set; None means "test" if there is one, else the only one.
        protocol: what the numbers mean, by name; None means the benchmark's own.
        backbones: folder of CLIP and DINO; None means the hub's.
        size: what the shorter side of a picture becomes before it is edited; None means as trained.
        tasks: where the task of an edit comes from, "predicted" or "given"; None means predicted
            where the model has a predictor.
        limit: score only the first so many edits or sessions.
        compare: file of published rows to print below, "published" for those that come along.
    """

    candidate: Candidate
    benchmark: str
    data: Path | None
    split: str | None = None
    protocol: str | None = None
    backbones: Path | None = None
    size: int | None = None
    tasks: str | None = None
    limit: int | None = None
    compare: str | None = None

    def __post_init__(self) -> None:
        """Refuse a split or a protocol that the benchmark lacks, and size and tasks of pictures."""
        if self.benchmark == MAGICBRUSH and self.split is not None:
            raise InputError(f"--split {self.split}: magicbrush has no splits; leave it out")
        protocol_for(self.benchmark, self.protocol)
        self.candidate.refuse_for_pictures({"--size": self.size, "--tasks": self.tasks})


def run_photographs(options: PhotographOptions) -> Outcome:
    """Edit, score, and write results.json, items.jsonl, table.md and index.html.

    Raises:
        InputError: if data, networks, model, pictures or output folder cannot be used.
    """
    start = time.monotonic()
    candidate, compare = options.candidate, options.compare
    if not candidate.are_pictures:
        check_model(candidate.path)
    published = () if compare is None else load_published(compare)
    work = load_work(options)
    device = choose_device(candidate.device)
    features, backbones = load_backbones(work.protocol, options.backbones, device)
    with step_bar("checking", "edits") as on_step:
        inputs = check_inputs(work.benchmark, on_step)
    folder = candidate.results_folder(f"{options.benchmark}-{work.protocol.name}")
    edit = submit_pictures if candidate.are_pictures else edit_with_model
    submission = edit(options, work, inputs, folder)
    outputs = submission.outputs
    with step_bar("scoring", "edits") as on_step:
        scores = score(work.benchmark, outputs, inputs, work.protocol, features, on_step)
    seconds = time.monotonic() - start
    evaluation = Evaluation(work, submission, backbones, inputs, scores, device, seconds)
    results, items = evaluation.to_dict(), evaluation.item_lines()
    table = table_of(results)
    if compare is not None:
        table += f"\n\n{compare_table(results, None if compare == PACKAGED else Path(compare))}"
    write_evaluation(folder, results, items, table)
    write_page(folder, results, items, pictures_of(work.benchmark, outputs), published)
    return Outcome(table, folder, len(evaluation.failed()))


def check_model(path: Path) -> None:
    """Refuse a path without model or pictures before anything is read.

    Raises:
        InputError: saying what is there instead.
    """
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"{path} is empty, needs a model or a picture per edit")
    if not path.is_file():
        find_model(path)


def load_work(options: PhotographOptions) -> Work:
    """Read the benchmark and choose the items that the protocol is about.

    Raises:
        InputError: if the data cannot be used.
    """
    protocol = protocol_for(options.benchmark, options.protocol)
    whole = load_benchmark(
        options.benchmark, options.data, split=options.split, captions=protocol.captions
    )
    # what an edit of our own result would be compared with is not said by Emu Edit
    if protocol.reference == INPUT and FINAL_TURNS in whole.blocks:
        whole = whole.without(FINAL_TURNS)
    filtered = {
        item.key
        for item in whole.items
        if is_left_out(protocol, (item.source_caption, item.target_caption))
    }
    kept = whole.keep(lambda item: item.key not in filtered)
    benchmark = kept.limited(options.limit)
    if not benchmark.scored():
        raise InputError(f"{options.data} has no edits that {protocol.name} scores")
    return Work(protocol, benchmark, len(kept.scored()), tuple(sorted(filtered)))


def load_backbones(
    protocol: Protocol, folder: Path | None, device: str
) -> tuple[Features, dict[str, str]]:
    """Load the protocol's networks; return them and the hashes of their weights.

    Raises:
        InputError: if one is missing.
    """
    dtype = getattr(torch, protocol.dtype)
    clip, dino = (find_backbone(name, folder) for name in (protocol.clip, protocol.dino))
    clip_network = ClipBackbone.load(
        clip,
        protocol.clip_preprocess,
        dtype=dtype,
        device=device,
        mends_texts=protocol.captions_read == MENDED,
    )
    dino_network = DinoBackbone.load(dino, protocol.dino_preprocess, dtype=dtype, device=device)
    hashes = {protocol.clip: clip_network.sha256, protocol.dino: dino_network.sha256}
    return Features(clip_network, dino_network), hashes


def submit_pictures(
    options: PhotographOptions, work: Work, inputs: Inputs, folder: Path
) -> Submission:
    """Pair the pictures of a folder with the items.

    Raises:
        InputError: if they do not pair up, or the output folder is another run's.
    """
    candidate = options.candidate
    outputs = read_pictures(
        candidate.path, work.benchmark, inputs.source, allow_missing=candidate.allow_missing
    )
    model = {"name": candidate.name, "kind": "pictures"}
    claim_folder(folder, {**work.to_dict(), "model": model["name"], "kind": model["kind"]})
    return Submission(outputs, {**model, "sha256": pictures_sha256(outputs)}, settings={})


def edit_with_model(
    options: PhotographOptions, work: Work, inputs: Inputs, folder: Path
) -> Submission:
    """Edit what is not yet done.

    Raises:
        InputError: if the model cannot be loaded or cannot edit these items, or the output folder
            is another run's.
    """
    candidate = options.candidate
    with model_directory(candidate.path) as directory:
        sha256 = folder_sha256(directory)
    editor = candidate.load()
    tasks = choose_tasks(options.tasks, editor, work.benchmark)
    size = editor.settings.image_size if options.size is None else options.size
    model = {"name": candidate.name, "kind": "model", "sha256": sha256}
    settings = {
        **editor.settings.to_dict(),
        "size": size,
        "tasks": tasks,
        "seeds": SEEDS,
        "device": editor.device.type,
    }
    claim_folder(folder, {**work.to_dict(), "model": model["name"], "sha256": sha256, **settings})
    with step_bar("editing", "edits") as on_step:
        outputs = EditRun(editor, folder, size, tasks).run(work.benchmark, inputs.source, on_step)
    return Submission(outputs, model, settings)


def choose_tasks(tasks: str | None, editor: Editor, benchmark: Benchmark) -> str:
    """Choose where the task of an edit comes from: the model's predictor, or the benchmark.

    Raises:
        InputError: if it cannot come from there.
    """
    has_predictor = editor.predictor is not None
    tasks = tasks or (PREDICTED if has_predictor else GIVEN)
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


def folder_sha256(folder: Path) -> str:
    """Hash all files of a model directory and their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
