"""`evaluate --benchmark world-video|tgve`: edits of videos, by a model or by somebody else.

    OUT/videos/KEY.png or .mp4   a model's results (of the world: animated, without loss)
    OUT/scores.jsonl             a line per item, appended when it is scored; the last one counts
    OUT/run.json                 what the numbers depend on; another run may not continue them
    OUT/results.json, items.jsonl, table.md, index.html

One video is edited and scored after the other, frame by frame, so memory does not grow with the
benchmark, and the same command goes on where it stopped: an item is done when the bytes of its
result are those of its line.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.evaluation_sets.items import SINGLE, some
from datamodules.evaluation_sets.tgve import load_tgve
from datamodules.evaluation_sets.videos import (
    TGVE,
    WORLD_VIDEO,
    VideoBenchmark,
    VideoItem,
    video_sha256,
    world_video_item,
)
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import choose_device
from emu_edit.errors import InputError
from emu_edit.evaluation.candidate import Candidate, Outcome
from emu_edit.evaluation.compare import compare_table
from emu_edit.evaluation.edits import claim_folder, item_line, read_lines
from emu_edit.evaluation.figures import MODEL, metric
from emu_edit.evaluation.outputs import MISSING, OK, Output, failed
from emu_edit.evaluation.page import write_page
from emu_edit.evaluation.photographs import SEEDS, check_model, folder_sha256
from emu_edit.evaluation.results import FORMAT, rows_of, table_of, versions, write_evaluation
from emu_edit.evaluation.video_outputs import FolderVideos, ModelVideos, Videos, shown
from emu_edit.evaluation.video_scores import Scorer, scorer_of
from emu_edit.evaluation.world import SIZE, Scenes
from emu_edit.evaluation.world_inputs import INPUTS, input_line, refuse_full
from emu_edit.files import write_text
from emu_edit.images import save_png
from emu_edit.metrics.published import PACKAGED, load_published
from emu_edit.tasks import SIXTEEN
from emu_edit.terminal import plural, step_bar
from emu_edit.training.export import model_directory
from emu_edit.video.io import open_video
from emu_edit.video.stacked import VideoModel, editor_of

SCORES = "scores.jsonl"
MOST_SHOWN = 48  # edits on the page, each with two or three videos in it


@dataclass(frozen=True)
class Clips:
    """Which clips of the moving world are scored.

    Attributes:
        scenes: of the world.
        clips: of each task.
        frames: of each clip.
    """

    scenes: Scenes = field(default_factory=Scenes)
    clips: int = 2
    frames: int = 12

    def __post_init__(self) -> None:
        """Refuse photographs."""
        if self.scenes.photos is not None:
            raise InputError("--photos: the moving world has no photographs; leave it out")

    def benchmark(self, tasks: Sequence[str], usual: int) -> VideoBenchmark:
        """Make the items of some tasks, at the usual size if none was asked for."""
        scenes, side = self.scenes, self.scenes.side(usual)
        items = tuple(
            world_video_item(scenes.seed, scenes.split, i, task=task, size=side, frames=self.frames)
            for task in tasks
            for i in range(self.clips)
        )
        return VideoBenchmark(WORLD_VIDEO, "", scenes.split, items, len(items))


@dataclass(frozen=True)
class VideoOptions:
    """What `evaluate --benchmark world-video|tgve` scores, and how.

    Attributes:
        candidate: a model, or a folder of videos.
        benchmark: "world-video" or "tgve".
        clips: of the moving world.
        data: the folder TGVE was unpacked to.
        instructions: JSON of what to do in TGVE.
        protocol: of TGVE, what the numbers mean; None means "tgve".
        backbones: folder of the networks that TGVE is measured with.
        size: what the shorter side of a video becomes before it is edited; None means as trained.
        limit: score only the first so many edits.
        compare: file of published rows to print below, "published" for those that come along.
    """

    candidate: Candidate
    benchmark: str
    clips: Clips = field(default_factory=Clips)
    data: Path | None = None
    instructions: Path | None = None
    protocol: str | None = None
    backbones: Path | None = None
    size: int | None = None
    limit: int | None = None
    compare: str | None = None

    def __post_init__(self) -> None:
        """Refuse TGVE without its folder, and the size of videos."""
        if self.benchmark == TGVE and (self.data is None or not self.data.is_dir()):
            raise InputError(
                "--benchmark tgve needs --data DIR, the folder with LOVEU-TGVE-2023_Dataset.csv "
                "and its videos"
            )
        if self.benchmark == TGVE:
            self.candidate.refuse_for_pictures({"--size": self.size})


def run_videos(options: VideoOptions) -> Outcome:
    """Edit and score every video, then write the means and a page to look at.

    Raises:
        InputError: if data, networks, model, videos or output folder cannot be used.
    """
    start = time.monotonic()
    candidate = options.candidate
    if not candidate.are_pictures:
        check_model(candidate.path)
    published = () if options.compare is None else load_published(options.compare)
    model, about = _model(options)
    editor = None if model is None else editor_of(model)
    benchmark = load_videos(options, editor)
    scorer = scorer_of(
        options.benchmark, options.protocol, options.backbones, choose_device(candidate.device)
    )
    folder = candidate.results_folder(scorer.name)
    source: Videos = (
        FolderVideos.of(candidate.path, benchmark, allow_missing=candidate.allow_missing)
        if model is None
        else ModelVideos(model, folder, side_of(options, editor_of(model)))
    )
    results, items = scored(benchmark, source, scorer, folder, about)
    results["seconds"] = round(time.monotonic() - start, 1)
    table = table_of(results)
    if options.compare is not None:
        path = None if options.compare == PACKAGED else Path(options.compare)
        table += f"\n\n{compare_table(results, path)}"
    write_evaluation(folder, results, items, table)
    by_key = {item.key: item for item in benchmark.items}
    write_page(
        folder,
        results,
        items,
        lambda key: shown(by_key[key], source.path(by_key[key])),
        published,
        most=MOST_SHOWN,
    )
    return Outcome(table, folder, len(results["failed"]))


def side_of(options: VideoOptions, editor: Editor) -> int:
    """Say what the shorter side of a video becomes before it is edited."""
    usual = editor.settings.image_size
    if options.benchmark == WORLD_VIDEO:
        return options.clips.scenes.side(usual)
    return options.size or usual


def load_videos(options: VideoOptions, editor: Editor | None) -> VideoBenchmark:
    """Read or make the items.

    Raises:
        InputError: if the data cannot be used, or do not say what a model is to do.
    """
    if options.benchmark == WORLD_VIDEO:
        known = SIXTEEN.names if editor is None else editor.networks.tasks.names
        tasks = [name for name in SIXTEEN.names if name in known]
        return options.clips.benchmark(
            tasks, SIZE if editor is None else editor.settings.image_size
        )
    assert options.data is not None  # by __post_init__
    benchmark = load_tgve(options.data, options.instructions)
    silent = [item.key for item in benchmark.items if not item.instruction]
    if editor is not None and silent:
        raise InputError(
            f"{options.data} does not say what to do in {len(silent)} edits ({some(silent)}), only "
            "what comes out; give --instructions loveu_tgve_edit_prompt_dict.json of InsV2V"
        )
    return benchmark.limited(options.limit)


def _model(options: VideoOptions) -> tuple[VideoModel | None, dict[str, object]]:
    """Load the model, None for videos; and say what results depend on."""
    candidate = options.candidate
    about: dict[str, object] = {"model": candidate.name}
    if candidate.are_pictures:
        return None, {**about, "kind": "videos"}
    with model_directory(candidate.path) as directory:
        sha256 = folder_sha256(directory)
    model = candidate.load_for_videos()
    editor = editor_of(model)
    if options.benchmark == TGVE and editor.predictor is None:
        raise InputError(
            "--benchmark tgve does not say the tasks of its edits, so the model needs a task "
            "predictor; train one with 'emu-edit predictor fit MODEL'"
        )
    settings = {**editor.settings.to_dict(), "size": side_of(options, editor), "seeds": SEEDS}
    return model, {**about, "kind": "model", "sha256": sha256, "settings": settings}


def scored(
    benchmark: VideoBenchmark,
    source: Videos,
    scorer: Scorer,
    folder: Path,
    about: Mapping[str, object],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make and score every video; return what results.json and the lines of items.jsonl hold.

    Args:
        benchmark: what is made.
        source: makes it, or has it.
        scorer: of the benchmark.
        folder: OUT; an earlier run of the same is gone on with.
        about: model, kind, and what else the results depend on.

    Raises:
        InputError: if OUT is another run's, or not one video can be scored.
    """
    pinned = {"protocol": scorer.protocol, "backbones": scorer.backbones}
    claim_folder(folder, {**about, **pinned, "data": benchmark.sha256})
    lines = _lines(benchmark, source, scorer, folder)
    items = [{**line, "scores": line["scores"][MODEL]} for line in lines.values()]
    return _results(benchmark, scorer, about, lines), items


