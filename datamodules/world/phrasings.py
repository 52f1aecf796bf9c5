"""The sentences of the world: how one may ask for each kind of edit; some are held out.

They are data and stand in `sentences.yaml`, those of photographs in `photograph_sentences.yaml`;
here they become tables by task. A slot in braces is
filled by `datamodules.world.instructions`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Phrasings:
    """Sentences used in training, and sentences only used to test."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


# the tasks that turn a picture into a map and back: the map's name, and how one is made
MAP_WORDS = {
    "sketch": ("line sketch", "draw"),
    "depth": ("depth map", "compute"),
    "normal": ("normal map", "compute"),
    "pose": ("pose skeleton", "draw"),
    "segmap": ("segmentation map", "compute"),
}


def _filled(sentences: list[str], task: str) -> tuple[str, ...]:
    """Return sentences with the words of a map in their places."""
    name, verb = MAP_WORDS.get(task, ("", ""))
    return tuple(s.replace("<map>", name).replace("<verb>", verb) for s in sentences)


def _by_kind(table: dict[str, dict[str, Any]], task: str = "") -> dict[str, Phrasings]:
    return {
        kind: Phrasings(_filled(sides["train"], task), _filled(sides["heldout"], task))
        for kind, sides in table.items()
    }


_SENTENCES = yaml.safe_load(Path(__file__).with_name("sentences.yaml").read_text("utf-8"))

# task -> kind of edit -> sentences
PHRASINGS: dict[str, dict[str, Phrasings]] = {
    **{task: _by_kind(kinds) for task, kinds in _SENTENCES["tasks"].items()},
    **{task: _by_kind(_SENTENCES["maps"], task) for task in MAP_WORDS},
}
NEW_PHRASINGS: dict[str, Phrasings] = _by_kind(_SENTENCES["new_tasks"])

# task -> more ways to ask, used in training only
_PARAPHRASES: dict[str, list[str]] = _SENTENCES["paraphrases"]
PARAPHRASES: dict[str, tuple[str, ...]] = {
    task: _filled(_PARAPHRASES.get(task, _PARAPHRASES["maps"]), task) for task in PHRASINGS
}

OF_PHOTOGRAPHS = "photo_"  # how the kinds of their edits begin; no kind of the world does
_OF_PHOTOGRAPHS = yaml.safe_load(
    Path(__file__).with_name("photograph_sentences.yaml").read_text("utf-8")
)
# task -> kind of edit of a photograph -> sentences
PHOTOGRAPH_PHRASINGS: dict[str, dict[str, Phrasings]] = {
    task: _by_kind(kinds) for task, kinds in _OF_PHOTOGRAPHS.items()
}
# kind -> what the caption of its target says
PHOTOGRAPH_CAPTIONS: dict[str, str] = {
    kind: about["caption"] for kinds in _OF_PHOTOGRAPHS.values() for kind, about in kinds.items()
}
