"""A task learnt by inversion, as a file of a few kB: one vector, and where it came from.

The base model stays as it is; what task inversion finds is a vector beside its table of tasks. The
vector means something to the base it was learnt with and to no other, so the file names that base
by hash. Safetensors: two tensors at most, and the record as text in the header.
Source: task inversion, Sheynin et al. 2023, arXiv:2311.10089.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from emu_edit.errors import InputError
from emu_edit.files import atomic_file
from emu_edit.randomness import check_seed
from emu_edit.text_rules import clean_instruction

SUFFIX = ".safetensors"
VERSION = "1"
MARK = "emu_edit_task"  # entry of the header that makes a file a learned task; holds the version
VECTOR, ROW = "vector", "predictor_row"
BEST, MEAN, NEAREST, NONE = "best", "mean", "nearest", "none"
BEGINNINGS = (BEST, MEAN, NEAREST, NONE)  # words of `invert --init`; no new task is called so
NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
HASH = re.compile(r"[0-9a-f]{64}")
MAX_BYTES = 2**20  # the widest vectors of today's models take 8 kB
SHOWN = 12  # digits of a hash in messages


@dataclass(frozen=True, eq=False)
class LearnedTask:
    """A task that is no part of its base's training, and all that is known of it.

    Attributes:
        name: what people call it: a small letter, then at most 39 of a-z, 0-9, "_" and "-".
        description: what it does, in a line; "" if nobody said.
        vector: v_task.
        base: `model_hash` of the model it was learnt with.
        pairs: pairs it was learnt from, at least 1.
        steps: optimizer steps.
        seed: of the inversion.
        created: ISO date, or date and time, UTC.
        instruction: the usual instruction of the task; "" if its pairs have their own.
        predictor_row: weights and bias by which a task predictor knows the task; None when people
            name it.
        predictor: `TaskPredictor.hash` of the predictor the row is for; "" without a row.
        allowed_on: `model_hash` of another model than the base that it may be used on all the same.

    Raises:
        InputError: if an entry is out of its range; it names the entry.
    """

    name: str
    description: str
    vector: Float[Tensor, " k"]
    base: str
    pairs: int
    steps: int
    seed: int
    created: str
    instruction: str
    predictor_row: Float[Tensor, " m"] | None = None
    predictor: str = field(default="", kw_only=True)
    allowed_on: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what cannot be saved, shown or used."""
        check_name(self.name)
        try:
            self._check_texts()
            self._check_numbers()
        except InputError as error:
            raise InputError(f"task {self.name}: {error}") from error

    def _check_texts(self) -> None:
        for entry in ("description", "instruction"):
            if getattr(self, entry):
                clean_instruction(getattr(self, entry), what=entry)
        for entry in ("base", "predictor", "allowed_on"):
            text = getattr(self, entry)
            if (text or entry == "base") and not HASH.fullmatch(text):
                raise InputError(f"{entry} must be 64 hexadecimal digits, got {text[:80]!r}")
        try:
            datetime.fromisoformat(self.created)
        except ValueError as error:
            raise InputError(f"created must be an ISO date, got {self.created[:40]!r}") from error

    def _check_numbers(self) -> None:
        for entry, least in (("pairs", 1), ("steps", 0)):
            if getattr(self, entry) < least:
                raise InputError(f"{entry} must be at least {least}, got {getattr(self, entry)}")
        check_seed(self.seed)
        if (self.predictor_row is None) != (not self.predictor):
            raise InputError(
                "a predictor_row needs the hash of its predictor, and the hash a row; give both or "
                "neither"
            )
        for entry, tensor in self._tensors().items():
            if tensor.ndim != 1 or not len(tensor) or not bool(tensor.isfinite().all()):
                raise InputError(f"{entry} must be a row of finite numbers")

    def _tensors(self) -> dict[str, Tensor]:
        row = {} if self.predictor_row is None else {ROW: self.predictor_row}
        return {VECTOR: self.vector, **row}

    def vector_hash(self) -> str:
        """Return the SHA-256 of the vector in float32: what a session's manifest says of it."""
        numbers = self.vector.detach().to("cpu", torch.float32).contiguous()
        return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """Return all that is known of the task, JSON-ready; of its vector length, norm and hash."""
        entries = ("name", "description", "instruction", "pairs", "steps", "seed", "created")
        return {
            **{entry: getattr(self, entry) for entry in (*entries, "base", "allowed_on")},
            "vector": {
                "numbers": len(self.vector),
                "norm": float(self.vector.norm()),
                "sha256": self.vector_hash(),
            },
            "predictor": self.predictor,
        }

    def save(self, path: Path | str) -> None:
        """Write the file, whole or not at all; one that exists is replaced.

        Raises:
            InputError: if `path` is a folder or lies in none, or its suffix is another.
        """
        target = check_task_path(path)
        texts = ("name", "description", "base", "created", "instruction", "predictor", "allowed_on")
        header = {MARK: VERSION, **{entry: getattr(self, entry) for entry in texts}}
        for entry in ("pairs", "steps", "seed"):
            header[entry] = str(getattr(self, entry))
        tensors = {
            entry: tensor.detach().to("cpu", torch.float32).contiguous()
            for entry, tensor in self._tensors().items()
        }
        with atomic_file(target) as stream:  # save_file would make it unreadable to others
            stream.write(save(tensors, metadata=header))

    @staticmethod
    def load(path: Path | str) -> "LearnedTask":
        """Read a file written by `save`; nothing is unpickled.

        Raises:
            InputError: if it is missing, no such file, of another version or malformed.
        """
        file = Path(path).expanduser()
        header, tensors = _read(file)
        try:
            return LearnedTask(
                vector=tensors[VECTOR].float(),
                predictor_row=tensors[ROW].float() if ROW in tensors else None,
                name=header["name"],
                description=header["description"],
                base=header["base"],
                pairs=int(header["pairs"]),
                steps=int(header["steps"]),
                seed=int(header["seed"]),
                created=header["created"],
                instruction=header["instruction"],
                predictor=header["predictor"],
                allowed_on=header["allowed_on"],
            )
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        except KeyError as error:
            raise InputError(f"{file} lacks {error} of a learned task; learn it again") from error
        except ValueError as error:
            raise InputError(
                f"{file}: pairs, steps and seed must be whole numbers ({error})"
            ) from error