def _lines(
    benchmark: VideoBenchmark, source: Videos, scorer: Scorer, folder: Path
) -> dict[str, dict[str, Any]]:
    """Make and score what is not yet done; return the line of every item."""
    path = folder / SCORES
    lines = read_lines(path)
    done: dict[str, dict[str, Any]] = {}
    with path.open("a", encoding="utf-8") as log, step_bar("making and scoring", "videos") as on:
        for item in benchmark.items:
            line = lines.get(item.key)
            if line is None or not _holds(line, source.path(item)):
                line = _line(item, source, scorer)
                log.write(json.dumps(line, ensure_ascii=False) + "\n")
                log.flush()
            done[item.key] = line
            on(len(done), len(benchmark.items))
    if all(line["status"] != OK for line in done.values()):
        first = next(iter(done.values()))
        raise InputError(f"not one video could be scored; {first['key']}: {first['reason']}")
    return done


def _holds(line: Mapping[str, Any], path: Path | None) -> bool:
    """Say whether a line is about the result that is there; what failed is tried again."""
    if path is None or line.get("status") != OK:
        return False
    return line.get("output_sha256") == video_sha256(path)


def _line(item: VideoItem, source: Videos, scorer: Scorer) -> dict[str, Any]:
    reason = source.make(item)
    path = source.path(item)
    if reason is None and path is not None:
        output = Output(item.key, item.sha256, video_sha256(path), None, seed=source.seed(item))
        scores = scorer.score(item, open_video(path))
    else:
        output = failed(item.key, item.sha256, reason or MISSING, source.seed(item))
        scores = scorer.score(item, None)
    return {**item_line(item, output), "block": [SINGLE], "scores": scores}


