"""What a session did, as JSON that anyone can check and replay: turns, picture and model by hash.

A manifest holds everything that decides the pixels and nothing of the machine it was made on: no
path, no user name, no time. Reading one is strict, because it comes from a file of a stranger:
each entry has a fixed kind and range, and what is missing, unknown or of another kind is refused by
name.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar, cast

import torch
from jaxtyping import UInt8
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance
from emu_edit.editing.editor import Editor
from emu_edit.editing.large import WHOLE, parse_large
from emu_edit.editing.settings import sampler_named
from emu_edit.editing.task_mix import parse_task
from emu_edit.editing.threshold import check_alpha
from emu_edit.errors import InputError
from emu_edit.models.fingerprints import codec_numbers, hash_of
from emu_edit.models.learned_task import check_name
from emu_edit.randomness import check_seed
from emu_edit.text_rules import clean_instruction

VERSION = 1
MOST_TURNS = 1000
MOST_STEPS = 1000  # the schedule has no more
MOST_NUMBER = 1e300
NEEDED: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a JSON object",
    list: f"a list of at most {MOST_TURNS} entries",
}
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Turn:
    """One edit with everything that decides its result; nothing is left to a default.

    Attributes:
        instruction: what to change, in words.
        task: name of a task or a mix, as `parse_task` reads it.
        seed: of the noise.
        negative: what the picture should not show; "" for nothing.
        guidance_text: strength of the instruction.
        guidance_image: strength of the source picture.
        num_steps: sampler steps.
        sampler: name of the sampler.
        threshold: alpha of `keep_unchanged`; None takes the result as it comes.
        large: how the picture's size is met, as `parse_large` reads it.

    Raises:
        InputError: if an entry is out of its range.
    """

    instruction: str
    task: str
    seed: int
    negative: str
    guidance_text: float
    guidance_image: float
    num_steps: int
    sampler: str
    threshold: float | None
    large: str = str(WHOLE)

    def __post_init__(self) -> None:
        """Clean the texts, once for all that read them; refuse what no edit can be made with."""
        if self.negative:
            negative = clean_instruction(self.negative, what="negative text")
            object.__setattr__(self, "negative", negative)
        object.__setattr__(self, "instruction", clean_instruction(self.instruction))
        parse_task(self.task)
        Guidance(self.guidance_text, self.guidance_image)
        check_seed(self.seed)
        if not 1 <= self.num_steps <= MOST_STEPS:
            raise InputError(f"num_steps must be 1 to {MOST_STEPS}, got {self.num_steps}")
        sampler_named(self.sampler)
        if self.threshold is not None:
            check_alpha(self.threshold)
        parse_large(self.large)

    def to_dict(self) -> dict[str, object]:
        """Give the turn as JSON-ready primitives."""
        return asdict(self)

    @staticmethod
    def from_dict(values: object, *, where: str = "turn") -> "Turn":
        """Rebuild a turn from `to_dict`; `where` names it in messages, e.g. "turn 3".

        Raises:
            InputError: if an entry is missing, unknown, of another kind or out of its range.
        """
        if not isinstance(values, dict):
            raise InputError(f"{where} must be a JSON object, got {_describe(values)}")
        # manifests from before large pictures were edited otherwise have no such entry
        values = {"large": str(WHOLE), **values}
        names = [entry.name for entry in fields(Turn)]
        if odd := sorted(set(names) ^ set(values), key=str):
            what = "has no" if odd[0] in names else "has an unknown entry"
            raise InputError(f"{where} {what} {odd[0]!r}; its entries are {', '.join(names)}")
        threshold = values["threshold"]
        try:
            return Turn(
                instruction=_read(values, "instruction", str),
                task=_read(values, "task", str),
                seed=_read(values, "seed", int),
                negative=_read(values, "negative", str),
                guidance_text=_read(values, "guidance_text", float),
                guidance_image=_read(values, "guidance_image", float),
                num_steps=_read(values, "num_steps", int),
                sampler=_read(values, "sampler", str),
                threshold=None if threshold is None else _read(values, "threshold", float),
                large=_read(values, "large", str),
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


@dataclass(frozen=True)
class Manifest:
    """A session without its pictures.

    Attributes:
        seed: the session's seed.
        width: of the original, in pixels.
        height: of the original, in pixels.
        original: `pixel_hash` of the original.
        model: `fingerprint` of the model.
        chain_latents: whether turns were given latents instead of pictures.
        turns: what was done, in order.
        results: `pixel_hash` of each turn's result; another device or torch version may differ in
            the last grey level.
        learned_tasks: of the tasks in `turns` that are learned ones, the `vector_hash` by name.
    """

    seed: int
    width: int
    height: int
    original: str
    model: str
    chain_latents: bool
    turns: tuple[Turn, ...]
    results: tuple[str, ...]
    learned_tasks: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Give the manifest as JSON-ready primitives."""
        return {
            "version": VERSION,
            "original": {"width": self.width, "height": self.height, "sha256": self.original},
            "model": {"sha256": self.model},
            "seed": self.seed,
            "chain_latents": self.chain_latents,
            "learned_tasks": self.learned_tasks,
            "turns": [turn.to_dict() for turn in self.turns],
            "results": list(self.results),
        }

    @staticmethod
    def from_dict(values: object) -> "Manifest":
        """Read what `to_dict` wrote; entries beside it, e.g. the program's name, are let be.

        Raises:
            InputError: if it is of another version, or an entry is missing or malformed.
        """
        if not isinstance(values, dict) or "version" not in values:
            raise InputError(
                "the manifest must be a JSON object with a version; give the manifest.json "
                "that 'emu-edit edit' wrote"
            )
        if values["version"] != VERSION or isinstance(values["version"], bool):
            raise InputError(
                f"the manifest has version {values['version']!r}, this program reads {VERSION}; "
                "replay it with the program that wrote it"
            )
        original, model = _read(values, "original", dict), _read(values, "model", dict)
        turns, results = _read(values, "turns", list), _read(values, "results", list)
        # manifests from before there were learned tasks have no such entry
        learned = _read({"learned_tasks": {}, **values}, "learned_tasks", dict)
        for name in learned:
            check_name(str(name))
        check_seed(seed := _read(values, "seed", int), "the session's seed")
        if len(turns) != len(results):
            raise InputError(f"the manifest has {len(turns)} turns and {len(results)} results")
        return Manifest(
            seed=seed,
            width=_read(original, "width", int),
            height=_read(original, "height", int),
            original=_read_hash(original, "sha256"),
            model=_read_hash(model, "sha256"),
            chain_latents=_read(values, "chain_latents", bool),
            turns=tuple(
                Turn.from_dict(turn, where=f"turn {number}")
                for number, turn in enumerate(turns, start=1)
            ),
            results=tuple(_read_hash({"results": result}, "results") for result in results),
            learned_tasks={name: _read_hash(learned, name) for name in learned},
        )


