"""Score the outputs of a benchmark by a protocol, with copy-input and the ground truth beside them.

Three editors are scored alike: the model, copy-input (nothing edited; after turns of a session,
still its first picture) and, where there is one, the oracle (the ground truth). L1 and L2 need
pictures of one size, so there the edited one is resampled to its reference's; the networks take
every picture as it is.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from datamodules.evaluation_sets.items import Benchmark, BenchmarkItem
from emu_edit.evaluation.figures import COPY, MODEL, ORACLE
from emu_edit.evaluation.outputs import Inputs, ItemPictures, OnStep, Output, output_picture
from emu_edit.metrics.backbones import ClipBackbone, DinoBackbone
from emu_edit.metrics.preprocess import resample
from emu_edit.metrics.protocols import INPUT, Protocol
from emu_edit.metrics.similarity import clip_dir, cosine, l1, l2

AT_ONCE = 16  # items whose pictures are in memory together

Picture = UInt8[Tensor, "3 _ _"]
Values = dict[str, float | None]  # by metric; None where it is not defined


@dataclass(frozen=True)
class Scores:
    """What scoring found.

    Attributes:
        rows: per editor, per item, its values.
        resampled: keys whose result has another size than its reference.
        cut_captions: how many captions are longer than CLIP reads.
        unmended_captions: how many the protocol mends, and nothing here can.
    """

    rows: dict[str, dict[str, Values]]
    resampled: tuple[str, ...]
    cut_captions: int
    unmended_captions: int


# an empty caption says nothing, whatever its features
CAPTIONS_NEEDED = {
    "clip_dir": ("source_caption", "target_caption"),
    "clip_out": ("target_caption",),
    "clip_t": ("target_caption",),
}


@dataclass
class Features:
    """The features of pictures and texts, each computed once.

    Pictures are known by the hash of their file: turns of a session, and the three editors, share
    most of them.
    """

    clip_network: ClipBackbone
    dino_network: DinoBackbone
    clip: dict[str, Tensor] = field(default_factory=dict)
    dino: dict[str, Tensor] = field(default_factory=dict)
    text: dict[str, Tensor] = field(default_factory=dict)

    def add(self, pictures: Mapping[str, Picture], texts: Iterable[str]) -> None:
        """Compute those that are not yet known."""
        new = {sha256: picture for sha256, picture in pictures.items() if sha256 not in self.clip}
        if new:
            self.clip |= dict(zip(new, self.clip_network.images(list(new.values())), strict=True))
            self.dino |= dict(zip(new, self.dino_network.images(list(new.values())), strict=True))
        unread = [text for text in dict.fromkeys(texts) if text not in self.text]
        if unread:
            self.text |= dict(zip(unread, self.clip_network.texts(unread), strict=True))


@dataclass(frozen=True)
class HashedPicture:
    """A picture and the hash its features are kept by."""

    sha256: str
    pixels: Picture


@dataclass(frozen=True)
class Comparison:
    """An item and each editor's picture; copy-input's is the input, the oracle's the truth."""

    item: BenchmarkItem
    editors: Mapping[str, HashedPicture]

    def reference(self, protocol: Protocol) -> HashedPicture:
        """Choose what edited pictures are compared with."""
        return self.editors[COPY if protocol.reference == INPUT else ORACLE]


def pictures_of(
    benchmark: Benchmark, outputs: Mapping[str, Output]
) -> Callable[[str], ItemPictures]:
    """Make a function that reads the pictures of an item, by its key."""
    items = {item.key: item for item in benchmark.items}

    def read(key: str) -> ItemPictures:
        item = items[key]
        return ItemPictures(
            source=item.source.decode(),
            output=output_picture(items, outputs, key),
            target=None if item.target is None else item.target.decode(),
        )

    return read