def _results(
    benchmark: VideoBenchmark,
    scorer: Scorer,
    about: Mapping[str, object],
    lines: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Lay out results.json, but for the seconds."""
    editors = next(iter(lines.values()))["scores"]
    scores = {name: {key: line["scores"][name] for key, line in lines.items()} for name in editors}
    rows = rows_of(benchmark.items, scores, scorer.metrics)
    digest = hashlib.sha256("".join(line["output_sha256"] for line in lines.values()).encode())
    model = {"name": about["model"], "kind": about["kind"]}
    captions = {
        text for item in benchmark.items for text in (item.source_caption, item.target_caption)
    }
    return {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "protocol": scorer.protocol,
        "backbones": scorer.backbones,
        "data": {
            "name": benchmark.folder,
            "split": benchmark.split,
            "items": len(benchmark.items),
            "of": benchmark.possible,
            "sha256": benchmark.sha256,
        },
        "model": {**model, "sha256": about.get("sha256", digest.hexdigest())},
        "settings": about.get("settings", {}),
        "versions": versions(),
        "directions": {
            name: {True: "up", False: "down", None: ""}[metric(name).is_up]
            for name in scorer.metrics
        },
        "blocks": {SINGLE: {"items": len(benchmark.items), "rows": rows}},
        "failed": [
            {"key": line["key"], "reason": line["reason"]}
            for line in lines.values()
            if line["status"] != OK
        ],
        "filtered": [],
        "resampled": {"count": 0, "keys": []},
        "truncated_captions": scorer.count_cut(captions),
        "unmended_captions": 0,
    }


def write_clips(folder: Path, clips: Clips) -> str:
    """Write the clips to edit as folders of pictures, and what to do; return what to tell the user.

    Raises:
        InputError: if the folder is not empty, or the clips cannot be made.
    """
    refuse_full(folder)
    benchmark = clips.benchmark(SIXTEEN.names, SIZE)
    lines = []
    with step_bar("writing", "clips") as on_step:
        for done, item in enumerate(benchmark.items, 1):
            (folder / item.key).mkdir(parents=True)
            for number, frame in enumerate(item.source().frames()):
                save_png(folder / item.key / f"{number:05d}.png", frame.pixels)
            lines.append(json.dumps(input_line(item, item.key), ensure_ascii=False))
            on_step(done, len(benchmark.items))
    write_text(folder / INPUTS, "\n".join(lines))
    return (
        f"wrote {plural(len(lines), 'clip')} and {INPUTS} to {folder}\n"
        "edit each as its line says, keep names, sizes and numbers of frames, then\n"
        f"  emu-edit evaluate VIDEOS --benchmark {WORLD_VIDEO} (with the same --pairs, --frames, "
        "--seed, --split and --size)\n"
    )
