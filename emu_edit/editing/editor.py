"""The editor: a picture and an instruction in, the edited picture out.

It joins what training keeps apart: the networks (which know no schedule), the schedule and samplers
(which know no network), the pixels (which cross the uint8 border here, twice) and the words (which
are cleaned here, once). It knows no data set and no Lightning; the training callbacks, the
benchmarks and the command line all edit through it, so they cannot disagree about an edit.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance, guided
from emu_edit.diffusion.prediction import Predict, Prediction, check, with_source
from emu_edit.diffusion.samplers import OnStep, StepEnd, progress, sample
from emu_edit.diffusion.schedule import Schedule
from emu_edit.diffusion.windows import Window, tiles, windowed
from emu_edit.editing.cost import Costs, Forecast
from emu_edit.editing.large import WHOLE, Large, is_drawn_locally, way_for
from emu_edit.editing.model_parts import ModelParts
from emu_edit.editing.predictor import TaskPrediction, TaskPredictor
from emu_edit.editing.settings import EditorSettings, Sampling, check_counts
from emu_edit.editing.task_mix import TaskChoice, task_vectors
from emu_edit.errors import InputError
from emu_edit.images import (
    from_pil,
    reflect_to_multiple,
    refuse_far_larger,
    to_float,
    to_uint8,
)
from emu_edit.models.conditioning import branches_of_edit
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.learned_task import LearnedTask
from emu_edit.models.networks import EditNetworks
from emu_edit.models.task_files import check_base
from emu_edit.randomness import check_seed
from emu_edit.text_rules import clean_instruction

logger = logging.getLogger(__name__)

Seed = int | torch.Generator  # a number, or a CPU generator that goes on from where it is


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
        schedule: Schedule,
        prediction: Prediction,
        settings: EditorSettings,
        predictor: TaskPredictor | None = None,
        objective: object = None,
        trained_on: object = None,
    ) -> None:
        """Join networks and schedule; the networks are used where they are, not copied.

        `objective` is the JSON value with which the model directory tells what it was trained for
        (see `emu_edit.training.objective`); editing only keeps it. `trained_on` is WORLD,
        PHOTOGRAPHS_TOO, or anything else where nothing is known.

        Raises:
            InputError: if `prediction` does not go with `schedule` (eps, zero terminal SNR, say).
        """
        check(prediction, schedule)
        self.networks = networks
        self.schedule = schedule
        self.prediction = prediction
        self.settings = settings
        self.predictor = predictor
        self.objective = objective
        self.trained_on = trained_on
        self._costs = Costs(networks)

    @classmethod
    def from_pretrained(cls, path: Path | str, device: str | None = None) -> "Editor":
        """Load a model by the names that `--model` takes, onto the device that it would take.

        Args:
            path: a model directory, a run folder, or `released`.
            device: cpu, cuda, ...; None takes an accelerator if there is one, else the CPU.

        Raises:
            InputError: if there is no such model or device, or a part is missing or foreign.
        """
        return cls(**vars(ModelParts.read(path, device)))

    def save_pretrained(
        self, path: Path | str, *, write_layers: Callable[[Path], None] | None = None
    ) -> None:
        """Write a diffusers-style model directory; after loading, same seed gives same pixels.

        `write_layers` is called with the directory before it appears under its name, to write the
        temporal layers of a model of videos.
        """
        about = self.predictor, self.objective, self.trained_on
        parts = ModelParts(self.networks, self.schedule, self.prediction, self.settings, *about)
        parts.write(Path(path), write_layers)

    def add_task(self, task: LearnedTask, *, allow_mismatch: bool = False) -> None:
        """Edit with a learned task, too; one of the same name that was learnt before is replaced.

        The predictor names it when the task has a row for this predictor.

        Args:
            task: e.g. `LearnedTask.load("contour.safetensors")`.
            allow_mismatch: take a task that was learnt with another model, too.

        Raises:
            InputError: if its model, width or name does not fit this model.
        """
        base = model_hash(self.networks)
        self.networks.add_task(check_base(task, base, allow_mismatch=allow_mismatch))
        if self.predictor is not None:
            self.predictor.know(task)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
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
        task: TaskChoice | None = None,
        seed: int = 0,
        negative: str = "",
        sampling: Sampling = Sampling(),
        large: Large | None = None,
        on_step: OnStep | None = None,
    ) -> UInt8[Tensor, "3 h w"]:
        """Edit one picture; the result has its size.

        Args:
            image: the picture; a PIL image is turned upright and made RGB first.
            instruction: what to change, in words.
            task: name of the task, see `emu_edit.tasks` (or a learned one's), or a mix of two; None
                asks the model's task predictor.
            seed: same seed, same pixels.
            negative: what the picture should not show; stands where guidance has no text, so it
                needs a text guidance other than 1.
            sampling: steps, guidance and sampler where they are not to be the model's.
            large: how a picture is edited that is larger than the model's training pictures, see
                `emu_edit.editing.large`; None chooses.
            on_step: called with (steps done, steps in all), for progress bars.

        Raises:
            InputError: for an unknown task, or an instruction that is empty, too long or not text.
        """
        pixels = from_pil(image) if isinstance(image, Image.Image) else image
        settings = sampling.applied(self.settings)
        if task is None:
            task = self.predict_tasks([instruction])[0].task
        local = is_drawn_locally(pixels[None], [task])
        way = self.announce(pixels.shape[-2:], settings, large, is_local=local)
        return self.edit_batch(
            pixels[None],
            [instruction],
            [task],
            [seed],
            negative=negative,
            settings=settings,
            large=way,
            on_step=progress(on_step, settings.num_steps),
        )[0]

    def predict_tasks(self, instructions: Sequence[str]) -> list[TaskPrediction]:
        """Ask the model's predictor which tasks are meant (InputError if it has none)."""
        return self._guess([clean_instruction(text) for text in instructions])

    def edit_batch(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        instructions: Sequence[str],
        tasks: Sequence[TaskChoice | None],
        seeds: Sequence[Seed],
        *,
        negative: str | Sequence[str] = "",
        settings: EditorSettings | None = None,
        large: Large | None = WHOLE,
        on_step: StepEnd | None = None,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Edit pictures of one size together, each as if edited alone; the result is on the CPU.

        `negative` is one text for all pictures or one for each, "" for none. A generator given for
        a seed is advanced; rows that share one draw from it in turn. Pictures of any size
        are edited as they are, unless `large` says otherwise; None chooses.
        `on_step` hears of every step of the sampler and may replace the latents, see `StepEnd`.

        Raises:
            InputError: for an unknown task, a seed that is out of range, or an instruction that is
                empty, too long or not text.
            ValueError: if the sequences differ in length.
        """
        negatives = [negative] if isinstance(negative, str) else negative
        check_counts((len(images), len(instructions), len(tasks), len(seeds)), len(negatives))
        for seed in seeds:
            if not isinstance(seed, torch.Generator):
                check_seed(seed)
        texts = [clean_instruction(text) for text in instructions]
        unnamed = [text for text, task in zip(texts, tasks, strict=True) if task is None]
        guesses = iter(self._guess(unnamed) if unnamed else [])
        known = [next(guesses).task if task is None else task for task in tasks]
        size, local = images.shape[-2:], is_drawn_locally(images, known)
        large = way_for(large, size, self.settings.image_size, is_local=local)
        small = large.shrunk(images)
        latents = self.edit_latents(
            self.encode(small),
            texts,
            known,
            seeds,
            negative=[
                clean_instruction(text, what="negative text") if text else "" for text in negatives
            ],
            settings=self.settings if settings is None else settings,
            on_step=on_step,
            tile=large.tile(self.multiple),
            pictures=small,
        )
        return large.enlarged(images, small, self.decode(latents, small.shape[-2:]))

    def check_size(self, height: int, width: int) -> None:
        """Refuse a picture far larger than the model's training pictures, before any work is done.

        Raises:
            InputError: if a side is more than `MOST_TIMES_LARGER` times theirs.
        """
        refuse_far_larger(self.settings.image_size, height=height, width=width)

    def forecast(
        self, size: Sequence[int], settings: EditorSettings, large: Large = WHOLE
    ) -> Forecast | None:
        """Say what editing a picture of (height, width) takes; None if it is soon done.

        Raises:
            InputError: if it is too large for the model, or for the memory that is free here.
        """
        large = large.settled(size, self.settings.image_size)
        (height, width), tile = large.edited_size(size), large.tile(self.multiple)
        if tile is None:
            self.check_size(height, width)
        told = self._costs.forecast(
            (-(-height // self.multiple), -(-width // self.multiple)),
            rows=sum(settings.guidance.needed),
            num_steps=settings.num_steps,
            tile=tile,
        )
        if told is not None:
            told.refuse_beyond(self.device, f"{width}x{height}", self.settings.image_size)
        return told

    def announce(
        self,
        size: Sequence[int],
        settings: EditorSettings,
        large: Large | None = WHOLE,
        *,
        is_local: bool = False,
    ) -> Large:
        """Say before an edit that takes long how long; refuse as `forecast` does.

        Returns how a picture of (height, width) is edited when `large` is asked for.
        """
        way = way_for(large, size, self.settings.image_size, is_local=is_local)
        told = self.forecast(size, settings, way)
        if told is not None and told.is_long:
            text = "an edit of %dx%d takes %s; a smaller copy is quicker: --size %d"
            logger.warning(text, *reversed(size), told, self.settings.image_size)
        return way

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Turn pictures into the latents that `edit_latents` takes and gives.

        Scaled, the posterior's mean; sides are padded by reflection to a multiple of `multiple`.
        """
        padded = reflect_to_multiple(images, self.multiple).to(self.device)
        return self.networks.codec.posterior(to_float(padded))[0]

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "b c lh lw"], size: Sequence[int]
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Turn latents into pictures, cut to (height, width), on the CPU."""
        height, width = size
        return to_uint8(self.networks.codec.decode(latents)).cpu()[..., :height, :width]

    @torch.no_grad()
    def edit_latents(
        self,
        latents: Float[Tensor, "b c lh lw"],
        texts: Sequence[str],
        tasks: Sequence[TaskChoice],
        seeds: Sequence[Seed],
        *,
        negative: Sequence[str],
        settings: EditorSettings,
        on_step: StepEnd | None,
        noise: Float[Tensor, "b c lh lw"] | None = None,
        tile: int | None = None,
        pictures: UInt8[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b c lh lw"]:
        """Edit from latents to latents, so that turns need no decoder in between.

        `edit_batch` and `EditSession` come here with everything decided: texts as
        `clean_instruction` returns them, tasks named, one of each for every row; of negative texts
        one for all or one for each, "" for none. `noise` takes the place of the seeds' first.
        With `tile` the network sees square tiles of so many cells, one by one, see `windowed`.
        `pictures` are for a text encoder that sees them; None decodes them from the latents.

        Raises:
            InputError: for an unknown task, a negative text that guidance would ignore, a picture
                that cannot be withheld, or a size that `check_size` refuses and no tiles.
        """
        if tile is None:
            self.check_size(*(side * self.multiple for side in latents.shape[-2:]))
        if any(negative) and settings.guidance.text == 1:
            raise InputError(
                "negative text has no effect at text guidance 1; give a higher one, e.g. 3"
            )
        stacked = branches_of_edit(
            self.networks,
            latents,
            texts,
            negative,
            v_task=task_vectors(self.networks, tasks),
            guidance=settings.guidance,
            pictures=None if pictures is None else to_float(pictures),
        )

        def predict_at(window: Window) -> Predict:
            part = replace(stacked, z_source=stacked.z_source[window.index])
            return self._predict(part, settings.guidance)

        predict = (
            self._predict(stacked, settings.guidance)
            if tile is None
            else windowed(predict_at, tiles(latents.shape, tile))
        )
        generators = [
            seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
            for seed in seeds
        ]
        if noise is None:
            noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
        return sample(
            predict,
            noise.to(stacked.z_source),
            schedule=self.schedule,
            prediction=self.prediction,
            num_steps=settings.num_steps,
            sampler=settings.sampler,
            generator=generators,
            on_step=on_step,
            tokens=None if tile is None else tile**2,
        )

    def _predict(self, stacked: Conditioning, guidance: Guidance) -> Predict:
        """Bind the conditions of all branches that run."""
        predict = self.networks.denoiser.told(stacked)
        return guided(
            with_source(predict, stacked.z_source, self.prediction),
            guidance,
            keeps_norm=self.networks.denoiser.keeps_norm,
        )

    def _guess(self, texts: list[str]) -> list[TaskPrediction]:
        if self.predictor is None:
            raise InputError(
                "this model has no task predictor; name the task (--task), or train one with "
                "'emu-edit predictor fit MODEL'"
            )
        return self.predictor.predict(texts)
