"""The editor: a picture and an instruction in, the edited picture out.

It joins what training keeps apart: the networks (which know no schedule), the schedule and samplers
(which know no network) and the pixels (which cross the uint8 border here, twice). It knows no data
set and no Lightning; the training callbacks, the benchmark and the command line all edit through
it, so they cannot disagree about an edit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance, guided
from emu_edit.diffusion.prediction import Predict, Prediction, check, with_source
from emu_edit.diffusion.samplers import Sampler, sample
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.errors import InputError, closest
from emu_edit.images import from_pil, to_float, to_uint8
from emu_edit.models.conditioning import branches
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.weights import EditNetworks, load_networks, save_networks
from emu_edit.text_rules import clean_instruction

OnStep = Callable[[int, int], None]  # called with (steps done, steps in all)

# diffusers' `prediction_type`; for `change` it holds once the source latents are added
DIFFUSERS_NAMES = {
    Prediction.eps: "epsilon",
    Prediction.v: "v_prediction",
    Prediction.z0: "sample",
    Prediction.change: "sample",
}


@dataclass(frozen=True)
class EditorSettings:
    """How a model is sampled unless a call says otherwise.

    Attributes:
        image_size: side in pixels of the training pictures; other sizes are edited as they are, not
            resized.
        guidance: strength of text and of source picture; (1, 1) is the plain conditional model, at
            a third of the cost.
        num_steps: sampler steps, at least 1.
        sampler: `euler_ancestral` adds fresh noise on the way, the others are deterministic given
            the first noise.
    """

    image_size: int = 64
    guidance: Guidance = field(default_factory=Guidance)
    num_steps: int = 20
    sampler: Sampler = Sampler.ddim

    def __post_init__(self) -> None:
        """Refuse sizes and step counts below 1."""
        for name, value in (("image_size", self.image_size), ("num_steps", self.num_steps)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")

    def to_dict(self) -> dict[str, object]:
        """Return the settings as JSON-ready primitives."""
        return {
            "image_size": self.image_size,
            "guidance_text": self.guidance.text,
            "guidance_image": self.guidance.image,
            "num_steps": self.num_steps,
            "sampler": self.sampler.name,
        }

    @staticmethod
    def from_dict(values: dict[str, object], *, where: str) -> "EditorSettings":
        """Rebuild settings from `to_dict`.

        Raises:
            InputError: if an entry is missing or not of the kind `to_dict` writes.
        """
        return EditorSettings(
            image_size=int(_number(values, "image_size", where)),
            guidance=Guidance(
                text=_number(values, "guidance_text", where),
                image=_number(values, "guidance_image", where),
            ),
            num_steps=int(_number(values, "num_steps", where)),
            sampler=Sampler[_choice(values, "sampler", [s.name for s in Sampler], where)],
        )


class Editor:
    """Edit pictures of any size by instruction.

    Noise is drawn on the CPU, for each picture from its own seed: CUDA streams differ between GPU
    models, and a picture's result must not depend on what else is in the batch. Put the networks in
    eval mode before editing (`from_pretrained` does).
    """

    def __init__(
        self,
        networks: EditNetworks,
        *,
        schedule: NoiseSchedule,
        prediction: Prediction,
        settings: EditorSettings,
    ) -> None:
        """Join networks and schedule; the networks are used where they are, not copied.

        Raises:
            InputError: if `prediction` cannot be sampled with `schedule` (eps at zero terminal
                SNR).
        """
        check(prediction, schedule)
        self.networks = networks
        self.schedule = schedule
        self.prediction = prediction
        self.settings = settings

    @classmethod
    def from_pretrained(cls, path: Path | str, device: str = "cpu") -> "Editor":
        """Load a model directory written by `save_pretrained` (or `emu-edit export`).

        Raises:
            InputError: if `path` is not such a directory, or a part of it is missing or of another
                model.
        """
        networks, scheduler_config, values = load_networks(Path(path), device)
        where = f"{path}/model_index.json"
        prediction = Prediction[_choice(values, "prediction", [p.name for p in Prediction], where)]
        return cls(
            networks.eval(),
            schedule=NoiseSchedule.from_config(scheduler_config),
            prediction=prediction,
            settings=EditorSettings.from_dict(values, where=where),
        )

    def save_pretrained(self, path: Path | str) -> None:
        """Write a diffusers-style model directory; after loading, same seed gives same pixels."""
        save_networks(
            self.networks,
            Path(path),
            scheduler_config={
                **self.schedule.to_config(),
                "prediction_type": DIFFUSERS_NAMES[self.prediction],
            },
            settings={"prediction": self.prediction.name, **self.settings.to_dict()},
        )

    @property
    def device(self) -> torch.device:
        """Where the denoiser's weights are."""
        return next(self.networks.denoiser.parameters()).device

    @property
    def multiple(self) -> int:
        """Padded sides are multiples of this many pixels; the result is cropped back.

        Only the codec asks for one: diffusers' U-Net takes latents of any size.
        """
        return self.networks.codec.factor

    def edit(
        self,
        image: UInt8[Tensor, "3 h w"] | Image.Image,
        instruction: str,
        *,
        task: str,
        seed: int = 0,
        guidance: Guidance | None = None,
        num_steps: int | None = None,
        sampler: Sampler | None = None,
        on_step: OnStep | None = None,
    ) -> UInt8[Tensor, "3 h w"]:
        """Edit one picture; the result has its size, and None keeps what `settings` says.

        Pictures much larger than `settings.image_size` cost more time than they gain: the network
        has never seen structures of that size. Resizing is the caller's decision, never silent.

        Args:
            image: the picture; a PIL image is turned upright and made RGB first.
            instruction: what to change, in words.
            task: name of the task, see `emu_edit.tasks`.
            seed: same seed, same pixels.
            guidance: strength of text and of source picture.
            num_steps: sampler steps.
            sampler: how to step.
            on_step: called with (steps done, steps in all), for progress bars.

        Raises:
            InputError: for an unknown task, or an instruction that is empty, too long or not text.
        """
        pixels = from_pil(image) if isinstance(image, Image.Image) else image
        settings = replace(
            self.settings,
            guidance=self.settings.guidance if guidance is None else guidance,
            num_steps=self.settings.num_steps if num_steps is None else num_steps,
            sampler=self.settings.sampler if sampler is None else sampler,
        )
        return self.edit_batch(
            pixels[None], [instruction], [task], [seed], settings=settings, on_step=on_step
        )[0]

    @torch.no_grad()
    def edit_batch(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        instructions: Sequence[str],
        tasks: Sequence[str],
        seeds: Sequence[int],
        *,
        settings: EditorSettings | None = None,
        on_step: OnStep | None = None,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Edit pictures of one size together, each as if edited alone; the result is on the CPU.

        Raises:
            InputError: for an unknown task, or an instruction that is empty, too long or not text.
            ValueError: if the four sequences differ in length.
        """
        settings = self.settings if settings is None else settings
        counts = (len(images), len(instructions), len(tasks), len(seeds))
        if len(set(counts)) != 1:
            raise ValueError(
                f"edit_batch needs as many instructions, tasks and seeds as images, got {counts}"
            )
        texts = [clean_instruction(text) for text in instructions]
        indices = torch.tensor([self.networks.tasks.index(task) for task in tasks])
        height, width = images.shape[-2:]
        padded = reflect_to_multiple(images, self.multiple)
        edited = self._edit_padded(padded, texts, indices, seeds, settings, on_step)
        return edited[..., :height, :width]

    def _edit_padded(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        texts: list[str],
        tasks: Int64[Tensor, " b"],
        seeds: Sequence[int],
        settings: EditorSettings,
        on_step: OnStep | None,
    ) -> UInt8[Tensor, "b 3 h w"]:
        networks, device = self.networks, self.device
        text, null_text = networks.encode_text(texts)
        cond = Conditioning(
            text=text,
            z_source=networks.codec.encode_condition(to_float(images.to(device))),
            v_task=networks.task_embedding(tasks.to(device)),
        )
        if settings.guidance.is_plain:
            predict = self._predictor(cond)
        else:
            predict = guided(self._predictor(branches(cond, null_text)), settings.guidance)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents = sample(
            predict,
            _noise(generators, cond.z_source),
            schedule=self.schedule,
            prediction=self.prediction,
            num_steps=settings.num_steps,
            sampler=settings.sampler,
            generator=generators,
            on_step=on_step,
        )
        return to_uint8(networks.codec.decode(latents)).cpu()

    def _predictor(self, cond: Conditioning) -> Predict:
        return with_source(
            partial(self.networks.denoiser, cond=cond), cond.z_source, self.prediction
        )


def reflect_to_multiple(
    images: UInt8[Tensor, "b 3 h w"], multiple: int
) -> UInt8[Tensor, "b 3 H W"]:
    """Mirror pictures beyond their right and lower edge up to the next multiple.

    Unlike torch's reflection it may repeat, so pictures smaller than the padding work too.
    """
    height, width = images.shape[-2:]
    rows = _reflected(height, -(-height // multiple) * multiple)
    columns = _reflected(width, -(-width // multiple) * multiple)
    return images[..., rows, :][..., columns]


def _reflected(length: int, padded: int) -> Int64[Tensor, " n"]:
    """Return 0 … length-1, then back and forth, `padded` indices in all."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(padded) % period
    return torch.where(index < length, index, period - index)


def _noise(
    generators: list[torch.Generator], like: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    rows = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(rows).to(like)


def _number(values: dict[str, object], name: str, where: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: {name} must be a number, got {value!r}; export the model again")
    return float(value)


def _choice(values: dict[str, object], name: str, known: list[str], where: str) -> str:
    value = values.get(name)
    if value not in known:
        hint = closest(str(value), known)
        raise InputError(f"{where}: {name} must be one of {', '.join(known)}, got {value!r}.{hint}")
    return str(value)
