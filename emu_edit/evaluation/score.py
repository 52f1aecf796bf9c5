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
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from datamodules.evaluation_sets.items import Benchmark, BenchmarkItem
from emu_edit.evaluation.outputs import Inputs, ItemPictures, Output, output_picture
from emu_edit.metrics.backbones import ClipBackbone, DinoBackbone
from emu_edit.metrics.preprocess import resample
from emu_edit.metrics.protocols import INPUT, Protocol
from emu_edit.metrics.similarity import clip_dir, cosine, l1, l2

MODEL, COPY, ORACLE = "model", "copy-input", "oracle"
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
    """

    rows: dict[str, dict[str, Values]]
    resampled: tuple[str, ...]
    cut_captions: int


@dataclass(frozen=True)
class Stack:
    """One editor's share in some items, stacked: features, and pairs of one size for pixels."""

    clip_source: Float[Tensor, "n d"]
    clip_edited: Float[Tensor, "n d"]
    clip_reference: Float[Tensor, "n d"]
    dino_edited: Float[Tensor, "n k"]
    dino_reference: Float[Tensor, "n k"]
    text_source: Float[Tensor, "n d"]
    text_target: Float[Tensor, "n d"]
    pairs: list[tuple[Picture, Picture]]


def _pixels(distance: Callable[[Picture, Picture], float], stack: Stack) -> Float64[Tensor, " n"]:
    return torch.tensor([distance(*pair) for pair in stack.pairs], dtype=torch.float64)


METRICS: dict[str, Callable[[Stack], Float64[Tensor, " n"]]] = {
    "clip_dir": lambda s: clip_dir(s.clip_source, s.clip_edited, s.text_source, s.text_target),
    "clip_im": lambda s: cosine(s.clip_edited, s.clip_reference),
    "clip_out": lambda s: cosine(s.clip_edited, s.text_target),
    "clip_i": lambda s: cosine(s.clip_edited, s.clip_reference),
    "clip_t": lambda s: cosine(s.clip_edited, s.text_target),
    "dino": lambda s: cosine(s.dino_edited, s.dino_reference),
    "l1": lambda s: _pixels(l1, s),
    "l2": lambda s: _pixels(l2, s),
}
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
class Seen:
    """A picture and the hash its features are kept by."""

    sha256: str
    picture: Picture


@dataclass(frozen=True)
class Judged:
    """An item with everything that is compared."""

    item: BenchmarkItem
    editors: Mapping[str, Seen]  # what each made; copy-input "made" the input, oracle the truth

    def reference(self, protocol: Protocol) -> Seen:
        """Return what edited pictures are compared with."""
        return self.editors[COPY if protocol.reference == INPUT else ORACLE]


def pictures_of(
    benchmark: Benchmark, outputs: Mapping[str, Output]
) -> Callable[[str], ItemPictures]:
    """Return what reads the pictures of an item, by its key."""
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
    on_step: Callable[[int, int], None],
) -> Scores:
    """Score every item of the benchmark's tables.

    Args:
        benchmark: the items.
        outputs: what was made of them.
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
            _judged(item, read(item.key), outputs[item.key].sha256, inputs)
            for item in items[start : start + AT_ONCE]
        ]
        pictures = {seen.sha256: seen.picture for one in part for seen in one.editors.values()}
        captions = [c for one in part for c in (one.item.source_caption, one.item.target_caption)]
        features.add(pictures, captions)
        for name in rows:
            rows[name] |= _row(part, name, protocol, features)
        resampled += [
            one.item.key
            for one in part
            if one.editors[MODEL].picture.shape != one.reference(protocol).picture.shape
        ]
        on_step(start + len(part), len(items))
    cut = features.clip_network.count_cut(list(features.text))
    return Scores(rows, tuple(resampled), cut)


def _judged(item: BenchmarkItem, pictures: ItemPictures, made: str, inputs: Inputs) -> Judged:
    editors = {
        MODEL: Seen(made, pictures.output),
        COPY: Seen(inputs.source[item.key], pictures.source),
    }
    target = inputs.target[item.key]
    if target is not None and pictures.target is not None:
        editors[ORACLE] = Seen(target, pictures.target)
    return Judged(item, editors)


def _row(
    part: Sequence[Judged], name: str, protocol: Protocol, features: Features
) -> dict[str, Values]:
    """Return the values of one editor's items."""
    stack = _stack(part, name, protocol, features)
    columns = {metric: METRICS[metric](stack).tolist() for metric in protocol.metrics}
    return {
        one.item.key: {
            metric: _defined(one.item, metric, column[i]) for metric, column in columns.items()
        }
        for i, one in enumerate(part)
    }


def _defined(item: BenchmarkItem, metric: str, value: float) -> float | None:
    texts = {"source_caption": item.source_caption, "target_caption": item.target_caption}
    is_told = all(texts[name].strip() for name in CAPTIONS_NEEDED.get(metric, ()))
    return value if is_told and math.isfinite(value) else None


def _stack(part: Sequence[Judged], name: str, protocol: Protocol, features: Features) -> Stack:
    source = [one.editors[COPY] for one in part]
    edited = [one.editors[name] for one in part]
    reference = [one.reference(protocol) for one in part]

    def stacked(known: Mapping[str, Tensor], seen: Iterable[Seen]) -> Tensor:
        return torch.stack([known[one.sha256] for one in seen])

    return Stack(
        clip_source=stacked(features.clip, source),
        clip_edited=stacked(features.clip, edited),
        clip_reference=stacked(features.clip, reference),
        dino_edited=stacked(features.dino, edited),
        dino_reference=stacked(features.dino, reference),
        text_source=torch.stack([features.text[one.item.source_caption] for one in part]),
        text_target=torch.stack([features.text[one.item.target_caption] for one in part]),
        pairs=[
            (_as_large_as(b.picture, a.picture, protocol), b.picture)
            for a, b in zip(edited, reference, strict=True)
        ],
    )


def _as_large_as(reference: Picture, edited: Picture, protocol: Protocol) -> Picture:
    height, width = reference.shape[-2:]
    return resample(edited, (height, width), protocol.resize_filter)