def parse_manifest(text: str | bytes) -> Manifest:
    """Read a manifest from the text of its file.

    Raises:
        InputError: if it is no JSON, of another version, or malformed.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the manifest is not JSON ({error})") from error
    return Manifest.from_dict(values)


def pixel_hash(image: UInt8[Tensor, "3 h w"]) -> str:
    """Hash a picture's size and pixels (SHA-256), independent of any file format."""
    height, width = image.shape[-2:]
    digest = hashlib.sha256(f"{width}x{height} RGB ".encode())
    digest.update(image.cpu().permute(1, 2, 0).contiguous().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def fingerprint(editor: Editor) -> str:
    """Hash what decides the pixels in a model (SHA-256): weights, codec, schedule, tasks.

    Settings are left out, because a turn states its own, and so are predictor and device; learned
    tasks too, because a manifest names those that its turns use. Each tensor enters with name, kind
    and shape; large ones by evenly spaced numbers.
    """
    networks = editor.networks
    about = {
        "prediction": editor.prediction.name,
        "schedule": hashlib.sha256(editor.schedule.content()).hexdigest(),
        "tasks": list(networks.base_tasks.names),
        "codec": codec_numbers(networks.codec),
    }
    tensors = {**networks.state_dict(), "task_embedding.table": networks.base_table()}
    return hash_of(about, sorted(tensors.items()))


def _read(values: dict, name: str, kind: type[Kind]) -> Kind:
    """Read an entry of one of the kinds that JSON has."""
    value = values.get(name)
    if not _fits(value, kind):
        raise InputError(f"{name} must be {NEEDED[kind]}, got {_describe(value)}")
    if kind is float:
        value = float(cast("float", value))
    return cast("Kind", value)


def _fits(value: Any, kind: type) -> bool:
    # by type itself: to isinstance, true would be a whole number
    if kind is float:
        # NaN passes here and is refused by its name later
        return type(value) in {int, float} and not abs(value) > MOST_NUMBER
    return type(value) is kind and not (kind is list and len(value) > MOST_TURNS)


def _read_hash(values: dict, name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        needed = "a SHA-256 of 64 hexadecimal digits"
        raise InputError(f"{name} must be {needed}, got {_describe(value)}")
    return value


def _describe(value: object) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