def check_name(name: str) -> None:
    """Refuse names that would not be safe as a file's, in a command or beside "+" of a mix."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"a task's name must begin with a-z and have at most 40 of a-z, 0-9, '_' and '-', "
            f"got {name[:60]!r}"
        )


def check_new_name(name: str) -> None:
    """Refuse names that a task must not be given; one that has such a name can still be read.

    Raises:
        InputError: with what a name may be, or that it is a word of `--init`.
    """
    check_name(name)
    if name in BEGINNINGS:
        raise InputError(
            f"a task cannot be called {name!r}: 'invert --init {name}' means something else; give "
            "another name"
        )


def check_task_path(path: Path | str) -> Path:
    """Return the path of a task's file to write; call it before long work.

    Raises:
        InputError: if `path` is a folder or lies in none, or its suffix is another.
    """
    target = Path(path).expanduser()
    if target.suffix != SUFFIX:
        raise InputError(f"{target}: a learned task is a {SUFFIX} file, give such a name")
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"{target} cannot be written: it is a folder or lies in none")
    return target


def _read(file: Path) -> tuple[Mapping[str, str], Mapping[str, Tensor]]:
    """Return header and tensors of a learned task's file."""
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a learned task that 'emu-edit invert' wrote")
    if file.stat().st_size > MAX_BYTES:
        raise InputError(
            f"{file} has {file.stat().st_size} bytes, a learned task has a few thousand; "
            "is it a model's weights?"
        )
    try:
        with safe_open(file, framework="pt") as stream:
            header = stream.metadata() or {}
            if MARK not in header:
                raise InputError(
                    f"{file} is no learned task (its header has no {MARK}); give a file that "
                    "'emu-edit invert' wrote"
                )
            if header[MARK] != VERSION:
                raise InputError(
                    f"{file} is of version {header[MARK][:20]!r}, this program reads {VERSION}; "
                    "update the program or learn the task again"
                )
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot read {file} as a learned task: {str(error).splitlines()[0]}"
        ) from error
    return header, tensors