def score(
    benchmark: Benchmark,
    outputs: Mapping[str, Output],
    inputs: Inputs,
    protocol: Protocol,
    features: Features,
    on_step: OnStep,
) -> Scores:
    """Score every item of the benchmark's tables.

    Args:
        benchmark: the items.
        outputs: what came of them.
        inputs: the hashes of the benchmark's pictures.
        protocol: how.
        features: the networks.
        on_step: called with (items done, items in all).
    """
    items, read = benchmark.scored(), pictures_of(benchmark, outputs)
    has_truth = all(item.target is not None for item in items)
    editors = (MODEL, COPY, ORACLE) if has_truth else (MODEL, COPY)
    rows: dict[str, dict[str, Values]] = {name: {} for name in editors}
    resampled: list[str] = []
    for start in range(0, len(items), AT_ONCE):
        part = [
            _compare(item, read(item.key), outputs[item.key].sha256, inputs)
            for item in items[start : start + AT_ONCE]
        ]
        pictures = {one.sha256: one.pixels for c in part for one in c.editors.values()}
        captions = [text for c in part for text in (c.item.source_caption, c.item.target_caption)]
        features.add(pictures, captions)
        for name in rows:
            rows[name] |= _row(part, name, protocol, features)
        resampled += [
            c.item.key
            for c in part
            if c.editors[MODEL].pixels.shape != c.reference(protocol).pixels.shape
        ]
        on_step(start + len(part), len(items))
    clip, captions = features.clip_network, list(features.text)
    cut, unmended = clip.count_cut(captions), clip.count_unmended(captions)
    return Scores(rows, tuple(resampled), cut, unmended)


def _compare(
    item: BenchmarkItem, pictures: ItemPictures, output: str, inputs: Inputs
) -> Comparison:
    assert pictures.source is not None  # every edit has one
    editors = {
        MODEL: HashedPicture(output, pictures.output),
        COPY: HashedPicture(inputs.source[item.key], pictures.source),
    }
    target = inputs.target[item.key]
    if target is not None and pictures.target is not None:
        editors[ORACLE] = HashedPicture(target, pictures.target)
    return Comparison(item, editors)


def _row(
    part: Sequence[Comparison], name: str, protocol: Protocol, features: Features
) -> dict[str, Values]:
    """Compute the values of one editor's items."""
    columns = _columns(part, name, protocol, features)
    return {
        c.item.key: {
            metric: _defined(c.item, metric, column[i]) for metric, column in columns.items()
        }
        for i, c in enumerate(part)
    }


def _defined(item: BenchmarkItem, metric: str, value: float) -> float | None:
    texts = {"source_caption": item.source_caption, "target_caption": item.target_caption}
    has_captions = all(texts[name].strip() for name in CAPTIONS_NEEDED.get(metric, ()))
    return value if has_captions and math.isfinite(value) else None


def _columns(
    part: Sequence[Comparison], name: str, protocol: Protocol, features: Features
) -> dict[str, list[float]]:
    """Compute the protocol's metrics of one editor, a number for each item."""
    edited = [c.editors[name] for c in part]
    reference = [c.reference(protocol) for c in part]
    before = _stack(features.clip, [c.editors[COPY].sha256 for c in part])
    after = _stack(features.clip, [picture.sha256 for picture in edited])
    wanted = _stack(features.clip, [picture.sha256 for picture in reference])
    dino_after = _stack(features.dino, [picture.sha256 for picture in edited])
    dino_wanted = _stack(features.dino, [picture.sha256 for picture in reference])
    text_before = _stack(features.text, [c.item.source_caption for c in part])
    text_after = _stack(features.text, [c.item.target_caption for c in part])

    def pixels(distance: Callable[[Picture, Picture], float]) -> Tensor:
        values = []
        for a, b in zip(edited, reference, strict=True):
            height, width = b.pixels.shape[-2:]
            resized = resample(a.pixels, (height, width), protocol.resize_filter)
            values.append(distance(resized, b.pixels))
        return torch.tensor(values, dtype=torch.float64)

    formulas: dict[str, Callable[[], Tensor]] = {
        "clip_dir": lambda: clip_dir(before, after, text_before, text_after),
        "clip_im": lambda: cosine(after, wanted),
        "clip_out": lambda: cosine(after, text_after),
        "clip_i": lambda: cosine(after, wanted),
        "clip_t": lambda: cosine(after, text_after),
        "dino": lambda: cosine(dino_after, dino_wanted),
        "l1": lambda: pixels(l1),
        "l2": lambda: pixels(l2),
    }
    return {metric: formulas[metric]().tolist() for metric in protocol.metrics}


def _stack(known: Mapping[str, Tensor], names: Sequence[str]) -> Float[Tensor, "n d"]:
    return torch.stack([known[name] for name in names])
