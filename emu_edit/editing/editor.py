"""The editor: a picture and an instruction in, the edited picture out.

It joins what training keeps apart: the networks (which know no schedule), the schedule and samplers
(which know no network), the pixels (which cross the uint8 border here, twice) and the words (which
are cleaned here, once). It knows no data set and no Lightning; the training callbacks, the
benchmarks and the command line all edit through it, so they cannot disagree about an edit.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from emu_edit.diffusion.guidance import guided
from emu_edit.diffusion.prediction import (
    DIFFUSERS_NAMES,
    Prediction,
    check,
    check_type,
    with_source,
)
from emu_edit.diffusion.samplers import OnStep, StepEnd, progress, sample
from emu_edit.diffusion.schedule import NoiseSchedule, trailing_timesteps
from emu_edit.editing.cost import Costs, Forecast, free_memory, gibi
from emu_edit.editing.find import PREDICTOR, choose_device, find_model
from emu_edit.editing.predictor import TaskPrediction, TaskPredictor, load_predictor
from emu_edit.editing.settings import EditorSettings, Sampling, choice
from emu_edit.editing.task_mix import TaskChoice, task_vectors
from emu_edit.errors import InputError
from emu_edit.images import (
    MOST_TIMES_LARGER,
    from_pil,
    is_far_larger,
    reflect_to_multiple,
    to_float,
    to_uint8,
)
from emu_edit.models.conditioning import branches
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.learned_task import LearnedTask
from emu_edit.models.networks import EditNetworks
from emu_edit.models.task_files import check_base
from emu_edit.models.weights import load_networks, save_networks
from emu_edit.randomness import check_seed
from emu_edit.text_rules import clean_instruction

logger = logging.getLogger(__name__)

WORLD = "world"  # as `trained_on`: drawn scenes of the built-in world, and nothing else
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
        schedule: NoiseSchedule,
        prediction: Prediction,
        settings: EditorSettings,
        predictor: TaskPredictor | None = None,
        objective: object = None,
        trained_on: object = None,
    ) -> None:
        """Join networks and schedule; the networks are used where they are, not copied.

        `objective` is the JSON value with which the model directory tells what it was trained for
        (see `emu_edit.training.objective`); editing only keeps it. `trained_on` is WORLD, or
        anything else where nothing is known.

        Raises:
            InputError: if `prediction` cannot be sampled with `schedule` (eps, zero terminal SNR).
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
        path, device = find_model(path), choose_device(device)
        networks, scheduler_config, values = load_networks(path, device)
        predictor = load_predictor(path / PREDICTOR, networks)
        where = f"{path}/model_index.json"
        prediction = Prediction[choice(values, "prediction", [p.name for p in Prediction], where)]
        settings = EditorSettings.from_dict(values, where=where)
        try:
            check_type(scheduler_config, prediction)
            schedule = NoiseSchedule.from_config(scheduler_config)
            check(prediction, schedule)
            trailing_timesteps(schedule.num_steps, settings.num_steps)
        except InputError as error:
            raise InputError(f"{path}/scheduler/scheduler_config.json: {error}") from error
        return cls(
            networks.eval(),
            schedule=schedule,
            prediction=prediction,
            settings=settings,
            predictor=None if predictor is None else predictor.to(device),
            objective=values.get("objective"),
            trained_on=values.get("trained_on"),
        )

    def save_pretrained(
        self, path: Path | str, *, write_layers: Callable[[Path], None] | None = None
    ) -> None:
        """Write a diffusers-style model directory; after loading, same seed gives same pixels.

        `write_layers` is called with the directory before it appears under its name, to write the
        temporal layers of a model of videos.
        """
        name = DIFFUSERS_NAMES[self.prediction]
        save_networks(
            self.networks,
            Path(path),
            scheduler_config={**self.schedule.to_config(), "prediction_type": name},
            settings={
                "prediction": self.prediction.name,
                **self.settings.to_dict(),
                # absent where nothing is known: such a directory keeps its bytes
                **({} if self.objective is None else {"objective": self.objective}),
                **({} if self.trained_on is None else {"trained_on": self.trained_on}),
            },
            also=partial(self._write_more, write_layers),
            writes_layers=write_layers is not None,
        )

    def _write_more(self, write_layers: Callable[[Path], None] | None, folder: Path) -> None:
        if self.predictor is not None:
            (folder / PREDICTOR).mkdir()
            self.predictor.write_parts(folder / PREDICTOR)
        if write_layers is not None:
            write_layers(folder)

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
        on_step: OnStep | None = None,
    ) -> UInt8[Tensor, "3 h w"]:
        """Edit one picture; the result has its size.

        Pictures much larger than `settings.image_size` cost more time than they gain: the network
        has never seen structures of that size. Resizing is the caller's decision, never silent.

        Args:
            image: the picture; a PIL image is turned upright and made RGB first.
            instruction: what to change, in words.
            task: name of the task, see `emu_edit.tasks` (or a learned one's), or a mix of two; None
                asks the model's task predictor.
            seed: same seed, same pixels.
            negative: what the picture should not show; stands where guidance has no text, so it
                needs a text guidance other than 1.
            sampling: steps, guidance and sampler where they are not to be the model's.
            on_step: called with (steps done, steps in all), for progress bars.

        Raises:
            InputError: for an unknown task, or an instruction that is empty, too long or not text.
        """
        pixels = from_pil(image) if isinstance(image, Image.Image) else image
        settings = sampling.applied(self.settings)
        self.announce(pixels.shape[-2:], settings)
        return self.edit_batch(
            pixels[None],
            [instruction],
            [task],
            [seed],
            negative=negative,
            settings=settings,
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
        on_step: StepEnd | None = None,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Edit pictures of one size together, each as if edited alone; the result is on the CPU.

        `negative` is one text for all pictures or one for each, "" for none. A generator given for
        a seed is advanced; rows that share one draw from it in turn.
        `on_step` hears of every step of the sampler and may replace the latents, see `StepEnd`.

        Raises:
            InputError: for an unknown task, a seed that is out of range, or an instruction that is
                empty, too long or not text.
            ValueError: if the sequences differ in length.
        """
        counts = (len(images), len(instructions), len(tasks), len(seeds))
        if len(set(counts)) != 1:
            raise ValueError(
                f"an edit needs as many instructions, tasks and seeds as images, got {counts}"
            )
        for seed in seeds:
            if not isinstance(seed, torch.Generator):
                check_seed(seed)
        negatives = [negative] if isinstance(negative, str) else negative
        if len(negatives) not in {1, len(images)}:
            raise ValueError(f"got {len(negatives)} negative texts for {len(images)} images")
        texts = [clean_instruction(text) for text in instructions]
        unnamed = [text for text, task in zip(texts, tasks, strict=True) if task is None]
        guesses = iter(self._guess(unnamed) if unnamed else [])
        latents = self.edit_latents(
            self.encode(images),
            texts,
            [next(guesses).task if task is None else task for task in tasks],
            seeds,
            negative=[
                clean_instruction(text, what="negative text") if text else "" for text in negatives
            ],
            settings=self.settings if settings is None else settings,
            on_step=on_step,
        )
        return self.decode(latents, images.shape[-2:])

    def check_size(self, height: int, width: int) -> None:
        """Refuse a picture far larger than the model's training pictures, before any work is done.

        Raises:
            InputError: if a side is more than `MOST_TIMES_LARGER` times theirs.
        """
        trained = self.settings.image_size
        if is_far_larger(trained, height=height, width=width):
            raise InputError(
                f"the picture is {width}x{height}, more than {MOST_TIMES_LARGER} times the "
                f"{trained} px this model was trained at; edit a smaller copy: --size {trained}"
            )

    def forecast(self, size: Sequence[int], settings: EditorSettings) -> Forecast | None:
        """Say what editing a picture of (height, width) takes; None if it is soon done.

        Raises:
            InputError: if it is too large for the model, or for the memory that is free here.
        """
        height, width = size
        self.check_size(height, width)
        cells = -(-height // self.multiple), -(-width // self.multiple)
        told = self._costs.forecast(
            cells, rows=sum(settings.guidance.needed), num_steps=settings.num_steps
        )
        free = free_memory(self.device)
        if told is not None and free is not None and told.bytes > free:
            raise InputError(
                f"an edit of {width}x{height} takes about {gibi(told.bytes)} of memory, here "
                f"{gibi(free)} are free; edit a smaller copy: --size {self.settings.image_size}"
            )
        return told

    def announce(self, size: Sequence[int], settings: EditorSettings) -> None:
        """Say before an edit that takes long how long; refuse as `forecast` does."""
        told = self.forecast(size, settings)
        if told is not None and told.is_long:
            text = "an edit of %dx%d takes %s; a smaller copy is quicker: --size %d"
            logger.warning(text, *reversed(size), told, self.settings.image_size)

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Turn pictures into the latents that `edit_latents` takes and gives.

        Scaled, the posterior's mean; sides are padded by reflection to a multiple of `multiple`.
        """
        self.check_size(*images.shape[-2:])
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
    ) -> Float[Tensor, "b c lh lw"]:
        """Edit from latents to latents, so that turns need no decoder in between.

        `edit_batch` and `EditSession` come here with everything decided: texts as
        `clean_instruction` returns them, tasks named, one of each for every row; of negative texts
        one for all or one for each, "" for none. `noise` takes the place of the seeds' first.

        Raises:
            InputError: for an unknown task, or a negative text that guidance would ignore.
        """
        if any(negative) and settings.guidance.text == 1:
            raise InputError(
                "negative text has no effect at text guidance 1; give a higher one, e.g. 3"
            )
        v_task = task_vectors(self.networks, tasks)
        # equal texts are encoded once: what one text gives does not depend on how often it is said
        nulls = list(negative) if len(set(negative)) > 1 else [negative[0]]
        text, null_text = self.networks.encode_text(list(texts), nulls)
        z_source = self.networks.codec.as_condition(latents.to(self.device))
        stacked = branches(
            Conditioning(text=text, z_source=z_source, v_task=v_task),
            null_text,
            settings.guidance.needed,
        )
        denoiser = partial(self.networks.denoiser, cond=stacked)
        predict = with_source(denoiser, stacked.z_source, self.prediction)
        generators = [
            seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
            for seed in seeds
        ]
        shape = z_source.shape[1:]
        drawn = (
            noise if noise is not None else [torch.randn(shape, generator=g) for g in generators]
        )
        return sample(
            guided(predict, settings.guidance),
            torch.stack(list(drawn)).to(z_source),
            schedule=self.schedule,
            prediction=self.prediction,
            num_steps=settings.num_steps,
            sampler=settings.sampler,
            generator=generators,
            on_step=on_step,
        )

    def _guess(self, texts: list[str]) -> list[TaskPrediction]:
        if self.predictor is None:
            raise InputError(
                "this model has no task predictor; name the task (--task), or train one with "
                "'emu-edit predictor fit MODEL'"
            )
        return self.predictor.predict(texts)
