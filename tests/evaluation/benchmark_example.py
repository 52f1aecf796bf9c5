"""An evaluation's results as `evaluate --benchmark` writes them, made up."""

import random
from typing import Any

EMU = ("clip_dir", "clip_im", "clip_out", "l1", "dino")
MAGICBRUSH = ("l1", "l2", "clip_i", "dino", "clip_t")


def cell(mean: float | None, n: int = 4, width: float = 0.01, undefined: int = 0) -> dict[str, Any]:
    """Return a mean with its interval."""
    if mean is None:
        return {"mean": None, "low": None, "high": None, "n": 0, "undefined": undefined}
    return {"mean": mean, "low": mean - width, "high": mean + width, "n": n, "undefined": undefined}


def emu_results(items: int = 3, of: int = 3) -> dict[str, Any]:
    """Return the results of an Emu Edit test set run."""
    model: dict[str, float] = dict(zip(EMU, (0.1, 0.85, 0.23, 0.09, 0.8), strict=True))
    copy: dict[str, float] = dict(zip(EMU, (0.0, 1.0, 0.2, 0.0, 1.0), strict=True))
    tasks = ("add", "global")
    rows = {
        "model": row(model, tasks),
        "copy-input": row(copy, tasks),
    }
    blocks = {"single edits": {"items": items, "rows": rows}}
    return results("emu-edit", "emu-l14", "input", blocks, EMU, items=items, of=of, split="test")


def magicbrush_results(all_turns: int = 1053, final_turns: int = 535) -> dict[str, Any]:
    """Return the results of a MagicBrush run."""
    editors = {
        "model": (0.0701, 0.0231, 0.9211, 0.8811, 0.2751),
        "copy-input": (0.09, 0.03, 0.9, 0.85, 0.25),
        "oracle": (0.0, 0.0, 1.0, 1.0, 0.29),
    }
    blocks = {
        name: {
            "items": count,
            "rows": {
                editor: row(dict(zip(MAGICBRUSH, means, strict=True)), ("",), ("1", "2", "3"))
                for editor, means in editors.items()
            },
        }
        for name, count in (("all turns", all_turns), ("final turns", final_turns))
    }
    return results(
        "magicbrush",
        "magicbrush",
        "ground truth",
        blocks,
        MAGICBRUSH,
        items=all_turns + 200,
        of=all_turns + 200,
    )


def row(
    means: dict[str, float], tasks: tuple[str, ...], turns: tuple[str, ...] = ("1",)
) -> dict[str, Any]:
    """Return an editor's row: the same means in every part, a little apart."""
    chance = random.Random(0)

    def part(width: float) -> dict[str, Any]:
        return {
            name: cell(mean + chance.uniform(-width, width) * bool(mean), width=width)
            for name, mean in means.items()
        }

    return {
        "all": {name: cell(mean) for name, mean in means.items()},
        "by_task": {task: part(0.02) for task in tasks},
        "by_turn": {turn: part(0.015) for turn in turns},
    }


def results(
    benchmark: str,
    protocol: str,
    reference: str,
    blocks: dict[str, Any],
    metrics: tuple[str, ...],
    *,
    items: int,
    of: int,
    split: str = "",
) -> dict[str, Any]:
    """Return what results.json holds."""
    preprocess = {"short_side": 224, "filter": "bicubic", "crop": 224}
    return {
        "format": 1,
        "benchmark": benchmark,
        "protocol": {
            "name": protocol,
            "metrics": list(metrics),
            "clip": "openai/clip-vit-large-patch14",
            "dino": "facebook/dino-vits16",
            "clip_preprocess": preprocess,
            "dino_preprocess": {**preprocess, "short_side": 256},
            "resize_filter": "bicubic",
            "dtype": "float32",
            "caption_filter": "none",
            "reference": reference,
            "source": "made up",
        },
        "backbones": {"openai/clip-vit-large-patch14": "a" * 64, "facebook/dino-vits16": "b" * 64},
        "data": {"name": "data", "split": split, "items": items, "of": of, "sha256": "c" * 64},
        "model": {"name": "tiny <b>", "kind": "model", "sha256": "d" * 64},
        "settings": {"num_steps": 20, "guidance": {"text": 5.0, "image": 1.5}},
        "versions": {"emu-edit": "0.1.0", "torch": "2.9", "python": "3.12"},
        "directions": dict.fromkeys(metrics, "up"),
        "blocks": blocks,
        "failed": [],
        "filtered": [],
        "resampled": {"count": 0, "keys": []},
        "truncated_captions": 0,
        "seconds": 12.34,
        "inputs": ["test-0 " + "e" * 64 + " -"],
    }


def item(key: str, **given: Any) -> dict[str, Any]:
    """Return a line of items.jsonl."""
    return {
        "key": key,
        "block": ["single edits"],
        "session": "",
        "turn": 1,
        "task": "add",
        "instruction": "add a red ball",
        "source_caption": "a lawn",
        "target_caption": "a lawn with a red ball",
        "source_sha256": "1" * 64,
        "output_sha256": "2" * 64,
        "status": "ok",
        "reason": None,
        "seed": 7,
        "scores": dict(zip(EMU, (0.1, 0.85, 0.23, 0.09, 0.8), strict=True)),
        **given,
    }
