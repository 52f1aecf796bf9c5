"""`evaluate --benchmark world-captions`: pictures drawn from captions, read by the scene reader.

Every caption is of a scene of the world, so what should be seen is known, and where it is is free.
The reader says what a person would see: which figures, in what colour, shape and pattern, on which
background. The oracle's row is the reader on the true picture of the scene.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.evaluation_sets.items import SINGLE, Item
from datamodules.world.captions import caption_scene
from datamodules.world.pair import VERSION as WORLD_VERSION
from datamodules.world.read import Reading, read_scene
from datamodules.world.scene import Figure, Scene
from emu_edit.editing.generate import draw_pictures, load_generator
from emu_edit.errors import InputError
from emu_edit.evaluation.candidate import Candidate, Outcome
from emu_edit.evaluation.edits import seed_of
from emu_edit.evaluation.figures import MODEL, ORACLE, WORLD_CAPTIONS
from emu_edit.evaluation.outputs import ItemPictures
from emu_edit.evaluation.page import write_page
from emu_edit.evaluation.results import FORMAT, rows_of, table_of, versions, write_evaluation
from emu_edit.evaluation.score import Values
from emu_edit.evaluation.world import Scenes
from emu_edit.terminal import step_bar

NAME = "world-captions"
AT_ONCE = 16  # pictures that are drawn together


@dataclass(frozen=True)
class CaptionOptions:
    """What `evaluate --benchmark world-captions` draws.

    Attributes:
        candidate: a model that draws.
        scenes: of the world.
        captions: how many.
        flat: whether scenes are flat, as the recipe `text_to_image` trains on.
    """

    candidate: Candidate
    scenes: Scenes = field(default_factory=Scenes)
    captions: int = 100
    flat: bool = True

    def __post_init__(self) -> None:
        """Refuse photographs and folders of pictures."""
        if self.scenes.photos is not None:
            raise InputError("--photos: captions of the world have none; leave it out")
        if self.candidate.are_pictures:
            raise InputError(
                f"{self.candidate.path} is a folder of pictures; --benchmark {NAME} scores models"
            )


@dataclass(frozen=True)
class _Asked:
    """A caption, the scene that it is of, and the true picture."""

    item: Item
    scene: Scene
    picture: UInt8[np.ndarray, "3 h w"]


def run_captions(options: CaptionOptions) -> Outcome:
    """Draw, read, and write numbers, table and page.

    Raises:
        InputError: if the model cannot be used or was not trained to draw.
    """
    start = time.monotonic()
    candidate = options.candidate
    with candidate.drawing_directory() as directory:
        editor = load_generator(directory, candidate.device)
    editor.settings = candidate.sampling.applied(editor.settings)
    side = options.scenes.side(editor.settings.image_size)
    asked = [_asked(options, index, side) for index in range(options.captions)]
    drawn: dict[str, UInt8[Tensor, "3 h w"]] = {}
    with step_bar("drawing", "pictures") as on_step:
        for first in range(0, len(asked), AT_ONCE):
            part = [one.item for one in asked[first : first + AT_ONCE]]
            seeds = [seed_of(item.key) for item in part]
            texts = [item.instruction for item in part]
            made = draw_pictures(editor, texts, seeds, size=(side, side))
            drawn |= {item.key: picture for item, picture in zip(part, made, strict=True)}
            on_step(len(drawn), len(asked))
    scores: dict[str, dict[str, Values]] = {MODEL: {}, ORACLE: {}}
    with step_bar("reading", "pictures") as on_step:
        for number, one in enumerate(asked, 1):
            key = one.item.key
            scores[MODEL][key] = agreement(one.scene, read_scene(drawn[key].numpy()).readable)
            scores[ORACLE][key] = agreement(one.scene, read_scene(one.picture).readable)
            on_step(number, len(asked))
    about = {"settings": editor.settings.to_dict(), "seconds": round(time.monotonic() - start, 1)}
    results = _results(options, [one.item for one in asked], scores, about)
    items = [
        {**vars(one.item), "status": "ok", "block": [SINGLE], "scores": scores[MODEL][one.item.key]}
        for one in asked
    ]
    folder = candidate.results_folder(f"{NAME}-{options.scenes.split}")
    folder.mkdir(parents=True, exist_ok=True)
    table = table_of(results)
    write_evaluation(folder, results, items, table)
    true = {one.item.key: torch.from_numpy(one.picture) for one in asked}
    write_page(folder, results, items, lambda key: ItemPictures(None, drawn[key], true[key]))
    return Outcome(table, folder)


def _asked(options: CaptionOptions, index: int, side: int) -> _Asked:
    scenes = options.scenes
    studio, scene = caption_scene(
        scenes.seed, index, split=scenes.split, size=side, flat=options.flat
    )
    item = Item(
        key=studio.key,
        task=f"{len(scene.figures)} figures" if len(scene.figures) != 1 else "1 figure",
        session=studio.key,
        instruction=scene.caption,
        source_caption="",
        target_caption=scene.caption,
    )
    picture = np.ascontiguousarray(studio.render(scene).transpose(2, 0, 1))
    return _Asked(item, scene, picture)


def agreement(scene: Scene, reading: Reading) -> Values:
    """Compare what a caption asks for with what is read; places do not matter.

    See `found_shares`; `background` is 0 or 1; `right` is 1 if all of it is there and nothing else.
    """
    shares = found_shares(scene.figures, [read.figure for read in reading.figures])
    background = float(reading.background == scene.background.name)
    is_right = shares["figures"] == shares["number"] == background == 1
    return {"right": float(is_right), **shares, "background": background}


def found_shares(asked: Sequence[Figure], found: Sequence[Figure]) -> dict[str, float]:
    """Return how many of the figures asked for are found, in [0, 1].

    Shares of them: whole (colour, shape and pattern), by colour and by shape alone; `number` is 1
    if there are as many as asked for.
    """
    shares = {
        name: _share([of(f) for f in asked], [of(f) for f in found])
        for name, of in (
            ("figures", lambda f: f.full_name),
            ("colours", lambda f: f.colour),
            ("shapes", lambda f: f.shape),
        )
    }
    return {**shares, "number": float(len(asked) == len(found))}


def _share(asked: Iterable[str], found: Iterable[str]) -> float:
    """Return the share of the names asked for that are found, each as often as it is there."""
    wanted = Counter(asked)
    return (wanted & Counter(found)).total() / max(wanted.total(), 1)


def _results(
    options: CaptionOptions,
    items: Sequence[Item],
    scores: dict[str, dict[str, Values]],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Lay out results.json."""
    metrics = list(WORLD_CAPTIONS)
    texts = "\n".join(f"{item.key} {item.instruction}" for item in items)
    model = {"name": options.candidate.name, "kind": "model"}
    return {
        "format": FORMAT,
        "benchmark": NAME,
        "noun": "picture",
        "protocol": {
            "name": "scene reader",
            "reference": "caption",
            "metrics": metrics,
            "world_version": WORLD_VERSION,
            "flat": options.flat,
        },
        "data": {
            "name": "",
            "split": options.scenes.split,
            "items": len(items),
            "of": len(items),
            "sha256": hashlib.sha256(texts.encode()).hexdigest(),
        },
        "model": {**model, "sha256": ""},
        "versions": versions(),
        "blocks": {SINGLE: {"items": len(items), "rows": rows_of(items, scores, metrics)}},
        "failed": [],
        "filtered": [],
        "resampled": {"count": 0, "keys": []},
        "truncated_captions": 0,
        "unmended_captions": 0,
        **about,
    }
