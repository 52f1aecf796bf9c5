"""The world's pairs as benchmark items, so that pictures someone else made pair up with them.

Nothing is read from a disk: pictures are the world's own, encoded when somebody asks for bytes.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt8

from datamodules.evaluation_sets.items import SINGLE, Benchmark, BenchmarkItem, Picture
from datamodules.world.pair import WorldPair
from emu_edit.images import encode_png

NAME = "world"


def world_items(pairs: Sequence[WorldPair], split: str) -> Benchmark:
    """Turn pairs of the world into single edits with a ground truth."""
    items = tuple(_item(pair) for pair in pairs)
    keys = tuple(item.key for item in items)
    return Benchmark(
        name=NAME,
        folder="",
        split=split,
        items=items,
        blocks={SINGLE: keys},
        known=frozenset(keys),
    )


def _item(pair: WorldPair) -> BenchmarkItem:
    return BenchmarkItem(
        key=pair.key,
        task=pair.task,
        session=pair.key,
        turn=1,
        instruction=pair.instruction,
        source=_picture(f"the input of {pair.key}", pair.source),
        source_caption=pair.source_caption,
        target_caption=pair.target_caption,
        target=_picture(f"the target of {pair.key}", pair.target),
    )


def _picture(where: str, pixels: UInt8[np.ndarray, "h w 3"]) -> Picture:
    return Picture(where, partial(_png, pixels))


def _png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    return encode_png(torch.from_numpy(pixels).permute(2, 0, 1))
